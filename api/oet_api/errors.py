"""What the server answers when a request cannot be served: one mapping, from an error to status, body and headers.

Every error body is `{"detail": ...}`: a text, or for a request that breaks the schema a list of problems (upstream's form).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import falcon
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from oet_api.limits import InvalidJsonError, shorten
from oet_api.wire import dump_json
from oet_crds.errors import (
    AbortFailedError,
    ConflictError,
    InvalidTransitionError,
    NotFoundError,
    OetError,
    OverloadedError,
    RequestRefusedError,
    SubarrayBusyError,
    UnavailableError,
)
from oet_crds.topics import Severity

__all__ = [
    "BadRequestError",
    "ErrorAnswer",
    "NotCertainYetError",
    "build_error_answer",
    "build_problems",
    "install_error_handlers",
]

_log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 1
"""When a client may try again if nobody knows better: long enough for a restart of the engine to begin."""

MAX_PROBLEMS = 50
"""Problems that one answer lists: a body with thousands of wrong fields must not become an answer of megabytes."""


class BadRequestError(OetError):
    """The request breaks the schema or a limit.

    Attributes:
        status: HTTP status, 4xx.
        detail: A text, or the list of problems.
    """

    def __init__(self, status: int, detail: str | Sequence[Mapping[str, Any]]) -> None:
        super().__init__(str(detail))
        self.status = status
        self.detail = detail


class NotCertainYetError(OetError):
    """What was asked is under way, or its outcome cannot be known; the text says what is true now."""


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error as HTTP.

    Attributes:
        status: HTTP status.
        body: The JSON object of the answer.
        headers: Headers besides the usual ones.
    """

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


_STATUS_OF: tuple[tuple[type[OetError], int], ...] = (
    (NotFoundError, 404),
    (RequestRefusedError, 409),
    (ConflictError, 409),
    (OverloadedError, 503),
    (UnavailableError, 503),
    (NotCertainYetError, 504),
)


def build_problems(error: ValidationError, prefix: Sequence[str | int], body: Any = None) -> list[dict[str, Any]]:
    """Return a validation error as upstream lists it: type, loc, msg, input, and ctx where there is one.

    Args:
        error: What pydantic found.
        prefix: Where the checked value is in the request, for example `["body"]`.
        body: Not used for anything but the `input` of problems that have none.
    """
    problems: list[ErrorDetails] = error.errors(include_url=False)
    return [_build_problem(problem, prefix, body) for problem in problems[:MAX_PROBLEMS]]


def _build_problem(problem: ErrorDetails, prefix: Sequence[str | int], body: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": problem["type"],
        "loc": [*prefix, *(shorten(part) for part in problem["loc"])],
        "msg": shorten(problem["msg"]),
        "input": shorten(problem.get("input", body)),
    }
    if context := problem.get("ctx"):
        found["ctx"] = {name: shorten(str(value)) for name, value in context.items()}
    return found


def build_error_answer(error: BaseException) -> ErrorAnswer:
    """Return the HTTP form of an error. Pure: an error that nobody foresaw is a plain 500."""
    if isinstance(error, BadRequestError):
        return ErrorAnswer(error.status, {"detail": error.detail})
    if isinstance(error, InvalidJsonError):
        problem = {
            "type": "json_invalid",
            "loc": ["body", error.position],
            "msg": "JSON decode error",
            "input": {},
            "ctx": {"error": str(error)},
        }
        return ErrorAnswer(422, {"detail": [problem]})
    if isinstance(error, falcon.HTTPError):
        return ErrorAnswer(error.status_code, {"detail": _describe(error)}, dict(error.headers or {}))
    for kind, status in _STATUS_OF:
        if isinstance(error, kind):
            return ErrorAnswer(status, {"detail": str(error), **_extra(error)}, _headers(error))
    return ErrorAnswer(500, {"detail": "Internal Server Error"})


def _describe(error: falcon.HTTPError) -> str:
    words = error.description or str(error.title or error.status)
    status, _, text = words.partition(" ")
    return text if text and status == str(error.status_code) else words


def _extra(error: BaseException) -> dict[str, Any]:
    if isinstance(error, SubarrayBusyError):
        return {"holder": error.holder, "subarray": error.subarray}
    if isinstance(error, AbortFailedError):
        return {"state": str(error.state), "severity": str(Severity.ALARM)}
    if isinstance(error, InvalidTransitionError):
        return {"state": str(error.state)}
    return {}


def _headers(error: BaseException) -> dict[str, str]:
    if isinstance(error, OverloadedError):
        return {"Retry-After": str(error.retry_after_seconds)}
    if isinstance(error, UnavailableError):
        return {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return {}


def install_error_handlers(app: falcon.App[falcon.Request, falcon.Response]) -> None:
    """Make the application answer every error through `build_error_answer`."""
    for kind in (Exception, falcon.HTTPError, OetError):
        app.add_error_handler(kind, _on_error)


def _on_error(req: falcon.Request, resp: falcon.Response, error: Exception, params: Mapping[str, Any]) -> None:
    """Answer an error; log one that nobody foresaw."""
    answer = build_error_answer(error)
    if answer.status == 500:
        _log.error("cannot answer %s %s", req.method, shorten(req.path), exc_info=error)
    resp.status = answer.status
    resp.text = None
    resp.stream = None
    # A responder that failed may have set another type already.
    resp.content_type = falcon.MEDIA_JSON
    resp.data = dump_json(answer.body)
    for name, value in answer.headers.items():
        resp.set_header(name, value)
