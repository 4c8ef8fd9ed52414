"""The time limits of an execution."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from oet_crds.aborts import is_armed
from oet_crds.conditions import find_condition
from oet_crds.execution import ScriptExecution, ScriptExecutionStatus
from oet_crds.reasons import Reason
from oet_crds.states import ConditionType, State
from oet_operator.core.aborts import LINGER_SECONDS

__all__ = ["Deadline", "compute_deadlines"]


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment by which something must have happened, and the reason to stop when it has not."""

    at: datetime
    reason: Reason


def compute_deadlines(execution: ScriptExecution, status: ScriptExecutionStatus) -> list[Deadline]:
    """Return the deadlines that still count, soonest reason to fail first. Pure.

    Those of the spec run from the creation of the execution; readyTimeoutSeconds counts until READY was first reached. An abort
    script that is held for a subarray which nobody uses has one as well.
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
    return deadlines


def _was_ready(status: ScriptExecutionStatus) -> bool:
    return status.state in (State.READY, State.RUNNING) or find_condition(status, ConditionType.READY) is not None
