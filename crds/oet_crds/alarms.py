"""What somebody must look at: an abort that did not work, a script that may still run, an abort script not held READY. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oet_crds.conditions import find_condition
from oet_crds.execution import ScriptExecution
from oet_crds.reasons import Reason
from oet_crds.states import ConditionType
from oet_crds.topics import Severity, Topic

__all__ = ["Alarm", "find_alarm", "find_release"]

_ALARMS = (
    (ConditionType.ABORTED, Topic.ABORT_FAILED, Severity.ALARM),
    (ConditionType.RELEASED, Topic.END_UNKNOWN, Severity.ALARM),
    (ConditionType.LEAVING, Topic.END_UNCONFIRMED, Severity.ALARM),
    (ConditionType.ARMED, Topic.ARMING_FAILED, Severity.WARNING),
)


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm of an execution.

    Attributes:
        topic: Under which it is published.
        reason: In one word.
        message: In words.
        time: Seconds since the epoch.
        payload: What the event stream has of it.
    """

    topic: Topic
    reason: Reason
    message: str
    time: float
    payload: Mapping[str, Any]


def find_release(execution: ScriptExecution) -> tuple[Topic, Mapping[str, Any], float] | None:
    """Return how an UNKNOWN execution let go of its subarray: topic, payload, seconds since the epoch; None: it did not."""
    condition = find_condition(execution.status, ConditionType.RELEASED)
    if condition is None or condition.status != "True":
        return None
    source, subarray = str(execution.procedure_id), execution.status.subarray
    payload = {"msg_src": source, "subarray": subarray, "reason": condition.reason, "message": condition.message}
    return Topic.RELEASED, payload, condition.last_transition_time.timestamp()


def find_alarm(execution: ScriptExecution, only: ConditionType | None = None) -> Alarm | None:
    """Return the alarm that an execution raises, None when it raises none.

    Args:
        execution: Whose.
        only: The condition that raises it; None: any, the gravest first.
    """
    status = execution.status
    for type_, topic, severity in _ALARMS:
        condition = find_condition(status, type_)
        if condition is None or condition.status != "False" or only not in (None, type_):
            continue
        payload = {
            "msg_src": str(execution.procedure_id),
            "severity": str(severity),
            "subarray": status.subarray,
            "abort_id": status.abort.procedure_id if status.abort else None,
            "reason": condition.reason,
            "message": condition.message,
        }
        when = condition.last_transition_time.timestamp()
        return Alarm(topic, Reason(condition.reason), condition.message, when, payload)
    return None
