"""What the API server's refusals mean, and how they are told to people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from oet_api.errors import BadRequestError
from oet_crds.errors import OetError, OverloadedError, UnavailableError

__all__ = ["NO_ANSWER", "ApiError", "build_create_error", "build_error", "build_unavailable", "describe_refusal"]

NO_ANSWER = 0
"""Stands for an HTTP status where none came."""

_INVALID_VALUE = re.compile(r'Invalid value: (?:(?:"(?:[^"\\]|\\.)*"|[^\s":]+): )?(?P<text>.+)', re.DOTALL)
"""How the API server begins a rule's own words: with the value, if that is short."""

_RETRIABLE = frozenset({NO_ANSWER, HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS})
"""401 is among them: a token that ran out is replaced by the kubelet."""

_BAD_REQUESTS = frozenset(
    {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY}
)

_ADVICE: Mapping[int, str] = {
    NO_ANSWER: "Try again; if it stays so, see whether the API server runs and can be reached from here",
    HTTPStatus.UNAUTHORIZED: "Try again; if it stays so, its token is not accepted: see its ServiceAccount or kubeconfig",
    HTTPStatus.FORBIDDEN: "The server's account lacks this right: see its Role, and the namespace's quota",
    HTTPStatus.NOT_FOUND: "Is the CustomResourceDefinition of ScriptExecution installed, and does the namespace exist?",
}


class ApiError(Exception):
    """The API server did not do what was asked.

    Attributes:
        status: HTTP status; `NO_ANSWER` when none came: it may have been done all the same.
        reason: Kubernetes' word for it, for example `AlreadyExists`; may be empty.
        details: What it says for programs.
    """

    def __init__(self, status: int, message: str, reason: str = "", details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.details = details or {}

    @property
    def is_retriable(self) -> bool:
        """Tell whether the same request may succeed in a moment."""
        return self.status in _RETRIABLE or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR


def build_error(status: int, body: bytes) -> ApiError:
    """Build the error for an answer, which is a Kubernetes Status where the API server itself wrote it. Pure."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        text = body[:200].decode("utf-8", "replace").strip()
        return ApiError(status, f"HTTP status {status}" + (f": {text}" if text else ""))
    details = fields.get("details")
    message = str(fields.get("message") or f"HTTP status {status}")
    return ApiError(status, message, str(fields.get("reason") or ""), details if isinstance(details, dict) else None)


def describe_refusal(error: ApiError) -> str:
    """Return why the API server refused an object, in plain words: the rules' own where it names them. Pure."""
    causes = error.details.get("causes")
    words = [_describe_cause(cause) for cause in causes if isinstance(cause, dict)] if isinstance(causes, list) else []
    return "; ".join(dict.fromkeys(word for word in words if word)) or str(error)


def _describe_cause(cause: Mapping[str, Any]) -> str:
    message, field = str(cause.get("message") or ""), str(cause.get("field") or "")
    found = _INVALID_VALUE.fullmatch(message)
    text = found["text"] if found else message
    return f"{field}: {text}" if field and field != "<nil>" else text


def build_unavailable(error: ApiError) -> UnavailableError:
    """Build the error for a request that nobody but an administrator, or time, can help. Pure."""
    advice = _ADVICE.get(error.status, "Try again; if it stays so, see the API server's log")
    return UnavailableError(f"The Kubernetes API server did not do it: {error}. {advice}")


def build_create_error(error: ApiError) -> OetError:
    """Build the error for a ScriptExecution that the API server did not take. Pure."""
    if error.status in _BAD_REQUESTS:
        return BadRequestError(422, f"Kubernetes refuses the procedure: {describe_refusal(error)}")
    if error.status == HTTPStatus.FORBIDDEN and "exceeded quota" in str(error):
        return OverloadedError(f"The namespace's quota is used up: {error}. Remove procedures, or raise it", 5)
    return build_unavailable(error)
