"""What the API server's refusals mean, by who must act."""

from __future__ import annotations

import re
from http import HTTPStatus

__all__ = [
    "ApiConflictError",
    "ApiError",
    "ApiMissingError",
    "ApiRefusedError",
    "ApiTooLargeError",
    "ApiUnavailableError",
    "build_error",
    "is_hopeless",
    "is_refusal",
]


class ApiError(Exception):
    """The API server did not do what was asked.

    Attributes:
        status: HTTP status; 0 when there was no answer.
        reason: Kubernetes' word for it, for example `AlreadyExists`; may be empty.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class ApiMissingError(ApiError):
    """There is no such object."""


class ApiConflictError(ApiError):
    """The object exists already, or was changed meanwhile: read it, decide again."""


class ApiRefusedError(ApiError):
    """The same request will be refused again: what was asked for is wrong, or not allowed."""


class ApiTooLargeError(ApiRefusedError):
    """The object, as the request would make it, does not fit into the API server's store."""


class ApiUnavailableError(ApiError):
    """No answer, or none that means anything: the same request may succeed later."""


_TYPES: dict[int, type[ApiError]] = {
    HTTPStatus.NOT_FOUND: ApiMissingError,
    HTTPStatus.GONE: ApiMissingError,
    HTTPStatus.CONFLICT: ApiConflictError,
    HTTPStatus.BAD_REQUEST: ApiRefusedError,
    HTTPStatus.FORBIDDEN: ApiRefusedError,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ApiTooLargeError,
    HTTPStatus.UNPROCESSABLE_ENTITY: ApiRefusedError,
}
"""401 is not among them: a token that ran out is replaced by the kubelet."""

_TOO_LARGE_WORDS = ("request is too large", "trying to send message larger than max")
"""What etcd says, and the API server's own connection to it: both come as an internal error."""


_WRONG = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)

_ADMISSION = re.compile(r"admission webhook|admission plugin|AdmissionPolicy|denied (the )?request")
"""How Kubernetes tells that a rule of this cluster forbids an object, which is not wrong by itself: with any status."""

_PASSING = (0, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)


def is_hopeless(error: ApiError) -> bool:
    """Tell whether an object that was to be created is wrong by itself, so that it will never be taken. Pure.

    All else may change without it: a quota is freed, a policy or a webhook removed, an account created.
    """
    is_wrong = error.status in _WRONG or isinstance(error, ApiTooLargeError)
    return is_wrong and not _ADMISSION.search(str(error))


def is_refusal(error: ApiError) -> bool:
    """Tell whether the API server spoke of the object that was to be created, rather than of itself. Pure.

    A webhook that does not answer comes as a 500, and one that a policy forbids may come as a 401.
    """
    if error.status == HTTPStatus.UNAUTHORIZED:
        return bool(_ADMISSION.search(str(error)))
    return error.status not in _PASSING


def build_error(status: int, answer: object) -> ApiError:
    """Build the error for an answer of the API server, which is a Kubernetes Status where the server itself wrote it."""
    fields = answer if isinstance(answer, dict) else {}
    reason, message = str(fields.get("reason") or ""), str(fields.get("message") or f"HTTP status {status}")
    if status == HTTPStatus.INTERNAL_SERVER_ERROR and any(words in message for words in _TOO_LARGE_WORDS):
        return ApiTooLargeError(status, reason, message)
    return _TYPES.get(status, ApiUnavailableError)(status, reason, message)
