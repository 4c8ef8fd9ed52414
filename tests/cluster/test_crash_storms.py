"""Whatever dies in the middle of work: no execution is lost, run twice, stuck, or told otherwise than it was."""

from __future__ import annotations

import json
import os
import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from oet_cluster.cluster import Cluster
from oet_cluster.components import Component
from oet_cluster.kubectl import Kubectl
from oet_cluster.places import Places
from oet_support import wait_until
from oet_support_cluster import Operator, prepare_namespace, running_operator
from oet_support_executions import Executions

from oet_api.kube.errors import ApiError
from oet_api.kube.paths import Paths
from oet_crds.names import SCRIPT_CONTAINER
from oet_crds.states import DesiredState, State, is_allowed, is_final

pytestmark = [pytest.mark.cluster, pytest.mark.serial, pytest.mark.timeout(1800)]

COUNT = int(os.environ.get("OET_STORM_EXECUTIONS", "25"))
"""Executions in one storm."""
KILLS = int(os.environ.get("OET_STORM_KILLS", "4"))
"""How often the operator is killed in it."""
SEED = int(os.environ.get("OET_STORM_SEED", str(random.randrange(10**6))))

EVIDENCE = "/evidence"
RUN = """
import time
def main():
    with open("{file}", "a") as file:
        file.write("run\\n")
    {body}
"""
BODIES = {
    State.COMPLETE: "time.sleep(0.5)",
    State.FAILED: "raise ValueError('on purpose')",
    State.STOPPED: "time.sleep(600)",
}


class Watchman:
    """Looks at all executions all the time, and keeps the first final status that it sees of each."""

    def __init__(self, world: Executions) -> None:
        self._world = world
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.finals: dict[str, dict[str, Any]] = {}

    def _run(self) -> None:
        while not self._is_over.wait(0.2):
            with suppress(ApiError):
                self.look()

    def look(self) -> None:
        for name, execution in self._world.list().items():
            status = execution.get("status") or {}
            if is_final(State(status.get("state", State.CREATING))):
                self.finals.setdefault(name, status)

    def __enter__(self) -> Watchman:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


class Storm:
    """Executions of all kinds, and what is to become of each."""

    def __init__(self, world: Executions, evidence: Path, name: str) -> None:
        self._world = world
        self._evidence = evidence
        self.expected: dict[str, State] = {}
        self._name = name
        self._random = random.Random(SEED)

    def create(self, number: int) -> None:
        state = list(BODIES)[number % 3]
        name = f"{self._name}-{number}"
        # A third of them queue for four subarrays; those that must be stopped would keep the others waiting for ever.
        subarray = {"subarray": 1 + number % 4} if number % 2 and state is not State.STOPPED else {}
        source = RUN.format(file=f"{EVIDENCE}/{name}", body=BODIES[state])
        self._retry(lambda: self._world.create(name, source, **subarray))
        self.expected[name] = state

    def stop_some(self) -> None:
        """Stop one of those that are to be stopped, whatever it does at this moment."""
        waiting = [name for name, state in self.expected.items() if state is State.STOPPED]
        name = self._random.choice(waiting or [""])
        if name:
            self._retry(lambda: self._world.stop(name))

    def stop_rest(self) -> None:
        """Stop all that are to be stopped."""
        for name, state in self.expected.items():
            if state is State.STOPPED:
                self._retry(lambda name=name: self._world.stop(name))

    @staticmethod
    def _retry(act: Any) -> None:
        """Try again while there is no API server; what was done before its answer was lost counts as done."""
        deadline = time.monotonic() + 120
        while True:
            try:
                act()
                return
            except ApiError as error:
                if error.status == 409:
                    return
                if time.monotonic() > deadline or (error.status and error.status < 500):
                    raise
                time.sleep(0.2)

    def check(self, watchman: Watchman) -> None:
        """Wait for the end of all, and compare with what was to be."""
        for name in self.expected:
            self._world.wait_for_end(name, 300)
        watchman.look()
        found = self._world.list()
        assert set(self.expected) <= set(found), "lost"
        for name, state in self.expected.items():
            status = found[name]["status"]
            self._check_one(name, state, status)
            assert watchman.finals[name] == status, f"{name} changed after its end"
        numbers = [found[name]["status"]["procedureId"] for name in self.expected]
        assert len(set(numbers)) == len(numbers), "an id was given twice"
        self._check_pods()

    def _check_one(self, name: str, state: State, status: dict[str, Any]) -> None:
        assert status["state"] == state, (name, status)
        history = status["history"]
        states = [State(entry["state"]) for entry in history]
        assert [entry["seq"] for entry in history] == list(range(1, len(history) + 1)), (name, history)
        assert all(is_allowed(one, other) for one, other in pairwise(states)), (name, states)
        marks = self._evidence / name
        runs = marks.read_text().count("run") if marks.exists() else 0
        assert runs == (1 if State.RUNNING in states else 0) or (state is State.STOPPED and runs <= 1), (name, runs)

    def _check_pods(self) -> None:
        """No Pod of an execution that has ended goes on running."""
        deadline = time.monotonic() + 60
        while True:
            rows = self._world.kubectl.run("get", "pods", "--no-headers").splitlines()
            left = [row for row in rows if row.split()[0].rsplit("-", 1)[0] in self.expected and "Running" in row]
            if not left:
                return
            assert time.monotonic() < deadline, left
            time.sleep(0.5)


@pytest.fixture(scope="module")
def evidence() -> Iterator[Path]:
    """A folder of this machine that all Pods of the storms write to."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o777)
        yield path


@pytest.fixture(scope="module")
def template(evidence: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    volume = {"name": "evidence", "hostPath": {"path": str(evidence)}}
    mount = {"name": "evidence", "mountPath": EVIDENCE}
    pod = {"spec": {"volumes": [volume], "containers": [{"name": SCRIPT_CONTAINER, "volumeMounts": [mount]}]}}
    path = tmp_path_factory.mktemp("template") / "template.json"
    path.write_text(json.dumps(pod))
    return path


@pytest.fixture(scope="module")
def prepared(executions: Kubectl) -> Kubectl:
    prepare_namespace(executions)
    return executions


@pytest.fixture
def world(prepared: Kubectl) -> Executions:
    return Executions(prepared)


@pytest.fixture
def operator(prepared: Kubectl, template: Path, tmp_path: Path) -> Iterator[Operator]:
    with running_operator(
        prepared, tmp_path / "log", OET_POD_TEMPLATE_FILE=str(template), OET_HISTORY_LIMIT="10000"
    ) as operator:
        yield operator


@pytest.fixture
def node(places: Places, prepared: Kubectl) -> Any:
    """The node of our own cluster, whose parts can be killed."""
    if prepared.kubeconfig != places.kubeconfig:
        pytest.skip("the cluster of KUBECONFIG is not ours to break")
    return Cluster(places).get_own_node()


def test_operator_killed_again_and_again(
    world: Executions, operator: Operator, evidence: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\nstorm of {COUNT} executions, {KILLS} kills, OET_STORM_SEED={SEED}")
    chance = random.Random(SEED)
    storm = Storm(world, evidence, "storm")
    with Watchman(world) as watchman:
        for kill in range(KILLS):
            begin, end = COUNT * kill // KILLS, COUNT * (kill + 1) // KILLS
            for number in range(begin, end):
                storm.create(number)
            storm.stop_some()
            time.sleep(chance.uniform(0.0, 2.0))
            operator.kill()
            time.sleep(chance.uniform(0.0, 0.5))
            storm.stop_some()
            operator.start()
            if chance.random() < 0.5:
                operator.wait_for_lead()
        storm.stop_rest()
        operator.wait_for_lead()
        storm.check(watchman)


@pytest.mark.parametrize("component", [Component.API_SERVER, Component.ETCD])
def test_part_of_the_control_plane_killed(
    world: Executions, operator: Operator, evidence: Path, node: Any, component: Component
) -> None:
    storm = Storm(world, evidence, f"{component}")
    with operator.kept_running(), Watchman(world) as watchman:
        for number in range(12):
            storm.create(number)
            time.sleep(0.1)
        node.kill_component(component)
        time.sleep(2)
        node.start_component(component)
        for number in range(12, 18):
            storm.create(number)
        storm.stop_rest()
        storm.check(watchman)
        operator.wait_for_lead()


class Proxy:
    """A way to the API server that can be cut."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.is_closed = False
        """While it is so, whoever comes is sent away."""
        self._spawn(self._accept)

    def _spawn(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments)
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if self.is_closed:
                client.close()
                continue
            self._spawn(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            self._open |= {client, server}
            back = threading.Thread(target=self._copy, args=(server, client))
            back.start()
            self._copy(client, server)
            back.join()
            self._open -= {client, server}

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> int:
        """Break all connections; returns how many there were."""
        ends = list(self._open)
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        return len(ends) // 2

    def close(self) -> None:
        """End it."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)


@contextmanager
def running_proxy(kubectl: Kubectl, folder: Path) -> Iterator[tuple[Proxy, Kubectl]]:
    """Give a proxy before the API server, and a kubectl that goes through it."""
    config = yaml.safe_load(kubectl.kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    host, port = cluster["server"].removeprefix("https://").rstrip("/").rsplit(":", 1)
    proxy = Proxy(host, int(port))
    cluster["server"] = f"https://127.0.0.1:{proxy.port}"
    cluster["insecure-skip-tls-verify"] = True
    for key in ("certificate-authority", "certificate-authority-data"):
        cluster.pop(key, None)
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    path.chmod(0o600)
    yield proxy, Kubectl(kubectl.program, path, kubectl.namespace)
    proxy.close()


def test_connections_cut_again_and_again(
    world: Executions, prepared: Kubectl, template: Path, evidence: Path, tmp_path: Path
) -> None:
    storm = Storm(world, evidence, "cut")
    with (
        running_proxy(prepared, tmp_path) as (proxy, through),
        running_operator(
            through, tmp_path / "log", OET_POD_TEMPLATE_FILE=str(template), OET_RESYNC_SECONDS="5"
        ) as operator,
        Watchman(world) as watchman,
    ):
        cuts = 0
        for number in range(15):
            storm.create(number)
            time.sleep(0.3)
            cuts += proxy.cut()
        storm.stop_rest()
        storm.check(watchman)
        assert cuts > 15
        assert operator.read("/healthz") == "ok\n"


def test_changes_behind_an_expired_version_are_seen(
    world: Executions, prepared: Kubectl, template: Path, node: Any, tmp_path: Path
) -> None:
    """While the operator is cut off the API server is killed: of what came before its restart no watch tells any more."""
    path = Paths(world.namespace).executions
    settings = {"OET_RESYNC_SECONDS": "600", "OET_LEASE_SECONDS": "120"}
    with (
        running_proxy(prepared, tmp_path) as (proxy, through),
        running_operator(through, tmp_path / "log", OET_POD_TEMPLATE_FILE=str(template), **settings) as operator,
    ):
        world.create("expired-stopped", "import time\ndef main(): time.sleep(600)")
        world.wait_for("expired-stopped", State.RUNNING)
        version = world.client.request("GET", path)["metadata"]["resourceVersion"]
        proxy.is_closed = True
        assert proxy.cut() > 0
        world.create("expired-new", "def main(): pass")
        world.stop("expired-stopped")
        node.kill_component(Component.API_SERVER)
        node.start_component(Component.API_SERVER)
        query = f"{path}?watch=true&timeoutSeconds=1&resourceVersion={version}"
        wait_until(lambda: is_expired(prepared, query), 60, "the version does not expire")
        proxy.is_closed = False
        world.wait_for("expired-stopped", State.STOPPED)
        world.wait_for("expired-new", State.COMPLETE)
        assert operator.read("/healthz") == "ok\n"


def is_expired(kubectl: Kubectl, path: str) -> bool:
    """Tell whether the API server refuses a watch because its version is too old."""
    outcome = kubectl.attempt("get", "--raw", path)
    return "too old resource version" in outcome.output + outcome.complaint


def test_prepared_executions_survive_the_death_of_the_operator(world: Executions, operator: Operator) -> None:
    names = [
        world.create(f"ready-{number}", "def main(): pass", desiredState=DesiredState.READY) for number in range(4)
    ]
    for name in names:
        world.wait_for(name, State.READY)
    operator.kill()
    for name in names:
        world.patch(name, desiredState=DesiredState.RUNNING)
    operator.start()
    for name in names:
        world.wait_for(name, State.COMPLETE)
