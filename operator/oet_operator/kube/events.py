"""Kubernetes Events: what `kubectl describe` tells of the turns of an execution's life, and of what went wrong.

Every Event is a write, and nobody may wait for one: they are written one after the other, beside the work, and when there are too
many, those of usual lives are left out. State, history and conditions tell those lives as well. They are core/v1 Events: those of
events.k8s.io/v1 are the same objects with fields for series, of which there are none here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from oet_crds.alarms import find_alarm
from oet_crds.conditions import find_condition
from oet_crds.ends import describe_deadline, find_deadline
from oet_crds.execution import ScriptExecution, ScriptExecutionStatus
from oet_crds.history import has_begun
from oet_crds.names import KIND, STOPPED_BY_ANNOTATION
from oet_crds.reasons import EventReason, Reason
from oet_crds.states import ConditionType, DesiredState, State, is_final
from oet_operator.kube.client import KubeClient
from oet_operator.kube.errors import ApiError
from oet_operator.kube.paths import API_VERSION, Paths

__all__ = ["EventRecorder", "Notice", "find_notices"]

COMPONENT = "oet-operator"

MAX_PENDING = 200
"""Events that wait to be written; more are left out: they must never hold up what they tell of."""

USUAL_PER_SECOND, USUAL_BURST = 20.0, 100
"""Events of usual lives, some four in each: five executions a second can be told, and of more what goes wrong. The API server's
other work for an execution is some ten writes."""

MAX_REMEMBERED = 2000
"""Events that are not written a second time."""

MAX_MESSAGE_CHARS = 1024
"""What Kubernetes takes."""

_log = logging.getLogger(__name__)

_TROUBLE = frozenset(
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
        reason: In one word; an `EventReason` is a turn of a usual life.
        message: In words.
    """

    is_warning: bool
    reason: Reason | EventReason
    message: str


_ENDS = {
    State.COMPLETE: EventReason.COMPLETED,
    State.STOPPED: EventReason.STOPPED,
    State.FAILED: EventReason.FAILED,
    State.UNKNOWN: EventReason.UNKNOWN,
}


def find_notices(before: ScriptExecutionStatus, execution: ScriptExecution) -> list[Notice]:
    """Return what a change of status is worth telling, in the order in which it happened. Pure."""
    after = execution.status
    found = [
        *_find_turns(before, after),
        _find_wait(before, after),
        _find_stop(before, execution),
        _find_end(before, after),
        _find_alarm(before, execution),
    ]
    return [notice for notice in found if notice is not None]


def _find_turns(before: ScriptExecutionStatus, after: ScriptExecutionStatus) -> list[Notice]:
    """Tell of READY, of a start that was refused, and of the start. READY after `main` is no news."""
    known = before.history[-1].seq if before.history else 0
    reached = [entry.state for entry in after.history if entry.seq > known]
    notices = []
    if (
        State.READY in reached
        and not has_begun(before)
        and reached.index(State.READY) < _find_index(reached, State.RUNNING)
    ):
        notices.append(Notice(False, EventReason.READY, "the script is prepared"))
    if after.refusal is not None and after.refusal != before.refusal:
        notices.append(Notice(False, EventReason.START_REFUSED, after.refusal.message))
    if State.RUNNING in reached:
        subarray = after.grant.subarray if after.grant else None
        where = "" if subarray is None else f" on subarray {subarray}"
        notices.append(Notice(False, EventReason.STARTED, f"main has begun{where}"))
    return notices


def _find_index(states: list[State], state: State) -> int:
    return states.index(state) if state in states else len(states)


def _find_wait(before: ScriptExecutionStatus, after: ScriptExecutionStatus) -> Notice | None:
    """Tell what a start, or a Pod, waits for."""
    is_news = after.reason is not None and after.reason is not before.reason and not is_final(after.state)
    is_refusal = after.refusal is not None and after.message == after.refusal.message
    if not is_news or is_refusal or after.reason not in (Reason.SUBARRAY_BUSY, *_TROUBLE):
        return None
    return Notice(after.reason in _TROUBLE, after.reason, after.message or "")


def _find_stop(before: ScriptExecutionStatus, execution: ScriptExecution) -> Notice | None:
    """Tell for whom, or for what, an execution is being stopped."""
    after, spec = execution.status, execution.spec
    is_stopping = find_condition(after, ConditionType.STOPPING) is not None
    # A script that stops at once has ended before anything else was written.
    was_quick = after.state is State.STOPPED and after.reason is Reason.STOP_REQUESTED
    is_told = find_condition(before, ConditionType.STOPPING) is not None or is_final(before.state)
    if is_told or not (is_stopping or was_quick):
        return None
    deadline = find_deadline(after)
    if deadline is not None and spec.desired_state is not DesiredState.STOPPED:
        return Notice(False, EventReason.STOPPING, f"{deadline}: {describe_deadline(deadline, after)}")
    user = execution.metadata.annotations.get(STOPPED_BY_ANNOTATION)
    abort = ", with an abort of its subarray" if spec.stop.abort else ""
    return Notice(False, EventReason.STOPPING, (f"by {user}" if user else "on request") + abort)


def _find_end(before: ScriptExecutionStatus, after: ScriptExecutionStatus) -> Notice | None:
    if not is_final(after.state) or after.state is before.state:
        return None
    is_usual = after.state in (State.COMPLETE, State.STOPPED)
    words = [str(word) for word in (after.reason, after.message) if word]
    return Notice(not is_usual, _ENDS[after.state], ": ".join(words))


def _find_alarm(before: ScriptExecutionStatus, execution: ScriptExecution) -> Notice | None:
    """Tell of the alarm that an execution has begun to raise."""
    alarm = find_alarm(execution)
    if alarm is None or alarm == find_alarm(execution.model_copy(update={"status": before})):
        return None
    return Notice(True, alarm.reason, alarm.message)


class EventRecorder:
    """Writes Events one after the other, when there is time. For one event loop.

    Attributes:
        left_out: How many were not written because there were too many.
    """

    def __init__(self, client: KubeClient, paths: Paths) -> None:
        self._client = client
        self._paths = paths
        self._pending: asyncio.Queue[tuple[ScriptExecution, Notice, int]] = asyncio.Queue(MAX_PENDING)
        self._told: OrderedDict[tuple[str, Notice], None] = OrderedDict()
        self._complained = False
        self._room, self._filled_at = float(USUAL_BURST), time.monotonic()
        self._last_ns = 0
        self.left_out = 0

    def record(self, execution: ScriptExecution, before: ScriptExecutionStatus) -> None:
        """Have told what has become of an execution; never waits, never fails."""
        for notice in find_notices(before, execution):
            self._put(execution, notice)

    def record_place(self, execution: ScriptExecution, pod: str, node: str) -> None:
        """Have told that the Pod of an execution has a node; never waits, never fails."""
        self._put(execution, Notice(False, EventReason.PLACED, f"Pod {pod} is on node {node}"))

    def _put(self, execution: ScriptExecution, notice: Notice) -> None:
        if (execution.uid, notice) in self._told:
            return
        if self._pending.full() or not (notice.is_warning or self._take_room()):
            self.left_out += 1
            return
        self._told[execution.uid, notice] = None
        while len(self._told) > MAX_REMEMBERED:
            self._told.popitem(last=False)
        # Counts up within a moment too: the name keeps the order of what happened in the same second.
        self._last_ns = max(time.time_ns(), self._last_ns + 1)
        self._pending.put_nowait((execution, notice, self._last_ns))

    def _take_room(self) -> bool:
        """Tell whether there is room for one more Event of a usual life, and take it."""
        now = time.monotonic()
        self._room = min(USUAL_BURST, self._room + (now - self._filled_at) * USUAL_PER_SECOND)
        self._filled_at = now
        if self._room < 1:
            return False
        self._room -= 1
        return True

    async def run(self) -> None:
        """Write what is recorded, for ever."""
        while True:
            execution, notice, when_ns = await self._pending.get()
            try:
                await self._client.post(self._paths.events, build_event(execution, notice, when_ns))
            except ApiError as error:
                level = logging.DEBUG if self._complained else logging.WARNING
                _log.log(level, "an Event of %s could not be written: %s", execution.metadata.name, error)
                self._complained = True


def build_event(execution: ScriptExecution, notice: Notice, when_ns: int) -> dict[str, Any]:
    """Build the Event that tells a notice, named after the time as Kubernetes' own are. Pure.

    Args:
        execution: Whom it tells of.
        notice: What it tells.
        when_ns: Nanoseconds since the epoch; no two Events of an execution have the same.
    """
    stamp = datetime.fromtimestamp(when_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata = execution.metadata
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata.name[:200].rstrip('.-')}.{when_ns:016x}",
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
