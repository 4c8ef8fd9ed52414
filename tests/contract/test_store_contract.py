"""What every engine promises to the REST server."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from oet_support import wait_until

from oet_crds.errors import (
    ConflictError,
    InvalidTransitionError,
    NotFoundError,
    OverloadedError,
    RequestRefusedError,
)
from oet_crds.execution import (
    Activity,
    ExecutionArgs,
    FunctionArgs,
    InlineScript,
    ScriptExecution,
    ScriptExecutionSpec,
    ScriptSource,
    StopOptions,
    WhenBusy,
)
from oet_crds.ports import ExecutionStore, SpecChange, Timeline
from oet_crds.reasons import Reason
from oet_crds.states import DesiredState, Mode, State
from oet_crds.topics import EntryKind, Topic
from oet_operator.local.engine import LocalEngine

LONG = "import time\ndef main(*args, **kwargs):\n    time.sleep(600)"
QUICK = "def main(*args, **kwargs):\n    print('ran', args, kwargs)"
SECONDS = 60.0
"""A machine that runs a cluster and its Pods besides may be slow."""

STOP = SpecChange(desired_state=DesiredState.STOPPED)


def _spec(source: str, subarray: int | None = None, **fields: object) -> ScriptExecutionSpec:
    fields.setdefault("desired_state", DesiredState.READY)
    return ScriptExecutionSpec(
        script=ScriptSource(inline=InlineScript(source=source)),
        subarray=subarray,
        **fields,  # type: ignore[arg-type]
    )


def _id(execution: ScriptExecution) -> int:
    assert execution.procedure_id is not None
    return execution.procedure_id


def _wait(store: ExecutionStore, procedure_id: int, *states: State) -> ScriptExecution:
    execution = store.wait(procedure_id, lambda one: one.status.state in states or one.is_finished, SECONDS)
    assert execution.status.state in states, execution.status
    return execution


def _ready(store: ExecutionStore, source: str, subarray: int | None = None) -> int:
    procedure_id = _id(store.create(_spec(source, subarray)))
    _wait(store, procedure_id, State.READY)
    return procedure_id


def _start(store: ExecutionStore, procedure_id: int, when_busy: WhenBusy = WhenBusy.WAIT) -> None:
    store.change(procedure_id, SpecChange(desired_state=DesiredState.RUNNING, when_busy=when_busy))


def test_created_execution_is_at_once_in_the_list_and_creating(store: ExecutionStore) -> None:
    execution = store.create(_spec(QUICK))
    assert execution.status.state is State.CREATING
    assert [one.uid for one in store.list()] == [execution.uid]


def test_execution_goes_the_usual_path(store: ExecutionStore) -> None:
    source = "def init(): pass\n" + QUICK
    procedure_id = _id(store.create(_spec(source)))
    _wait(store, procedure_id, State.READY)
    _start(store, procedure_id)
    ended = _wait(store, procedure_id, State.COMPLETE)
    assert " ".join(entry.state for entry in ended.status.history) == (
        "CREATING IDLE LOADING IDLE INITIALISING READY RUNNING READY COMPLETE"
    )
    assert [entry.seq for entry in ended.status.history] == list(range(1, 10))
    assert ended.status.reason is Reason.COMPLETED


def test_desired_running_runs_without_more(store: ExecutionStore) -> None:
    procedure_id = _id(store.create(_spec(QUICK, desired_state=DesiredState.RUNNING)))
    _wait(store, procedure_id, State.COMPLETE)


def test_arguments_reach_the_functions_as_they_are(store: ExecutionStore, timeline: Timeline) -> None:
    source = "def init(*args, **kwargs): print(args, kwargs)\n" + QUICK
    args = ExecutionArgs(init=FunctionArgs(args=[1, None], kwargs={"a": {"b": [True]}}))
    procedure_id = _id(store.create(_spec(source, args=args)))
    _wait(store, procedure_id, State.READY)
    main = FunctionArgs(args=["ä", 1.5], kwargs={"k": []})
    store.change(procedure_id, SpecChange(desired_state=DesiredState.RUNNING, main=main))
    _wait(store, procedure_id, State.COMPLETE)
    lines = timeline.read(0, limit=100, procedure_id=procedure_id, kinds=[EntryKind.LOG])
    assert [line.payload["line"] for line in lines] == [
        "(1, None) {'a': {'b': [True]}}",
        "ran ('ä', 1.5) {'k': []}",
    ]


def test_unknown_execution_is_not_found(store: ExecutionStore) -> None:
    for ask in (
        lambda: store.get(99),
        lambda: store.change(99, STOP),
        lambda: store.wait(99, lambda _: True, 1),
    ):
        with pytest.raises(NotFoundError, match="99"):
            ask()


def test_change_of_an_old_version_conflicts(store: ExecutionStore) -> None:
    procedure_id = _ready(store, QUICK)
    with pytest.raises(ConflictError):
        store.change(procedure_id, STOP, if_resource_version="0")
    assert store.get(procedure_id).status.state is State.READY


def test_finished_execution_takes_no_change(store: ExecutionStore) -> None:
    procedure_id = _ready(store, QUICK)
    store.change(procedure_id, STOP)
    _wait(store, procedure_id, State.STOPPED)
    with pytest.raises(InvalidTransitionError) as refused:
        _start(store, procedure_id)
    assert refused.value.state is State.STOPPED


def test_more_active_executions_than_allowed_are_refused_with_a_time(store: ExecutionStore) -> None:
    for _ in range(6):
        store.create(_spec(LONG))
    with pytest.raises(OverloadedError) as refused:
        store.create(_spec(LONG))
    assert refused.value.retry_after_seconds > 0


def test_finished_executions_beyond_the_limit_go_oldest_first(store: ExecutionStore) -> None:
    keep = _ready(store, LONG)
    ended = []
    for _ in range(5):
        ended.append(_id(store.create(_spec(QUICK, desired_state=DesiredState.RUNNING))))
        _wait(store, ended[-1], State.COMPLETE)
    wait_until(lambda: [_id(one) for one in store.list()] == [keep, *ended[-3:]], SECONDS, "they are still there")


def test_busy_subarray_waits_and_goes_on_when_it_is_free(store: ExecutionStore) -> None:
    holder, waiter = _ready(store, LONG, 1), _ready(store, QUICK, 1)
    _start(store, holder)
    _wait(store, holder, State.RUNNING)
    _start(store, waiter)
    waiting = store.wait(waiter, lambda one: one.status.reason is not None, SECONDS)
    assert waiting.status.reason is Reason.SUBARRAY_BUSY
    assert waiting.status.state is State.READY
    store.change(holder, STOP)
    _wait(store, waiter, State.COMPLETE)


def test_what_is_waited_for_is_on_the_event_stream_once(store: ExecutionStore, timeline: Timeline) -> None:
    holder, second = _ready(store, LONG, 1), _ready(store, QUICK, 1)
    _start(store, holder)
    _wait(store, holder, State.RUNNING)
    _start(store, second)
    waiting = store.wait(second, lambda one: one.status.reason is Reason.SUBARRAY_BUSY, SECONDS)
    store.change(holder, STOP)
    _wait(store, second, State.COMPLETE)
    told = [one for one in timeline.read(0, limit=100, procedure_id=second) if one.topic == Topic.WAITING]
    message = waiting.status.message
    assert message is not None
    assert "subarray 1" in message
    wait = {"msg_src": str(second), "state": State.READY, "reason": Reason.SUBARRAY_BUSY, "message": message}
    assert [(one.kind, one.payload) for one in told] == [(EntryKind.ACTION, wait)]


def test_busy_subarray_rejects_and_takes_a_second_try(store: ExecutionStore, timeline: Timeline) -> None:
    holder, other = _ready(store, LONG, 1), _ready(store, QUICK, 1)
    _start(store, holder)
    _start(store, other, WhenBusy.REJECT)
    refused = store.wait(other, lambda one: one.status.refusal is not None, SECONDS)
    assert refused.status.refusal is not None
    assert refused.status.refusal.holder == holder
    assert refused.status.refusal.generation == refused.metadata.generation
    store.change(other, SpecChange(desired_state=DesiredState.READY))
    store.change(holder, STOP)
    _wait(store, holder, State.STOPPED)
    assert store.get(other).status.state is State.READY
    _start(store, other, WhenBusy.REJECT)
    _wait(store, other, State.COMPLETE)
    # It waited for nothing.
    assert Topic.WAITING not in [entry.topic for entry in timeline.read(0, limit=100, procedure_id=other)]


def test_failing_script_leaves_its_stack_trace(store: ExecutionStore, timeline: Timeline) -> None:
    procedure_id = _id(store.create(_spec("def main(): 1 / 0", desired_state=DesiredState.RUNNING)))
    ended = _wait(store, procedure_id, State.FAILED)
    assert ended.status.reason is Reason.MAIN_FAILED
    assert "ZeroDivisionError" in (ended.status.stacktrace or "")
    entries = timeline.read(0, limit=100, procedure_id=procedure_id)
    assert Topic.STACKTRACE in [entry.topic for entry in entries]


@pytest.mark.parametrize(
    ("field", "source", "reason"),
    [
        ("active_deadline_seconds", LONG, Reason.DEADLINE_EXCEEDED),
        ("ready_timeout_seconds", "import time\ntime.sleep(600)", Reason.READY_TIMEOUT),
    ],
)
def test_deadline_ends_the_script_and_says_so(store: ExecutionStore, field: str, source: str, reason: Reason) -> None:
    spec = _spec(source, desired_state=DesiredState.RUNNING, **{field: 1})
    ended = _wait(store, _id(store.create(spec)), State.FAILED)
    assert ended.status.reason is reason


def test_finished_execution_goes_when_its_time_is_over(store: ExecutionStore) -> None:
    spec = _spec(QUICK, desired_state=DesiredState.RUNNING, ttl_seconds_after_finished=0)
    procedure_id = _id(store.create(spec))
    with pytest.raises(NotFoundError):
        store.wait(procedure_id, lambda _: False, SECONDS)
    assert store.list() == ()


def test_stop_before_anything_started_is_a_stop(store: ExecutionStore) -> None:
    procedure_id = _id(store.create(_spec(LONG)))
    store.change(procedure_id, STOP)
    _wait(store, procedure_id, State.STOPPED)


def test_unsupported_source_fails_with_the_reason(store: ExecutionStore) -> None:
    if not isinstance(store, LocalEngine):
        pytest.skip("a Pod can have a ConfigMap")
    source = ScriptSource.model_validate({"configMap": {"name": "a", "key": "b"}})
    ended = _wait(store, _id(store.create(ScriptExecutionSpec(script=source))), State.FAILED)
    assert ended.status.reason is Reason.UNSUPPORTED_SOURCE


ABORT = "def init(subarray_id): print('abort', subarray_id)\ndef main(): print('aborted')"


@pytest.mark.parametrize("competitors", [0, 3])
def test_abort_runs_next_on_the_subarray(
    store: ExecutionStore, ship: Callable[[str, str], None], competitors: int
) -> None:
    ship("abort.py", ABORT)
    target = _ready(store, LONG, 5)
    _start(store, target)
    _wait(store, target, State.RUNNING)
    for _ in range(competitors):
        _start(store, _ready(store, LONG, 5))
    stop = StopOptions(abort=True, grace_period_seconds=1)
    store.change(target, SpecChange(desired_state=DesiredState.STOPPED, stop=stop))
    stopped = store.wait(target, lambda one: one.status.abort is not None, SECONDS)
    assert stopped.status.state is State.STOPPED
    assert stopped.status.abort is not None
    abort = _wait(store, stopped.status.abort.procedure_id, State.COMPLETE)
    begun = {entry.state: entry.time for entry in abort.status.history}[State.RUNNING]
    for other in store.list():
        for entry in other.status.history:
            assert not (entry.state is State.RUNNING and stopped.status.history[-1].time <= entry.time < begun)


def test_timeline_has_what_the_api_appends(store: ExecutionStore, timeline: Timeline) -> None:
    procedure_id = _ready(store, QUICK)
    entry = timeline.append(procedure_id, Topic.REQUEST_START, {"cmd": {"a": 1}})
    assert timeline.last_id() >= entry.id
    assert timeline.read(entry.id - 1, limit=1) == [entry]
    assert entry.kind is EntryKind.ACTION


def test_timeline_wakes_a_listener(store: ExecutionStore, timeline: Timeline) -> None:
    procedure_id = _ready(store, QUICK)
    after = timeline.last_id()
    woken = []
    thread = threading.Thread(target=lambda: woken.append(timeline.wait(after, SECONDS)))
    thread.start()
    _start(store, procedure_id)
    thread.join(SECONDS)
    assert woken == [True]


def test_healthy_engine_says_so(store: ExecutionStore) -> None:
    assert store.observe_health().ready


def test_rehearsal_runs_beside_an_operation_on_its_subarray_or_is_refused(
    store: ExecutionStore, request: pytest.FixtureRequest
) -> None:
    if request.node.callspec.params["engine"] == "local-none":
        with pytest.raises(RequestRefusedError, match="namespace"):
            store.create(_spec(LONG, 1, mode=Mode.REHEARSAL))
        assert not store.list()
        return
    operation = _ready(store, LONG, 1)
    _start(store, operation)
    _wait(store, operation, State.RUNNING)
    rehearsal = _id(store.create(_spec(LONG, 1, mode=Mode.REHEARSAL)))
    _wait(store, rehearsal, State.READY)
    _start(store, rehearsal, WhenBusy.REJECT)
    _wait(store, rehearsal, State.RUNNING)
    assert _wait(store, operation, State.RUNNING).spec.mode is Mode.OPERATION
    store.change(rehearsal, SpecChange(desired_state=DesiredState.STOPPED, stop=StopOptions(abort=True)))
    assert _wait(store, rehearsal, State.STOPPED).status.abort is None
    assert len(store.list()) == 2


# ---- activities ------------------------------------------------------------------------------------------------------

READS_BLOCK = """
import json, os
def main(*, sb_json, sbi_id, **kwargs):
    with open(sb_json) as file:
        print(sbi_id, json.load(file)["sbd_id"], oct(os.stat(sb_json).st_mode & 0o777))
    {end}
"""


def _activity(source: str, number: int, **fields: object) -> ScriptExecutionSpec:
    path = f"/tmp/sbi-contract-{uuid.uuid4().hex}.json"
    activity = Activity(
        name="observe",
        sbd_id="sbd-1",
        sbd_version=2,
        sbi_id=f"sbi-{number}",
        sb_path=path,
        sb_json='{"sbd_id": "sbd-1"}',
    )
    args = ExecutionArgs(main=FunctionArgs(kwargs={"sb_json": path, "sbi_id": activity.sbi_id}))
    return _spec(source, activity=activity, args=args, **{"desired_state": DesiredState.RUNNING, **fields})


@pytest.mark.parametrize(
    ("end", "state", "told"),
    [
        pytest.param("pass", State.COMPLETE, Topic.SB_SUCCEEDED, id="succeeds"),
        pytest.param("raise ValueError", State.FAILED, Topic.SB_FAILED, id="fails"),
    ],
)
def test_script_of_an_activity_finds_its_block_and_the_timeline_tells_the_blocks_end(
    store: ExecutionStore, timeline: Timeline, end: str, state: State, told: Topic
) -> None:
    procedure_id = _id(store.create(_activity(READS_BLOCK.replace("{end}", end), 1)))
    ended = _wait(store, procedure_id, state)
    assert ended.spec.activity is not None
    assert (ended.spec.activity.sbi_id, ended.spec.activity.sbd_version) == ("sbi-1", 2)

    def read() -> list[Any]:
        return list(timeline.read(0, limit=100, procedure_id=procedure_id))

    wait_until(lambda: read()[-1].payload.get("new_state") == state, SECONDS, "the end is not in the timeline")
    entries = read()
    assert next(entry.payload["line"] for entry in entries if entry.kind is EntryKind.LOG) == "sbi-1 sbd-1 0o600"
    blocks = [(entry.topic, entry.payload["sbi_id"]) for entry in entries if entry.topic.startswith("sb.lifecycle")]
    assert blocks == [(Topic.SB_STARTED, "sbi-1"), (told, "sbi-1")]
    # Whoever listens up to the final state has heard how the block ended.
    topics = [entry.topic for entry in entries]
    assert topics.index(told) < len(topics) - 1
    assert not Path(ended.spec.activity.sb_path).exists()


def test_activity_that_finds_its_subarray_held_is_refused_by_itself_and_stays_ready(store: ExecutionStore) -> None:
    holder = _ready(store, LONG, 1)
    _start(store, holder)
    _wait(store, holder, State.RUNNING)
    second = _id(store.create(_activity(QUICK, 2, subarray=1, when_busy=WhenBusy.REJECT)))
    refused = store.wait(second, lambda one: one.status.refusal is not None or one.is_finished, SECONDS)
    assert refused.status.refusal is not None
    assert (refused.status.state, refused.status.refusal.holder) == (State.READY, holder)
    store.change(holder, STOP)
    _wait(store, holder, State.STOPPED)
    assert store.get(second).status.state is State.READY
