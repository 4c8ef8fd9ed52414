"""The history of an execution, as a value that only grows."""

from __future__ import annotations

from datetime import datetime

from oet_crds.execution import HISTORY_LIMIT, HistoryEntry, ScriptExecutionStatus
from oet_crds.states import State, is_allowed, is_final

__all__ = ["count_merged", "has_begun", "with_runner_transitions", "with_state"]


def with_state(status: ScriptExecutionStatus, state: State, when: datetime) -> ScriptExecutionStatus:
    """Return the status in a new state, with one more history entry. Pure; the caller knows that it is allowed."""
    last = status.history[-1] if status.history else None
    entry = HistoryEntry.model_construct(seq=last.seq + 1 if last else 1, state=state, time=when)
    return status.model_copy(update={"state": state, "history": [*status.history, entry][-HISTORY_LIMIT:]})


def has_begun(status: ScriptExecutionStatus) -> bool:
    """Tell whether `main` has begun, as far as is known."""
    return any(entry.state is State.RUNNING for entry in status.history)


def count_merged(status: ScriptExecutionStatus) -> int:
    """Return how many of the runner's transitions are in the history already.

    CREATING and final states are the operator's, all others come from the runner; sequence numbers have no gaps, so the
    last one counts all that ever were.
    """
    if not status.history:
        return 0
    last = status.history[-1]
    return last.seq - 1 - int(is_final(last.state))


def with_runner_transitions(status: ScriptExecutionStatus) -> ScriptExecutionStatus:
    """Return the status with the runner's new transitions in its history; the same object when there are none.

    A transition that the table does not allow is left out, and everything after it: a runner does not report such a thing,
    so nothing of it can be trusted until its end is known.
    """
    transitions = status.runner.transitions if status.runner else []
    for transition in transitions[count_merged(status) :]:
        if is_final(transition.state) or not is_allowed(status.state, transition.state):
            break
        status = with_state(status, transition.state, transition.time)
    return status
