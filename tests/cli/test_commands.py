"""The commands, against a server that plays what a test tells it to: what they send, what they show, how they end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from oet_cli import listen, options
from oet_cli import main as oet_main
from oet_cli.client import Client
from oet_cli.exits import CliError, Exit

NO_CALL = {"args": [], "kwargs": {}}


def _procedure(number: int = 1, state: str = "READY", *before: str, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "script": {"script_type": "filesystem", "script_uri": "file:///a.py"},
        "script_args": {"init": NO_CALL},
        "history": {"process_states": [[name, 1.0] for name in ("CREATING", *before, state)], "stacktrace": None},
        "state": state,
        "uri": f"http://localhost/procedures/{number}",
        **more,
    }


def _entry(number: int, kind: str, topic: str, **payload: Any) -> dict[str, Any]:
    return {
        "id": number,
        "seq": None,
        "time": 1.0,
        "kind": kind,
        "topic": topic,
        "payload": {"msg_src": "1", **payload},
    }


def _state(number: int, state: str) -> dict[str, Any]:
    return _entry(number, "state", "procedure.lifecycle.statechange", new_state=state)


def _line(number: int, text: str, stream: str = "stdout") -> dict[str, Any]:
    return _entry(number, "log", "script.log", stream=stream, line=text)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oet_cli.client.RETRY_PAUSES_SECONDS", (0.01, 0.01))
    monkeypatch.setattr("oet_cli.following.ASK_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr("oet_cli.following.PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr("oet_cli.listen.FIRST_PAUSE_SECONDS", 0.01)


# ---- create ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "init"),
    [
        pytest.param(["file:///a.py"], {"args": [], "kwargs": {"subarray_id": 1}}, id="default_subarray"),
        pytest.param(
            ["file:///a.py", "1", "abc", "[1,2]", "True", "--x=5", "--z=tom", "--flag"],
            {"args": [1, "abc", [1, 2], True], "kwargs": {"x": 5, "z": "tom", "flag": True, "subarray_id": 1}},
            id="upstream_example",
        ),
        pytest.param(
            ["--subarray_id", "3", "--x", "5", "file:///a.py", "6"],
            {"args": [6], "kwargs": {"x": 5, "subarray_id": 3}},
            id="options_before_the_script",
        ),
        pytest.param(
            ["file:///a.py", "--subarray-id=4", "--noflag", "-1"],
            {"args": [], "kwargs": {"noflag": -1, "subarray_id": 4}},
            id="dashes_and_a_number_below_zero",
        ),
        pytest.param(
            ["file:///a.py", "--flag", "--", "--x", "-o"],
            {"args": ["--x", "-o"], "kwargs": {"flag": True, "subarray_id": 1}},
            id="after_two_dashes",
        ),
        pytest.param(
            ["file:///a.py", "{1,2}", "1e999", "2j"],
            {"args": ["{1,2}", "1e999", "2j"], "kwargs": {"subarray_id": 1}},
            id="what_json_cannot_carry",
        ),
    ],
)
def test_create_hands_words_to_init(oet: Any, server: Any, words: list[str], init: Any) -> None:
    server.play("POST /procedures/", server.Answer(_procedure(1, "CREATING"), 201))
    done = oet("procedure", "create", *words)
    assert (done.code, done.err) == (0, "")
    expected = {"script": {"script_type": "filesystem", "script_uri": "file:///a.py"}, "script_args": {"init": init}}
    assert server.asked[0].body == expected
    assert done.out.splitlines()[2].split()[:2] == ["1", "file:///a.py"]


@pytest.mark.parametrize("command", ["create", "run"])
def test_rehearse_asks_for_a_rehearsal(oet: Any, server: Any, command: str) -> None:
    server.play("POST /procedures/", server.Answer({"detail": "no"}, 409))
    assert oet("procedure", command, "file:///a.py", "--rehearse").code != 0
    assert server.asked[0].body["mode"] == "Rehearsal"


@pytest.mark.parametrize("command", ["create", "run"])
def test_ready_timeout_goes_with_the_request(oet: Any, server: Any, command: str) -> None:
    server.play("POST /procedures/", server.Answer({"detail": "no"}, 409))
    assert oet("procedure", command, "file:///a.py", "--ready-timeout=30").code != 0
    assert server.asked[0].body["ready_timeout_seconds"] == 30
    assert oet("procedure", command, "file:///a.py", "--ready-timeout=0").code != 0


def test_create_from_a_path_sends_it_whole(
    oet: Any, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.play("POST /procedures/", _procedure())
    (tmp_path / "b.py").touch()
    monkeypatch.chdir(tmp_path)
    assert oet("procedure", "create", "b.py").code == 0
    assert server.asked[0].body["script"]["script_uri"] == f"file://{tmp_path}/b.py"


def test_create_from_standard_input_is_an_inline_script(oet: Any, server: Any) -> None:
    server.play("POST /procedures/", _procedure())
    assert oet("procedure", "create", "-", text="def main(): pass").code == 0
    assert server.asked[0].body["script"] == {"script_type": "inline", "source": "def main(): pass"}


@pytest.mark.parametrize(
    ("words", "git_args", "create_env"),
    [
        ([], {}, False),
        (["--git_branch=b", "--create_env=True"], {"git_branch": "b"}, True),
        (["--git-repo", "r", "--git_commit=c", "--create-env"], {"git_repo": "r", "git_commit": "c"}, True),
        (["--nocreate_env"], {}, False),
    ],
)
def test_create_from_git_sends_git_arguments(
    oet: Any, server: Any, words: list[str], git_args: Any, create_env: bool
) -> None:
    server.play("POST /procedures/", _procedure())
    assert oet("procedure", "create", "git://a.py", *words).code == 0
    expected = {"script_type": "git", "script_uri": "git://a.py", "git_args": git_args, "create_env": create_env}
    assert server.asked[0].body["script"] == expected
    assert server.asked[0].body["script_args"]["init"]["kwargs"] == {"subarray_id": 1}


@pytest.mark.parametrize(
    ("states", "code", "text"),
    [
        pytest.param(["CREATING", "LOADING", "READY"], 0, "READY", id="ready"),
        pytest.param(["LOADING", "FAILED"], 1, "Procedure 1 is FAILED, not READY: why", id="failed"),
    ],
)
def test_create_and_wait_ends_when_it_is_decided(
    oet: Any, server: Any, states: list[str], code: int, text: str
) -> None:
    server.play("POST /procedures/", _procedure(1, "CREATING"))
    server.play("GET /procedures/1", *[_procedure(1, state, message="why") for state in states])
    done = oet("procedure", "create", "file:///a.py", "--wait")
    assert done.code == code
    assert text in (done.err if code else done.out)


# ---- wrong command lines, errors, lost connections ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["create"], "Missing argument 'SCRIPT'"),
        (["create", "--x=1"], "Missing argument 'SCRIPT'"),
        (["create", "missing.py"], "There is no script missing.py in "),
        (["create", "/nowhere/missing.py"], "There is no script /nowhere/missing.py.\n"),
        (["create", "/"], "/ is no file: name the script itself."),
        (["create", "http://x/a.py"], "Script URI type not handled"),
        (["create", "file:///a.py", "--git_repo=r"], "(git_repo) are for git:// scripts only"),
        (["create", "-"], "standard input is empty"),
        (["start", "--listen=maybe"], "neither True nor False"),
        (["run", "file:///a.py", "--init=[1]"], '"args"'),
        (["run", "file:///a.py", '--main={"args": 1}'], '"args"'),
        (["run", "file:///a.py", "--init=x"], "not JSON"),
        (["list", "--pid=0"], "0 is not in the range"),
        (["list", "--nosuch"], "No such option"),
        (["dance"], "No such command"),
    ],
)
def test_wrong_command_line_is_usage(oet: Any, server: Any, words: list[str], text: str) -> None:
    done = oet("procedure", *words)
    assert (done.code, done.out, server.asked) == (2, "", [])
    assert text in done.err


def test_script_that_is_no_text_is_usage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff")
    with (tmp_path / "binary").open(encoding="utf-8") as binary:
        monkeypatch.setattr("sys.stdin", binary)
        with pytest.raises(click.UsageError, match="not UTF-8"):
            options.build_script("-", {"create_env": False})


@pytest.mark.parametrize(
    ("status", "body", "code", "text"),
    [
        pytest.param(404, {"detail": "No information available for PID=9"}, 5, "No information available", id="404"),
        pytest.param(422, {"detail": [{"loc": ["path", "id"], "msg": "bad"}]}, 5, "path.id: bad", id="422"),
        pytest.param(409, {"detail": "PID #1 is RUNNING", "holder": 1}, 5, "PID #1 is RUNNING", id="409"),
        pytest.param(504, {"detail": "not certain yet"}, 6, "not certain yet", id="504"),
        pytest.param(503, {"detail": "too many streams"}, 5, "too many streams", id="503"),
        pytest.param(502, b"<html>", 6, "answered 502", id="502"),
        pytest.param(500, b"<html>\n\n<body>", 5, "500 Internal Server Error: <html> <body>", id="500"),
        pytest.param(200, b"<html>", 4, "does not answer as OET does", id="no_json"),
        pytest.param(200, ["x"], 4, "does not answer as OET does", id="other_json"),
        pytest.param(200, {"id": 1, "state": "READY"}, 4, "does not answer as OET does", id="half_a_procedure"),
    ],
)
def test_error_of_the_server_is_told_without_a_traceback(
    oet: Any, server: Any, status: int, body: Any, code: int, text: str
) -> None:
    server.play("GET /procedures/9", server.Answer(body, status))
    done = oet("procedure", "describe", "--pid=9")
    assert (done.code, done.out) == (code, "")
    assert text in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("what", "words", "answer"),
    [
        ("GET /procedures/", ["list"], {}),
        ("GET /procedures/", ["stop"], [{"id": 1}]),
        ("PUT /procedures/1", ["stop", "--pid=1"], []),
        ("PUT /procedures/1", ["start", "--pid=1", "--listen=False"], []),
        ("POST /procedures/", ["create", "file:///a.py"], []),
        ("GET /procedures/1/events", ["start", "--pid=1"], [{"id": "x"}]),
        ("GET /procedures/1/events", ["start", "--pid=1"], {}),
    ],
)
def test_answer_of_another_kind_of_server_is_told(
    oet: Any, server: Any, what: str, words: list[str], answer: Any
) -> None:
    server.play(what, answer)
    done = oet("procedure", *words)
    assert done.code == 4
    assert "does not answer as OET does; check the URL" in done.err


def test_unreachable_server_is_named_with_the_way_out(oet: Any) -> None:
    done = oet("procedure", "list", url="http://127.0.0.1:1/base/")
    assert done.code == 4
    for part in ("http://127.0.0.1:1/base ", "Connection refused", "make rest", "OET_URL"):
        assert part in done.err


@pytest.mark.parametrize("url", ["nonsense", "http://", "http://[::1", "http://a..b", "ftp://x/y"])
def test_url_that_is_none_is_usage(oet: Any, url: str) -> None:
    done = oet("procedure", "list", url=url)
    assert done.code == 2
    assert "is not a URL" in done.err


def test_write_that_is_sent_elsewhere_is_not_turned_into_a_read(oet: Any, server: Any) -> None:
    server.play("POST /procedures/", server.Answer(b"", 302, {"Location": "https://other/base/procedures/"}))
    done = oet("procedure", "create", "file:///a.py")
    assert done.code == 2
    assert "has moved to https://other/base;" in done.err
    assert len(server.asked) == 1


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
@pytest.mark.parametrize("how", ["dropped", "busy"])
def test_read_that_fails_is_repeated_twice(oet: Any, server: Any, how: str, failures: int) -> None:
    failure = server.DROP if how == "dropped" else server.Answer({"detail": "busy"}, 503)
    server.play("GET /procedures/", *[failure] * failures, [])
    done = oet("procedure", "list")
    assert done.code == (0 if failures < 3 else 4 if how == "dropped" else 5)
    assert len(server.asked) == min(failures + 1, 3)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("POST /procedures/", ["create", "file:///a.py"]),
        ("PUT /procedures/1", ["start", "--pid=1", "--listen=False"]),
        ("PUT /procedures/1", ["stop", "--pid=1"]),
    ],
)
def test_write_whose_answer_is_lost_is_in_doubt_and_not_repeated(
    oet: Any, server: Any, what: str, words: list[str]
) -> None:
    server.play(what, server.DROP)
    done = oet("procedure", *words)
    assert done.code == 6
    assert "whether the request was carried out is not known" in done.err
    assert len(server.asked) == 1


def test_server_that_is_silent_is_given_up(server: Any) -> None:
    import threading

    is_over = threading.Event()
    server.play("POST /procedures/", lambda _asked: server.Answer(is_over.wait(30)))
    with pytest.raises(CliError, match="did not answer in time; whether") as caught:
        Client(server.url, read_seconds=0.1).create({})
    is_over.set()
    assert caught.value.code is Exit.NOT_CERTAIN


def test_defect_is_told_in_a_line_and_shown_on_demand(
    oet: Any, server: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {**_procedure(), "history": {"process_states": [[["READY"]]]}}
    server.play("GET /procedures/", [broken])
    done = oet("procedure", "list")
    assert done.code == 70
    assert "oet itself failed" in done.err
    assert "Traceback" not in done.err
    monkeypatch.setenv("OET_DEBUG", "1")
    with pytest.raises(IndexError):
        oet_main.main(["--server-url", server.url, "procedure", "list"])


# ---- list, describe, stop -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("output", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_output_for_programs_is_what_the_server_said(
    oet: Any, server: Any, output: str, load: Callable[[str], Any]
) -> None:
    server.play("GET /procedures/", [_procedure(1), _procedure(2)])
    assert load(oet("procedure", "list", "-o", output).out) == [_procedure(1), _procedure(2)]


@pytest.mark.parametrize("words", [["--pid=2"], ["--pid", "2"]])
def test_list_of_one_asks_for_one(oet: Any, server: Any, words: list[str]) -> None:
    server.play("GET /procedures/2", _procedure(2))
    assert oet("procedure", "list", *words).out.splitlines()[2].split()[0] == "2"


def test_describe_without_pid_shows_the_last_one(oet: Any, server: Any) -> None:
    server.play("GET /procedures/", [_procedure(1), _procedure(2, "FAILED", reason="MainFailed")])
    done = oet("procedure", "describe")
    assert done.out.splitlines()[2].split()[:2] == ["2", "file:///a.py"]
    assert "MainFailed" in done.out


@pytest.mark.parametrize(
    ("words", "procedures", "text"),
    [
        (["start"], [], "No procedures to start"),
        (
            ["start"],
            [_procedure(1, "RUNNING")],
            "The last procedure created is in RUNNING state and cannot be started, "
            "please specify a valid procedure ID.",
        ),
        (["stop"], [_procedure(1)], "No procedures to stop"),
        (
            ["stop"],
            [_procedure(1, "RUNNING"), _procedure(2, "RUNNING")],
            "WARNING: More than one procedure is running. Specify ID of the procedure to stop.",
        ),
        (["describe"], [], "No procedures to describe"),
    ],
)
def test_nothing_to_do_is_said_in_upstreams_words(
    oet: Any, server: Any, words: list[str], procedures: Any, text: str
) -> None:
    server.play("GET /procedures/", procedures)
    done = oet("procedure", *words)
    assert done.code == 2
    assert text in done.err


@pytest.mark.parametrize(
    ("words", "pid", "abort"),
    [
        ([], 2, True),
        (["--run_abort=False"], 2, False),
        (["--norun_abort"], 2, False),
        (["--pid=1", "--run-abort", "no"], 1, False),
    ],
)
def test_stop_asks_for_what_was_said(oet: Any, server: Any, words: list[str], pid: int, abort: bool) -> None:
    server.play("GET /procedures/", [_procedure(1), _procedure(2, "RUNNING")])
    server.play(f"PUT /procedures/{pid}", {"abort_message": "Successfully stopped script"})
    done = oet("procedure", "stop", *words)
    assert (done.code, done.out) == (0, "Successfully stopped script\n")
    assert server.asked[-1].body == {"state": "STOPPED", "abort": abort}


# ---- release --------------------------------------------------------------------------------------------------------


def test_release_names_the_procedure_and_the_reason(oet: Any, server: Any) -> None:
    server.play("POST /procedures/7/release", _procedure(7, "UNKNOWN"))
    done = oet("procedure", "release", "--pid=7", "--reason=node is off")
    assert (done.code, done.out) == (0, "Procedure 7 has let go of its subarray; it stays UNKNOWN\n")
    assert server.asked[-1].body == {"reason": "node is off"}


@pytest.mark.parametrize("words", [["--pid=7"], ["--reason=node is off"], []])
def test_release_without_procedure_or_reason_releases_nothing(oet: Any, server: Any, words: list[str]) -> None:
    assert oet("procedure", "release", *words).code == 2
    assert not server.asked


# ---- start ----------------------------------------------------------------------------------------------------------


def _play_start(server: Any, *pages: Any, end: str = "COMPLETE") -> None:
    server.play("GET /procedures/", [_procedure(1)])
    known = [[_state(3, "CREATING"), _state(7, "READY")], []]
    server.play("GET /procedures/1/events", *known, *pages)
    server.play("PUT /procedures/1", _procedure(1))
    server.play("GET /procedures/1", _procedure(1, end, message="why"))


@pytest.mark.parametrize("words", [["--listen=False"], ["--listen", "no"], ["--nolisten"]])
def test_start_without_listening_returns_at_once(oet: Any, server: Any, words: list[str]) -> None:
    _play_start(server)
    done = oet("procedure", "start", *words, "--x=1", "a")
    assert done.code == 0
    assert "Events" not in done.out
    assert [asked.method for asked in server.asked] == ["GET", "PUT"]
    main = {"args": ["a"], "kwargs": {"x": 1}}
    assert server.asked[-1].body == {"state": "RUNNING", "script_args": {"main": main}}


@pytest.mark.parametrize(("end", "code"), [("COMPLETE", 0), ("FAILED", 1), ("STOPPED", 3), ("UNKNOWN", 7)])
def test_start_shows_everything_after_the_start_and_tells_the_end(oet: Any, server: Any, end: str, code: int) -> None:
    events = [
        _entry(8, "action", "request.procedure.start"),
        _state(9, "RUNNING"),
        _entry(10, "message", "script.announce", msg="hi"),
        _line(11, "printed"),
        _line(12, "complaint", "stderr"),
        _entry(13, "log", "script.log", dropped=3),
    ]
    _play_start(server, events, [], [_state(14, end)], end=end)
    done = oet("procedure", "start", "--pid=1")
    assert done.code == code
    table, _, shown = done.out.partition("\n\nEvents\n------\n\n")
    assert table.splitlines()[2].split()[0] == "1"
    assert shown.splitlines() == [
        "- Procedure 1 is RUNNING",
        "- Script message: hi",
        "printed",
        f"- Procedure 1 is {end}",
    ]
    assert done.err.splitlines()[:2] == ["complaint", "- 3 printed lines were dropped"]
    asked = [(asked.method, asked.query.get("after")) for asked in server.asked]
    assert asked == [
        ("GET", "0"),
        ("GET", "7"),
        ("PUT", None),
        ("GET", "7"),
        ("GET", "13"),
        ("GET", "13"),
        ("GET", None),
    ]


def test_start_for_programs_leaves_the_events_out_of_the_result(oet: Any, server: Any) -> None:
    _play_start(server, [_line(8, "printed"), _state(9, "COMPLETE")])
    done = oet("procedure", "start", "-o", "json")
    assert json.loads(done.out)["id"] == 1
    assert done.err == "printed\n- Procedure 1 is COMPLETE\n"


@pytest.mark.parametrize("failures", [1, 5])
def test_following_outlives_a_server_that_is_away_for_a_while(oet: Any, server: Any, failures: int) -> None:
    _play_start(server, *[server.DROP] * failures, [_state(8, "COMPLETE")])
    done = oet("procedure", "start")
    assert done.code == 0
    assert done.err.count("lost the server") == (failures > 3)


def test_following_a_server_that_stays_away_gives_up(oet: Any, server: Any) -> None:
    _play_start(server, server.DROP)
    assert oet("procedure", "start").code == 4


# ---- run ------------------------------------------------------------------------------------------------------------


def _play_run(server: Any, *pages: Any, end: str = "COMPLETE") -> None:
    server.play("POST /procedures/", server.Answer(_procedure(1, "CREATING"), 201))
    server.play("GET /procedures/1/events", *pages)
    server.play("PUT /procedures/1", _procedure(1))
    server.play("GET /procedures/1", _procedure(1, end, message="the reason"))


@pytest.mark.parametrize(("end", "code"), [("COMPLETE", 0), ("FAILED", 1), ("STOPPED", 3), ("UNKNOWN", 7)])
def test_run_does_it_all_and_its_exit_code_tells_the_outcome(oet: Any, server: Any, end: str, code: int) -> None:
    begin = [_state(1, "CREATING"), _line(2, "init"), _state(3, "READY")]
    _play_run(
        server, begin, [_state(4, "RUNNING"), _line(5, "printed")], [], [_state(6, "READY"), _state(7, end)], end=end
    )
    done = oet("procedure", "run", "-", "7", "--name=x", "--subarray_id=2", text="def main(): pass")
    assert done.code == code
    assert done.out == "init\nprinted\n"
    assert f"- Procedure 1 is {end}" in done.err
    assert ("the reason" in done.err) == (code != 0)
    assert server.asked[0].body["script_args"]["init"] == {"args": [], "kwargs": {"subarray_id": 2}}
    put = [asked.body for asked in server.find_asked("PUT")]
    assert put == [{"state": "RUNNING", "script_args": {"main": {"args": [7], "kwargs": {"name": "x"}}}}]


def test_run_takes_whole_calls_as_json(oet: Any, server: Any) -> None:
    _play_run(server, [_state(1, "READY"), _state(2, "COMPLETE")])
    main = '--main={"args": [1], "kwargs": {"listen": true, "a": 1}}'
    assert oet("procedure", "run", "git://a.py", '--init={"args": [0]}', main, "2", "--a=2", "--git_branch=b").code == 0
    assert server.asked[0].body["script_args"]["init"] == {"args": [0], "kwargs": {}}
    assert server.asked[0].body["script"]["git_args"] == {"git_branch": "b"}
    put = server.find_asked("PUT")[0].body
    assert put["script_args"]["main"] == {"args": [1, 2], "kwargs": {"listen": True, "a": 2}}


def test_run_that_fails_before_it_is_ready_is_never_started(oet: Any, server: Any) -> None:
    _play_run(server, [_state(1, "LOADING"), _state(2, "FAILED")], end="FAILED")
    assert oet("procedure", "run", "-", text="x").code == 1
    assert server.find_asked("PUT") == []


@pytest.mark.parametrize("released", [True, False])
def test_run_that_is_refused_releases_what_it_prepared(oet: Any, server: Any, released: bool) -> None:
    _play_run(server, [_state(1, "READY")], end="READY")
    answer = {"abort_message": ""} if released else server.Answer({"detail": "no"}, 500)
    server.play("PUT /procedures/1", server.Answer({"detail": "PID #3 is RUNNING"}, 409), answer)
    done = oet("procedure", "run", "-", text="def main(): pass")
    assert done.code == 5
    assert "PID #3 is RUNNING" in done.err
    assert ("oet procedure stop --pid=1" in done.err) is not released
    assert server.asked[-1].body == {"state": "STOPPED", "abort": False}


def test_run_that_fails_just_before_its_start_tells_its_end(oet: Any, server: Any) -> None:
    _play_run(server, [_state(1, "READY")], [_state(2, "FAILED")], end="FAILED")
    server.play("PUT /procedures/1", server.Answer({"detail": "Cannot start PID 1: it is FAILED"}, 409))
    assert oet("procedure", "run", "-", text="def main(): pass").code == 1
    assert len(server.find_asked("PUT")) == 1


def test_run_whose_start_is_not_certain_waits_for_what_became_of_it(oet: Any, server: Any) -> None:
    _play_run(server, [_state(1, "READY")], [], [_state(2, "RUNNING"), _state(3, "COMPLETE")])
    server.play("PUT /procedures/1", server.Answer({"detail": "It may still begin"}, 504))
    done = oet("procedure", "run", "-", text="def main(): pass")
    assert done.code == 0
    assert "It may still begin" in done.err


def test_run_that_loses_the_server_says_what_may_go_on(oet: Any, server: Any) -> None:
    _play_run(server, [_state(1, "READY")], server.DROP)
    done = oet("procedure", "run", "-", text="def main(): pass")
    assert done.code == 4
    assert "Procedure 1 may go on; stop it with: oet procedure stop --pid=1" in done.err


# ---- wait, logs -----------------------------------------------------------------------------------------------------


def test_wait_says_why_a_procedure_ended_otherwise_than_well(oet: Any, server: Any) -> None:
    server.play("GET /procedures/1", {**_procedure(state="FAILED"), "message": "broken"})
    done = oet("procedure", "wait", "--pid=1")
    assert (done.code, done.out, done.err) == (1, "", "Procedure 1 is FAILED: broken\n")


@pytest.mark.parametrize(
    ("words", "states", "code"),
    [
        pytest.param(["--for=READY"], ["LOADING", "READY"], 0, id="for_a_state"),
        pytest.param(["--for=ready"], ["READY"], 0, id="small_letters"),
        pytest.param(["--for=READY"], ["LOADING", "FAILED"], 1, id="never_comes"),
        pytest.param(["--for=FAILED"], ["COMPLETE"], 6, id="other_end"),
        pytest.param([], ["RUNNING", "COMPLETE"], 0, id="complete"),
        pytest.param([], ["STOPPED"], 3, id="stopped"),
        pytest.param([], ["A_LATER_VERSIONS_STATE", "UNKNOWN"], 7, id="state_not_known"),
        pytest.param(["--timeout=0.1"], ["RUNNING"], 6, id="timeout"),
    ],
)
def test_wait_ends_when_it_is_decided(oet: Any, server: Any, words: list[str], states: list[str], code: int) -> None:
    server.play("GET /procedures/1", *[_procedure(1, state) for state in states])
    assert oet("procedure", "wait", "--pid=1", *words).code == code


def test_wait_for_a_state_that_is_past_is_over(oet: Any, server: Any) -> None:
    server.play("GET /procedures/1", _procedure(1, "COMPLETE", "READY", "RUNNING"))
    assert oet("procedure", "wait", "--pid=1", "--for=RUNNING").code == 0


@pytest.mark.parametrize(("words", "query"), [([], {}), (["--tail=2"], {"tail": "2"})])
def test_logs_are_shown_as_they_are(oet: Any, server: Any, words: list[str], query: dict[str, str]) -> None:
    server.play("GET /procedures/", [_procedure(1)])
    server.play("GET /procedures/1/logs", server.Answer("é\x1b[31mred\n".encode()))
    assert oet("procedure", "logs", *words).out == "é\x1b[31mred\n"
    assert server.asked[-1].query == query


def test_followed_logs_go_on_where_they_were_lost(oet: Any, server: Any) -> None:
    frames = [b'data:{"line": "one"}\nid:5\n\n', b'data:{"li', b'ne": "cut"}', b'data:{"line": "two"}\nid:6\n\n']
    lost = server.Answer(pieces=(b"\n", *frames[:3]), breaks=True)
    rest = server.Answer(pieces=(b":\n\n", frames[3], b'data:{"dropped": 4}\n\n', b"data:odd\n\n"))
    server.play("GET /procedures/1/logs", lost, rest, server.Answer(pieces=(b"\n",)))
    server.play("GET /procedures/1", _procedure(1, "RUNNING"), _procedure(1, "RUNNING"), _procedure(1, "COMPLETE"))
    done = oet("procedure", "logs", "--pid=1", "-f", "--tail=9")
    assert done.code == 0
    assert done.out.splitlines()[:3] == ["one", "two", "[oet: 4 lines dropped]"]
    assert "could not be read" in done.out.splitlines()[3]
    asked = [asked for asked in server.asked if asked.path.endswith("/logs")]
    assert [one.headers.get("last-event-id") for one in asked] == [None, "5", "6"]
    assert [one.query.get("tail") for one in asked] == ["9", None, None]


# ---- listen ---------------------------------------------------------------------------------------------------------

HI = b'data:{"topic": "script.announce", "msg": "hi"}\nid:2\n\n'


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([], ["- Script message: hi", "- my.own: {}"]),
        (["--topics=my.own,other"], ["- my.own: {}"]),
        (["--topics", "request.x"], ["- request.x: {}"]),
        (["--exclude=script,my.own"], ["- request.x: {}"]),
    ],
)
def test_listen_shows_the_topics_that_are_wanted(oet: Any, server: Any, words: list[str], shown: list[str]) -> None:
    frames = [HI, b'data:{"topic": "my.own"}\n\n', b'data:{"topic": "request.x"}\n\n']
    server.play("GET /stream", server.Answer(pieces=(b"\n", *frames)), server.Answer({"detail": "gone"}, 404))
    done = oet("listen", *words)
    assert done.out.splitlines() == shown
    assert (done.code, "gone" in done.err) == (5, True)


def test_listen_goes_on_where_the_stream_was_lost(oet: Any, server: Any) -> None:
    server.play(
        "GET /stream",
        server.Answer(pieces=(b"data:garbage\n\n", HI), breaks=True),
        server.DROP,
        server.Answer({"detail": "full"}, 503),
        server.Answer(pieces=(b'data:{"topic": "no.id"}\n\n',)),
        server.Answer(pieces=(b"id:9\n\n",)),
        server.Answer({"detail": [{"msg": "no such event yet"}]}, 422),
        server.Answer({"detail": "over"}, 404),
    )
    done = oet("listen")
    assert done.out.splitlines()[0].startswith("- ERROR Could not parse event")
    assert done.out.splitlines()[1:] == ["- Script message: hi", "- no.id: {}"]
    ids = [asked.headers.get("last-event-id") for asked in server.asked]
    assert ids == [None, "2", "2", "2", "2", "9", None]
    assert "the server begins its events anew" in done.err
    assert "broke (Response ended prematurely)" in done.err
    assert len(re.findall("listening again$", done.err, re.MULTILINE)) == 2


def test_listen_whose_stream_is_lost_before_its_first_event_goes_on_where_it_began(oet: Any, server: Any) -> None:
    place = {"Last-Event-ID": "7"}
    server.play("GET /stream", server.Answer(pieces=(b"\n",), headers=place), server.Answer({"detail": "over"}, 404))
    assert oet("listen").code == 5
    assert [asked.headers.get("last-event-id") for asked in server.asked] == [None, "7"]


def test_password_of_the_server_is_not_printed(oet: Any) -> None:
    done = oet("procedure", "list", url="http://alice:secret@127.0.0.1:1/base")
    assert done.code == 4
    assert "http://alice:***@127.0.0.1:1/base" in done.err
    assert "secret" not in done.err
    assert "secret" not in oet("procedure", "list", url="ftp://alice:secret@127.0.0.1:1").err


def test_listen_to_a_server_that_is_away_says_so_at_once(oet: Any) -> None:
    assert oet("listen", url="http://127.0.0.1:1").code == 4


def test_listen_ends_well_with_ctrl_c(oet: Any, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(listen.time, "sleep", interrupt)
    server.play("GET /stream", server.Answer(pieces=(HI,)))
    done = oet("listen")
    assert (done.code, done.out) == (0, "- Script message: hi\n")


# ---- who and why -----------------------------------------------------------------------------------------------------


def test_reason_is_sent_with_what_it_is_for_and_never_without(oet: Any, server: Any) -> None:
    server.play("POST /procedures/", _procedure())
    server.play("PUT /procedures/1", _procedure(), {"abort_message": "done"}, {"abort_message": "done"})
    assert oet("procedure", "create", "file:///a.py", "--reason=first light").code == 0
    assert oet("procedure", "start", "--pid=1", "--listen=False", "--reason", "now").code == 0
    assert oet("procedure", "stop", "--pid=1", "--reason=wind").code == 0
    assert oet("procedure", "stop", "--pid=1").code == 0
    assert [one.body.get("reason") for one in server.asked] == ["first light", "now", "wind", None]
    assert "reason" not in server.asked[-1].body


STOP = {"cmd": {"process_uid": 1, "run_abort": False}, "user": "alice", "reason": "wind"}


def test_events_show_what_happened_and_who_asked_for_it(oet: Any, server: Any) -> None:
    page = [_state(1, "RUNNING"), _line(2, "hi"), _entry(3, "action", "request.procedure.stop", **STOP)]
    page.append(_entry(4, "log", "script.log.dropped", dropped=7))
    server.play("GET /procedures/1/events", page, [])
    done = oet("procedure", "events", "--pid=1")
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "1970-01-01 00:00:01.000000  state    Procedure 1 is RUNNING",
        "1970-01-01 00:00:01.000000  log      hi",
        "1970-01-01 00:00:01.000000  action   User request: stop procedure #1 with no abort (by alice, because: wind)",
        "1970-01-01 00:00:01.000000  log      7 printed lines were dropped",
    ]


def test_blank_reason_is_not_shown(oet: Any, server: Any) -> None:
    page = [_entry(3, "action", "request.procedure.stop", **{**STOP, "user": None, "reason": "  "})]
    server.play("GET /procedures/1/events", page, [])
    assert oet("procedure", "events", "--pid=1").out.endswith("stop procedure #1 with no abort\n")


def test_events_of_one_kind_are_asked_for_as_json(oet: Any, server: Any) -> None:
    server.play("GET /procedures/", [_procedure(1), _procedure(2)])
    server.play("GET /procedures/2/events", [_state(1, "RUNNING")], [])
    done = oet("procedure", "events", "--kind=state", "-o", "json")
    assert [one["payload"]["new_state"] for one in json.loads(done.out)] == ["RUNNING"]
    assert [one.query["kind"] for one in server.asked[1:]] == ["state", "state"]


def test_followed_events_end_with_the_procedure(oet: Any, server: Any) -> None:
    server.play("GET /procedures/1/events", [_state(1, "RUNNING")], [], [_line(2, "hi"), _state(3, "COMPLETE")])
    done = oet("procedure", "events", "--pid=1", "-f", "--kind=state")
    assert [line.split()[-1] for line in done.out.splitlines()] == ["RUNNING", "COMPLETE"]
    assert oet("procedure", "events", "-f", "-o", "json").code == Exit.USAGE


def test_events_without_any_procedure_say_so(oet: Any, server: Any) -> None:
    server.play("GET /procedures/", [])
    done = oet("procedure", "events")
    assert (done.code, done.err.strip().endswith("No procedures to show")) == (Exit.USAGE, True)


# ---- activities ------------------------------------------------------------------------------------------------------


def _activity(number: int = 1, state: str = "REQUESTED", **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "pid": number,
        "procedure_id": number,
        "sbd_id": "sbd-1",
        "activity_name": "observe",
        "prepare_only": False,
        "script_args": {"init": NO_CALL, "main": {"args": [7], "kwargs": {"sbi_id": "sbi-1"}}},
        "activity_states": [["REQUESTED", 1.0]],
        "state": state,
        "sbi_id": "sbi-1",
        "uri": f"http://localhost/activities/{number}",
        **more,
    }


@pytest.mark.parametrize(
    ("words", "body"),
    [
        pytest.param([], {"prepare_only": False, "create_env": False}, id="usual"),
        pytest.param(
            ["--prepare-only=True", "--create_env", '--script-args={"init": {"kwargs": {"a": 1}}}', "--reason=first"],
            {
                "prepare_only": True,
                "create_env": True,
                "script_args": {"init": {"kwargs": {"a": 1}}},
                "reason": "first",
            },
            id="everything",
        ),
        pytest.param(
            ["--rehearse", "--prepare_only"],
            {"prepare_only": True, "create_env": False, "mode": "Rehearsal"},
            id="rehearsal",
        ),
    ],
)
def test_activity_is_asked_for_as_it_was_said(oet: Any, server: Any, words: list[str], body: dict[str, Any]) -> None:
    server.play("POST /activities/", _activity())
    done = oet("activity", "run", "observe", "sbd-1", "--listen=False", *words)
    assert done.code == 0, done.err
    assert server.asked[0].body == {"activity_name": "observe", "sbd_id": "sbd-1", **body}
    header, _, row, *footer = done.out.splitlines()
    assert header.split() == ["ID", "Activity", "SB", "ID", "Creation", "Time", "Procedure", "ID", "State"]
    assert row.split() == ["1", "observe", "sbd-1", "1970-01-01", "00:00:01", "1", "REQUESTED"]
    assert footer == [
        " For details on activity:- oet activity describe --aid=<ID>",
        " For details on script execution:- oet procedure describe --pid=<Procedure ID>",
    ]


@pytest.mark.parametrize("text", ["{", "[1]", "7"])
def test_script_args_that_are_no_object_are_a_usage_error(oet: Any, server: Any, text: str) -> None:
    done = oet("activity", "run", "observe", "sbd-1", f"--script-args={text}")
    assert (done.code, server.asked) == (Exit.USAGE, [])


def test_activity_is_shown_until_its_end_which_is_the_exit_code(oet: Any, server: Any) -> None:
    running = _procedure(1, "RUNNING", "READY")
    server.play("POST /activities/", _activity())
    server.play(
        "GET /procedures/1/events", [_state(1, "READY")], [_state(2, "RUNNING"), _line(3, "hi")], [_state(4, "FAILED")]
    )
    server.play("GET /procedures/1", running, _procedure(1, "FAILED", "READY", "RUNNING", message="broken"))
    done = oet("activity", "run", "observe", "sbd-1")
    assert done.code == 1
    assert "- Procedure 1 is RUNNING\nhi\n" in done.out
    assert "Procedure 1 is FAILED: broken" in done.err


def test_activity_that_is_only_prepared_is_followed_until_it_is(oet: Any, server: Any) -> None:
    server.play("POST /activities/", _activity(prepare_only=True))
    server.play("GET /procedures/1/events", [_state(1, "LOADING")], [_state(2, "READY")])
    done = oet("activity", "run", "observe", "sbd-1", "--prepare-only=True")
    assert (done.code, done.out.splitlines()[-1]) == (0, "- Procedure 1 is READY")


def test_refused_start_of_an_activity_is_told_and_not_waited_on(oet: Any, server: Any) -> None:
    server.play("POST /activities/", _activity())
    server.play("GET /procedures/1/events", [_state(1, "READY")])
    server.play("GET /procedures/1", _procedure(1, "READY"))
    server.play("GET /activities/1", _activity(), _activity(state="PREPARED", message="PID #9 is RUNNING"))
    done = oet("activity", "run", "observe", "sbd-1")
    assert done.code == Exit.REFUSED
    assert "PID #9 is RUNNING" in done.err
    assert "oet procedure start --pid=1" in done.err


def test_activity_that_was_over_before_it_was_looked_at_is_followed_to_its_end(oet: Any, server: Any) -> None:
    server.play("POST /activities/", _activity())
    server.play(
        "GET /procedures/1/events",
        [_state(1, "READY"), _state(2, "RUNNING"), _state(3, "READY")],
        [_state(4, "COMPLETE")],
    )
    server.play("GET /procedures/1", _procedure(1, "READY", "READY", "RUNNING"))
    server.play("GET /procedures/1", _procedure(1, "READY", "RUNNING"), _procedure(1, "COMPLETE", "RUNNING"))
    assert oet("activity", "run", "observe", "sbd-1").code == 0


def test_activities_are_listed_and_one_by_its_id(oet: Any, server: Any) -> None:
    server.play("GET /activities/", [_activity(1), _activity(2)])
    server.play("GET /activities/2", _activity(2))
    assert len(oet("activity", "list").out.splitlines()) == 6
    assert [one["id"] for one in json.loads(oet("activity", "list", "--aid=2", "-o", "json").out)] == [2]
    server.play("GET /activities/", [])
    assert len(oet("activity", "list").out.splitlines()) == 2


def test_activity_is_described_the_last_one_unless_it_is_named(oet: Any, server: Any) -> None:
    server.play("GET /activities/", [_activity(1), _activity(2, "PREPARED", message="refused", mode="Rehearsal")])
    server.play("GET /activities/1", _activity(1))
    shown = oet("activity", "describe").out
    sections = [section.splitlines() for section in shown.split("\n\n")]
    assert sections[0][0].split() == ["ID", "Activity", "SB", "ID", "Procedure", "ID", "State"]
    assert sections[0][2].split() == ["2", "observe", "sbd-1", "2", "PREPARED"]
    assert sections[1][0].split() == ["URI", "Prepare", "Only", "SBI", "ID"]
    assert sections[2][2].split() == ["Rehearsal", "refused"]
    assert sections[3][0].split() == ["Time", "State"]
    assert sections[4][0] == "Script Arguments"
    assert sections[4][2].split() == ["Method", "Arguments", "Keyword", "Arguments"]
    assert "refused" not in oet("activity", "describe", "--aid=1").out


def test_no_activity_cannot_be_described(oet: Any, server: Any) -> None:
    server.play("GET /activities/", [])
    done = oet("activity", "describe")
    assert (done.code, done.err.strip().endswith("No activities to describe")) == (Exit.USAGE, True)


def test_server_that_answers_something_else_for_activities_is_a_stranger(oet: Any, server: Any) -> None:
    server.play("GET /activities/", [{"id": 1}])
    assert oet("activity", "list").code == Exit.UNREACHABLE


@pytest.mark.parametrize(
    ("words", "query"),
    [
        ([], {}),
        (["--pid=7"], {"procedure_id": "7"}),
        (["--subarray=2"], {"subarray": "2"}),
        (["--pid=7", "--subarray=0"], {"procedure_id": "7", "subarray": "0"}),
    ],
)
def test_listener_asks_the_server_for_what_it_wants(
    oet: Any, server: Any, words: list[str], query: dict[str, str]
) -> None:
    server.play("GET /stream", server.Answer({"detail": "enough"}, 403))
    assert oet("listen", *words).code == Exit.REFUSED
    assert server.asked[0].query == query


def test_abort_that_failed_has_an_exit_code_of_its_own(oet: Any, server: Any) -> None:
    body = {
        "detail": "ALARM: Script with ID 1 is stopped, but the abort script (ID 2) ended FAILED",
        "severity": "ALARM",
    }
    server.play("PUT /procedures/1", server.Answer(body, 409))
    done = oet("procedure", "stop", "--pid=1")
    assert (done.code, done.out) == (8, "")
    assert "ALARM: Script with ID 1 is stopped" in done.err
