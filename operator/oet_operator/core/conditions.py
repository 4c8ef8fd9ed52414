"""Kubernetes conditions of an execution, so that `kubectl wait` and `kubectl describe` are useful."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from oet_crds.execution import Condition, ScriptExecutionStatus

__all__ = ["ConditionType", "find_condition", "with_condition"]


class ConditionType(StrEnum):
    """The conditions that OET sets."""

    READY = "Ready"
    """True once the script is prepared."""
    STARTED = "Started"
    """True once `main` was granted its start; False with the reason while it waits or was refused."""
    STOPPING = "Stopping"
    """True once the script is being stopped, with the reason."""
    COMPLETE = "Complete"
    """True when `main` returned; False when the execution ended in any other way."""


def find_condition(status: ScriptExecutionStatus, type_: ConditionType) -> Condition | None:
    """Return a condition, None when it is not set."""
    return next((condition for condition in status.conditions if condition.type == type_), None)


def with_condition(
    status: ScriptExecutionStatus, type_: ConditionType, is_true: bool, reason: str, now: datetime
) -> ScriptExecutionStatus:
    """Return the status with a condition set; the same object when it says so already. Pure."""
    old = find_condition(status, type_)
    word = "True" if is_true else "False"
    if old is not None and (old.status, old.reason) == (word, reason):
        return status
    since = old.last_transition_time if old is not None and old.status == word else now
    new = Condition.model_construct(
        type=type_.value, status=word, reason=reason, message="", last_transition_time=since
    )
    others = [condition for condition in status.conditions if condition.type != type_]
    return status.model_copy(update={"conditions": [*others, new]})
