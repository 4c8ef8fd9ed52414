"""What the API server's refusals mean, by who must act."""

from __future__ import annotations

from http import HTTPStatus

__all__ = [
    "ApiConflictError",
    "ApiError",
    "ApiMissingError",
    "ApiRefusedError",
    "ApiTooLargeError",
    "ApiUnavailableError",
    "build_error",
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


def build_error(status: int, answer: object) -> ApiError:
    """Build the error for an answer of the API server, which is a Kubernetes Status where the server itself wrote it."""
    fields = answer if isinstance(answer, dict) else {}
    reason, message = str(fields.get("reason") or ""), str(fields.get("message") or f"HTTP status {status}")
    if status == HTTPStatus.INTERNAL_SERVER_ERROR and any(words in message for words in _TOO_LARGE_WORDS):
        return ApiTooLargeError(status, reason, message)
    return _TYPES.get(status, ApiUnavailableError)(status, reason, message)
