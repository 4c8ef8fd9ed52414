"""The engine with a timeline in a database: what Kubernetes has removed stays, and a database that is away stops nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
from fake_cluster import NAMESPACE, FakeCluster
from oet_support_postgres import Postgres, running_postgres
from oet_support_timeline import message, state

from oet_api.kube import lasting
from oet_api.kube.engine import KubeEngine
from oet_api.kube.informer import Patience
from oet_api.rendering import Renderer
from oet_crds.container_log import build_log_line
from oet_crds.errors import NotFoundError, UnavailableError
from oet_crds.execution import FileScript, ScriptExecutionSpec, ScriptSource
from oet_crds.ports import SpecChange
from oet_crds.settings import ServerSettings, Settings, TimelineSettings
from oet_crds.states import DesiredState, State
from oet_crds.topics import EntryKind, Topic

StartOn = Callable[[str], KubeEngine]
SECONDS = 20.0
SPEC = ScriptExecutionSpec(script=ScriptSource(file=FileScript(path="a.py")), desired_state=DesiredState.READY)
READY_PATH = (State.IDLE, State.LOADING, State.IDLE, State.READY)


@pytest.fixture
def start_on(cluster: FakeCluster, engines: list[KubeEngine]) -> StartOn:
    """Starts an engine with a database."""

    def start_on(url: str) -> KubeEngine:
        configuration = kubernetes.client.Configuration(host=cluster.url)
        configuration.no_proxy = "*"
        settings = Settings(server=ServerSettings(namespace=NAMESPACE), timeline=TimelineSettings(database=url))
        engine = KubeEngine(settings, configuration, Patience(watch_seconds=2, silence_seconds=3.0))
        engines.append(engine)
        engine.start()
        return engine

    return start_on


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/timeline.db"


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return result


def told(engine: KubeEngine, number: int) -> list[str]:
    entries = engine.timeline.read(0, limit=1000, procedure_id=number)
    return [
        str(one.payload.get("new_state") or one.payload.get("msg") or one.payload.get("line") or one.topic)
        for one in entries
    ]


def run_through(engine: KubeEngine, cluster: FakeCluster, name: str = "one", number: int = 1) -> None:
    cluster.add(name, number)
    cluster.reach(*READY_PATH, State.FAILED, name=name, runner={"claim": "x"})
    wait_for(lambda: number in [one.procedure_id for one in engine.list()] and engine.get(number).is_finished)
    assert engine.sink is not None
    story = [*(state(seq, one) for seq, one in enumerate(READY_PATH, 1)), message(5, "hello"), state(6, State.FAILED)]
    engine.sink.ingest(engine.get(number), story)
    wait_for(lambda: told(engine, number) == ["CREATING", *READY_PATH, "hello", "FAILED"])


def test_removed_procedure_is_shown_with_all_that_happened(start_on: StartOn, url: str, cluster: FakeCluster) -> None:
    engine = start_on(url)
    run_through(engine, cluster)
    before, entries = engine.get(1), engine.timeline.read(0, limit=99, procedure_id=1)
    cluster.delete()
    wait_for(lambda: not engine.list())
    for one in (engine, start_on(url)):
        assert one.get(1).status == before.status
        assert one.wait(1, lambda found: False, SECONDS).status == before.status
        assert one.timeline.read(0, limit=99, procedure_id=1) == entries
        with pytest.raises(NotFoundError):
            one.get(2)


def test_unfinished_one_that_went_while_no_server_watched_is_unknown(
    start_on: StartOn, url: str, cluster: FakeCluster
) -> None:
    engine = start_on(url)
    cluster.add("one", 1)
    wait_for(engine.list)
    engine.timeline.flush()
    engine.stop()
    cluster.delete()
    again = start_on(url)
    wait_for(lambda: told(again, 1) == ["CREATING", "UNKNOWN"])
    gone = again.get(1)
    assert gone.status.state is State.UNKNOWN
    assert json.loads(Renderer("").render(gone))["state"] == "UNKNOWN"


def test_procedure_that_was_shown_as_running_is_shown_as_unknown_when_it_is_gone(
    start_on: StartOn, url: str, cluster: FakeCluster
) -> None:
    engine, renderer = start_on(url), Renderer("")
    cluster.add("one", 1)
    wait_for(engine.list)
    assert json.loads(renderer.render(engine.get(1)))["state"] == "CREATING"
    cluster.delete()
    wait_for(lambda: not engine.list())
    wait_for(lambda: json.loads(renderer.render(engine.get(1)))["state"] == "UNKNOWN")


def test_creation_is_told_in_order(start_on: StartOn, url: str, cluster: FakeCluster) -> None:
    engine = start_on(url)
    engine.create(SPEC, lambda one: [(Topic.REQUEST_CREATE, {"id": one.procedure_id})])
    assert told(engine, 1) == ["CREATING", Topic.REQUEST_CREATE]


def test_log_of_a_runner_that_does_not_post_is_read(
    start_on: StartOn, url: str, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lasting, "DECISION_SECONDS", 0.2)
    engine = start_on(url)
    cluster.logs["pod"] = b""
    cluster.add("one", 1)
    cluster.reach(State.IDLE, podName="pod")
    cluster.print("pod", "hello")
    wait_for(lambda: told(engine, 1) == ["CREATING", "IDLE", "hello"])
    cluster.print("pod", build_log_line({"k": "message", "topic": Topic.ANNOUNCE, "data": {"msg": "said"}}))
    cluster.reach(State.FAILED)
    cluster.end("pod")
    expected = ["CREATING", "IDLE", "hello", "said", "FAILED"]
    wait_for(lambda: told(engine, 1) == expected)
    engine.stop()
    again = start_on(url)
    wait_for(lambda: again.list())
    time.sleep(0.5)  # what would be told twice is told by now
    assert told(again, 1) == expected


@pytest.mark.serial
def test_server_without_its_database_starts_stops_scripts_and_says_what_is_wrong(
    start_on: StartOn, postgres: Postgres, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oet_api.timeline.store.START_SECONDS", 0.2)
    url = postgres.make_database()
    postgres.kill()
    engine = start_on(url)
    health = engine.observe_health()
    assert health.ready
    assert "timeline's database" in health.detail
    began = time.monotonic()
    number = engine.create(SPEC, lambda one: [(Topic.REQUEST_CREATE, {"id": 1})]).procedure_id
    assert number is not None
    engine.change(number, SpecChange(desired_state=DesiredState.STOPPED))
    with pytest.raises(UnavailableError):
        engine.timeline.append(number, Topic.REQUEST_STOP, {"id": 2})
    assert time.monotonic() - began < 3
    assert cluster.find(number)["spec"]["desiredState"] == "Stopped"
    with pytest.raises(UnavailableError):
        engine.get(99)
    postgres.start()
    wait_for(lambda: "timeline" not in engine.observe_health().detail)
    wait_for(lambda: told(engine, number) == ["CREATING", Topic.REQUEST_CREATE, Topic.REQUEST_STOP])
    with pytest.raises(NotFoundError):
        engine.get(99)


def test_listener_of_the_second_server_hears_what_the_first_is_told(
    start_on: StartOn, postgres: Postgres, cluster: FakeCluster
) -> None:
    url = postgres.make_database()
    one, other = start_on(url), start_on(url)
    after = other.timeline.last_id()
    run_through(one, cluster)
    wait_for(lambda: other.timeline.last_id() == one.timeline.last_id())
    assert other.timeline.read(after, limit=99, kinds=[EntryKind.MESSAGE])[0].payload["msg"] == "hello"
    assert other.timeline.read(0, limit=99) == one.timeline.read(0, limit=99)


def test_engine_without_a_database_imports_nothing_for_one() -> None:
    program = "import sys, oet_api.kube.engine, oet_api.server; print(*sorted({n.split('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"sqlalchemy", "alembic", "psycopg"} & set(done.stdout.split())
