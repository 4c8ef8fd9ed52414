"""What somebody must look at: an abort that did not work, an abort script that cannot be held READY. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oet_crds.conditions import find_condition
from oet_crds.execution import ScriptExecution
from oet_crds.reasons import Reason
from oet_crds.states import ConditionType
from oet_crds.topics import Severity, Topic

__all__ = ["Alarm", "find_alarm"]

_ALARMS = (
    (ConditionType.ABORTED, Topic.ABORT_FAILED, Severity.ALARM),
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


def find_alarm(execution: ScriptExecution) -> Alarm | None:
    """Return the alarm that an execution raises, None when it raises none."""
    status = execution.status
    for type_, topic, severity in _ALARMS:
        condition = find_condition(status, type_)
        if condition is None or condition.status != "False":
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
