"""What an execution waits for before its script runs, as its status tells it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from oet_crds.reasons import Reason
from oet_crds.states import State

if TYPE_CHECKING:
    # The command line client needs `is_waiting`, and starts in a third of the time without the models.
    from oet_crds.execution import ScriptExecution

__all__ = ["find_wait", "is_waiting"]

_REASONS_OF_A_START = (Reason.SUBARRAY_BUSY, Reason.INVALID_SPEC)
"""Why one that is READY does not start; any other reason is one of before, that the engine has not taken back yet."""


def is_waiting(state: str, reason: str | None) -> bool:
    """Tell whether an execution's reason says what keeps its script from running: what it waits for, or a refused start."""
    if state == State.CREATING:
        return reason is not None
    return state == State.READY and reason in _REASONS_OF_A_START


def find_wait(execution: ScriptExecution) -> Mapping[str, Any] | None:
    """Return what the event stream has of what an execution waits for; None when it waits for nothing that is known."""
    status = execution.status
    # A start that was refused has its reason too, and waits for nothing.
    is_refused = status.refusal is not None and status.refusal.message == status.message
    if is_refused or not is_waiting(status.state, status.reason):
        return None
    return {
        "msg_src": str(execution.procedure_id),
        "state": str(status.state),
        "reason": str(status.reason),
        "message": status.message or "",
    }
