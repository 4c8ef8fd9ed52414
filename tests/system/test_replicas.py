"""Replicas of the REST server on Kubernetes are killed: who listens misses nothing, hears nothing twice, and in order."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from oet_support import Server, wait_until
from oet_support_postgres import running_postgres
from oet_support_timeline import message, state

sys.path.insert(0, str(Path(__file__).parents[1] / "api_kube"))

from fake_cluster import NAMESPACE, FakeCluster

from oet_crds.ports import RunnerEntry
from oet_crds.states import State

BASE = f"/{NAMESPACE}/oet/api/v7"
EXECUTIONS, MESSAGES, KILLS = 50, 200, 20
PIECE = 10
BEFORE = (State.IDLE, State.LOADING, State.IDLE, State.READY, State.RUNNING)
AFTER = (State.READY, State.COMPLETE)
STORY = [
    *(state(seq, one) for seq, one in enumerate(BEFORE, 1)),
    *(message(len(BEFORE) + seq, str(seq)) for seq in range(1, MESSAGES + 1)),
    *(state(len(BEFORE) + MESSAGES + seq, one) for seq, one in enumerate(AFTER, 1)),
]
TOLD = ["CREATING", *map(str, BEFORE), *(str(seq) for seq in range(1, MESSAGES + 1)), *map(str, AFTER)]
SECONDS = 400.0
assert len(STORY) <= PIECE * (KILLS + 1)


class Replica(Server):
    """A server process on Kubernetes, as the fake has it."""

    def start(self) -> None:
        """Start it and wait until it takes work."""
        program = Path(__file__).with_name("serve_with_intake.py")
        with (self.state_dir / f"{self.port}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(program)], env=self.environ, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self.is_ready, 60, "the replica is not ready")


class Listener(threading.Thread):
    """Listens at one replica, and at another when that ends, from its last event on."""

    def __init__(self, ports: list[int]) -> None:
        super().__init__(daemon=True)
        self._ports = ports
        self.last_id = "0"
        self.heard: list[tuple[int, str, str]] = []
        self.connections = 0
        self.refusals: list[str] = []
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.is_set():
            with contextlib.suppress(OSError):
                self._listen(random.choice(self._ports))

    def _listen(self, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            head = f"GET {BASE}/stream HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: {self.last_id}\r\n\r\n"
            connection.sendall(head.encode())
            with connection.makefile("rb") as answer:
                status = answer.readline().decode()
                if " 200 " not in status:
                    self.refusals.append(status)
                    return
                self.connections += 1
                self._read(answer)

    def _read(self, answer: Any) -> None:
        number, data = "", ""
        for line in answer:
            text = line.decode().rstrip("\r\n")
            if text.startswith("id:"):
                number = text[3:].strip()
            elif text.startswith("data:"):
                data += text[5:]
            elif not text and data:
                event = json.loads(data)
                told = str(event.get("new_state") or event.get("msg"))
                self.heard.append((int(number), str(event["msg_src"]), told))
                self.last_id, data = number, ""
            if self.is_over.is_set():
                return


class Feeder(threading.Thread):
    """The operator and the runners of some executions: they post again until it is stored."""

    def __init__(self, cluster: FakeCluster, ports: list[int], numbers: list[int], gate: Gate) -> None:
        super().__init__(daemon=True)
        self._cluster, self._ports, self._numbers, self._gate = cluster, ports, numbers, gate
        self.posts = self.failures = 0

    def run(self) -> None:
        uids = {number: self._begin(number) for number in self._numbers}
        for first in range(0, len(STORY), PIECE):
            self._gate.wait(first // PIECE)
            for number in self._numbers:
                if first + PIECE >= len(STORY):
                    self._cluster.reach(*AFTER, name=f"procedure-{number}")
                self._post(uids[number], STORY[first : first + PIECE])

    def _begin(self, number: int) -> str:
        name = f"procedure-{number}"
        uid = str(self._cluster.add(name, number)["metadata"]["uid"])
        self._cluster.reach(*BEFORE, name=name, podName=name, runner={"claim": "x"})
        return uid

    def _post(self, uid: str, entries: list[RunnerEntry]) -> None:
        body = json.dumps({"entries": [asdict(entry) for entry in entries]})
        while True:
            self.posts += 1
            with contextlib.suppress(OSError, http.client.HTTPException):
                port = random.choice(self._ports)
                with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
                    headers = {"Content-Type": "application/json"}
                    connection.request("POST", f"{BASE}/internal/executions/{uid}/entries", body, headers)
                    with connection.getresponse() as answer:
                        stored = json.loads(answer.read() or b"{}")
                if answer.status == 200 and stored["stored"] >= entries[-1].seq:
                    return
            self.failures += 1
            time.sleep(0.05)


class Gate:
    """Lets the story go on piece by piece, so that each kill happens in the middle of one."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._open = -1

    def open(self) -> None:
        with self._news:
            self._open += 1
            self._news.notify_all()

    def wait(self, piece: int) -> None:
        with self._news:
            self._news.wait_for(lambda: self._open >= piece)


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[tuple[FakeCluster, list[Replica]]]:
    """Two servers over one cluster and one PostgreSQL."""
    cluster = FakeCluster()
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "fake",
                "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
                "clusters": [{"name": "fake", "cluster": {"server": cluster.url}}],
                "users": [{"name": "fake", "user": {}}],
            }
        )
    )
    with running_postgres() as postgres:
        settings = {
            "OET_ENGINE": "kubernetes",
            "KUBE_NAMESPACE": NAMESPACE,
            "KUBECONFIG": str(kubeconfig),
            "OET_TIMELINE_DATABASE": postgres.make_database(),
        }
        servers = [Replica(tmp_path, **settings) for _ in range(2)]
        for server in servers:
            server.start()
        yield cluster, servers
        for server in servers:
            server.stop()
        cluster.go_down()


def read_events(port: int, number: int) -> list[dict[str, Any]]:
    """Return the whole timeline of a procedure."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", f"{BASE}/procedures/{number}/events?limit=1000")
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    assert answer.status == 200, found
    return list(found)


@pytest.mark.serial
@pytest.mark.timeout(600)
def test_listener_hears_all_of_fifty_executions_through_twenty_kills(
    replicas: tuple[FakeCluster, list[Replica]], record_property: Any
) -> None:
    random.seed(1)
    cluster, servers = replicas
    ports = [server.port for server in servers]
    gate, listener = Gate(), Listener(ports)
    listener.start()
    feeders = [Feeder(cluster, ports, list(range(1 + part, EXECUTIONS + 1, 5)), gate) for part in range(5)]
    began = time.monotonic()
    for feeder in feeders:
        feeder.start()
    for number in range(KILLS):
        heard = len(listener.heard)
        gate.open()
        wait_until(lambda: len(listener.heard) > heard, 60, "nothing is heard")  # noqa: B023
        # Every fifth time both at once: nobody is there then.
        victims = servers if number % 5 == 4 else [random.choice(servers)]
        for victim in victims:
            victim.kill()
        for victim in victims:
            victim.start()
    gate.open()
    for feeder in feeders:
        feeder.join(SECONDS)
    killed_seconds = time.monotonic() - began
    wanted = EXECUTIONS * len(TOLD)
    try:
        wait_until(lambda: len(listener.heard) >= wanted, 60, "not all is heard")
    finally:
        listener.is_over.set()
        heard_by: dict[str, list[str]] = {}
        for _, source, told in listener.heard:
            heard_by.setdefault(source, []).append(told)
        numbers = {
            "seconds": round(killed_seconds, 1),
            "events": len(listener.heard),
            "wanted": wanted,
            "connections": listener.connections,
            "refusals": len(listener.refusals),
            "posts": sum(feeder.posts for feeder in feeders),
            "failed posts": sum(feeder.failures for feeder in feeders),
        }
        record_property("kills", numbers)
        print(numbers, listener.refusals[:3])
    ids = [number for number, _, _ in listener.heard]
    assert ids == sorted(set(ids))
    assert heard_by == {str(number): TOLD for number in range(1, EXECUTIONS + 1)}
    for number in (1, EXECUTIONS):
        one, other = (read_events(port, number) for port in ports)
        assert one == other
        assert [event["payload"].get("new_state") or event["payload"]["msg"] for event in one] == TOLD
    assert listener.connections > KILLS // 4
    assert not [status for status in listener.refusals if " 422 " in status]
