"""Kubernetes Events: what `kubectl describe` tells of an execution that did not go as usual.

Usual lives leave none: state, history and conditions tell them, and every Event is a write. They are core/v1 Events: those of
events.k8s.io/v1 are the same objects with fields for series, of which there are none here.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from oet_crds.alarms import find_alarm
from oet_crds.execution import ScriptExecution, ScriptExecutionStatus
from oet_crds.names import KIND
from oet_crds.reasons import Reason
from oet_crds.states import State, is_final
from oet_operator.kube.client import KubeClient
from oet_operator.kube.errors import ApiError
from oet_operator.kube.paths import API_VERSION, Paths

__all__ = ["EventRecorder", "Notice", "find_alarm_notice", "find_notice"]

COMPONENT = "oet-operator"

MAX_PENDING = 200
"""Events that wait to be written; more are left out: they must never hold up what they tell of."""

MAX_REMEMBERED = 2000
"""Events that are not written a second time."""

MAX_MESSAGE_CHARS = 1024
"""What Kubernetes takes."""

_log = logging.getLogger(__name__)

_WARNINGS = frozenset(
    {
        Reason.IMAGE_PULL_FAILED,
        Reason.INVALID_SPEC,
        Reason.POD_REJECTED,
        Reason.POD_START_FAILED,
        Reason.UNSCHEDULABLE,
    }
)


@dataclass(frozen=True, slots=True)
class Notice:
    """What is told of an execution.

    Attributes:
        is_warning: Somebody should look.
        reason: In one word.
        message: In words.
    """

    is_warning: bool
    reason: Reason
    message: str


def find_alarm_notice(execution: ScriptExecution, before: ScriptExecutionStatus) -> Notice | None:
    """Return the alarm that an execution has begun to raise, None when it has not. Pure."""
    alarm = find_alarm(execution)
    if alarm is None or alarm == find_alarm(execution.model_copy(update={"status": before})):
        return None
    return Notice(True, alarm.reason, alarm.message)


def find_notice(before: ScriptExecutionStatus, after: ScriptExecutionStatus) -> Notice | None:
    """Return what a change of status is worth telling, None for the usual. Pure."""
    if after.refusal is not None and after.refusal != before.refusal:
        return Notice(False, Reason.SUBARRAY_BUSY, after.refusal.message)
    if after.reason is None or (after.reason, after.state) == (before.reason, before.state):
        return None
    message = after.message or ""
    if is_final(after.state):
        is_usual = after.state in (State.COMPLETE, State.STOPPED)
        return None if is_usual else Notice(True, after.reason, f"{after.state}: {message}")
    if after.reason is before.reason or (after.reason is not Reason.SUBARRAY_BUSY and after.reason not in _WARNINGS):
        return None
    return Notice(after.reason in _WARNINGS, after.reason, message)


class EventRecorder:
    """Writes Events one after the other, when there is time. For one event loop."""

    def __init__(self, client: KubeClient, paths: Paths) -> None:
        self._client = client
        self._paths = paths
        self._pending: asyncio.Queue[tuple[ScriptExecution, Notice]] = asyncio.Queue(MAX_PENDING)
        self._told: OrderedDict[tuple[str, Notice], None] = OrderedDict()
        self._complained = False

    def record(self, execution: ScriptExecution, before: ScriptExecutionStatus) -> None:
        """Have told what has become of an execution; never waits, never fails."""
        notice = find_alarm_notice(execution, before) or find_notice(before, execution.status)
        if notice is None or (execution.uid, notice) in self._told or self._pending.full():
            return
        self._told[execution.uid, notice] = None
        while len(self._told) > MAX_REMEMBERED:
            self._told.popitem(last=False)
        self._pending.put_nowait((execution, notice))

    async def run(self) -> None:
        """Write what is recorded, for ever."""
        while True:
            execution, notice = await self._pending.get()
            try:
                await self._client.post(self._paths.events, build_event(execution, notice, datetime.now(UTC)))
            except ApiError as error:
                level = logging.DEBUG if self._complained else logging.WARNING
                _log.log(level, "an Event of %s could not be written: %s", execution.metadata.name, error)
                self._complained = True


def build_event(execution: ScriptExecution, notice: Notice, now: datetime) -> dict[str, Any]:
    """Build the Event that tells a notice. Pure but for its random name."""
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata = execution.metadata
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata.name[:200].rstrip('.-')}.{uuid.uuid4().hex[:16]}",
            "namespace": metadata.namespace,
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": metadata.name,
            "namespace": metadata.namespace,
            "uid": metadata.uid,
        },
        "type": "Warning" if notice.is_warning else "Normal",
        "reason": notice.reason.value,
        "message": notice.message[:MAX_MESSAGE_CHARS],
        "source": {"component": COMPONENT},
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }
