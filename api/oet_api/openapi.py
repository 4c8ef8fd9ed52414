"""One decorator that checks a request against its models, and the OpenAPI document made from the same declaration."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import falcon
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.json_schema import models_json_schema

from oet_api.errors import BadRequestError, build_problems
from oet_api.limits import parse_json, shorten

__all__ = [
    "EVENT_STREAM",
    "JSON",
    "PLAIN_TEXT",
    "Operation",
    "build_document",
    "check_query",
    "endpoint",
    "parse_id",
    "read_body",
]

JSON = "application/json"
PLAIN_TEXT = "text/plain; charset=utf-8"
EVENT_STREAM = "text/event-stream; charset=utf-8"

TITLE = "Observation Execution Tool API"

MAX_ID_DIGITS = 18
"""Ids with more digits cannot exist (they fit SQLite's 64 bits), and need not be looked up."""

_DESCRIPTIONS = {
    400: "The request is not HTTP that this server takes.",
    403: "A script may not come from there, or a web page from elsewhere sent this.",
    404: "There is no such thing; `detail` says what.",
    409: "Not possible as things are; `detail` says why and what to do.",
    411: "The length of the body is not given.",
    413: "Larger than this server takes.",
    415: "Only application/json is taken.",
    421: "The header Host names no host of this server.",
    422: "The request breaks the schema.",
    503: "A limit is reached or a part is away; try again after Retry-After seconds.",
    504: "The outcome is not known yet; `detail` says what is true now.",
}


class ErrorBody(BaseModel):
    """An error in words."""

    model_config = ConfigDict(extra="allow")

    detail: str


class Problem(BaseModel):
    """One thing that is wrong with a request."""

    type: str
    loc: list[str | int]
    msg: str
    input: Any = None
    ctx: dict[str, Any] | None = None


class ProblemList(BaseModel):
    """What is wrong with a request."""

    detail: list[Problem]


@dataclass(frozen=True, slots=True)
class Operation:
    """What one method of one path takes and answers.

    Attributes:
        operation_id: Name in the document.
        answer: Model of the body, several models of which it is one, or None for no JSON.
        status: Status of success.
        media: Content type of success; several where the client chooses.
        query: Model of the query.
        body: Model of the body.
        errors: Statuses of errors besides those that follow from query, body and path.
        is_list: The answer is a list of the model.
    """

    operation_id: str
    answer: type[BaseModel] | tuple[type[BaseModel], ...] | None = None
    status: int = 200
    media: Sequence[str] = (JSON,)
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    errors: Sequence[int] = ()
    is_list: bool = False


Responder = Callable[..., None]


def endpoint(operation: Operation) -> Callable[[Responder], Responder]:
    """Declare a responder: it gets the path's ids as numbers, `query` and `body` as checked models."""

    def decorate(responder: Responder) -> Responder:
        @functools.wraps(responder)
        def checked(resource: object, req: falcon.Request, resp: falcon.Response, **params: Any) -> None:
            # The body comes before anything is looked up: a request that breaks the schema is 422, not 404.
            for name, text in _ID_TEXTS.items():
                if name in params:
                    params[name] = parse_id(params[name], name, text)
            query = check_query(operation.query, req)
            if operation.query is not None:
                params["query"] = query
            if operation.body is not None:
                params["body"] = _check_body(operation.body, req)
            responder(resource, req, resp, **params)

        checked.operation = operation  # type: ignore[attr-defined]
        return checked

    return decorate


# ---- checks ----------------------------------------------------------------------------------------------------------


_ID_TEXTS = {"procedure_id": "PID", "activity_id": "ID"}
"""The parameters of paths that are ids, and how upstream's errors call them."""


def parse_id(text: str, name: str = "procedure_id", word: str = "PID") -> int:
    """Return an id, which is the parameter `name` of the path; one too large is not found.

    Raises:
        BadRequestError: It is not an integer.
        HTTPNotFound: It has more digits than any id; `word` is what upstream calls the id.
    """
    if re.fullmatch(r"[+-]?[0-9]+", text, re.ASCII) is None:
        problem = {
            "type": "int_parsing",
            "loc": ["path", name],
            "msg": "Input should be a valid integer, unable to parse string as an integer",
            "input": shorten(text),
        }
        raise BadRequestError(422, [problem])
    if len(text.lstrip("+-0")) > MAX_ID_DIGITS:
        raise falcon.HTTPNotFound(description=f"No information available for {word}={shorten(text)}")
    return int(text)


def check_query(model: type[BaseModel] | None, req: falcon.Request) -> BaseModel | None:
    """Return the checked query; None when the operation takes none, whatever was sent then.

    Raises:
        BadRequestError: A parameter is unknown, given twice, or wrong.
    """
    if model is None:
        return None
    given = req.params
    double = [name for name, value in given.items() if isinstance(value, list)]
    if double:
        problem = {"type": "value_error", "loc": ["query", shorten(double[0])], "msg": "Given more than once"}
        raise BadRequestError(422, [{**problem, "input": shorten(given[double[0]])}])
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise BadRequestError(422, build_problems(error, ["query"])) from error


def _check_body(model: type[BaseModel], req: falcon.Request) -> BaseModel:
    data = read_body(req)
    if not data:
        raise BadRequestError(422, [{"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}])
    value = parse_json(data)
    try:
        # Upstream's framework validates so; it is what makes the texts of errors the same.
        return model.model_validate(value, from_attributes=True)
    except ValidationError as error:
        raise BadRequestError(422, build_problems(error, ["body"])) from error


def read_body(req: falcon.Request) -> bytes:
    """Return the body of a request.

    Raises:
        BadRequestError: Encoded, larger than allowed, of unknown length, or shorter than announced. That it is JSON by its
            headers `oet_api.guard` has seen to.
    """
    limit = req.context.max_body_bytes
    if req.get_header("Content-Encoding", default="identity").strip().lower() not in ("identity", ""):
        raise BadRequestError(415, "Content-Encoding is not taken; send the JSON as it is")
    if req.get_header("Transfer-Encoding"):
        raise BadRequestError(411, "The length of the body must be given (Content-Length)")
    length = req.content_length or 0
    if length > limit:
        raise BadRequestError(413, f"The body has {length} bytes; this server takes {limit}")
    data: bytes = req.bounded_stream.read(length)
    if len(data) < length:
        raise BadRequestError(400, f"The body ended after {len(data)} of {length} bytes")
    return data


# ---- the document ----------------------------------------------------------------------------------------------------


def build_document(version: str, routes: Iterable[tuple[str, object]]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the declared operations.

    Args:
        version: Version of the API.
        routes: Path templates and their resources.
    """
    found: list[tuple[str, str, Any]] = [
        (path, method, getattr(resource, f"on_{method}"))
        for path, resource in routes
        for method in ("get", "post", "put")
        if hasattr(getattr(resource, f"on_{method}", None), "operation")
    ]
    models: set[type[BaseModel]] = {ErrorBody, ProblemList}
    for _, _, responder in found:
        operation = responder.operation
        models |= {model for model in (operation.query, operation.body) if model is not None}
        models.update(_find_answers(operation))
    ordered = sorted(models, key=lambda model: model.__name__)
    _, schema = models_json_schema(
        [(model, "validation") for model in ordered], ref_template="#/components/schemas/{model}"
    )
    schemas = schema["$defs"]
    paths: dict[str, Any] = {}
    for path, method, responder in found:
        paths.setdefault(path, {})[method] = _build_operation(responder, path, schemas)
    queries = {responder.operation.query.__name__ for _, _, responder in found if responder.operation.query}
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": version},
        "paths": paths,
        "components": {"schemas": {name: one for name, one in schemas.items() if name not in queries}},
    }


def _build_operation(responder: Any, path: str, schemas: Mapping[str, Any]) -> dict[str, Any]:
    operation: Operation = responder.operation
    summary, _, description = (responder.__doc__ or operation.operation_id).strip().partition("\n\n")
    built: dict[str, Any] = {
        "operationId": operation.operation_id,
        "summary": summary.replace("\n", " ").rstrip("."),
        "responses": _build_responses(operation, path),
    }
    if description:
        built["description"] = "\n".join(line.strip() for line in description.splitlines())
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    if operation.query is not None:
        parameters += _build_query_parameters(schemas[operation.query.__name__])
    if parameters:
        built["parameters"] = parameters
    if operation.body is not None:
        schema = {"$ref": f"#/components/schemas/{operation.body.__name__}"}
        built["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
    return built


def _build_query_parameters(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "query",
            "required": name in schema.get("required", ()),
            "description": one.get("description", ""),
            "schema": {key: value for key, value in one.items() if key not in ("description", "title")},
        }
        for name, one in schema["properties"].items()
    ]


def _build_responses(operation: Operation, path: str) -> dict[str, Any]:
    schema = _build_answer_schema(operation)
    success: dict[str, Any] = {"description": "Success."}
    success["content"] = {
        media: {"schema": schema if media == JSON else {"type": "string"}} for media in operation.media
    }
    # Whoever asks, `oet_api.guard` looks first.
    statuses = {403, 421, *operation.errors}
    if operation.body is not None:
        statuses |= {400, 411, 413, 415, 422}
    if operation.query is not None:
        statuses.add(422)
    if any(f"{{{name}}}" in path for name in _ID_TEXTS):
        statuses |= {404, 422}
    responses = {str(operation.status): success}
    for status in sorted(statuses):
        model = ProblemList if status == 422 else ErrorBody
        content = {JSON: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
        responses[str(status)] = {"description": _DESCRIPTIONS[status], "content": content}
    return responses


def _build_answer_schema(operation: Operation) -> Mapping[str, Any]:
    references = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in _find_answers(operation)]
    if len(references) > 1:
        return {"anyOf": references}
    if not references:
        return {}
    return {"type": "array", "items": references[0]} if operation.is_list else references[0]


def _find_answers(operation: Operation) -> tuple[type[BaseModel], ...]:
    if operation.answer is None:
        return ()
    return operation.answer if isinstance(operation.answer, tuple) else (operation.answer,)
