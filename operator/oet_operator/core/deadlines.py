"""The time limits of an execution."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from oet_crds.aborts import is_armed
from oet_crds.conditions import find_condition
from oet_crds.execution import ScriptExecution, ScriptExecutionStatus
from oet_crds.reasons import Reason
from oet_crds.states import ConditionType, DesiredState, State
from oet_operator.core.aborts import LINGER_SECONDS
from oet_operator.core.locks import is_refused

__all__ = ["Deadline", "compute_deadlines", "is_idle"]


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment by which something must have happened, and the reason to stop when it has not."""

    at: datetime
    reason: Reason


def compute_deadlines(
    execution: ScriptExecution, status: ScriptExecutionStatus, ready_limit_seconds: float
) -> list[Deadline]:
    """Return the deadlines that still count, soonest reason to fail first. Pure.

    Those of the spec run from the creation of the execution; readyTimeoutSeconds counts until READY was first reached. A script
    that waits for its start has one as well, and an abort script that is held for a subarray which nobody uses.

    Args:
        execution: Whose.
        status: As it will be stored.
        ready_limit_seconds: How long it may wait for its start; 0: for ever.
    """
    created, spec = execution.metadata.creation_timestamp, execution.spec
    deadlines = []
    if spec.ready_timeout_seconds is not None and not _was_ready(status):
        deadlines.append(Deadline(created + timedelta(seconds=spec.ready_timeout_seconds), Reason.READY_TIMEOUT))
    if spec.active_deadline_seconds is not None:
        deadlines.append(Deadline(created + timedelta(seconds=spec.active_deadline_seconds), Reason.DEADLINE_EXCEEDED))
    needed = find_condition(status, ConditionType.NEEDED) if is_armed(execution) else None
    if needed is not None and needed.status == "False":
        deadlines.append(Deadline(needed.last_transition_time + timedelta(seconds=LINGER_SECONDS), Reason.NOT_NEEDED))
    idle = find_condition(status, ConditionType.IDLE)
    if ready_limit_seconds and idle is not None and idle.status == "True":
        since = idle.last_transition_time
        if status.refusal is not None:  # Somebody wanted to start it.
            since = max(since, status.refusal.time)
        deadlines.append(Deadline(since + timedelta(seconds=ready_limit_seconds), Reason.NOT_STARTED))
    return deadlines


def is_idle(execution: ScriptExecution, status: ScriptExecutionStatus) -> bool:
    """Tell whether a script is prepared, and its start is neither asked for nor will it come by itself. Pure."""
    if status.state is not State.READY or status.grant is not None or is_armed(execution):
        return False
    is_hopeless = status.reason is Reason.INVALID_SPEC or is_refused(execution.model_copy(update={"status": status}))
    return execution.spec.desired_state is DesiredState.READY or is_hopeless


def _was_ready(status: ScriptExecutionStatus) -> bool:
    return status.state in (State.READY, State.RUNNING) or find_condition(status, ConditionType.READY) is not None
