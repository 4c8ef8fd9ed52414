"""Kubernetes conditions of an execution, so that `kubectl wait` and `kubectl describe` are useful."""

from __future__ import annotations

from datetime import datetime

from oet_crds.execution import Condition, ScriptExecutionStatus
from oet_crds.states import ConditionType

__all__ = ["find_condition", "with_condition"]


def find_condition(status: ScriptExecutionStatus, type_: ConditionType) -> Condition | None:
    """Return a condition, None when it is not set."""
    return next((condition for condition in status.conditions if condition.type == type_), None)


def with_condition(  # noqa: PLR0913 -- what a condition has
    status: ScriptExecutionStatus, type_: ConditionType, is_true: bool, reason: str, now: datetime, message: str = ""
) -> ScriptExecutionStatus:
    """Return the status with a condition set; the same object when it says so already. Pure."""
    old = find_condition(status, type_)
    word = "True" if is_true else "False"
    if old is not None and (old.status, old.reason) == (word, reason):
        return status
    since = old.last_transition_time if old is not None and old.status == word else now
    new = Condition.model_construct(
        type=type_.value, status=word, reason=reason, message=message, last_transition_time=since
    )
    others = [condition for condition in status.conditions if condition.type != type_]
    return status.model_copy(update={"conditions": [*others, new]})
