"""Creating, looking at, starting and stopping procedures, as a client sees it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from falcon.testing import Result

from oet_api.sse import build_frame
from oet_crds.errors import InvalidTransitionError, UnavailableError
from oet_crds.execution import AbortStatus, Condition, FunctionArgs, ScriptExecutionSpec, WhenBusy
from oet_crds.names import RELEASE_ANNOTATION
from oet_crds.ports import SpecChange
from oet_crds.reasons import Reason
from oet_crds.states import ACTIVE_STATES, FINAL_STATES, ConditionType, DesiredState, State
from oet_crds.topics import EntryKind, Topic

FILE = {"script_type": "filesystem", "script_uri": "file:///scripts/a.py"}
GIT = {"script_type": "git", "script_uri": "git://demo.py"}
INLINE = {"script_type": "inline", "source": "def main(): pass"}
REPOSITORY = "https://gitlab.com/ska-telescope/oso/ska-oso-scripting.git"


def _wait(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


# ---- create ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        pytest.param(FILE, {"script_uri": "file:///scripts/a.py", "script_type": "filesystem"}, id="file"),
        pytest.param(INLINE, {"source": "def main(): pass", "script_type": "inline"}, id="inline"),
        pytest.param(
            GIT,
            {
                "script_uri": "git://demo.py",
                "git_args": {"git_repo": REPOSITORY, "git_branch": "master", "git_commit": None},
                "create_env": False,
                "script_type": "git",
            },
            id="git-defaults",
        ),
        pytest.param(
            {**GIT, "git_args": {"git_repo": "https://h/r", "git_branch": "b", "git_commit": "c"}, "create_env": True},
            {
                "script_uri": "git://demo.py",
                "git_args": {"git_repo": "https://h/r", "git_branch": "b", "git_commit": "c"},
                "create_env": True,
                "script_type": "git",
            },
            id="git",
        ),
    ],
)
def test_created_procedure_has_upstreams_form(
    client: Any, store: Any, sent: dict[str, Any], shown: dict[str, Any]
) -> None:
    store.prepares = False
    answer = client.ask("POST", "/procedures/", {"script": sent, "script_args": {"init": {"args": [1]}}})
    assert answer.status_code == 201
    assert answer.headers["location"] == "/ska-oso-oet/oet/api/v7/procedures/1"
    procedure = answer.json
    assert list(procedure) == ["id", "script", "script_args", "history", "state", "uri"]
    assert list(procedure["script"].items()) == list(shown.items())
    assert procedure["id"] == 1
    assert procedure["script_args"] == {"init": {"args": [1], "kwargs": {}}}
    assert procedure["state"] == "CREATING"
    assert procedure["uri"] == "http://localhost/ska-oso-oet/oet/api/v7/procedures/1"
    [[state, at]] = procedure["history"]["process_states"]
    assert state == "CREATING"
    assert abs(at - time.time()) < 5
    assert procedure["history"]["stacktrace"] is None


@pytest.mark.parametrize(
    ("git_args", "words"),
    [
        ({"git_repo": "file:///srv/git/x"}, "protocol file is not allowed"),
        ({"git_repo": "ext::sh -c true"}, "is not the URL of a repository"),
        ({"git_repo": "r"}, "is not the URL of a repository"),
        ({"git_repo": "http://me@h/x"}, "http://***@h/x"),
    ],
)
def test_repository_that_is_not_allowed_is_refused_at_once(
    client: Any, store: Any, git_args: dict[str, Any], words: str
) -> None:
    answer = client.ask("POST", "/procedures/", {"script": {**GIT, "git_args": git_args}})
    assert answer.status_code == 403, answer.text
    assert words in answer.json["detail"]
    assert "secret" not in answer.text
    assert not store.list()


@pytest.mark.parametrize(
    ("git_args", "branch"),
    [({}, "master"), ({"git_commit": "c0ffee"}, None), ({"git_branch": None}, None), ({"git_branch": "b"}, "b")],
)
def test_default_branch_is_taken_only_where_no_version_is_named(
    client: Any, store: Any, git_args: dict[str, Any], branch: str | None
) -> None:
    number = client.ask("POST", "/procedures/", {"script": {**GIT, "git_args": git_args}}).json["id"]
    assert store.get(number).spec.script.git.branch == branch


def test_created_procedure_is_held_and_not_queued(client: Any, store: Any) -> None:
    spec = store.get(client.create()).spec
    assert (spec.desired_state, spec.when_busy) == (DesiredState.READY, WhenBusy.REJECT)


def test_arguments_of_main_given_at_creation_are_kept_and_shown(client: Any, store: Any) -> None:
    number = client.create(script_args={"main": {"args": ["z"], "kwargs": {"q": [1, {"r": None}]}}})
    assert store.get(number).spec.args.main == FunctionArgs(args=["z"], kwargs={"q": [1, {"r": None}]})
    shown = client.ask("GET", f"/procedures/{number}").json["script_args"]
    assert shown["main"] == {"args": ["z"], "kwargs": {"q": [1, {"r": None}]}}


def test_creation_is_told_in_the_timeline(client: Any, timeline: Any) -> None:
    client.create(3)
    asked, done = [entry for entry in timeline.entries if entry.kind is EntryKind.ACTION]
    assert (asked.topic, asked.payload["msg_src"]) == (Topic.REQUEST_CREATE, "FastAPIWorker")
    script = {"script_uri": "file:///scripts/a.py", "script_type": "filesystem"}
    assert asked.payload["cmd"] == {"script": script, "init_args": {"args": [], "kwargs": {"subarray_id": 3}}}
    assert (done.topic, done.payload["msg_src"]) == (Topic.CREATED, "SESWorker")
    assert done.payload["result"]["id"] == 1
    assert asked.payload["request_id"] == done.payload["request_id"]


def test_creation_beyond_the_limit_is_503_with_a_time(client: Any, store: Any) -> None:
    store.max_active = 1
    client.create()
    answer = client.ask("POST", "/procedures/", {"script": FILE})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")


def test_timeline_that_takes_nothing_does_not_undo_what_was_done(
    client: Any, timeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise UnavailableError("disk full")

    monkeypatch.setattr(timeline, "append", fail)
    assert client.start(client.create()).status_code == 200


# ---- requests that break the schema ----------------------------------------------------------------------------------

SCRIPT = ["body", "script"]


@pytest.mark.parametrize(
    ("body", "kind", "loc"),
    [
        pytest.param({}, "missing", SCRIPT, id="no-script"),
        pytest.param({"script": {}}, "union_tag_not_found", SCRIPT, id="no-type"),
        pytest.param({"script": {"script_type": "x"}}, "union_tag_invalid", SCRIPT, id="unknown-type"),
        pytest.param(
            {"script": {"script_type": "filesystem"}}, "missing", [*SCRIPT, "filesystem", "script_uri"], id="no-uri"
        ),
        pytest.param(
            {"script": {**FILE, "script_uri": "/x.py"}},
            "value_error",
            [*SCRIPT, "filesystem", "script_uri"],
            id="no-prefix",
        ),
        pytest.param(
            {"script": {**FILE, "script_uri": "file://"}},
            "value_error",
            [*SCRIPT, "filesystem", "script_uri"],
            id="prefix-only",
        ),
        pytest.param(
            {"script": {**FILE, "script_uri": "file:///a\0b"}},
            "value_error",
            [*SCRIPT, "filesystem", "script_uri"],
            id="nul-in-a-path",
        ),
        pytest.param(
            {"script": {**GIT, "script_uri": "file://a"}},
            "value_error",
            [*SCRIPT, "git", "script_uri"],
            id="git-prefix",
        ),
        pytest.param(
            {"script": {**GIT, "git_args": {"repo": "x"}}},
            "extra_forbidden",
            [*SCRIPT, "git", "git_args", "repo"],
            id="unknown-git-key",
        ),
        pytest.param(
            {"script": {**INLINE, "source": ""}}, "string_too_short", [*SCRIPT, "inline", "source"], id="empty"
        ),
        pytest.param({"script": FILE, "scripts": 1}, "extra_forbidden", ["body", "scripts"], id="unknown-key"),
        pytest.param(
            {"script": FILE, "script_args": {"run": {}}},
            "extra_forbidden",
            ["body", "script_args", "run"],
            id="unknown-function",
        ),
        pytest.param(
            {"script": FILE, "script_args": []}, "model_attributes_type", ["body", "script_args"], id="no-object"
        ),
        pytest.param(
            {"script": FILE, "script_args": {"init": {"args": {}}}},
            "list_type",
            ["body", "script_args", "init", "args"],
            id="args-no-list",
        ),
        *(
            pytest.param(
                {"script": FILE, "script_args": {"main": {"kwargs": {"subarray_id": value}}}},
                "value_error",
                ["body", "script_args", "main", "kwargs"],
                id=f"subarray-{value}",
            )
            for value in (-1, 65536, 1.5, "one", True, [])
        ),
        pytest.param(
            {
                "script": FILE,
                "script_args": {"init": {"kwargs": {"subarray_id": 1}}, "main": {"kwargs": {"subarray_id": 2}}},
            },
            "value_error",
            ["body", "script_args"],
            id="two-subarrays",
        ),
    ],
)
def test_creation_that_breaks_the_schema_is_422_and_creates_nothing(
    client: Any, store: Any, body: dict[str, Any], kind: str, loc: list[str]
) -> None:
    answer = client.ask("POST", "/procedures/", body)
    assert answer.status_code == 422
    problem = answer.json["detail"][0]
    assert (problem["type"], problem["loc"]) == (kind, loc)
    assert {"type", "loc", "msg", "input"} <= set(problem)
    assert store.list() == ()


@pytest.mark.parametrize("subarray", [0, 1, 65535, "2", 3.0, None])
def test_usable_subarray_is_taken(client: Any, subarray: Any) -> None:
    client.create(script_args={"init": {"kwargs": {"subarray_id": subarray}}})


def test_wrong_prefix_has_upstreams_words(client: Any) -> None:
    answer = client.ask("POST", "/procedures/", {"script": {**FILE, "script_uri": "/tmp/x.py"}})
    assert answer.json["detail"][0]["msg"] == "Value error, Incorrect prefix for FileSystemScript: /tmp/x.py"


@pytest.mark.parametrize(
    ("raw", "headers", "status", "words"),
    [
        pytest.param(b"", {}, 422, "Field required", id="no-body"),
        pytest.param(b"{", {}, 422, "JSON decode error", id="half-a-body"),
        pytest.param(b"\xff", {}, 422, "UTF-8", id="no-utf8"),
        pytest.param(b'{"script": NaN}', {}, 422, "NaN", id="nan"),
        pytest.param(b"[" * 5000, {}, 422, "deeper", id="deep"),
        pytest.param(b'{"x": ' + b"9" * 5000 + b"}", {}, 422, "5000 digits", id="huge-number"),
        pytest.param(b"[]", {}, 422, "valid dictionary", id="no-object"),
        pytest.param(b"null", {}, 422, "valid dictionary", id="null"),
        pytest.param(b"{}", {"Content-Type": "text/plain"}, 415, "application/json", id="text"),
        pytest.param(b"{}", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "application/json", id="form"),
        pytest.param(b"{}", {"Content-Encoding": "gzip"}, 415, "Content-Encoding", id="gzip"),
        pytest.param(b" " * 20_001, {}, 413, "20000", id="too-large"),
        pytest.param(b"{}", {"Content-Length": "10"}, 400, "2 of 10 bytes", id="cut-off"),
        pytest.param(b"{}", {"Transfer-Encoding": "chunked"}, 411, "Content-Length", id="chunked"),
    ],
)
def test_body_that_cannot_be_read_is_a_client_error(
    client: Any, raw: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    more = {"Content-Type": "application/json", **headers}
    for method, path in (("POST", "/procedures/"), ("PUT", "/procedures/1")):
        answer = client.ask(method, path, body=raw, headers=more)
        assert answer.status_code == status
        assert words in answer.text
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/vnd.ska+json"])
def test_json_by_any_of_its_names_is_taken(client: Any, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    answer = client.ask("POST", "/procedures/", body=json.dumps({"script": FILE}), headers=headers)
    assert answer.status_code == 201


def test_large_arguments_are_413(client: Any) -> None:
    answer = client.ask("POST", "/procedures/", {"script": FILE, "script_args": {"init": {"args": ["x" * 6000]}}})
    assert answer.status_code == 413
    assert "5000" in answer.json["detail"]


def test_echo_of_a_wrong_body_is_bounded(client: Any) -> None:
    answer = client.ask("POST", "/procedures/", {"script": FILE, **{f"k{n}": "x" * 100 for n in range(150)}})
    assert answer.status_code == 422
    assert len(answer.json["detail"]) == 50
    answer = client.ask("POST", "/procedures/", {"script": ["x" * 15_000]})
    assert len(answer.content) < 2000


# ---- look ------------------------------------------------------------------------------------------------------------


def test_list_is_oldest_first_and_filters(client: Any, store: Any) -> None:
    for number in range(1, 6):
        client.create(number % 2)
    store.enter(2, State.FAILED)
    ids = {
        "": [1, 2, 3, 4, 5],
        "?limit=2": [1, 2],
        "?limit=2&after=2": [3, 4],
        "?state=FAILED": [2],
        "?subarray=1": [1, 3, 5],
        "?subarray=1&state=READY&after=1&limit=1": [3],
        "?after=99": [],
    }
    for query, expected in ids.items():
        for path in ("/procedures/", "/procedures"):
            assert [one["id"] for one in client.ask("GET", path + query).json] == expected


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=1001", "limit=x", "limit=", "state=running", "stat=READY", "after=-1", "after=1&after=2",
        "subarray=65536", "limit=" + "9" * 5000, "%ff=1", "limit=%zz",
    ],
)  # fmt: skip
def test_wrong_query_is_422_never_ignored(client: Any, query: str) -> None:
    answer = client.ask("GET", f"/procedures/?{query}")
    assert answer.status_code == 422
    assert answer.json["detail"][0]["loc"][0] == "query"


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [
        ("99", 404, "No information available for PID=99"),
        ("-1", 404, "No information available for PID=-1"),
        ("9" * 31, 404, "No information available for PID="),
        ("9" * 5000, 404, "No information available for PID="),
        ("x", 422, "int_parsing"),
        ("1.5", 422, "int_parsing"),
        ("٣", 422, "int_parsing"),
        ("%00", 422, "int_parsing"),
        ("a" * 3000, 422, "int_parsing"),
    ],
)
def test_unknown_or_wrong_id_is_a_client_error(client: Any, number: str, status: int, words: str) -> None:
    for method, path, body in (
        ("GET", "", None), ("PUT", "", {}), ("GET", "/logs", None), ("GET", "/events", None),
    ):  # fmt: skip
        answer = client.ask(method, f"/procedures/{number}{path}", body)
        assert answer.status_code == status
        assert words in answer.text


def test_wrong_body_is_told_before_the_unknown_id(client: Any) -> None:
    assert client.ask("PUT", "/procedures/99", {"state": "FOO"}).status_code == 422


def test_final_procedure_says_why(client: Any, store: Any) -> None:
    number = client.create()
    store.enter(number, State.FAILED, message="no such file", stacktrace="Traceback...")
    shown = client.ask("GET", f"/procedures/{number}").json
    assert shown["message"] == "no such file"
    assert shown["history"]["stacktrace"] == "Traceback..."


def test_shown_procedure_is_never_an_old_one(client: Any, store: Any) -> None:
    number = client.create()
    for state in (State.RUNNING, State.READY, State.COMPLETE):
        store.enter(number, state)
        assert client.ask("GET", f"/procedures/{number}").json["state"] == state
        assert client.ask("GET", "/procedures/").json[0]["state"] == state


def test_events_are_paged_by_id(client: Any, timeline: Any) -> None:
    number = client.create()
    timeline.put_line(number, "hello")
    timeline.put_message(number, msg="hi", value=float("nan"), text="\udc80")
    events = client.ask("GET", f"/procedures/{number}/events").json
    assert [event["id"] for event in events] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert list(events[0]) == ["id", "seq", "time", "kind", "topic", "payload"]
    assert events[-1]["payload"]["value"] is None
    page = client.ask("GET", f"/procedures/{number}/events?after=7&limit=1").json
    assert [(event["id"], event["payload"]["line"]) for event in page] == [(8, "hello")]
    assert [event["kind"] for event in client.ask("GET", f"/procedures/{number}/events?kind=message").json] == [
        "message"
    ]


# ---- start -----------------------------------------------------------------------------------------------------------


def test_start_runs_main_with_its_arguments(client: Any, store: Any) -> None:
    number = client.create(4)
    answer = client.start(number, "z")
    assert (answer.status_code, answer.json["state"], answer.json["subarray"]) == (200, "RUNNING", 4)
    assert answer.json["script_args"]["main"] == {"args": ["z"], "kwargs": {}}
    main = FunctionArgs(args=["z"])
    assert store.changes == [(number, SpecChange(DesiredState.RUNNING, main=main, when_busy=WhenBusy.REJECT))]


def test_start_without_arguments_uses_those_of_the_creation(client: Any, store: Any) -> None:
    number = client.create(script_args={"main": {"args": [5]}})
    answer = client.ask("PUT", f"/procedures/{number}", {"state": "RUNNING"})
    assert answer.json["script_args"]["main"]["args"] == [5]


def test_start_is_told_in_the_timeline(client: Any, timeline: Any) -> None:
    number = client.create()
    client.start(number, 1)
    asked, done = [entry for entry in timeline.entries if entry.kind is EntryKind.ACTION][2:]
    assert asked.topic == Topic.REQUEST_START
    run_args = {"args": [1], "kwargs": {}}
    assert asked.payload["cmd"] == {
        "process_uid": number, "fn_name": "main", "run_args": run_args, "force_start": False,
    }  # fmt: skip
    assert done.topic == Topic.STARTED
    assert done.payload["result"]["id"] == number


def test_second_start_is_the_same_start(client: Any, store: Any) -> None:
    number = client.create()
    assert [client.start(number, 1).status_code for _ in range(3)] == [200] * 3
    assert len(store.changes) == 1
    answer = client.start(number, 2)
    assert answer.status_code == 409
    assert "other arguments" in answer.json["detail"]


def test_busy_subarray_refuses_names_the_holder_and_keeps_the_procedure_ready(client: Any, store: Any) -> None:
    holder, other = client.create(1), client.create(1)
    client.start(holder)
    for _ in range(2):
        answer = client.start(other)
        assert answer.status_code == 409
        assert answer.json["detail"] == f"Cannot start PID {other}: PID #{holder} is RUNNING on subarray 1"
        assert answer.json["holder"] == holder
        shown = store.get(other)
        assert (shown.status.state, shown.spec.desired_state) == (State.READY, DesiredState.READY)
    client.stop(holder)
    assert client.start(other).json["state"] == "RUNNING"


def test_start_the_engine_says_nothing_about_is_504_with_the_truth(client: Any, store: Any) -> None:
    store.grants = False
    number = client.create()
    answer = client.start(number)
    assert answer.status_code == 504
    assert "not granted yet: state READY" in answer.json["detail"]
    assert store.get(number).spec.desired_state is DesiredState.RUNNING


def test_start_of_what_ends_meanwhile_is_409(client: Any, store: Any) -> None:
    store.grants = False
    number = client.create()
    answers: list[Result] = []
    thread = threading.Thread(target=lambda: answers.append(client.start(number)))
    thread.start()
    _wait(lambda: store.changes)
    store.enter(number, State.FAILED, message="gone")
    thread.join(5)
    assert answers[0].status_code == 409
    assert "FAILED: gone" in answers[0].json["detail"]


@pytest.mark.parametrize("state", [State.CREATING, State.LOADING, State.INITIALISING])
def test_start_before_ready_is_409_with_the_way_out(client: Any, store: Any, state: State) -> None:
    store.prepares = False
    number = client.create()
    store.enter(number, state)
    answer = client.start(number)
    assert (answer.status_code, answer.json["state"]) == (409, str(state))
    assert answer.json["detail"] == f"Procedure {number} is {state}; start it when it is READY"


def test_start_decides_again_when_the_execution_changes_meanwhile(client: Any, store: Any) -> None:
    number = client.create()
    interferences = [State.FAILED]

    def interfere(procedure_id: int) -> None:
        if interferences:
            store.enter(procedure_id, interferences.pop())

    store.before_change = interfere
    answer = client.start(number)
    assert answer.status_code == 409
    assert "it is FAILED" in answer.json["detail"]


def test_racing_starts_of_one_procedure_ask_once_and_all_succeed(client: Any, store: Any) -> None:
    number = client.create(1)
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(client.start(number).status_code)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert answers == [200] * 20
    assert len(store.changes) == 1


def test_racing_starts_of_a_refused_procedure_are_all_refused(client: Any, store: Any) -> None:
    holder, other = client.create(1), client.create(1)
    client.start(holder)
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(client.start(other).status_code)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert answers == [409] * 20
    assert store.get(other).spec.desired_state is DesiredState.READY


# ---- stop ------------------------------------------------------------------------------------------------------------


def test_stop_answers_with_upstreams_words(client: Any, timeline: Any) -> None:
    number = client.create()
    client.start(number)
    answer = client.stop(number)
    assert (answer.status_code, answer.json) == (
        200,
        {"abort_message": f"Successfully stopped script with ID {number}"},
    )
    asked, done = [entry for entry in timeline.entries if entry.kind is EntryKind.ACTION][-2:]
    assert (asked.topic, asked.payload["cmd"]) == (Topic.REQUEST_STOP, {"process_uid": number, "run_abort": False})
    assert (done.topic, done.payload["result"]) == (Topic.STOPPED, [])


@pytest.mark.parametrize("state", sorted(ACTIVE_STATES))
def test_stop_works_in_every_active_state(client: Any, store: Any, state: State) -> None:
    store.prepares = False
    number = client.create()
    store.enter(number, state)
    assert client.stop(number).status_code == 200


@pytest.mark.parametrize("state", sorted(FINAL_STATES))
def test_stop_of_a_finished_procedure_is_409(client: Any, store: Any, state: State) -> None:
    number = client.create()
    store.enter(number, state)
    answer = client.stop(number)
    assert answer.status_code == 409
    assert answer.json["detail"] == f"Cannot stop script with ID {number}: Script is not running ({state})"


@pytest.mark.parametrize(
    ("ends", "status", "words"),
    [
        (State.COMPLETE, 409, "ended by itself meanwhile (COMPLETE)"),
        (State.FAILED, 409, "ended by itself meanwhile (FAILED)"),
        (State.UNKNOWN, 504, "cannot be known"),
        (None, 504, "Stop of procedure 1 was requested but is not certain yet: state RUNNING"),
    ],
)
def test_stop_says_how_it_really_ended(client: Any, store: Any, ends: State | None, status: int, words: str) -> None:
    number = client.create()
    client.start(number)
    store.ends = ends
    store.set_stop(number, grace_period_seconds=0)
    answer = client.stop(number)
    assert (answer.status_code, words in answer.json["detail"]) == (status, True), answer.text
    assert store.get(number).spec.desired_state is DesiredState.STOPPED


def test_stops_at_once_all_get_the_true_answer(client: Any, store: Any) -> None:
    number = client.create()
    client.start(number)
    store.ends = None
    asked: list[int] = []
    store.before_change = asked.append
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(client.stop(number).json)) for _ in range(8)]
    for thread in threads:
        thread.start()
    _wait(lambda: len(asked) == 8 and store.get(number).spec.desired_state is DesiredState.STOPPED)
    store.ends = State.STOPPED
    store.act(number)
    for thread in threads:
        thread.join(10)
    assert answers == [{"abort_message": f"Successfully stopped script with ID {number}"}] * 8
    assert client.stop(number).json["detail"].endswith("Script is not running (STOPPED)")


def test_stop_with_abort_waits_for_the_abort_script(client: Any, timeline: Any) -> None:
    number = client.create(2)
    client.start(number)
    answer = client.stop(number, abort=True)
    assert answer.status_code == 200
    assert answer.json["abort_message"] == f"Successfully stopped script with ID {number} and aborted subarray activity"
    assert timeline.entries[-1].payload["result"][0]["id"] == number + 1


@pytest.mark.parametrize(
    ("knobs", "status", "words"),
    [
        ({"abort_ends": State.FAILED}, 409, "is stopped, but the abort script (ID 2) ended FAILED"),
        ({"abort_ends": State.STOPPED}, 409, "is stopped, but the abort script (ID 2) ended STOPPED"),
        ({"abort_ends": None}, 504, "is stopped, but the abort script (ID 2) has not begun yet: state READY"),
        ({"creates_abort": False}, 504, "is stopped, but its abort script was not created yet"),
    ],
)
def test_abort_that_did_not_work_is_told(
    client: Any, store: Any, knobs: dict[str, Any], status: int, words: str
) -> None:
    for name, value in knobs.items():
        setattr(store, name, value)
    number = client.create(2)
    client.start(number)
    answer = client.stop(number, abort=True)
    assert (answer.status_code, words in answer.json["detail"]) == (status, True), answer.text


def test_abort_that_failed_is_marked_as_an_alarm(client: Any, store: Any) -> None:
    store.abort_ends = State.FAILED
    number = client.create(2)
    client.start(number)
    answer = client.stop(number, abort=True)
    assert answer.json["severity"] == "ALARM"
    assert answer.json["detail"].startswith("ALARM: ")


def test_abort_that_the_engine_cannot_run_is_an_alarm_at_once(client: Any, store: Any) -> None:
    store.creates_abort = False
    number = client.create(2)
    client.start(number)
    condition = Condition(
        type=ConditionType.ABORTED,
        status="False",
        reason=Reason.ABORT_FAILED,
        message="ALARM: the abort script cannot be created",
        last_transition_time=datetime.now(UTC),
    )
    store.set_status(number, conditions=[condition])
    answer = client.stop(number, abort=True)
    assert (answer.status_code, answer.json["severity"]) == (409, "ALARM")
    assert "the abort script cannot be created" in answer.json["detail"]


def test_abort_that_has_not_begun_for_long_is_an_alarm(
    client: Any, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oet_api.procedures.ABORT_BEGIN_SECONDS", 0.2)
    for name, value, words in (
        ("abort_ends", None, "has not begun yet: state READY"),
        ("creates_abort", False, "its abort script was not created yet"),
    ):
        setattr(store, name, value)
        number = client.create(2)
        client.start(number)
        answer = client.stop(number, abort=True)
        assert (answer.status_code, answer.json["severity"]) == (409, "ALARM"), answer.text
        assert words in answer.json["detail"]


def test_stop_goes_on_with_the_abort_script_that_takes_the_place_of_a_deaf_one(client: Any, store: Any) -> None:
    store.creates_abort, store.reports_ends = False, True
    number = client.create(2)
    client.start(number)
    deaf, fresh = store.arm(2), store.arm(3)
    given_up = Condition(
        type=ConditionType.STOPPING,
        status="True",
        reason=Reason.ABORT_NOT_BEGUN,
        last_transition_time=datetime.now(UTC),
    )

    def give_up(procedure_id: int) -> None:
        if procedure_id == deaf:
            store.before_change = lambda _: None
            grant = store.get(deaf).status.grant
            used = grant.model_copy(update={"standing": False, "abort_of": store.get(number).uid})
            store.enter(deaf, State.FAILED, grant=used, conditions=[given_up])
            store.enter(fresh, State.RUNNING, State.COMPLETE)
            store.set_status(number, abort=AbortStatus(procedure_id=fresh))

    store.before_change = give_up
    answer = client.stop(number, abort=True)
    assert answer.status_code == 200, answer.text


def test_held_abort_script_is_started_without_the_engine(client: Any, store: Any) -> None:
    store.creates_abort, store.reports_ends = False, True
    number = client.create(2)
    client.start(number)
    armed = store.arm(2)
    answer = client.stop(number, abort=True)
    assert (answer.status_code, store.get(armed).status.state) == (200, State.COMPLETE), answer.text
    assert store.get(armed).spec.abort_of == store.get(number).uid


def test_held_abort_script_of_another_subarray_or_before_the_end_is_left_alone(client: Any, store: Any) -> None:
    store.creates_abort = False
    for subarray, reports in ((3, True), (2, False)):
        store.reports_ends = reports
        number = client.create(2)
        client.start(number)
        armed = store.arm(subarray)
        assert client.stop(number, abort=True).status_code == 504
        assert store.get(armed).spec.abort_of is None


def test_held_abort_script_that_the_engine_starts_first_is_not_started_again(client: Any, store: Any) -> None:
    store.creates_abort, store.reports_ends = False, True
    number = client.create(2)
    client.start(number)
    armed = store.arm(2)

    def start_first(procedure_id: int) -> None:
        if procedure_id == armed:
            store.before_change = lambda _: None
            grant = store.get(armed).status.grant
            used = grant.model_copy(update={"standing": False, "abort_of": store.get(number).uid})
            store.enter(armed, State.RUNNING, State.COMPLETE, grant=used)

    store.before_change = start_first
    assert client.stop(number, abort=True).status_code == 200
    assert store.get(armed).spec.abort_of is None


def test_held_abort_script_that_takes_no_change_is_left_to_the_engine(client: Any, store: Any) -> None:
    store.creates_abort, store.reports_ends = False, True
    number = client.create(2)
    client.start(number)
    armed = store.arm(2)

    def fail(procedure_id: int) -> None:
        if procedure_id == armed:
            raise UnavailableError("the store takes nothing")

    store.before_change = fail
    assert client.stop(number, abort=True).status_code == 504


def test_stop_with_abort_of_an_execution_that_changes_all_the_time_gets_through(client: Any, store: Any) -> None:
    number = client.create(2)
    client.start(number)
    store.before_change = lambda procedure_id: store.set_status(procedure_id, message="news")
    assert client.stop(number, abort=True).status_code == 200


def test_held_abort_scripts_are_listed_for_who_asks_and_not_started(client: Any, store: Any) -> None:
    armed = store.arm(2)
    assert client.ask("GET", "/procedures/").json == []
    (found,) = client.ask("GET", "/procedures/?armed=true").json
    assert (found["id"], found["purpose"]) == (armed, "Abort")
    answer = client.start(armed)
    assert answer.status_code == 409
    assert "which a stop starts" in answer.json["detail"]
    assert "stop it without abort" in client.stop(armed, abort=True).json["detail"]
    assert client.stop(armed).status_code == 200


@pytest.mark.parametrize(("value", "status"), [(30, 201), (1, 201), (0, 422), (1.5, 422), ("30", 422), (10**12, 422)])
def test_ready_timeout_is_a_whole_number_of_seconds(client: Any, store: Any, value: Any, status: int) -> None:
    made = client.ask("POST", "/procedures/", {"script": INLINE, "ready_timeout_seconds": value})
    assert made.status_code == status
    if status == 201:
        assert store.get(made.json["id"]).spec.ready_timeout_seconds == value


def test_stop_of_a_rehearsal_runs_no_abort_and_says_so(client: Any, store: Any) -> None:
    body = {"script": INLINE, "script_args": {"init": {"kwargs": {"subarray_id": 1}}}, "mode": "Rehearsal"}
    made = client.ask("POST", "/procedures/", body)
    assert made.json["mode"] == "Rehearsal"
    answer = client.stop(made.json["id"], abort=True)
    assert answer.status_code == 200
    assert answer.json["abort_message"].endswith("; it was a rehearsal, which has no telescope to abort")
    assert len(store.list()) == 1
    assert not store.get(made.json["id"]).spec.stop.abort


def test_abort_without_a_subarray_is_refused_before_anything_is_stopped(client: Any, store: Any) -> None:
    number = client.create()
    client.start(number)
    answer = client.stop(number, abort=True)
    assert answer.status_code == 409
    assert "stop it without abort" in answer.json["detail"]
    assert store.get(number).status.state is State.RUNNING
    assert store.get(number).spec.desired_state is DesiredState.RUNNING


def test_stop_that_loses_the_race_against_the_end_tells_the_end(client: Any, store: Any) -> None:
    number = client.create()
    client.start(number)

    def end(procedure_id: int) -> None:
        store.enter(procedure_id, State.COMPLETE)

    store.before_change = end
    answer = client.stop(number)
    assert answer.status_code == 409
    assert "COMPLETE" in answer.json["detail"]


# ---- other changes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [{}, {"abort": True}, {"state": None}, {"script_args": {"main": {}}}, {"state": "READY"}]
)
def test_put_that_asks_for_nothing_new_answers_with_the_procedure(
    client: Any, store: Any, body: dict[str, Any]
) -> None:
    number = client.create()
    answer = client.ask("PUT", f"/procedures/{number}", body)
    assert (answer.status_code, answer.json["id"]) == (200, number)
    assert store.changes == []


@pytest.mark.parametrize("state", sorted(set(State) - {State.RUNNING, State.STOPPED, State.READY}))
def test_put_of_a_state_nobody_can_ask_for_is_409(client: Any, state: State) -> None:
    answer = client.ask("PUT", f"/procedures/{client.create()}", {"state": state})
    assert answer.status_code == 409
    assert "ask for RUNNING or STOPPED" in answer.json["detail"]


@pytest.mark.parametrize(
    "body", [{"state": "running"}, {"abort": "yes"}, {"abort": 1}, {"stat": "RUNNING"}, {"state": 1}]
)
def test_put_that_breaks_the_schema_is_422(client: Any, body: dict[str, Any]) -> None:
    assert client.ask("PUT", f"/procedures/{client.create()}", body).status_code == 422


# ---- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "status", "body"),
    [
        (UnavailableError("the store is away"), 503, {"detail": "the store is away"}),
        (
            InvalidTransitionError("not now", State.READY),
            409,
            {"detail": "not now", "state": "READY"},
        ),
        (ValueError("secret"), 500, {"detail": "Internal Server Error"}),
        (RecursionError("secret"), 500, {"detail": "Internal Server Error"}),
    ],
)
def test_failing_engine_is_answered_and_survived(
    client: Any, store: Any, failure: Exception, status: int, body: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    store.failure = failure
    for method, path, sent in (
        ("GET", "/procedures/", None),
        ("GET", "/procedures/1", None),
        ("POST", "/procedures/", {"script": FILE}),
        ("PUT", "/procedures/1", {"state": "STOPPED"}),
    ):
        answer = client.ask(method, path, sent)
        assert (answer.status_code, answer.json) == (status, body)
    assert ("secret" in caplog.text) == (status == 500)
    store.failure = None
    client.create()


# ---- UNKNOWN -------------------------------------------------------------------------------------------------------------


def _lose(client: Any, store: Any) -> int:
    """Have a procedure on subarray 1 be UNKNOWN, with its subarray held."""
    body = {"script": FILE, "script_args": {"init": {"kwargs": {"subarray_id": 1}}}}
    number = int(client.ask("POST", "/procedures/", body).json["id"])
    assert client.ask("PUT", f"/procedures/{number}", {"state": "RUNNING"}).status_code == 200
    store.enter(number, State.UNKNOWN, reason=Reason.NODE_LOST, message="the node is away")
    return number


def _release(client: Any, number: int, body: dict[str, Any]) -> Result:
    answer: Result = client.ask("POST", f"/procedures/{number}/release", body)
    return answer


def test_unknown_procedure_is_released_by_a_person_with_a_reason(client: Any, store: Any, timeline: Any) -> None:
    number = _lose(client, store)
    answer = _release(client, number, {"reason": "dishes are parked"})
    assert (answer.status_code, answer.json["state"]) == (200, State.UNKNOWN)
    assert store.get(number).metadata.annotations[RELEASE_ANNOTATION] == "dishes are parked"
    (asked,) = [entry for entry in timeline.entries if entry.topic == Topic.REQUEST_RELEASE]
    assert (asked.procedure_id, asked.payload["reason"]) == (number, "dishes are parked")
    assert _release(client, number, {"reason": "again"}).status_code == 200


@pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": " \n"}, {"reason": None}, {"reason": "x" * 501}])
def test_release_without_a_reason_is_refused(client: Any, store: Any, body: dict[str, Any]) -> None:
    number = _lose(client, store)
    assert _release(client, number, body).status_code == 422
    assert RELEASE_ANNOTATION not in store.get(number).metadata.annotations


@pytest.mark.parametrize("state", [State.READY, State.RUNNING, State.STOPPED, State.FAILED])
def test_only_what_is_unknown_is_released(client: Any, store: Any, state: State) -> None:
    number = int(client.ask("POST", "/procedures/", {"script": FILE}).json["id"])
    store.enter(number, state)
    answer = _release(client, number, {"reason": "x"})
    assert answer.status_code == 409
    assert f"is {state}" in answer.json["detail"]


def test_release_that_the_engine_does_not_take_is_told_as_it_is(client: Any, store: Any) -> None:
    store.releases = False
    answer = _release(client, _lose(client, store), {"reason": "x"})
    assert answer.status_code == 504
    assert "is stored, but" in answer.json["detail"]


def test_unknown_procedure_can_be_aborted_and_stays_unknown(client: Any, store: Any) -> None:
    number = _lose(client, store)
    answer = client.ask("PUT", f"/procedures/{number}", {"state": "STOPPED", "abort": True})
    assert answer.status_code == 504
    aborter = store.get(number).status.abort
    assert aborter is not None
    assert f"The abort script (ID {aborter.procedure_id}) is COMPLETE" in answer.json["detail"]
    assert f"oet procedure release --pid={number}" in answer.json["detail"]


def test_stop_of_an_unknown_procedure_says_that_nothing_is_certain(client: Any, store: Any) -> None:
    number = _lose(client, store)
    answer = client.ask("PUT", f"/procedures/{number}", {"state": "STOPPED", "abort": False})
    assert answer.status_code == 504
    assert "cannot be known" in answer.json["detail"]


# ---- passwords in URLs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        {**GIT, "git_args": {"git_repo": "https://me:geheim@h/x"}},
        {**GIT, "git_args": {"git_repo": "https://h/x?private_token=geheim"}},
        {**GIT, "git_args": {"git_repo": "https://me:geheim@h/x", "unknown": 1}},
        {**GIT, "git_args": {"git_repo": "https://me:geheim@h/x"}, "create_env": "https://me:geheim@h/y"},
        {**GIT, "script_uri": "git://me:geheim@h/x.py"},
        {**GIT, "script_uri": "https://me:geheim@h/x.py"},
        {**FILE, "script_uri": "file://me:geheim@h/x.py"},
    ],
)
def test_url_with_a_password_is_422_and_neither_stored_nor_repeated(client: Any, store: Any, script: Any) -> None:
    answer = client.ask("POST", "/procedures/", {"script": script})
    assert answer.status_code == 422
    assert "geheim" not in answer.text
    assert "password" in answer.text
    assert not store.list()


def test_password_that_an_older_release_has_stored_is_shown_nowhere(client: Any, store: Any, timeline: Any) -> None:
    git = {"repository": "https://me:geheim@h/x?token=geheim", "path": "a.py"}
    number = store.create(ScriptExecutionSpec.model_validate({"script": {"git": git}})).procedure_id
    old = {"script_uri": "git://a.py", "git_args": {"git_repo": git["repository"]}, "script_type": "git"}
    timeline.append(number, Topic.REQUEST_CREATE, {"cmd": {"script": old}})
    timeline.append(number, Topic.CREATED, {"result": {"script": old}})
    assert client.ask("GET", f"/procedures/{number}").json["script"]["git_args"]["git_repo"] == "https://me:***@h/x?***"
    for path in ("/procedures/", f"/procedures/{number}", f"/procedures/{number}/events"):
        assert "geheim" not in client.ask("GET", path).text
    frames = b"".join(build_frame(entry) for entry in timeline.read(0, limit=100))
    assert frames.count(b"https://me:***@h/x?***") == 2
    assert b"geheim" not in frames
