"""The commands as a shell runs them, against a server that plays what a test tells it to."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml

Answer = tuple[int, Any]
Run = Callable[..., subprocess.CompletedProcess[str]]


class Script:
    """What the server answers, and what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, str, Any]] = []

    def play(self, what: str, *answers: Answer) -> None:
        """Answer requests for `METHOD /path` in turn; the last answer is repeated."""
        self.answers[what] = list(answers)

    def find(self, method: str, path: str) -> Answer:
        answers = self.answers.get(f"{method} {path.split('?')[0]}", [(404, {"detail": f"nothing at {path}"})])
        return answers.pop(0) if len(answers) > 1 else answers[0]


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def url(script: Script) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            script.asked.append((self.command, self.path, json.loads(body) if body else None))
            status, answer = script.find(self.command, self.path)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = handle_any

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def oet(url: str) -> Run:
    def run(*words: str, text: str = "", server: str = url) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "oet_cli", "--server-url", server, *words]
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)

    return run


def _procedure(number: int, state: str = "READY", **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "script": {"script_type": "filesystem", "script_uri": "file:///a.py"},
        "script_args": {"init": {"args": [], "kwargs": {}}},
        "history": {"process_states": [["CREATING", 1.0]], "stacktrace": None},
        "state": state,
        "uri": "http://localhost/procedures/1",
        **more,
    }


def _state(number: int, state: str) -> dict[str, Any]:
    payload = {"msg_src": "1", "new_state": state}
    return {
        "id": number,
        "seq": None,
        "time": 1.0,
        "kind": "state",
        "topic": "procedure.lifecycle.statechange",
        "payload": payload,
    }


def _line(number: int, text: str) -> dict[str, Any]:
    payload = {"msg_src": "1", "stream": "stdout", "line": text}
    return {"id": number, "seq": number, "time": 1.0, "kind": "log", "topic": "script.log", "payload": payload}


def test_create_sends_what_upstream_sends(oet: Run, script: Script) -> None:
    script.play("POST /procedures/", (201, _procedure(1, "CREATING")))
    done = oet("procedure", "create", "file:///a.py", "1", "abc", "[1,2]", "--x=5", "--subarray_id=3")
    assert (done.returncode, done.stderr) == (0, "")
    body = script.asked[0][2]
    assert body["script"] == {"script_type": "filesystem", "script_uri": "file:///a.py"}
    assert body["script_args"] == {"init": {"args": [1, "abc", [1, 2]], "kwargs": {"subarray_id": 3, "x": 5}}}
    assert done.stdout.splitlines()[2].split()[:2] == ["1", "file:///a.py"]


def test_create_from_standard_input_is_an_inline_script(oet: Run, script: Script) -> None:
    script.play("POST /procedures/", (201, _procedure(1)))
    assert oet("procedure", "create", "-", text="def main(): pass").returncode == 0
    assert script.asked[0][2]["script"] == {"script_type": "inline", "source": "def main(): pass"}


def test_create_from_git_sends_git_arguments(oet: Run, script: Script) -> None:
    script.play("POST /procedures/", (201, _procedure(1)))
    assert oet("procedure", "create", "git://a.py", "--git_branch=b", "--create_env=True").returncode == 0
    expected = {"script_type": "git", "script_uri": "git://a.py", "git_args": {"git_branch": "b"}, "create_env": True}
    assert script.asked[0][2]["script"] == expected


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["create", "missing.py"], "There is no script missing.py"),
        (["create", "http://x/a.py"], "Script URI type not handled"),
        (["create", "file:///a.py", "--git_repo=r"], "for git:// scripts only"),
        (["start", "--listen=maybe"], "neither True nor False"),
        (["run", "-", "--init=[1]"], '"args"'),
        (["run", "-", "--init=x"], "not JSON"),
        (["list", "--pid=0"], "0 is not in the range"),
    ],
)
def test_wrong_command_line_is_usage(oet: Run, words: list[str], text: str) -> None:
    done = oet("procedure", *words)
    assert done.returncode == 2
    assert text in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        pytest.param((404, {"detail": "No information available for PID=9"}), 5, "No information available", id="404"),
        pytest.param((422, {"detail": [{"loc": ["path", "id"], "msg": "bad"}]}), 5, "path.id: bad", id="422"),
        pytest.param((409, {"detail": "PID #1 is RUNNING", "holder": 1}), 5, "PID #1 is RUNNING", id="409"),
        pytest.param((504, {"detail": "not certain yet"}), 6, "not certain yet", id="504"),
        pytest.param((500, b"<html>"), 5, "<html>", id="500"),
        pytest.param((200, b"<html>"), 4, "does not answer as OET does", id="not_oet"),
    ],
)
def test_error_of_the_server_is_told_without_a_traceback(
    oet: Run, script: Script, answer: Answer, code: int, text: str
) -> None:
    script.play("GET /procedures/9", answer)
    done = oet("procedure", "describe", "--pid=9")
    assert done.returncode == code
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_unreachable_server_is_named_with_the_way_out(oet: Run) -> None:
    done = oet("procedure", "list", server="http://127.0.0.1:1/base")
    assert done.returncode == 4
    for part in ("http://127.0.0.1:1/base", "Connection refused", "make rest", "OET_URL"):
        assert part in done.stderr


def test_url_that_is_none_is_usage(oet: Run) -> None:
    assert oet("procedure", "list", server="nonsense").returncode == 2


@pytest.mark.parametrize(("output", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_output_for_programs_is_what_the_server_said(oet: Run, script: Script, output: str, load: Any) -> None:
    script.play("GET /procedures/", (200, [_procedure(1), _procedure(2)]))
    assert load(oet("procedure", "list", "-o", output).stdout) == [_procedure(1), _procedure(2)]


@pytest.mark.parametrize(
    ("words", "procedures", "text"),
    [
        (["start"], [], "No procedures to start"),
        (["start"], [_procedure(1, "RUNNING")], "The last procedure created is in RUNNING state and cannot be started"),
        (["stop"], [_procedure(1)], "No procedures to stop"),
        (
            ["stop"],
            [_procedure(1, "RUNNING"), _procedure(2, "RUNNING")],
            "WARNING: More than one procedure is running.",
        ),
        (["describe"], [], "No procedures to describe"),
    ],
)
def test_nothing_to_do_is_said_in_upstreams_words(
    oet: Run, script: Script, words: list[str], procedures: Any, text: str
) -> None:
    script.play("GET /procedures/", (200, procedures))
    done = oet("procedure", *words)
    assert done.returncode == 2
    assert text in done.stderr


def test_stop_without_pid_stops_the_one_that_runs_and_aborts(oet: Run, script: Script) -> None:
    script.play("GET /procedures/", (200, [_procedure(1), _procedure(2, "RUNNING")]))
    script.play("PUT /procedures/2", (200, {"abort_message": "Successfully stopped script with ID 2"}))
    done = oet("procedure", "stop")
    assert done.stdout == "Successfully stopped script with ID 2\n"
    assert script.asked[-1] == ("PUT", "/procedures/2", {"state": "STOPPED", "abort": True})


def test_stop_without_abort_says_so(oet: Run, script: Script) -> None:
    script.play("PUT /procedures/2", (200, {"abort_message": "x"}))
    assert oet("procedure", "stop", "--pid=2", "--run_abort=False").returncode == 0
    assert script.asked[-1][2] == {"state": "STOPPED", "abort": False}


@pytest.mark.parametrize(("state", "code"), [("COMPLETE", 0), ("FAILED", 1), ("STOPPED", 3), ("UNKNOWN", 7)])
def test_run_does_it_all_and_its_exit_code_tells_the_outcome(oet: Run, script: Script, state: str, code: int) -> None:
    script.play("POST /procedures/", (201, _procedure(1, "CREATING")))
    script.play(
        "GET /procedures/1/events",
        (200, [_state(1, "CREATING"), _state(2, "READY")]),
        (200, [_state(3, "RUNNING"), _line(4, "printed")]),
        (200, []),
        (200, [_state(5, state)]),
    )
    script.play("PUT /procedures/1", (200, _procedure(1)))
    script.play("GET /procedures/1", (200, _procedure(1, state, message="the reason")))
    done = oet("procedure", "run", "-", "7", "--name=x", "--subarray_id=2", text="def main(): pass")
    assert done.returncode == code
    assert done.stdout == "printed\n"
    assert f"Procedure 1 is {state}" in done.stderr
    assert script.asked[0][2]["script_args"]["init"]["kwargs"] == {"subarray_id": 2}
    put = next(body for method, _, body in script.asked if method == "PUT")
    assert put == {"state": "RUNNING", "script_args": {"main": {"args": [7], "kwargs": {"name": "x"}}}}


def test_run_that_is_refused_releases_what_it_prepared(oet: Run, script: Script) -> None:
    script.play("POST /procedures/", (201, _procedure(1)))
    script.play("GET /procedures/1/events", (200, [_state(1, "READY")]))
    script.play("PUT /procedures/1", (409, {"detail": "PID #3 is RUNNING"}), (200, {"abort_message": ""}))
    done = oet("procedure", "run", "-", text="def main(): pass")
    assert done.returncode == 5
    assert "PID #3 is RUNNING" in done.stderr
    assert script.asked[-1][2] == {"state": "STOPPED", "abort": False}


@pytest.mark.parametrize(
    ("words", "states", "code"),
    [
        (["--for=READY"], ["LOADING", "READY"], 0),
        (["--for=READY"], ["LOADING", "FAILED"], 1),
        ([], ["RUNNING", "COMPLETE"], 0),
        ([], ["STOPPED"], 3),
        (["--timeout=0.1"], ["RUNNING"], 6),
    ],
)
def test_wait_ends_when_it_is_decided(oet: Run, script: Script, words: list[str], states: list[str], code: int) -> None:
    script.play("GET /procedures/1", *[(200, _procedure(1, state)) for state in states])
    assert oet("procedure", "wait", "--pid=1", *words).returncode == code


def test_listen_shows_events_and_leaves_out_requests(script: Script, url: str) -> None:
    frames = [
        'data:{"topic": "request.procedure.list"}\nid:1\n\n',
        'data:{"topic": "script.announce", "msg": "hi"}\nid:2\n\n',
        "data:garbage\nid:3\n\n",
    ]
    script.play("GET /stream", (200, "".join(frames).encode()), (404, {"detail": "gone"}))
    command = [sys.executable, "-m", "oet_cli", "--server-url", url, "listen"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[0] == "- Script message: hi"
    assert done.stdout.splitlines()[1].startswith("- ERROR Could not parse event")
    assert "listening again" in done.stderr
    assert (done.returncode, "gone" in done.stderr) == (5, True)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom oet_cli.main import cli\ncli(['--help'], standalone_mode=False)\n"
        "print(sorted({'requests', 'rich', 'yaml', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Exit codes:" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(oet: Run, shell: str) -> None:
    assert "_OET_COMPLETE" in oet("completion", shell).stdout


def test_version_is_shown(oet: Run) -> None:
    assert oet("--version").stdout.startswith("oet 7.")
