"""Events tell each turn of a life once, in its order, and never so many that they are in the way."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from oet_crds.conditions import with_condition
from oet_crds.ends import describe_deadline
from oet_crds.execution import (
    Condition,
    Grant,
    HistoryEntry,
    InlineScript,
    Metadata,
    Refusal,
    ScriptExecution,
    ScriptExecutionSpec,
    ScriptExecutionStatus,
    ScriptSource,
    StopOptions,
)
from oet_crds.names import STOPPED_BY_ANNOTATION
from oet_crds.reasons import EventReason, Reason
from oet_crds.states import ConditionType, DesiredState, State
from oet_operator.kube.client import KubeClient
from oet_operator.kube.errors import ApiUnavailableError
from oet_operator.kube.events import (
    MAX_MESSAGE_CHARS,
    USUAL_BURST,
    EventRecorder,
    Notice,
    build_event,
    find_notices,
)
from oet_operator.kube.paths import Paths

NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)


def _status(state: State = State.CREATING, reason: Reason | None = None, **fields: Any) -> ScriptExecutionStatus:
    fields.setdefault("message", None if reason is None else "why")
    return ScriptExecutionStatus(state=state, reason=reason, **fields)


def _execution(status: ScriptExecutionStatus, uid: str = "u") -> ScriptExecution:
    return ScriptExecution(
        metadata=Metadata(name="e", namespace="n", uid=uid, creation_timestamp=NOW),
        spec=ScriptExecutionSpec(script=ScriptSource(inline=InlineScript(source="x"))),
        status=status,
    )


REFUSAL = Refusal(generation=1, holder=2, message="busy", time=NOW)
READY = Notice(False, EventReason.READY, "the script is prepared")
STARTED = Notice(False, EventReason.STARTED, "main has begun")


def _history(*states: State) -> dict[str, Any]:
    """Return state and history of a status that went through some states."""
    entries = [HistoryEntry(seq=at + 1, state=state, time=NOW) for at, state in enumerate((State.CREATING, *states))]
    return {"state": entries[-1].state, "history": entries}


def _end(reason: EventReason, words: str, *, is_warning: bool = False) -> Notice:
    return Notice(is_warning, reason, words)


@pytest.mark.parametrize(
    ("before", "after", "notices"),
    [
        (_status(), _status(**_history(State.IDLE, State.LOADING)), []),
        (_status(), _status(**_history(State.IDLE, State.READY)), [READY]),
        (
            _status(**_history(State.IDLE)),
            _status(**_history(State.IDLE, State.READY, State.RUNNING)),
            [READY, STARTED],
        ),
        (
            _status(**_history(State.READY)),
            _status(**_history(State.READY, State.RUNNING), grant=Grant(time=NOW, subarray=3)),
            [Notice(False, EventReason.STARTED, "main has begun on subarray 3")],
        ),
        (_status(**_history(State.RUNNING)), _status(**_history(State.RUNNING, State.READY)), []),
        (
            _status(),
            _status(**_history(State.READY, State.RUNNING, State.READY, State.COMPLETE), reason=Reason.COMPLETED),
            [READY, STARTED, _end(EventReason.COMPLETED, "Completed: why")],
        ),
        (
            _status(**_history(State.RUNNING)),
            _status(**_history(State.RUNNING, State.READY, State.COMPLETE), reason=Reason.COMPLETED),
            [_end(EventReason.COMPLETED, "Completed: why")],
        ),
        (
            _status(State.RUNNING),
            _status(State.STOPPED, Reason.STOP_REQUESTED),
            [Notice(False, EventReason.STOPPING, "on request"), _end(EventReason.STOPPED, "StopRequested: why")],
        ),
        (
            _status(State.RUNNING),
            _status(State.FAILED, Reason.EVICTED),
            [_end(EventReason.FAILED, "Evicted: why", is_warning=True)],
        ),
        (
            _status(State.RUNNING),
            _status(State.UNKNOWN, Reason.NODE_LOST),
            [_end(EventReason.UNKNOWN, "NodeLost: why", is_warning=True)],
        ),
        (_status(State.FAILED, Reason.EVICTED), _status(State.FAILED, Reason.EVICTED, stacktrace="x"), []),
        (_status(), _status(reason=Reason.UNSCHEDULABLE), [Notice(True, Reason.UNSCHEDULABLE, "why")]),
        (_status(reason=Reason.UNSCHEDULABLE), _status(reason=Reason.UNSCHEDULABLE), []),
        (
            _status(State.READY),
            _status(State.READY, Reason.SUBARRAY_BUSY),
            [Notice(False, Reason.SUBARRAY_BUSY, "why")],
        ),
        (
            _status(State.READY),
            _status(State.READY, refusal=REFUSAL, reason=Reason.SUBARRAY_BUSY, message="busy"),
            [Notice(False, EventReason.START_REFUSED, "busy")],
        ),
        (_status(State.READY, refusal=REFUSAL), _status(State.READY, refusal=REFUSAL, podName="p"), []),
    ],
)
def test_each_turn_of_a_life_is_told_once_and_in_order(before: Any, after: Any, notices: list[Notice]) -> None:
    assert find_notices(before, _execution(after)) == notices


@pytest.mark.parametrize(
    ("reason", "spec", "annotations", "words"),
    [
        (Reason.STOP_REQUESTED, {"desired_state": DesiredState.STOPPED}, {}, "on request"),
        (Reason.STOP_REQUESTED, {"desired_state": DesiredState.STOPPED}, {STOPPED_BY_ANNOTATION: "Ana"}, "by Ana"),
        (
            Reason.STOP_REQUESTED,
            {"desired_state": DesiredState.STOPPED, "stop": StopOptions(abort=True)},
            {},
            "on request, with an abort of its subarray",
        ),
        (
            Reason.NOT_STARTED,
            {"desired_state": DesiredState.READY},
            {},
            f"NotStarted: {describe_deadline(Reason.NOT_STARTED, ScriptExecutionStatus())}",
        ),
    ],
)
def test_stop_is_told_with_what_is_known_of_who_asked(
    reason: Reason, spec: dict[str, Any], annotations: dict[str, str], words: str
) -> None:
    before = _status(State.RUNNING)
    execution = _execution(with_condition(before, ConditionType.STOPPING, True, reason, NOW))
    metadata = execution.metadata.model_copy(update={"annotations": annotations})
    execution = execution.model_copy(update={"metadata": metadata, "spec": execution.spec.model_copy(update=spec)})
    assert find_notices(before, execution) == [Notice(False, EventReason.STOPPING, words)]
    assert find_notices(execution.status, execution) == []


@pytest.mark.parametrize("name", ["e", "a" * 199 + ".b", "a" * 199 + "-" + "b" * 50])
def test_name_of_an_event_is_one_that_kubernetes_takes(name: str) -> None:
    execution = _execution(_status())
    execution = execution.model_copy(update={"metadata": execution.metadata.model_copy(update={"name": name})})
    event = build_event(execution, Notice(True, Reason.EVICTED, ""), 1)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", event["metadata"]["name"])


def test_event_belongs_to_its_execution_and_fits() -> None:
    event = build_event(_execution(_status()), Notice(True, Reason.EVICTED, "x" * 5000), 1)
    assert event["involvedObject"]["uid"] == "u"
    assert len(event["message"]) == MAX_MESSAGE_CHARS
    assert (event["type"], event["reason"]) == ("Warning", Reason.EVICTED.value)


class _Client(KubeClient):
    """Refuses what it is asked first."""

    def __init__(self) -> None:
        self.posted: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.refusals = 1

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.refusals:
            self.refusals -= 1
            raise ApiUnavailableError(0, "", "away")
        self.posted.append(body["involvedObject"]["uid"])
        self.events.append(body)
        return {}


def test_recorder_tells_once_and_goes_on_after_a_refusal(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> list[str]:
        client = _Client()
        recorder = EventRecorder(client, Paths("n"))
        failed = _status(State.FAILED, Reason.EVICTED)
        for uid in ("u1", "u2", "u2", "u3"):
            recorder.record(_execution(failed, uid), _status())
        task = asyncio.create_task(recorder.run())
        async with asyncio.timeout(5):
            while len(client.posted) < 2:
                await asyncio.sleep(0)
        task.cancel()
        return client.posted

    assert asyncio.run(scenario()) == ["u2", "u3"]
    assert "could not be written" in caplog.text


def test_alarm_is_told_once_and_as_a_warning() -> None:
    condition = Condition(
        type=ConditionType.ABORTED,
        status="False",
        reason=Reason.ABORT_FAILED,
        message="ALARM: no",
        last_transition_time=NOW,
    )
    before = _status(State.STOPPED, Reason.STOP_REQUESTED)
    after = _execution(before.model_copy(update={"conditions": [condition]}))
    assert find_notices(before, after) == [Notice(True, Reason.ABORT_FAILED, "ALARM: no")]
    assert find_notices(after.status, after) == []


def _fill(recorder: EventRecorder, lives: int) -> None:
    for number in range(lives):
        recorder.record(_execution(_status(**_history(State.READY, State.RUNNING)), f"u{number}"), _status())


def test_usual_lives_are_left_out_when_there_are_too_many_and_trouble_is_not() -> None:
    recorder = EventRecorder(_Client(), Paths("n"))
    _fill(recorder, USUAL_BURST)
    assert recorder.left_out == pytest.approx(USUAL_BURST, abs=5)  # Two each; some room comes back meanwhile.
    before = recorder.left_out
    recorder.record(_execution(_status(State.FAILED, Reason.EVICTED), "late"), _status())
    assert recorder.left_out == before


def test_events_of_one_second_have_names_in_their_order() -> None:
    async def scenario() -> list[str]:
        client = _Client()
        client.refusals = 0
        recorder = EventRecorder(client, Paths("n"))
        recorder.record_place(_execution(_status()), "pod", "node-1")
        _fill(recorder, 1)
        task = asyncio.create_task(recorder.run())
        async with asyncio.timeout(5):
            while len(client.events) < 3:
                await asyncio.sleep(0)
        task.cancel()
        assert [one["reason"] for one in client.events] == ["Placed", "Ready", "Started"]
        assert client.events[0]["message"] == "Pod pod is on node node-1"
        return [one["metadata"]["name"] for one in client.events]

    names = asyncio.run(scenario())
    assert names == sorted(set(names))
