"""Events tell what did not go as usual, and nothing else."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from oet_crds.execution import (
    Condition,
    InlineScript,
    Metadata,
    Refusal,
    ScriptExecution,
    ScriptExecutionSpec,
    ScriptExecutionStatus,
    ScriptSource,
)
from oet_crds.reasons import Reason
from oet_crds.states import ConditionType, State
from oet_operator.kube.client import KubeClient
from oet_operator.kube.errors import ApiUnavailableError
from oet_operator.kube.events import (
    MAX_MESSAGE_CHARS,
    EventRecorder,
    Notice,
    build_event,
    find_alarm_notice,
    find_notice,
)
from oet_operator.kube.paths import Paths

NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)


def _status(state: State = State.CREATING, reason: Reason | None = None, **fields: Any) -> ScriptExecutionStatus:
    return ScriptExecutionStatus(state=state, reason=reason, message=None if reason is None else "why", **fields)


def _execution(status: ScriptExecutionStatus, uid: str = "u") -> ScriptExecution:
    return ScriptExecution(
        metadata=Metadata(name="e", namespace="n", uid=uid, creation_timestamp=NOW),
        spec=ScriptExecutionSpec(script=ScriptSource(inline=InlineScript(source="x"))),
        status=status,
    )


REFUSAL = Refusal(generation=1, holder=2, message="busy", time=NOW)


@pytest.mark.parametrize(
    ("before", "after", "notice"),
    [
        (_status(), _status(State.READY), None),
        (_status(State.READY), _status(State.COMPLETE, Reason.COMPLETED), None),
        (_status(State.RUNNING), _status(State.STOPPED, Reason.STOP_REQUESTED), None),
        (_status(State.RUNNING), _status(State.FAILED, Reason.EVICTED), Notice(True, Reason.EVICTED, "FAILED: why")),
        (
            _status(State.RUNNING),
            _status(State.UNKNOWN, Reason.NODE_LOST),
            Notice(True, Reason.NODE_LOST, "UNKNOWN: why"),
        ),
        (_status(), _status(reason=Reason.UNSCHEDULABLE), Notice(True, Reason.UNSCHEDULABLE, "why")),
        (_status(reason=Reason.UNSCHEDULABLE), _status(reason=Reason.UNSCHEDULABLE), None),
        (
            _status(reason=Reason.IMAGE_PULL_FAILED),
            _status(State.FAILED, Reason.IMAGE_PULL_FAILED),
            Notice(True, Reason.IMAGE_PULL_FAILED, "FAILED: why"),
        ),
        (_status(State.READY), _status(State.READY, Reason.SUBARRAY_BUSY), Notice(False, Reason.SUBARRAY_BUSY, "why")),
        (_status(State.READY), _status(State.READY, refusal=REFUSAL), Notice(False, Reason.SUBARRAY_BUSY, "busy")),
        (_status(State.READY, refusal=REFUSAL), _status(State.RUNNING, refusal=REFUSAL), None),
        (_status(State.RUNNING), _status(State.RUNNING, Reason.STOP_REQUESTED), None),
    ],
)
def test_change_of_status_is_told_if_it_is_not_the_usual(before: Any, after: Any, notice: Notice | None) -> None:
    assert find_notice(before, after) == notice


@pytest.mark.parametrize("name", ["e", "a" * 199 + ".b", "a" * 199 + "-" + "b" * 50])
def test_name_of_an_event_is_one_that_kubernetes_takes(name: str) -> None:
    execution = _execution(_status())
    execution = execution.model_copy(update={"metadata": execution.metadata.model_copy(update={"name": name})})
    event = build_event(execution, Notice(True, Reason.EVICTED, ""), NOW)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", event["metadata"]["name"])


def test_event_belongs_to_its_execution_and_fits() -> None:
    event = build_event(_execution(_status()), Notice(True, Reason.EVICTED, "x" * 5000), NOW)
    assert event["involvedObject"]["uid"] == "u"
    assert len(event["message"]) == MAX_MESSAGE_CHARS
    assert (event["type"], event["reason"]) == ("Warning", Reason.EVICTED.value)


class _Client(KubeClient):
    """Refuses what it is asked first."""

    def __init__(self) -> None:
        self.posted: list[str] = []
        self.refusals = 1

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.refusals:
            self.refusals -= 1
            raise ApiUnavailableError(0, "", "away")
        self.posted.append(body["involvedObject"]["uid"])
        return {}


def test_recorder_tells_once_and_goes_on_after_a_refusal(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> list[str]:
        client = _Client()
        recorder = EventRecorder(client, Paths("n"))
        failed = _status(State.FAILED, Reason.EVICTED)
        for uid in ("u1", "u2", "u2", "u3"):
            recorder.record(_execution(failed, uid), _status())
        recorder.record(_execution(_status(State.READY), "u4"), _status())
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
    assert find_alarm_notice(after, before) == Notice(True, Reason.ABORT_FAILED, "ALARM: no")
    assert find_alarm_notice(after, after.status) is None
