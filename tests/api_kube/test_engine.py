"""Informer, store, logs and timeline together, against an API server over real HTTP that fails on demand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fake_cluster import PREFIX, FakeCluster, stamp

from oet_api.errors import BadRequestError
from oet_api.kube.engine import KubeEngine
from oet_crds.container_log import build_log_line
from oet_crds.errors import (
    ConflictError,
    InvalidTransitionError,
    NotFoundError,
    OetError,
    OverloadedError,
    UnavailableError,
)
from oet_crds.execution import FileScript, FunctionArgs, ScriptExecutionSpec, ScriptSource, StopOptions, WhenBusy
from oet_crds.names import STOPPED_BY_ANNOTATION
from oet_crds.ports import SpecChange
from oet_crds.states import DesiredState, State
from oet_crds.topics import EntryKind, Topic

Start = Callable[..., KubeEngine]

SECONDS = 15.0
STOP = SpecChange(desired_state=DesiredState.STOPPED)
START = SpecChange(desired_state=DesiredState.RUNNING)
READY_PATH = (State.IDLE, State.LOADING, State.IDLE, State.READY)


def spec(**fields: Any) -> ScriptExecutionSpec:
    fields.setdefault("desired_state", DesiredState.READY)
    return ScriptExecutionSpec(script=ScriptSource(file=FileScript(path="a.py")), **fields)


def create(engine: KubeEngine, **fields: Any) -> int:
    execution = engine.create(spec(**fields))
    assert execution.procedure_id is not None
    return execution.procedure_id


def wait_for(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return result


def wait_state(engine: KubeEngine, procedure_id: int, state: State) -> None:
    found = engine.wait(procedure_id, lambda one: one.status.state is state, SECONDS)
    assert found.status.state is state


def states(engine: KubeEngine, procedure_id: int) -> list[str]:
    entries = engine.timeline.read(0, limit=1000, procedure_id=procedure_id, kinds=[EntryKind.STATE])
    return [entry.payload["new_state"] for entry in entries if entry.topic == Topic.STATE_CHANGE]


def lines(engine: KubeEngine, procedure_id: int) -> list[str]:
    entries = engine.timeline.read(0, limit=100_000, procedure_id=procedure_id, kinds=[EntryKind.LOG])
    return [str(entry.payload.get("line", entry.payload.get("dropped"))) for entry in entries]


# ---- creating ----------------------------------------------------------------------------------------------------


def test_new_execution_has_the_id_that_the_operator_gave(engine: KubeEngine, cluster: FakeCluster) -> None:
    execution = engine.create(spec())
    assert (execution.procedure_id, execution.status.state) == (1, State.CREATING)
    assert [one.uid for one in engine.list()] == [execution.uid]
    metadata = cluster.find(1)["metadata"]
    assert metadata["name"].startswith("procedure-")
    assert metadata["labels"] == {"app.kubernetes.io/managed-by": "oet-api"}


def test_records_follow_the_first_state_in_the_timeline(engine: KubeEngine) -> None:
    created = engine.create(spec(), lambda one: [("request.procedure.create", {"id": one.procedure_id})])
    assert created.procedure_id == 1
    entries = engine.timeline.read(0, limit=10, procedure_id=1)
    assert [entry.topic for entry in entries] == [Topic.STATE_CHANGE, Topic.REQUEST_CREATE]
    assert entries[1].payload == {"id": 1}


def test_execution_that_no_operator_sees_is_taken_back(
    engine: KubeEngine, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oet_api.kube.store.BIRTH_SECONDS", 0.3)
    cluster.has_operator = False
    with pytest.raises(UnavailableError, match="operator did not answer"):
        engine.create(spec())
    assert (cluster.objects, engine.list()) == ({}, ())


def test_execution_that_the_operator_sees_at_the_last_moment_is_kept(
    engine: KubeEngine, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oet_api.kube.store.BIRTH_SECONDS", 0.3)
    cluster.has_operator, cluster.is_silent = False, True

    def be_born_late(verb: str, path: str, query: Any) -> None:
        if verb == "DELETE" and not cluster.objects[path.removeprefix(PREFIX + "/")].get("status"):
            cluster.born(path.removeprefix(PREFIX + "/"))

    cluster.faults = be_born_late
    assert engine.create(spec()).procedure_id == 1
    assert len(cluster.objects) == 1


def test_creation_whose_answer_was_lost_is_done_once(engine: KubeEngine, cluster: FakeCluster) -> None:
    lost = iter(["lose"])
    cluster.faults = lambda verb, path, query: next(lost, None) if verb == "POST" else None
    assert engine.create(spec()).procedure_id == 1
    assert len(cluster.objects) == 1


def test_execution_without_an_id_is_not_listed(engine: KubeEngine, cluster: FakeCluster) -> None:
    cluster.has_operator = False
    cluster.add("silent")
    cluster.add("other", 5)
    wait_for(lambda: engine.list())
    assert [one.procedure_id for one in engine.list()] == [5]


@pytest.mark.parametrize(
    ("status", "error"),
    [(422, BadRequestError), (400, BadRequestError), (403, UnavailableError), (404, UnavailableError)],
)
def test_refused_creation_says_whose_turn_it_is(
    engine: KubeEngine, cluster: FakeCluster, status: int, error: type[OetError]
) -> None:
    cluster.faults = lambda verb, path, query: status if verb == "POST" else None
    with pytest.raises(error, match="a fault on demand"):
        engine.create(spec())


def test_more_active_executions_than_allowed_are_refused(start: Start, cluster: FakeCluster) -> None:
    engine = start(max_active=2)
    create(engine)
    cluster.add("foreign")
    wait_for(lambda: engine._cache.count_active() == 2)
    with pytest.raises(OverloadedError):
        engine.create(spec())


# ---- changing ----------------------------------------------------------------------------------------------------


def test_stop_is_stored_with_the_way_to_stop(engine: KubeEngine, cluster: FakeCluster) -> None:
    number = create(engine, subarray=1)
    change = SpecChange(desired_state=DesiredState.STOPPED, stop=StopOptions(abort=True, grace_period_seconds=2))
    stopped = engine.change(number, change)
    assert stopped.metadata.generation == 2
    assert engine.get(number).spec.desired_state is DesiredState.STOPPED
    assert cluster.find(number)["spec"]["stop"] == {"gracePeriodSeconds": 2, "abort": True}


def test_arguments_of_main_are_replaced_exactly(engine: KubeEngine, cluster: FakeCluster) -> None:
    number = create(engine)
    engine.change(number, SpecChange(main=FunctionArgs(args=[1], kwargs={"old": 1, "both": {"x": 1}})))
    main = FunctionArgs(args=[None], kwargs={"both": {"y": None}, "none": None})
    changed = engine.change(number, SpecChange(desired_state=DesiredState.RUNNING, main=main))
    assert changed.spec.args.main == main
    assert cluster.find(number)["spec"]["args"]["main"] == main.to_wire()


def test_start_of_what_kubectl_created_without_a_line_brings_it_along(engine: KubeEngine, cluster: FakeCluster) -> None:
    number = create(engine)
    with cluster.lock:
        del cluster.find(number)["spec"]["whenBusy"]  # The API server fills it in no more.
    main = FunctionArgs(args=[1])
    change = SpecChange(desired_state=DesiredState.RUNNING, main=main, when_busy=WhenBusy.REJECT)
    assert engine.change(number, change).spec.when_busy is WhenBusy.REJECT
    assert cluster.find(number)["spec"]["args"]["main"] == main.to_wire()


@pytest.mark.parametrize(("user", "kept"), [("Ana", "Ana"), (None, None)])
def test_stop_keeps_who_asked_for_it_where_kubectl_shows_it(
    engine: KubeEngine, cluster: FakeCluster, user: str | None, kept: str | None
) -> None:
    number = create(engine)
    engine.change(number, SpecChange(desired_state=DesiredState.STOPPED, user=user))
    assert cluster.find(number)["metadata"].get("annotations", {}).get(STOPPED_BY_ANNOTATION) == kept


@pytest.mark.parametrize("failures", [[503, 500, 429], ["lose", 503]], ids=["refused", "lost"])
def test_stop_gets_through_when_the_api_server_fails_for_a_moment(
    engine: KubeEngine, cluster: FakeCluster, failures: list[int | str]
) -> None:
    number = create(engine)
    left = iter(failures)
    cluster.faults = lambda verb, path, query: next(left, None) if verb == "PATCH" else None
    engine.change(number, STOP)
    assert cluster.find(number)["spec"]["desiredState"] == DesiredState.STOPPED


def test_stop_gets_through_while_the_api_server_is_replaced(engine: KubeEngine, cluster: FakeCluster) -> None:
    number = create(engine)
    cluster.go_down()
    threading.Timer(0.7, cluster.come_back).start()
    engine.change(number, STOP)
    assert cluster.find(number)["spec"]["desiredState"] == DesiredState.STOPPED


def test_stop_passes_a_cache_that_is_old(engine: KubeEngine, cluster: FakeCluster) -> None:
    number = create(engine)
    cluster.is_silent = True
    name = cluster.find(number)["metadata"]["name"]
    cluster.change(name, status={"podName": "pod"})
    assert engine.change(number, STOP).status.pod_name == "pod"
    cluster.is_silent = False


def test_change_of_an_old_version_conflicts(engine: KubeEngine, cluster: FakeCluster) -> None:
    number = create(engine)
    version = engine.get(number).metadata.resource_version
    with pytest.raises(ConflictError):
        engine.change(number, START, if_resource_version="1")
    cluster.is_silent = True
    cluster.change(cluster.find(number)["metadata"]["name"], status={"podName": "pod"})
    with pytest.raises(ConflictError):
        engine.change(number, START, if_resource_version=version)
    assert engine.get(number).status.pod_name == "pod"
    cluster.is_silent = False


def test_rule_of_the_definition_is_told_in_its_own_words(engine: KubeEngine, cluster: FakeCluster) -> None:
    number = create(engine)
    cluster.is_silent = True
    cluster.change(cluster.find(number)["metadata"]["name"], spec={"desiredState": "Stopped"})
    with pytest.raises(InvalidTransitionError, match=r"spec: desiredState Stopped is final$"):
        engine.change(number, START)
    assert engine.get(number).spec.desired_state is DesiredState.STOPPED
    cluster.is_silent = False


def test_change_of_an_execution_that_is_gone_finds_nothing(engine: KubeEngine, cluster: FakeCluster) -> None:
    number = create(engine)
    cluster.is_silent = True
    cluster.delete(cluster.find(number)["metadata"]["name"])
    with pytest.raises(NotFoundError):
        engine.change(number, STOP)
    assert engine.list() == ()
    cluster.is_silent = False


def test_change_never_reaches_another_execution_of_the_same_name(engine: KubeEngine, cluster: FakeCluster) -> None:
    number = create(engine)
    cluster.is_silent = True
    name = cluster.find(number)["metadata"]["name"]
    cluster.delete(name)
    cluster.add(name, number + 1)
    with pytest.raises(NotFoundError):
        engine.change(number, STOP)
    assert "desiredState" not in cluster.find(number + 1)["spec"]
    cluster.is_silent = False


# ---- watching ----------------------------------------------------------------------------------------------------


def test_wait_ends_when_the_condition_holds_and_when_the_execution_goes(
    engine: KubeEngine, cluster: FakeCluster
) -> None:
    cluster.add("one", 1)
    wait_for(lambda: engine.list())
    threading.Timer(0.1, cluster.reach, READY_PATH).start()
    wait_state(engine, 1, State.READY)
    threading.Timer(0.1, cluster.delete).start()
    with pytest.raises(NotFoundError):
        engine.wait(1, lambda one: False, SECONDS)


def test_runner_is_believed_before_the_operator_speaks_and_no_state_comes_twice(
    engine: KubeEngine, cluster: FakeCluster
) -> None:
    cluster.add("one", 1)
    now = "2026-01-01T00:00:01.000000Z"
    transitions = [{"seq": number, "state": state, "time": now} for number, state in enumerate(READY_PATH, 1)]
    cluster.change("one", status={"runner": {"claim": "x", "transitions": transitions}})
    wait_for(lambda: engine.list())
    wait_state(engine, 1, State.READY)
    cluster.reach(*READY_PATH)
    wait_for(lambda: engine.get(1).metadata.resource_version == cluster.objects["one"]["metadata"]["resourceVersion"])
    assert states(engine, 1) == ["CREATING", *READY_PATH]


def test_stop_that_the_runner_confirms_is_a_stop_before_the_operator_speaks(
    engine: KubeEngine, cluster: FakeCluster
) -> None:
    cluster.add("one", 1)
    cluster.reach(*READY_PATH)
    wait_for(lambda: engine.list())
    engine.change(1, STOP)
    end = {"outcome": "Stopped", "reason": "StopRequested", "message": "stopped on request", "time": stamp()}
    transitions = [{"seq": number, "state": state, "time": stamp()} for number, state in enumerate(READY_PATH, 1)]
    runner = {"claim": "x", "confined": True, "transitions": transitions, "exit": end}
    cluster.change("one", status={"runner": runner})
    wait_state(engine, 1, State.STOPPED)
    assert cluster.find(1)["status"]["state"] == State.READY


def test_state_that_turned_out_otherwise_is_told(engine: KubeEngine, cluster: FakeCluster) -> None:
    cluster.add("one", 1)
    transitions = [{"seq": 1, "state": "IDLE", "time": "2026-01-01T00:00:01.000000Z"}]
    cluster.change("one", status={"runner": {"claim": "x", "transitions": transitions}})
    wait_for(lambda: engine.list())
    wait_state(engine, 1, State.IDLE)
    cluster.reach(State.UNKNOWN)
    wait_state(engine, 1, State.UNKNOWN)
    assert states(engine, 1) == ["CREATING", "IDLE", "UNKNOWN"]


def test_gap_of_the_watch_hides_neither_states_nor_deletions(engine: KubeEngine, cluster: FakeCluster) -> None:
    cluster.add("one", 1)
    cluster.add("gone", 2)
    wait_for(lambda: len(engine.list()) == 2)
    cluster.go_down()
    cluster.reach(*READY_PATH, State.RUNNING)
    cluster.delete("gone")
    cluster.forget_events()
    cluster.come_back()
    wait_state(engine, 1, State.RUNNING)
    wait_for(lambda: len(engine.list()) == 1)
    assert states(engine, 1) == ["CREATING", *READY_PATH, "RUNNING"]


def test_cut_stream_goes_on_without_a_list(engine: KubeEngine, cluster: FakeCluster) -> None:
    cluster.add("one", 1)
    wait_for(lambda: engine.list())
    before = cluster.lists
    cluster.cut()
    cluster.reach(State.IDLE)
    wait_state(engine, 1, State.IDLE)
    assert cluster.lists == before


def test_expired_version_is_listed_anew(engine: KubeEngine, cluster: FakeCluster) -> None:
    before = cluster.lists
    cluster.add("one", 1)
    wait_for(lambda: engine.list())
    cluster.forget_events()
    cluster.cut()
    cluster.reach(State.IDLE)
    wait_state(engine, 1, State.IDLE)
    assert cluster.lists == before + 1


def test_silent_stream_is_begun_anew(engine: KubeEngine, cluster: FakeCluster) -> None:
    cluster.add("one", 1)
    wait_for(lambda: engine.list())
    cluster.is_silent = True
    wait_for(lambda: engine._informer.observe_age() > 0.5)
    cluster.reach(State.IDLE)
    watches = cluster.watches
    wait_for(lambda: cluster.watches > watches)
    cluster.is_silent = False
    wait_state(engine, 1, State.IDLE)


def test_object_that_cannot_be_understood_hides_no_other(
    engine: KubeEngine, cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.add("odd", 1)
    cluster.change("odd", status={"state": "PAUSED"})
    cluster.change("odd", status={"state": "HALTED"})
    cluster.add("two", 2)
    wait_for(lambda: len(engine.list()) == 2)
    assert engine.get(1).status.state is State.CREATING
    assert len([one for one in caplog.records if "cannot be understood" in one.message]) == 1


def test_field_that_a_newer_operator_writes_hides_nothing(engine: KubeEngine, cluster: FakeCluster) -> None:
    cluster.add("one", 1, invented={"later": True})
    wait_for(lambda: engine.list())
    cluster.reach(State.IDLE, runner={"claim": "x", "invented": 1})
    wait_state(engine, 1, State.IDLE)


def test_late_answer_brings_no_removed_execution_back(engine: KubeEngine, cluster: FakeCluster) -> None:
    wire = cluster.add("one", 1)
    wait_for(lambda: engine.list())
    cluster.delete()
    wait_for(lambda: not engine.list())
    assert engine._cache.put({**wire, "metadata": {**wire["metadata"], "resourceVersion": "9999"}}) is None
    assert engine.list() == ()


def test_execution_created_elsewhere_a_moment_ago_is_found(start: Start) -> None:
    one, other = start(), start()
    number = create(one)
    assert other.get(number).uid == one.get(number).uid
    with pytest.raises(NotFoundError):
        other.get(number + 50)


# ---- health ------------------------------------------------------------------------------------------------------


def test_engine_without_an_api_server_starts_and_says_that_it_is_not_ready(
    start: Start, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oet_api.kube.engine.SYNC_SECONDS", 0.2)
    cluster.go_down()
    engine = start()
    assert not engine.observe_health().ready
    with pytest.raises(UnavailableError):
        engine.list()
    cluster.come_back()
    wait_for(lambda: engine.observe_health().ready)


def test_silent_api_server_makes_not_ready(engine: KubeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.observe_health().ready
    monkeypatch.setattr("oet_api.kube.engine.SILENCE_SECONDS", -1.0)
    assert "no word from the API server" in engine.observe_health().detail
    assert not engine.observe_health().ready


def test_api_server_that_goes_down_makes_not_ready_and_is_named_and_comes_back(
    engine: KubeEngine, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oet_api.kube.engine.FAILING_SECONDS", 0.5)
    monkeypatch.setattr("oet_api.kube.store.PERSISTENCE_SECONDS", 0.5)
    cluster.add("one", 1)
    wait_for(lambda: engine.list())
    cluster.go_down()
    wait_for(lambda: not engine.observe_health().ready)
    assert "refused" in engine.observe_health().detail
    assert engine.get(1).status.state is State.CREATING
    with pytest.raises(UnavailableError):
        engine.change(1, STOP)
    cluster.come_back()
    wait_for(lambda: engine.observe_health().ready)


def test_missing_operator_is_told_and_stops_stay_possible(engine: KubeEngine) -> None:
    health = wait_for(lambda: (found := engine.observe_health()) and "no operator" in found.detail and found)
    assert health.ready


# ---- the timeline ------------------------------------------------------------------------------------------------


def begin(engine: KubeEngine, cluster: FakeCluster, name: str = "one", number: int = 1) -> str:
    pod = f"pod-{name}"
    cluster.logs[pod] = b""
    cluster.add(name, number)
    cluster.reach(State.IDLE, name=name, podName=pod)
    wait_for(lambda: number in [one.procedure_id for one in engine.list()])
    wait_state(engine, number, State.IDLE)
    return pod


def test_output_and_messages_come_in_order_with_the_states(engine: KubeEngine, cluster: FakeCluster) -> None:
    pod = begin(engine, cluster)
    cluster.print(pod, "hello")
    cluster.print(pod, build_log_line({"k": "log", "stream": "stderr", "line": "bad"}))
    cluster.print(pod, build_log_line({"k": "message", "topic": "script.announce", "data": {"msg": "x"}}))
    wait_for(lambda: len(engine.timeline.read(0, limit=10, procedure_id=1)) == 5)
    cluster.reach(State.LOADING)
    cluster.print(pod, "last words")
    cluster.reach(State.FAILED, stacktrace="Traceback")
    wait_state(engine, 1, State.FAILED)
    assert lines(engine, 1) == ["hello", "bad", "last words"]
    entries = engine.timeline.read(0, limit=20, procedure_id=1)
    assert [entry.payload.get("new_state") or entry.payload.get("line") or entry.topic for entry in entries] == [
        "CREATING",
        "IDLE",
        "hello",
        "bad",
        "script.announce",
        "LOADING",
        "last words",
        "procedure.lifecycle.stacktrace",
        "FAILED",
    ]
    assert entries[4].payload == {"msg_src": "1", "msg": "x"}
    assert [entry.id for entry in entries] == sorted({entry.id for entry in entries})
    cluster.end(pod)


def test_end_is_told_last_whatever_time_the_runtime_gives_the_last_line(
    engine: KubeEngine, cluster: FakeCluster
) -> None:
    pod = begin(engine, cluster)
    cluster.reach(State.FAILED, at=time.time())
    cluster.print(pod, "last words", at=time.time() + 0.01)
    cluster.end(pod)
    wait_state(engine, 1, State.FAILED)
    wait_for(lambda: "FAILED" in states(engine, 1))
    entries = engine.timeline.read(0, limit=20, procedure_id=1)
    assert [entry.payload.get("line") or entry.payload.get("new_state") for entry in entries][-2:] == [
        "last words",
        "FAILED",
    ]


def test_cut_log_is_read_on_without_loss_or_repeat(engine: KubeEngine, cluster: FakeCluster) -> None:
    pod = begin(engine, cluster)
    for number in range(300):
        cluster.print(pod, str(number))
        if number % 50 == 0:
            cluster.cut()
    wait_for(lambda: len(lines(engine, 1)) >= 300)
    assert lines(engine, 1) == [str(number) for number in range(300)]


def test_log_of_an_earlier_execution_is_there_after_a_restart(start: Start, cluster: FakeCluster) -> None:
    past = time.time() - 100
    cluster.add("one", 1)
    cluster.reach(State.IDLE, State.FAILED, podName="pod-one", at=past)
    cluster.print("pod-one", "long ago", at=past - 1)
    cluster.print("pod-two", "still here", at=past)
    cluster.add("two", 2)
    cluster.reach(State.IDLE, name="two", podName="pod-two", at=past)
    engine = start()
    assert lines(engine, 1) == ["long ago"]
    assert lines(engine, 2) == ["still here"]
    assert all(entry.time < past + 1 for entry in engine.timeline.read(0, limit=9, kinds=[EntryKind.LOG]))
    cluster.print("pod-two", "and goes on")
    wait_for(lambda: lines(engine, 2) == ["still here", "and goes on"])


def test_missing_pod_is_no_obstacle(start: Start, cluster: FakeCluster) -> None:
    cluster.add("one", 1)
    cluster.reach(State.IDLE, State.FAILED, podName="gone", at=time.time() - 10)
    engine = start()
    wait_for(lambda: lines(engine, 1))
    assert [entry.topic for entry in engine.timeline.read(0, limit=9, kinds=[EntryKind.LOG])] == [Topic.LOG_DROPPED]
    cluster.add("two", 2)
    cluster.reach(State.IDLE, State.STOPPED, name="two", podName="gone as well")
    wait_for(lambda: len(engine.list()) == 2)
    wait_for(lambda: "STOPPED" in states(engine, 2))


def test_log_that_the_api_server_gives_late_is_read_after_the_end(engine: KubeEngine, cluster: FakeCluster) -> None:
    """A kubelet tells of a container's beginning once a second: a quick script has ended by then."""
    refusals = iter([400, 400, 400])
    cluster.faults = lambda verb, path, query: next(refusals, None) if path.endswith("/log") else None
    cluster.add("one", 1)
    cluster.print("pod", "quick")
    cluster.end("pod")
    cluster.reach(*READY_PATH, State.RUNNING, State.READY, State.COMPLETE, podName="pod")
    wait_for(lambda: engine.list())
    wait_state(engine, 1, State.COMPLETE)
    assert lines(engine, 1) == ["quick"]


def test_log_of_a_script_that_never_began_is_not_asked_for(engine: KubeEngine, cluster: FakeCluster) -> None:
    cluster.add("one", 1)
    cluster.reach(State.STOPPED, podName="pod")
    wait_for(lambda: engine.list())
    wait_state(engine, 1, State.STOPPED)
    assert states(engine, 1) == ["CREATING", "STOPPED"]
    assert cluster.log_requests == []


def test_output_beyond_the_limit_is_counted(start: Start, cluster: FakeCluster) -> None:
    engine = start(log_limit_bytes=1024)
    pod = begin(engine, cluster)
    for _ in range(20):
        cluster.print(pod, "x" * 99)
    cluster.reach(State.FAILED)
    cluster.end(pod)
    wait_state(engine, 1, State.FAILED)
    wait_for(lambda: lines(engine, 1) == ["x" * 99] * 10 + ["10"])


def test_listener_is_woken_and_misses_nothing(engine: KubeEngine, cluster: FakeCluster) -> None:
    pod = begin(engine, cluster)
    after = engine.timeline.last_id()
    threading.Timer(0.05, cluster.print, (pod, "news")).start()
    assert engine.timeline.wait(after, SECONDS)
    assert [entry.payload["line"] for entry in engine.timeline.read(after, limit=9)] == ["news"]


def test_removed_execution_takes_its_timeline_along(engine: KubeEngine, cluster: FakeCluster) -> None:
    pod = begin(engine, cluster)
    cluster.print(pod, "x")
    wait_for(lambda: lines(engine, 1))
    cluster.delete()
    wait_for(lambda: engine.timeline.read(0, limit=9) == [])


def test_lines_that_had_to_go_are_read_again(
    start: Start, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start()
    engine.timeline._limit_bytes = 100_000
    for number, name in enumerate(("one", "two"), 1):
        pod = begin(engine, cluster, name, number)
        for line in range(100):
            cluster.print(pod, f"{name} {line}")
        wait_for(lambda number=number: len(lines(engine, number)) == 100)
        cluster.reach(State.FAILED, name=name)
        cluster.end(pod)
        wait_state(engine, number, State.FAILED)
    wait_for(lambda: engine.timeline._size <= 100_000)
    for number, name in ((1, "one"), (2, "two"), (1, "one")):
        wait_for(lambda number=number: len(lines(engine, number)) == 100)
        assert lines(engine, number) == [f"{name} {line}" for line in range(100)]
        assert engine.timeline._size <= 110_000


def test_engine_ends_soon_and_leaves_the_cluster_alone(engine: KubeEngine, cluster: FakeCluster) -> None:
    begin(engine, cluster)
    before = len(cluster.events)
    began = time.monotonic()
    engine.stop()
    assert time.monotonic() - began < 5
    assert len(cluster.events) == before
    assert "oet-logs" not in [thread.name for thread in threading.enumerate()]
