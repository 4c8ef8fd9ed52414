"""The command as a shell runs it: signals, terminals, closed pipes, completion, and what its help costs."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

SCRIPT = "file:///a.py"


class Telescope:
    """A server with one procedure, that runs until it is stopped."""

    def __init__(self, server: Any) -> None:
        self._lock = threading.Lock()
        self.states = ["CREATING"]
        self.is_running = threading.Event()
        self.stops: list[Any] = []
        self.may_stop = threading.Event()
        self.may_stop.set()
        server.play("POST /procedures/", self.show)
        server.play("GET /procedures/", lambda _: [self.show(_)])
        server.play("GET /procedures/1", self.show)
        server.play("GET /procedures/1/events", self.list_events)
        server.play("PUT /procedures/1", self.change)

    def show(self, _asked: Any) -> Any:
        history = {"process_states": [[state, 1.0] for state in self.states], "stacktrace": None}
        script = {"script_type": "filesystem", "script_uri": SCRIPT}
        return {"id": 1, "script": script, "script_args": {}, "history": history, "state": self.states[-1], "uri": "u"}

    def list_events(self, asked: Any) -> Any:
        after = int(asked.query["after"])
        if after == 1 and len(self.states) == 1:
            self.states.append("READY")
        if self.states[-1] == "RUNNING" and after == len(self.states):
            self.is_running.set()
        topic = "procedure.lifecycle.statechange"
        events = [
            {"id": at, "kind": "state", "topic": topic, "payload": {"msg_src": "1", "new_state": state}}
            for at, state in enumerate(self.states, 1)
        ]
        return events[after:]

    def change(self, asked: Any) -> Any:
        if asked.body["state"] == "RUNNING":
            self.states.append("RUNNING")
            return self.show(asked)
        self.stops.append(asked.body)
        self.may_stop.wait(30)
        with self._lock:
            if self.states[-1] != "STOPPED":
                self.states.append("STOPPED")
        return {"abort_message": "Successfully stopped script with ID 1"}


@pytest.fixture
def telescope(server: Any) -> Telescope:
    return Telescope(server)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_that_is_interrupted_stops_the_script_and_says_so(
    start_oet: Callable[..., Any], telescope: Telescope, number: signal.Signals
) -> None:
    process = start_oet("procedure", "run", SCRIPT)
    assert telescope.is_running.wait(30)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (3, "")
    assert telescope.stops == [{"state": "STOPPED", "abort": False}]
    assert "Successfully stopped script with ID 1" in err
    assert "- Procedure 1 is STOPPED" in err
    assert "Traceback" not in err


OBSERVED = """
import queue, requests, signal
from oet_cli.main import main
from urllib3 import connectionpool

methods = []
request = requests.Session.request

def observe(session, method, *args, **options):
    methods.append(method)
    return request(session, method, *args, **options)

def is_starting():
    return methods.count("PUT") == 1 and methods[-1] == "PUT"

def interrupt():
    methods.append("interrupted")
    signal.raise_signal(signal.SIGINT)

requests.Session.request = observe
"""
IN_A_FINALISER = """
def close_and_interrupt(*args):
    if is_starting():
        interrupt()
    close(*args)

close, connectionpool._close_pool_connections = connectionpool._close_pool_connections, close_and_interrupt
main()
"""
WITH_A_LOCK_TAKEN = """
def put_and_interrupt(pool, item, block=True, timeout=None):
    if item is not None and is_starting():
        pool.mutex.acquire()
        interrupt()
        pool.mutex.release()
    put(pool, item, block, timeout)

put, queue.LifoQueue.put = queue.LifoQueue.put, put_and_interrupt
main()
"""


@pytest.mark.parametrize("moment", [IN_A_FINALISER, WITH_A_LOCK_TAKEN], ids=["finaliser", "lock_taken"])
def test_interruption_at_the_worst_moment_of_the_http_library_stops_the_script(
    start_oet: Callable[..., Any], telescope: Telescope, moment: str
) -> None:
    # Raised there, the first is forgotten, and after the second closing the connection waits for the lock for ever.
    process = start_oet("procedure", "run", SCRIPT, program=["-c", OBSERVED + moment])
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 3, err
    assert telescope.stops == [{"state": "STOPPED", "abort": False}]


def test_run_that_is_interrupted_twice_is_left(start_oet: Callable[..., Any], telescope: Telescope) -> None:
    telescope.may_stop.clear()
    process = start_oet("procedure", "run", SCRIPT)
    assert telescope.is_running.wait(30)
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        if "Ctrl-C again" in line:
            break
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=30)[1]
    telescope.may_stop.set()
    assert process.returncode == 130
    assert "Left procedure 1 before its stop was certain; see how it ends with: oet procedure wait --pid=1" in err
    assert "Traceback" not in err


def test_run_that_ended_by_itself_while_it_was_interrupted_tells_its_own_end(
    start_oet: Callable[..., Any], telescope: Telescope, server: Any
) -> None:
    def refuse(asked: Any) -> Any:
        if asked.body["state"] == "RUNNING":
            return telescope.change(asked)
        telescope.states += ["READY", "COMPLETE"]
        return server.Answer({"detail": "Cannot stop script with ID 1: it ended by itself meanwhile"}, 409)

    server.play("PUT /procedures/1", refuse)
    process = start_oet("procedure", "run", SCRIPT)
    assert telescope.is_running.wait(30)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 0
    assert "it ended by itself meanwhile" in err


def test_run_that_is_interrupted_before_the_answer_says_where_to_look(
    start_oet: Callable[..., Any], telescope: Telescope, server: Any
) -> None:
    asked, is_over = threading.Event(), threading.Event()
    server.play("POST /procedures/", lambda one: asked.set() or is_over.wait(30) or telescope.show(one))
    process = start_oet("procedure", "run", SCRIPT)
    assert asked.wait(30)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=30)[1]
    is_over.set()
    assert process.returncode == 130
    assert "see oet procedure list" in err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        pytest.param(["start", "--pid=1"], "Procedure 1 goes on; stop it with", id="start"),
        pytest.param(["wait", "--pid=1"], "", id="wait"),
    ],
)
def test_following_that_is_interrupted_leaves_the_script_alone(
    start_oet: Callable[..., Any], telescope: Telescope, server: Any, words: list[str], text: str
) -> None:
    telescope.states = ["CREATING", "RUNNING"] if words[0] == "wait" else ["CREATING", "READY"]
    looked = threading.Event()
    show = telescope.show
    server.play("GET /procedures/1", lambda asked: looked.set() or show(asked))
    process = start_oet("procedure", *words)
    assert (looked if words[0] == "wait" else telescope.is_running).wait(30)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert telescope.stops == []
    assert text in err
    assert "Traceback" not in err


def test_stop_that_is_interrupted_says_that_it_stays(
    start_oet: Callable[..., Any], telescope: Telescope, server: Any
) -> None:
    telescope.may_stop.clear()
    asked = threading.Event()
    change = telescope.change
    server.play("PUT /procedures/1", lambda one: asked.set() or change(one))
    process = start_oet("procedure", "stop", "--pid=1")
    assert asked.wait(30)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=30)[1]
    telescope.may_stop.set()
    assert process.returncode == 130
    assert "The stop stays in force" in err


def test_reader_that_goes_away_is_not_a_failed_script(start_oet: Callable[..., Any], telescope: Telescope) -> None:
    process = start_oet("procedure", "start", "--pid=1")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 141
    assert "oet procedure stop --pid=1" in process.stderr.read()


def test_run_whose_reader_goes_away_says_how_to_stop_the_script(
    start_oet: Callable[..., Any], telescope: Telescope, server: Any
) -> None:
    line = {"id": 1, "kind": "log", "topic": "script.log", "payload": {"line": "printed"}}
    server.play("GET /procedures/1/events", [line])
    process = start_oet("procedure", "run", SCRIPT)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 141
    assert "Left procedure 1; stop it with: oet procedure stop --pid=1" in process.stderr.read()


def _read_terminal(fd: int) -> bytes:
    """Return all that is written to a terminal until the last writer closes it."""
    text = b""
    while True:
        try:
            piece = os.read(fd, 65536)
        except OSError:
            return text
        if not piece:
            return text
        text += piece


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_terminal_gets_a_line_on_how_it_stands_that_is_gone_in_the_end(
    start_oet: Callable[..., Any], telescope: Telescope, term: str
) -> None:
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": term}
    process = start_oet("procedure", "run", SCRIPT, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    assert telescope.is_running.wait(30)
    telescope.states += ["READY", "COMPLETE"]
    text = _read_terminal(ours).decode()
    os.close(ours)
    assert process.wait(30) == 0
    assert ("\x1b[2KProcedure 1 is RUNNING (" in text) == (term == "xterm")
    assert ("\x1b" in text) == (term == "xterm")
    assert text.splitlines()[-1].rsplit("\x1b[2K", 1)[-1] == "- Procedure 1 is COMPLETE"


def test_output_that_is_no_terminal_has_no_escape_codes(start_oet: Callable[..., Any], telescope: Telescope) -> None:
    process = start_oet("procedure", "run", SCRIPT, env={**os.environ, "TERM": "xterm"})
    assert telescope.is_running.wait(30)
    telescope.states += ["READY", "COMPLETE"]
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "\x1b" not in out + err


def test_script_that_prints_what_the_terminal_lacks_is_shown_escaped(
    start_oet: Callable[..., Any], server: Any
) -> None:
    event = {"id": 1, "kind": "log", "topic": "script.log", "payload": {"line": "\ud800 \u20ac"}}
    end = {"id": 2, "kind": "state", "topic": "procedure.lifecycle.statechange", "payload": {"new_state": "COMPLETE"}}
    telescope = Telescope(server)
    server.play("GET /procedures/1/events", [event, end])
    telescope.states = ["COMPLETE"]
    process = start_oet("procedure", "run", SCRIPT, env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "\\ud800 \\u20ac\n"), err


@pytest.mark.parametrize("words", [["--help"], ["procedure", "--help"], ["listen", "--help"], ["completion", "bash"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom oet_cli.main import cli\n"
        f"cli({words!r}, standalone_mode=False)\n"
        "print(sorted({'requests', 'urllib3', 'rich', 'yaml', 'pydantic', 'http.client'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("words", [["--help"], ["procedure", "--help"], ["procedure", "run", "-h"]])
def test_help_tells_the_exit_codes(start_oet: Callable[..., Any], words: list[str]) -> None:
    process = start_oet(*words)
    assert "Exit codes: 0 done" in process.communicate(timeout=30)[0]
    assert process.returncode == 0


def test_version_is_shown(start_oet: Callable[..., Any]) -> None:
    assert start_oet("--version").communicate(timeout=30)[0].startswith("oet 7.")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(start_oet: Callable[..., Any], shell: str) -> None:
    assert "_OET_COMPLETE" in start_oet("completion", shell).communicate(timeout=30)[0]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        pytest.param(["procedure", "sta"], ["plain,start"], id="command"),
        pytest.param(["procedure", "describe", "--pid", ""], ["plain,1"], id="pid"),
        pytest.param(["procedure", "describe", "--pid", "="], ["plain,1"], id="pid_after_equals"),
        pytest.param(["procedure", "describe", "--pid", "7"], [], id="no_such_pid"),
        pytest.param(["procedure", "create", "./a"], ["file,./a"], id="script"),
        pytest.param(["--server-url", "http://127.0.0.1:1", "procedure", "stop", "--pid", ""], [], id="server_away"),
    ],
)
def test_completion_asks_the_server_and_keeps_quiet_when_it_is_away(
    server: Any, telescope: Telescope, words: list[str], answer: list[str]
) -> None:
    bash = {"COMP_WORDS": " ".join(["oet", *words]), "COMP_CWORD": str(len(words)), "_OET_COMPLETE": "bash_complete"}
    environ = {**os.environ, **bash, "OET_URL": server.url}
    code = "import sys; sys.argv[0] = 'oet'; from oet_cli.main import main; main()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=30, check=False)
    assert (done.stdout.split(), done.stderr) == (answer, "")
