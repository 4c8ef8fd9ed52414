"""The REST server's store and timeline on a real API server. The test plays the operator."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import kubernetes.client
import kubernetes.config
import pytest
from oet_cluster.kubectl import Kubectl

from oet_api.errors import BadRequestError
from oet_api.kube.engine import KubeEngine
from oet_crds.errors import ConflictError, InvalidTransitionError, NotFoundError
from oet_crds.execution import (
    FileScript,
    FunctionArgs,
    InlineScript,
    ScriptExecution,
    ScriptExecutionSpec,
    ScriptSource,
)
from oet_crds.names import GROUP, PLURAL, SCRIPT_CONTAINER
from oet_crds.ports import SpecChange
from oet_crds.settings import ServerSettings, Settings
from oet_crds.states import DesiredState, State
from oet_crds.topics import EntryKind, Topic

pytestmark = pytest.mark.cluster

RESOURCE = f"{PLURAL}.{GROUP}"
SECONDS = 30.0
STOP = SpecChange(desired_state=DesiredState.STOPPED)
LONG_LINE_BYTES = 60_000
"""More than the 16 KiB at which a container runtime cuts a line in pieces."""

PRINTER = f"""
import sys, time
print('first', flush=True)
print('x' * {LONG_LINE_BYTES}, flush=True)
print('\\x1e{{"k": "message", "topic": "script.announce", "data": {{"msg": "said"}}}}', flush=True)
time.sleep(2)
print('last', flush=True)
"""


def now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


class Operator:
    """Gives ids, as the operator does, and writes what a test tells it."""

    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl
        self._next = 1
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(0.1):
            for wire in json.loads(self._kubectl.run("get", RESOURCE, "--output=json"))["items"]:
                if "procedureId" not in wire.get("status", {}):
                    self.write(
                        wire["metadata"]["name"],
                        {
                            "procedureId": self._next,
                            "state": State.CREATING,
                            "history": [{"seq": 1, "state": State.CREATING, "time": now()}],
                        },
                    )
                    self._next += 1

    def write(self, name: str, status: Mapping[str, Any]) -> None:
        text = json.dumps({"status": status})
        self._kubectl.run("patch", RESOURCE, name, "--subresource=status", "--type=merge", f"--patch={text}")

    def reach(self, execution: ScriptExecution, *states: State, **status: Any) -> None:
        history = [entry.to_wire() for entry in execution.status.history]
        for state in states:
            history.append({"seq": len(history) + 1, "state": state, "time": now()})
        self.write(execution.metadata.name, {"state": states[-1], "history": history, **status})

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


@pytest.fixture(scope="module")
def operator(executions: Kubectl) -> Iterator[Operator]:
    operator = Operator(executions)
    yield operator
    operator.stop()


@pytest.fixture(scope="module")
def engines(executions: Kubectl, operator: Operator) -> Iterator[tuple[KubeEngine, KubeEngine]]:
    """Two replicas."""
    started = []
    for _ in range(2):
        configuration: Any = kubernetes.client.Configuration()
        config: Any = kubernetes.config
        config.load_kube_config(str(executions.kubeconfig), client_configuration=configuration, persist_config=False)
        configuration.no_proxy = "*"
        engine = KubeEngine(Settings(server=ServerSettings(namespace=str(executions.namespace))), configuration)
        engine.start()
        started.append(engine)
    yield started[0], started[1]
    for engine in started:
        engine.stop()


@pytest.fixture
def engine(engines: tuple[KubeEngine, KubeEngine]) -> KubeEngine:
    return engines[0]


def spec(**fields: Any) -> ScriptExecutionSpec:
    fields = {"script": ScriptSource(file=FileScript(path="a.py")), "desired_state": DesiredState.READY, **fields}
    return ScriptExecutionSpec(**fields)


def id_of(execution: ScriptExecution) -> int:
    assert execution.procedure_id is not None
    return execution.procedure_id


def test_new_execution_gets_its_id_and_is_seen_by_every_replica(engines: tuple[KubeEngine, KubeEngine]) -> None:
    created = engines[0].create(spec())
    assert created.status.state is State.CREATING
    assert engines[1].get(id_of(created)).uid == created.uid


def test_stop_through_one_replica_is_waited_for_at_the_other(
    engines: tuple[KubeEngine, KubeEngine], operator: Operator
) -> None:
    created = engines[0].create(spec())
    stopped = engines[0].change(id_of(created), STOP)
    assert stopped.metadata.generation == 2
    operator.reach(stopped, State.STOPPED)
    seen = engines[1].wait(id_of(created), lambda one: one.is_finished, SECONDS)
    assert seen.status.state is State.STOPPED


def test_arguments_of_main_are_replaced_exactly(engine: KubeEngine) -> None:
    created = engine.create(spec())
    engine.change(id_of(created), SpecChange(main=FunctionArgs(args=[1], kwargs={"old": {"x": 1}})))
    main = FunctionArgs(args=[None], kwargs={"new": {"y": None}, "none": None})
    changed = engine.change(id_of(created), SpecChange(desired_state=DesiredState.RUNNING, main=main))
    assert changed.spec.args.main == main


def _with_old_cache(engine: KubeEngine, execution: ScriptExecution) -> None:
    """Have an engine believe an old version until it hears of a newer one."""
    cache: Any = engine._cache
    with cache._lock:
        cache._by_uid[execution.uid] = cache._by_id[execution.procedure_id] = execution


def test_rules_of_the_definition_are_told_in_their_own_words(engine: KubeEngine) -> None:
    created = engine.create(spec())
    engine.change(id_of(created), STOP)
    _with_old_cache(engine, created)
    with pytest.raises(
        InvalidTransitionError, match=r": spec: desiredState Stopped is final; for another run create another"
    ):
        engine.change(id_of(created), SpecChange(desired_state=DesiredState.RUNNING))


def test_change_of_an_old_version_conflicts(engine: KubeEngine) -> None:
    created = engine.create(spec())
    engine.change(id_of(created), SpecChange(main=FunctionArgs(args=[1])))
    for change in (STOP, SpecChange(main=FunctionArgs(args=[2]))):
        _with_old_cache(engine, created)
        with pytest.raises(ConflictError):
            engine.change(id_of(created), change, if_resource_version=created.metadata.resource_version)
    _with_old_cache(engine, created)
    assert engine.change(id_of(created), STOP).spec.desired_state is DesiredState.STOPPED


@pytest.mark.parametrize("change", [STOP, SpecChange(main=FunctionArgs(args=[1]))], ids=["merge", "json"])
def test_change_never_reaches_another_execution_of_the_same_name(
    engine: KubeEngine, executions: Kubectl, change: SpecChange
) -> None:
    created = engine.create(spec())
    name = created.metadata.name
    executions.run("delete", RESOURCE, name)
    manifest = {"apiVersion": created.api_version, "kind": created.kind, "metadata": {"name": name}}
    executions.run("create", "--filename=-", manifest={**manifest, "spec": created.spec.to_wire()})
    _with_old_cache(engine, created)
    with pytest.raises(NotFoundError):
        engine.change(id_of(created), change)
    assert executions.read(RESOURCE, name)["spec"]["desiredState"] == DesiredState.READY


def test_spec_that_the_definition_refuses_is_the_clients_mistake(engine: KubeEngine) -> None:
    script = ScriptSource.model_construct(file=FileScript.model_construct(path="x" * 5000))
    with pytest.raises(BadRequestError, match=r"spec\.script\.file\.path"):
        engine.create(spec(script=script))


def test_object_that_etcd_finds_too_large_is_the_clients_mistake(engine: KubeEngine) -> None:
    with pytest.raises(BadRequestError, match=r"(?i)large|long"):
        engine.create(spec(args={"init": {"args": ["x" * 4_000_000]}}))


def test_removed_execution_ends_a_wait(engine: KubeEngine, executions: Kubectl) -> None:
    created = engine.create(spec())
    threading.Timer(0.3, executions.run, ("delete", RESOURCE, created.metadata.name)).start()
    with pytest.raises(NotFoundError):
        engine.wait(id_of(created), lambda one: False, SECONDS)


def test_watch_from_a_forgotten_version_begins_anew(engine: KubeEngine, operator: Operator) -> None:
    created = engine.create(spec())
    informer: Any = engine._informer
    informer._version = "1"
    informer._stream.cut()
    operator.reach(created, State.IDLE)
    seen = engine.wait(id_of(created), lambda one: one.status.state is State.IDLE, SECONDS)
    assert seen.status.state is State.IDLE


def test_log_of_a_pod_becomes_the_timeline(
    engines: tuple[KubeEngine, KubeEngine], operator: Operator, executions: Kubectl
) -> None:
    created = engines[0].create(spec(script=ScriptSource(inline=InlineScript(source="pass"))))
    number, pod = id_of(created), f"pod-{id_of(created)}"
    container = {
        "name": SCRIPT_CONTAINER,
        "image": "localhost/oet-base:bookworm",
        "command": ["python3", "-c", PRINTER],
    }
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod},
        "spec": {"restartPolicy": "Never", "containers": [container], "terminationGracePeriodSeconds": 1},
    }
    executions.run("create", "--filename=-", manifest=manifest)
    executions.run("wait", f"pod/{pod}", "--for=condition=Ready", "--timeout=60s")
    operator.reach(created, State.IDLE, podName=pod)
    deadline = time.monotonic() + SECONDS
    expected = ["first", "x" * LONG_LINE_BYTES, "last"]
    for engine in engines:
        while True:
            entries = engine.timeline.read(0, limit=100, procedure_id=number)
            lines = [entry.payload["line"] for entry in entries if entry.kind is EntryKind.LOG]
            if lines == expected or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        assert [len(line) for line in lines] == [len(line) for line in expected]
        said = [entry for entry in entries if entry.topic == Topic.ANNOUNCE]
        assert [entry.payload for entry in said] == [{"msg_src": str(number), "msg": "said"}]
    operator.reach(engines[0].get(number), State.FAILED)
    for engine in engines:
        engine.wait(number, lambda one: one.is_finished, SECONDS)
        lines = [one.payload["line"] for one in engine.timeline.read(0, limit=99, procedure_id=number, kinds=["log"])]  # type: ignore[list-item]
        assert len(lines) == 3
    executions.run("delete", "pod", pod, "--now")
