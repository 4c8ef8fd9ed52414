"""Errors as types by who must act: the user, a retry, nobody. The REST server maps them to HTTP in one place."""

from __future__ import annotations

from oet_crds.states import State

__all__ = [
    "AbortFailedError",
    "ConflictError",
    "InvalidTransitionError",
    "NotFoundError",
    "OetError",
    "OverloadedError",
    "RequestRefusedError",
    "SubarrayBusyError",
    "UnavailableError",
]


class OetError(Exception):
    """Base of all errors that OET raises on purpose. Its text says what was wrong, where, and what to do."""


class RequestRefusedError(OetError):
    """The user asked for something that cannot be done now; the text says why and what to do instead."""


class NotFoundError(OetError):
    """There is no such execution (never was, or it was pruned)."""


class InvalidTransitionError(RequestRefusedError):
    """The execution is in a state in which the request makes no sense.

    Attributes:
        state: The state the execution is in.
    """

    def __init__(self, message: str, state: State) -> None:
        super().__init__(message)
        self.state = state


class AbortFailedError(InvalidTransitionError):
    """The script is stopped, and its abort did not work: an alarm, since what the subarray does is not known.

    Attributes:
        state: The state that the abort script ended in.
    """


class SubarrayBusyError(RequestRefusedError):
    """Another execution holds the subarray.

    Attributes:
        subarray: The subarray's number.
        holder: Procedure id of the execution that holds it.
    """

    def __init__(self, message: str, subarray: int, holder: int) -> None:
        super().__init__(message)
        self.subarray = subarray
        self.holder = holder


class ConflictError(OetError):
    """Somebody else changed the execution meanwhile: read it again, decide again."""


class OverloadedError(OetError):
    """A limit is reached; the same request may succeed later.

    Attributes:
        retry_after_seconds: When to try again, in whole seconds.
    """

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class UnavailableError(OetError):
    """A part that the service depends on does not answer; nobody's request is at fault."""
