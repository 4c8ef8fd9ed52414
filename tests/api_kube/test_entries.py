"""Where runners post: who may, what an entry may be, and what happens when a part is away."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import falcon.testing
import pytest
from fake_cluster import NAMESPACE, REVIEWS, FakeCluster
from oet_support import find_free_port
from oet_support_sink import MemorySink

from oet_api.app import build_application
from oet_api.ingest import MAX_ENTRIES, PodIdentity, parse_entries
from oet_api.kube import tokens
from oet_api.kube.engine import KubeEngine
from oet_api.kube.tokens import parse_review
from oet_api.limits import InvalidJsonError
from oet_api.resources import entries as entries_resource
from oet_api.services import build_services
from oet_crds.errors import OetError
from oet_crds.names import ENTRIES_PATH
from oet_crds.settings import ServerSettings
from oet_crds.topics import EntryKind, Topic

SERVER = Path(__file__).parents[1] / "support" / "oet_entries_server.py"
LINE = {"n": 1, "t": 1.5, "k": "log", "stream": "stdout", "line": "hello"}
POD = "one-pod"


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def engine(cluster: FakeCluster, engines: list[KubeEngine], sink: MemorySink, start: Any) -> KubeEngine:
    cluster.add("one", 1, podName=POD)
    cluster.add("two", 2, podName="two-pod")
    cluster.give_token("good", POD)
    engine: KubeEngine = start(sink=sink)
    return engine


@pytest.fixture
def uid(cluster: FakeCluster) -> str:
    return str(cluster.objects["one"]["metadata"]["uid"])


@pytest.fixture
def client(engine: KubeEngine) -> Iterator[falcon.testing.TestClient]:
    settings = ServerSettings(namespace=NAMESPACE, max_body_bytes=20_000)
    services = replace(build_services(engine, engine.timeline, settings), ingest=engine.ingest)
    yield falcon.testing.TestClient(build_application(services), headers={"Host": "localhost"})
    services.broadcast.stop()


@pytest.fixture
def post(client: falcon.testing.TestClient, engine: KubeEngine, uid: str) -> Any:
    def post(*entries: Any, token: str | None = "good", to: str | None = None, **more: Any) -> falcon.testing.Result:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        more.setdefault("json", {"entries": list(entries)})
        return client.simulate_post(ENTRIES_PATH.replace("{uid}", to or uid), headers=headers, **more)

    return post


# ---- what is stored


def test_entries_are_stored_as_the_timeline_has_them(post: Any, sink: MemorySink, uid: str) -> None:
    answer = post(
        {"n": 1, "t": 1.5, "k": "state", "state": "READY", "commit": "a" * 40},
        {"n": 2, "t": 2, "k": "message", "topic": "script.announce", "data": {"msg": "hi"}},
        {"n": 3, "t": 2.5, "k": "log", "stream": "stderr", "line": "a\0b"},
        {"n": 4, "t": 2.5, "k": "log", "dropped": 12},
    )
    assert (answer.status_code, answer.json) == (200, {"seq": 4})
    assert [(one.seq, one.time, one.kind, one.topic, one.payload) for one in sink.of(uid)] == [
        (1, 1.5, EntryKind.STATE, Topic.STATE_CHANGE, {"msg_src": "1", "new_state": "READY"}),
        (2, 2.0, EntryKind.MESSAGE, Topic.ANNOUNCE, {"msg_src": "1", "msg": "hi"}),
        (3, 2.5, EntryKind.LOG, Topic.LOG, {"msg_src": "1", "stream": "stderr", "line": "a\ufffdb"}),
        (4, 2.5, EntryKind.LOG, Topic.LOG_DROPPED, {"msg_src": "1", "dropped": 12}),
    ]


def test_entries_that_come_again_are_stored_once(post: Any, sink: MemorySink, uid: str) -> None:
    post(LINE)
    assert post(LINE, {**LINE, "n": 2}).json == {"seq": 2}
    assert [one.seq for one in sink.of(uid)] == [1, 2]


def test_finished_execution_still_gets_the_rest(post: Any, cluster: FakeCluster, engine: KubeEngine) -> None:
    cluster.change("one", status={"state": "COMPLETE"})
    engine.wait(1, lambda one: one.is_finished, 5.0)
    assert post(LINE).status_code == 200


# ---- who may


@pytest.mark.parametrize("token", [None, "", "unknown", "x" * 9000, "for-others", "no-pod", "a-user"])
def test_token_that_is_no_runners_is_refused(post: Any, cluster: FakeCluster, sink: MemorySink, token: str) -> None:
    cluster.give_token("for-others", POD, audience="kubernetes")
    cluster.give_token("no-pod", POD)
    cluster.tokens["no-pod"]["user"].pop("extra")
    cluster.give_token("a-user", POD)
    cluster.tokens["a-user"]["user"]["username"] = "kubernetes-admin"
    answer = post(LINE, token=token)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert sink.stored == {}


def test_scheme_that_is_not_bearer_is_refused(client: falcon.testing.TestClient, uid: str) -> None:
    answer = client.simulate_post(ENTRIES_PATH.replace("{uid}", uid), headers={"Authorization": "Basic good"})
    assert answer.status_code == 401


@pytest.mark.parametrize("whose", ["another Pod's", "another namespace's", "nobody's"])
def test_runner_posts_for_no_other_execution(post: Any, cluster: FakeCluster, sink: MemorySink, whose: str) -> None:
    cluster.give_token("elsewhere", POD, namespace="elsewhere")
    other = str(cluster.objects["two"]["metadata"]["uid"])
    token = "elsewhere" if whose == "another namespace's" else "good"
    target = {"another Pod's": other, "nobody's": "no-such-uid"}.get(whose)
    answer = post(LINE, token=token, to=target)
    assert answer.status_code == 403
    assert "no-such-uid" not in answer.text
    assert sink.stored == {}


def test_valid_token_is_asked_about_once_and_an_invalid_one_each_time(post: Any, cluster: FakeCluster) -> None:
    for _ in range(3):
        post(LINE)
        post(LINE, token="bad")
    assert cluster.reviews.count("good") == 1
    assert cluster.reviews.count("bad") == 3


def test_token_is_not_believed_for_ever(
    post: Any, cluster: FakeCluster, sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "BELIEVED_SECONDS", 0.0)
    assert post(LINE).status_code == 200
    del cluster.tokens["good"]
    assert post({**LINE, "n": 2}).status_code == 401


def test_believed_tokens_are_bounded(
    post: Any, cluster: FakeCluster, engine: KubeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "BELIEVED_TOKENS", 3)
    for number in range(10):
        cluster.give_token(f"t{number}", POD)
        assert post(LINE, token=f"t{number}").status_code == 200
    assert engine.ingest is not None
    assert len(engine.ingest.tokens._believed) == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("fault", [500, 403, 429, "lose"])
def test_api_server_that_reviews_nothing_is_told_as_503(post: Any, cluster: FakeCluster, fault: Any) -> None:
    cluster.faults = lambda verb, path, query: fault if path == REVIEWS else None
    answer = post(LINE)
    assert answer.status_code == (503 if fault != "lose" else 200)
    if fault != "lose":
        assert int(answer.headers["Retry-After"]) >= 1


USER = {"username": "system:serviceaccount:n:a", "extra": {tokens.POD_NAME: ["p"]}}
GOOD_REVIEW: dict[str, Any] = {"authenticated": True, "audiences": ["oet-timeline"], "user": USER}


@pytest.mark.parametrize(
    "change",
    [
        {"authenticated": False},
        {"authenticated": "true"},
        {"error": "expired"},
        {"audiences": []},
        {"audiences": None},
        {"audiences": ["kubernetes"]},
        {"user": None},
        {"user": {**USER, "username": "system:serviceaccount:n"}},
        {"user": {**USER, "username": "system:node:n"}},
        {"user": {**USER, "extra": {tokens.POD_NAME: ["p", "q"]}}},
    ],
)
def test_review_that_does_not_say_all_is_no_identity(change: dict[str, Any]) -> None:
    assert parse_review({"status": GOOD_REVIEW}) == PodIdentity("n", "p")
    assert parse_review({"status": {**GOOD_REVIEW, **change}}) is None
    assert parse_review({}) is None


# ---- what an entry may be

WRONG: dict[str, Any] = {
    "nothing": {},
    "no number": {**LINE, "n": None},
    "number zero": {**LINE, "n": 0},
    "number too large": {**LINE, "n": 2**60},
    "number is true": {**LINE, "n": True},
    "number is a text": {**LINE, "n": "1"},
    "no time": {**LINE, "t": None},
    "time before all times": {**LINE, "t": -1},
    "time after all times": {**LINE, "t": 1e300},
    "unknown kind": {**LINE, "k": "other"},
    "a user's action": {"n": 1, "t": 1, "k": "action", "topic": "request.procedure.stop", "data": {}},
    "no kind": {"n": 1, "t": 1},
    "a field too many": {**LINE, "procedureId": 2},
    "no stream": {"n": 1, "t": 1, "k": "log", "line": "x"},
    "unknown stream": {**LINE, "stream": "stdin"},
    "a line that is no text": {**LINE, "line": 7},
    "a line that is too long": {**LINE, "line": "x" * 65_537},
    "dropped nothing": {"n": 1, "t": 1, "k": "log", "dropped": 0},
    "unknown state": {"n": 1, "t": 1, "k": "state", "state": "ASLEEP"},
    "no topic": {"n": 1, "t": 1, "k": "message", "data": {}},
    "topic of odd characters": {"n": 1, "t": 1, "k": "message", "topic": "a b", "data": {}},
    "data that is no object": {"n": 1, "t": 1, "k": "message", "topic": "a", "data": []},
    "a list": [],
}


@pytest.mark.parametrize("entry", WRONG.values(), ids=WRONG)
def test_what_is_no_entry_is_refused_and_nothing_with_it_is_stored(entry: Any) -> None:
    with pytest.raises(OetError, match="entry 1"):
        parse_entries(json.dumps({"entries": [LINE, entry]}).encode(), 1)


@pytest.mark.parametrize(
    "body",
    [{}, [], {"entries": []}, {"entries": {}}, {"entries": [LINE] * (MAX_ENTRIES + 1)}, {"entries": [LINE], "x": 1}],
)
def test_body_of_another_form_is_refused(body: Any) -> None:
    with pytest.raises(OetError, match="entries"):
        parse_entries(json.dumps(body).encode(), 1)


@pytest.mark.parametrize("numbers", [(1, 1), (2, 1), (1, 3)])
def test_numbers_grow_without_gaps(numbers: tuple[int, int]) -> None:
    body = {"entries": [{**LINE, "n": number} for number in numbers]}
    with pytest.raises(OetError, match="n is"):
        parse_entries(json.dumps(body).encode(), 1)


@pytest.mark.parametrize("text", ["NaN", "1e999", '"\\ud800"', "[" * 100 + "]" * 100])
def test_json_that_not_every_reader_takes_is_refused(text: str) -> None:
    body = f'{{"entries":[{{"n":1,"t":1,"k":"message","topic":"a","data":{{"x":{text}}}}}]}}'
    with pytest.raises(InvalidJsonError):
        parse_entries(body.encode(), 1)


def test_message_as_deep_as_a_runner_lets_through_is_taken() -> None:
    data: Any = {}
    for _ in range(63):
        data = {"x": data}
    (entry,) = parse_entries(
        json.dumps({"entries": [{"n": 1, "t": 1, "k": "message", "topic": "a", "data": data}]}).encode(), 1
    )
    assert "x" in entry.payload


def test_body_beyond_the_limit_is_refused(post: Any) -> None:
    assert post({**LINE, "line": "x" * 30_000}).status_code == 413


def test_body_that_is_no_json_is_refused(post: Any) -> None:
    assert post(json=None, body=b"{", content_type="application/json").status_code == 422


# ---- a store in trouble


def test_store_that_is_away_is_told_as_503_and_gets_all_later(post: Any, sink: MemorySink, uid: str) -> None:
    sink.is_away = True
    answer = post(LINE)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    sink.is_away = False
    assert post(LINE).status_code == 200
    assert len(sink.of(uid)) == 1


def test_slow_store_takes_neither_all_threads_nor_one_execution_twice(
    post: Any, cluster: FakeCluster, sink: MemorySink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries_resource, "MAX_AT_ONCE", 2)
    cluster.give_token("second", "two-pod")
    other = str(cluster.objects["two"]["metadata"]["uid"])
    sink.gate.clear()
    started, answers = threading.Semaphore(0), []
    original = sink.ingest

    def ingest(*arguments: Any) -> int:
        started.release()
        return original(*arguments)

    sink.ingest = ingest  # type: ignore[method-assign]
    threads = [
        threading.Thread(target=lambda arguments=arguments: answers.append(post(LINE, **arguments).status_code))  # type: ignore[misc]
        for arguments in ({}, {"token": "second", "to": other})
    ]
    threads[0].start()
    assert started.acquire(timeout=10)
    assert post(LINE).status_code == 503  # Of the same execution.
    threads[1].start()
    assert started.acquire(timeout=10)
    assert post(LINE).status_code == 503  # No place left.
    sink.gate.set()
    for thread in threads:
        thread.join()
    assert answers == [200, 200]
    assert post(LINE).status_code == 200


# ---- where it is


def test_without_a_sink_nobody_posts(cluster: FakeCluster, start: Any) -> None:
    cluster.add("one", 1, podName=POD)
    engine = start()
    assert engine.ingest is None
    services = build_services(engine, engine.timeline, ServerSettings(namespace=NAMESPACE))
    client = falcon.testing.TestClient(build_application(services), headers={"Host": "localhost"})
    assert client.simulate_post(ENTRIES_PATH.replace("{uid}", "x"), json={}).status_code == 404
    services.broadcast.stop()


def test_users_document_does_not_tell_of_it(client: falcon.testing.TestClient) -> None:
    document = client.simulate_get(f"/{NAMESPACE}/oet/api/v7/openapi.json").json
    assert not [path for path in document["paths"] if "internal" in path]


@pytest.fixture
def server(cluster: FakeCluster) -> Iterator[tuple[int, int, subprocess.Popen[str]]]:
    """A server process; its port for users and that for runners."""
    cluster.add("one", 1, podName=POD)
    cluster.give_token("good", POD)
    entries_port = find_free_port()
    settings = {
        "OET_TEST_API_SERVER": cluster.url,
        "OET_HOST": "127.0.0.1",
        "OET_PORT": "0",
        "OET_ENTRIES_PORT": str(entries_port),
        "OET_THREADS": "8",
        "KUBE_NAMESPACE": NAMESPACE,
    }
    process = subprocess.Popen(
        [sys.executable, str(SERVER)], stdout=subprocess.PIPE, text=True, env={**os.environ, **settings}
    )
    assert process.stdout is not None
    yield int(process.stdout.readline().removeprefix("port ")), entries_port, process
    process.terminate()
    process.wait(30.0)
    process.stdout.close()


def ask(port: int, verb: str, path: str, body: Any = None, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    data = None if body is None else json.dumps(body)
    connection.request(verb, path, data, {"Content-Type": "application/json", **headers})
    status = connection.getresponse().status
    connection.close()
    return status


def test_port_for_runners_serves_nothing_else_and_the_other_not_that(
    server: tuple[int, int, subprocess.Popen[str]], uid: str
) -> None:
    port, entries_port, process = server
    path, good = ENTRIES_PATH.replace("{uid}", uid), {"Authorization": "Bearer good"}
    for other in ("/readyz", "/healthz", f"/{NAMESPACE}/oet/api/v7/procedures", "/"):
        assert ask(port, "GET", other) in (200, 307)
        assert ask(entries_port, "GET", other) == 404
        # What a client says of the port does not matter.
        assert ask(entries_port, "GET", other, Host=f"127.0.0.1:{port}") == 404
    assert ask(entries_port, "GET", f"//{NAMESPACE}/oet/api/v7/procedures") == 404
    assert ask(entries_port, "PUT", f"/internal/executions/../../{NAMESPACE}/oet/api/v7/procedures/1", {}) == 404
    assert ask(port, "POST", path, {"entries": [LINE]}, **good) == 404
    assert ask(entries_port, "POST", path, {"entries": [LINE]}, **good) == 200
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["payload"]["line"] == "hello"
