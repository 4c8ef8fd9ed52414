"""Logs that the kubelet cut, that cannot be read, or that take long: the REST API gives all, or says what is missing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import falcon.testing
import pytest
from fake_cluster import NAMESPACE, FakeCluster, stamp

from oet_api.app import build_application
from oet_api.kube import logs
from oet_api.kube.engine import KubeEngine
from oet_api.services import build_services
from oet_crds.container_log import LogWriter
from oet_crds.settings import ServerSettings
from oet_crds.states import State
from oet_crds.topics import EntryKind, Topic

Start = Callable[..., KubeEngine]

SECONDS = 15.0
BASE = f"/{NAMESPACE}/oet/api/v7/procedures/1"
POD = "pod-one"
PATH = (State.IDLE, State.LOADING, State.IDLE, State.READY, State.RUNNING, State.READY, State.COMPLETE)
LINES = [f"line {number} {'x' * 90}" for number in range(3000)]
NOTE = "[oet: {} entries dropped (printed lines or messages): they could not be read from the Pod's log]"


def write(lines: list[str], at: float, writer: LogWriter | None = None) -> list[bytes]:
    """Return the lines of a Pod's log, a line each millisecond, marks among them."""
    writer, text = writer or LogWriter(), []
    for number, line in enumerate(lines):
        when = at + number / 1000
        built = writer.build({"k": EntryKind.LOG, "stream": "stdout", "line": line}, when)
        text += [f"{stamp(when)} {one}\n".encode() for one in built.rstrip("\n").split("\n")]
    return text


def end(count: int | None, at: float) -> dict[str, Any]:
    """Return the runner's report of the end, with how many entries it wrote."""
    counted = {} if count is None else {"logEntries": count}
    told = {"outcome": "Complete", "reason": "Completed", "message": "", "time": stamp(at), **counted}
    return {"runner": {"claim": "x", "exit": told}}


def has_ended(cluster: FakeCluster, log: list[bytes] | None, count: int | None) -> None:
    """Have an execution that ended before the server starts."""
    at = time.time() - 60
    cluster.add("one", 1)
    cluster.reach(*PATH, podName=POD, at=at, **end(count, at))
    cluster.ended.add(POD)
    if log is not None:
        cluster.logs[POD] = b"".join(log)


@pytest.fixture
def build_client() -> Iterator[Callable[[KubeEngine], falcon.testing.TestClient]]:
    """Builds a client of the REST API over an engine."""
    built = []

    def build(engine: KubeEngine) -> falcon.testing.TestClient:
        services = build_services(engine, engine.timeline, ServerSettings(namespace=NAMESPACE))
        built.append(services)
        return falcon.testing.TestClient(build_application(services), headers={"Host": "localhost"})

    yield build
    for services in built:
        services.broadcast.stop()


Build = Callable[[KubeEngine], falcon.testing.TestClient]


def read_lines(client: falcon.testing.TestClient, query: str = "") -> list[str]:
    answer = client.simulate_get(f"{BASE}/logs{query}")
    assert answer.status_code == 200
    return list(answer.text.splitlines())


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return result


# ---- what is missing


@pytest.mark.parametrize("kept", [2999, 2500, 1000, 3, 1, 0])
def test_beginning_that_was_rotated_away_is_counted_before_the_rest(
    start: Start, cluster: FakeCluster, build_client: Build, kept: int
) -> None:
    log = write(LINES, time.time() - 70)
    printed = [line for line in log if b"dropped" not in line]
    first = log.index(printed[len(LINES) - kept]) if kept else len(log)
    has_ended(cluster, log[first:], len(LINES))
    assert read_lines(build_client(start()))[-kept - 1 :] in (
        [NOTE.format(len(LINES) - kept), *LINES[len(LINES) - kept :]],
        # So little that no mark is in it: the runner's count tells it at the end.
        [*LINES[len(LINES) - kept :], NOTE.format(len(LINES) - kept)],
    )


def test_whole_log_has_no_note_and_no_mark(start: Start, cluster: FakeCluster, build_client: Build) -> None:
    has_ended(cluster, write(LINES, time.time() - 70), len(LINES))
    client = build_client(start())
    assert read_lines(client) == LINES
    assert read_lines(client, "?tail=2") == LINES[-2:]
    assert "warning" not in client.simulate_get(f"{BASE}/events").headers


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (7, [NOTE.format(7)]),
        (0, []),
        (
            None,
            [
                "[oet: "
                + "entries may be missing: the Pod's log cannot be read any more, and it is not known what else was in it]"
            ],
        ),
    ],
)
def test_log_that_went_with_its_pod_is_said_to_be_missing(
    start: Start, cluster: FakeCluster, build_client: Build, count: int | None, text: list[str]
) -> None:
    has_ended(cluster, None, count)
    client = build_client(start())
    assert read_lines(client) == text
    events = client.simulate_get(f"{BASE}/events?kind=log").json
    assert [event["topic"] for event in events] == [Topic.LOG_DROPPED] * len(text)
    assert read_states(client) == [State.CREATING, *PATH]


def test_rotation_under_a_follower_is_told_where_it_happened(
    start: Start, cluster: FakeCluster, build_client: Build
) -> None:
    cluster.add("one", 1)
    cluster.reach(*PATH[:5], podName=POD)
    writer = LogWriter()
    now = time.time()
    before, lost, after = (
        write(LINES[1000 * part : 1000 * (part + 1)], now - 50 + 20 * part, writer) for part in range(3)
    )
    cluster.logs[POD] = b"".join(before)
    engine = start()
    client = build_client(engine)
    wait_for(lambda: len(read_lines(client)) == 1000)
    with cluster.lock:
        # The kubelet goes on with the new file; what it had not read of the old one nobody gets.
        cluster.logs[POD] += b"".join(after)
        cluster.lock.notify_all()
    wait_for(lambda: len(read_lines(client)) >= 2001)
    found = read_lines(client)
    note = NOTE.format(1000)
    assert [line for line in found if line != note] == LINES[:1000] + LINES[2000:]
    # A mark comes every 64 KiB, some 660 of these lines.
    assert 1000 <= found.index(note) <= 1700
    assert len(lost) >= 1000


def test_end_of_a_log_that_is_written_late_is_waited_for(
    start: Start, cluster: FakeCluster, build_client: Build
) -> None:
    """A runner reports the end before its last lines where the log has not taken them for some seconds."""
    engine = start()
    cluster.add("one", 1)
    cluster.logs[POD] = b"".join(write(LINES[:2], time.time()))
    at = time.time()
    cluster.reach(*PATH, podName=POD, **end(3, at))
    wait_for(lambda: engine.list() and engine.list()[0].is_finished)
    time.sleep(0.5)  # Longer than a reader waits for lines that were written: only the count tells that one is missing.
    cluster.print(POD, "late")
    cluster.end(POD)
    client = build_client(engine)
    assert wait_for(lambda: [line for line in [read_lines(client)] if len(line) == 3]) == [[*LINES[:2], "late"]]


# ---- what takes time


class SlowLog:
    """Lets the log of a Pod be read only up to a place, until it is told."""

    def __init__(self, cluster: FakeCluster, first: int) -> None:
        self.go_on = threading.Event()
        original = cluster.send_log

        def send_log(handler: Any, pod: str, query: Any) -> None:
            if self.go_on.is_set():
                original(handler, pod, query)
                return
            text = cluster.logs[pod].splitlines(keepends=True)
            send = cluster.begin(handler)
            send(b"".join(text[:first]))
            assert self.go_on.wait(SECONDS)
            send(b"".join(text[first:]))
            send(b"")

        cluster.send_log = send_log  # type: ignore[method-assign]


@pytest.mark.parametrize("is_active", [False, True])
def test_first_answer_after_a_restart_has_all_that_was_printed(
    start: Start, cluster: FakeCluster, build_client: Build, is_active: bool
) -> None:
    slow = SlowLog(cluster, 1500)
    has_ended(cluster, write(LINES, time.time() - 70), len(LINES))
    if is_active:
        cluster.add("two", 2)
        cluster.change("one", status={"state": "RUNNING", "history": cluster.find(1)["status"]["history"][:6]})
        cluster.ended.clear()
    logs_patience = threading.Timer(1.0, slow.go_on.set)
    logs_patience.start()
    client = build_client(start())
    assert read_lines(client) == LINES


@pytest.mark.parametrize("query", ["", "?tail=2000", "?follow=true"])
def test_answer_that_cannot_wait_any_longer_says_that_lines_are_missing(
    start: Start, cluster: FakeCluster, build_client: Build, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    monkeypatch.setattr(logs, "PATIENCE_SECONDS", 0.3)
    slow = SlowLog(cluster, 1500)
    has_ended(cluster, write(LINES, time.time() - 70), len(LINES))
    client = build_client(start())
    found = read_lines(client, query)
    assert found[-1] == f"[oet: {logs.STILL_READ}]"
    assert found[:-1] == LINES[: len(found) - 1]
    events = client.simulate_get(f"{BASE}/events?limit=1000")
    assert events.headers["warning"] == f'199 oet "{logs.STILL_READ}"'
    # Nothing is shown after which something older may come: who reads page by page misses nothing.
    assert State.COMPLETE not in [event["payload"].get("new_state") for event in events.json]
    assert read_states(client) == [State.CREATING, *PATH]
    slow.go_on.set()
    wait_for(lambda: read_lines(client, query)[-1] == LINES[-1])
    kinds = [event["payload"].get("new_state") for event in read_events(client)]
    assert kinds[-1] == State.COMPLETE
    assert kinds.count(None) == len(LINES)


def test_pages_that_are_read_while_the_log_is_have_all_in_the_end(
    start: Start, cluster: FakeCluster, build_client: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "PATIENCE_SECONDS", 0.1)
    slow = SlowLog(cluster, 1500)
    has_ended(cluster, write(LINES, time.time() - 70), len(LINES))
    client = build_client(start())
    first = read_events(client)
    slow.go_on.set()
    rest = wait_for(lambda: read_events(client, first[-1]["id"] if first else 0))
    wait_for(lambda: "warning" not in client.simulate_get(f"{BASE}/events?after={rest[-1]['id']}").headers)
    rest += read_events(client, rest[-1]["id"])
    assert [one["payload"]["line"] for one in [*first, *rest] if one["topic"] == Topic.LOG] == LINES


def test_log_that_cannot_be_read_is_read_when_that_is_possible_again(
    start: Start, cluster: FakeCluster, build_client: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "READ_TRIES", 2)
    has_ended(cluster, write(LINES[:5], time.time() - 70), 5)
    cluster.faults = lambda verb, path, query: 500 if path.endswith("/log") else None
    client = build_client(start())
    wait_for(lambda: len(cluster.log_requests) == 0 and read_lines(client) == [f"[oet: {logs.STILL_READ}]"])
    assert [event["payload"].get("new_state") for event in read_events(client)] == [State.CREATING, *PATH]
    cluster.faults = lambda verb, path, query: None
    wait_for(lambda: read_lines(client) == LINES[:5])


# ---- what had to go


def read_events(client: falcon.testing.TestClient, after: int = 0) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    while page := client.simulate_get(f"{BASE}/events?limit=1000&after={after}").json:
        events += page
        after = page[-1]["id"]
    return events


def read_states(client: falcon.testing.TestClient) -> list[str]:
    events = client.simulate_get(f"{BASE}/events?kind=state").json
    return [event["payload"]["new_state"] for event in events]


def test_states_and_messages_are_there_whatever_others_print(
    start: Start, cluster: FakeCluster, build_client: Build
) -> None:
    engine = start()
    engine.timeline._limit_bytes = 50_000
    for number, name in enumerate(("one", "two", "three"), 1):
        cluster.add(name, number)
        cluster.reach(*PATH[:5], name=name, podName=name)
        cluster.print(name, '\x1e{"k": "message", "topic": "script.announce", "data": {"msg": "said"}}')
        cluster.print(name, "printed")
        wait_for(lambda number=number: len(engine.timeline.read(0, limit=99, procedure_id=number)) == 8)
        if name == "three":
            cluster.logs[name] += b"".join(write(LINES[:200], time.time()))
            wait_for(lambda: engine.timeline._size < 50_000 and "dropped" in str(lines_of(engine, 3)))
        cluster.reach(*PATH[5:], name=name)
        cluster.end(name)
    client = build_client(engine)
    assert read_states(client) == [State.CREATING, *PATH]
    wait_for(lambda: len(read_events(client)) == 10)
    said = [event["payload"] for event in read_events(client) if event["kind"] == EntryKind.MESSAGE]
    assert [payload["msg"] for payload in said] == ["said"]
    assert read_lines(client) == ["printed"]


def lines_of(engine: KubeEngine, procedure_id: int) -> list[Any]:
    entries = engine.timeline.read(0, limit=1000, procedure_id=procedure_id, kinds=[EntryKind.LOG])
    return [entry.payload for entry in entries]
