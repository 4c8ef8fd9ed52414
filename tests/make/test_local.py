"""`make up`, `down` and `interactive` on one machine: real servers, a real Tango system, and nothing of them left."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from oet_support import find_free_port, find_marked, wait_until

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import local  # noqa: E402

CALLS = "from oet.tango.observing import *; print(get_obs_state(1).name)"

pytestmark = pytest.mark.serial  # All of them use the one folder of records that a work tree has.


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine without a cluster."""
    unset = ("KUBECONFIG", "TANGO_HOST", "MAKEFLAGS", "MAKELEVEL", "CONTAINER")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return {**kept, "LOCAL": "1", "OET_PORT": str(find_free_port()), "OET_STATE_DIR": str(tmp_path / "state")}


@pytest.fixture
def make(environ: dict[str, str]) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", "--silent", *words], cwd=ROOT, env={**environ, **more}, capture_output=True, text=True, timeout=100
        )

    assert run("down").returncode == 0
    yield run
    assert run("down").returncode == 0


def read_pids() -> dict[str, int]:
    return {process.name: process.pid for process in local.recall()}


def test_up_starts_all_that_scripts_need_and_down_ends_it(
    make: Callable[..., Any], environ: dict[str, str], tmp_path: Path
) -> None:
    started = make("up")
    assert started.returncode == 0, started.stderr
    assert "on this machine, because LOCAL is set" in started.stdout
    pids = read_pids()
    assert set(pids) == {"telescope", "server"}
    url = f"http://127.0.0.1:{environ['OET_PORT']}/ska-oso-oet/oet/api/v7"
    assert url in started.stdout
    observe = str(ROOT / "lib/oet/scripts/observe.py")
    words = ["--server-url", url, "procedure", "run", observe, "--subarray_id=1", "--scans=1"]
    done = subprocess.run([sys.executable, "-m", "oet_cli", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    again = make("up")
    assert (again.returncode, read_pids()) == (0, pids), again.stderr
    ended = make("down")
    assert ended.returncode == 0, ended.stderr
    assert not any(local.read_start(pid) for pid in pids.values())
    assert find_marked(f"OET_STATE_DIR={tmp_path}") == []
    assert "nothing runs on this machine" in make("down").stdout


def test_up_on_a_port_that_another_server_has_says_so(make: Callable[..., Any]) -> None:
    assert make("up").returncode == 0
    local.FOLDER.joinpath("server.json").rename(local.FOLDER / "hidden")
    try:
        refused = make("up")
        assert refused.returncode != 0
        assert "something else answers on port" in refused.stderr
    finally:
        local.FOLDER.joinpath("hidden").rename(local.FOLDER / "server.json")


def test_up_on_a_port_that_is_taken_says_so_and_leaves_nothing(
    make: Callable[..., Any], environ: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", int(environ["OET_PORT"]))):
        refused = make("up")
    assert refused.returncode != 0
    assert f"port {environ['OET_PORT']} of 127.0.0.1 is in use" in refused.stderr
    assert read_pids() == {}


def test_down_leaves_a_process_alone_that_only_has_the_id(make: Callable[..., Any]) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        record = local.FOLDER / "server.json"
        record.write_text(json.dumps({"pid": stranger.pid, "started": "1"}))
        assert make("down").returncode == 0
        assert stranger.poll() is None
        assert not record.exists()
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize(
    ("environ_words", "context", "is_local", "why"),
    [
        ({"LOCAL": "1"}, "ska", True, "LOCAL is set"),
        ({}, "ska", False, "kubectl's context is ska"),
        ({}, "", True, "no current context"),
        ({"LOCAL": ""}, "ska", False, "LOCAL=1 would use this machine"),
    ],
)
def test_place_of_up_is_decided_and_told(environ_words: dict[str, str], context: str, is_local: bool, why: str) -> None:
    decided, words = local.decide_place(environ_words, context)
    assert decided is is_local
    assert why in words


@pytest.mark.parametrize("flag", ["1", "0"])
def test_interactive_reaches_a_device_by_events_and_by_polling(environ: dict[str, str], flag: str) -> None:
    lines = f"echo host $TANGO_HOST\npython -c '{CALLS}; allocate(1); print(get_obs_state(1).name)'\nexit 3\n"
    done = subprocess.run(
        [sys.executable, ROOT / "tools/local.py", "interactive"],
        input=lines,
        env={**environ, "OET_READ_VIA_PUBSUB": flag},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[-2:] == ["EMPTY", "IDLE"]
    assert "host 127.0.0.1:" in done.stdout


def test_interactive_keeps_the_exit_code_through_make(environ: dict[str, str]) -> None:
    command = ["make", "--silent", "interactive"]
    done = subprocess.run(command, cwd=ROOT, input="exit 3\n", env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2  # make's own word for a failed line, which it tells:
    assert "Error 3" in done.stderr


class Terminal:
    """`make interactive` at a terminal."""

    def __init__(self, environ: dict[str, str]) -> None:
        master, slave = pty.openpty()
        self.master = master
        self.text = ""
        self.process = subprocess.Popen(
            ["make", "--silent", "interactive"],
            cwd=ROOT,
            env={**environ, "TERM": "dumb"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, 0x540E, 0),  # TIOCSCTTY: its controlling terminal
        )
        os.close(slave)
        os.set_blocking(master, False)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, words: str, times: int = 1) -> str:
        def has_come() -> bool:
            try:
                self.text += os.read(self.master, 65536).decode(errors="replace")
            except (BlockingIOError, OSError):
                time.sleep(0.01)
            return self.text.count(words) >= times

        wait_until(has_come, 40, f"no {words!r} in {self.text!r}")
        return self.text

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(environ: dict[str, str]) -> Iterator[Terminal]:
    terminal = Terminal(environ)
    yield terminal
    terminal.close()


def find_marks(terminal: Terminal) -> str:
    """Return the mark that everything in the shell has."""
    terminal.type('echo "mark=$OET_SIMULATION_MARK="\n')
    terminal.wait_for("mark=$")
    return terminal.wait_for("\nmark=").rpartition("\nmark=")[2].partition("=")[0]


def test_interrupt_at_the_prompt_ends_neither_shell_nor_telescope(terminal: Terminal) -> None:
    terminal.wait_for("simulated telescope) ")
    terminal.type("sleep 600\n")
    time.sleep(0.3)  # Until the shell has started it; an interrupt before that would be the prompt's.
    terminal.type("\x03")
    terminal.wait_for("^C")
    terminal.wait_for("simulated telescope) ", 2)  # What is typed before the prompt is back is thrown away.
    terminal.type(f'python -c "{CALLS}"\n')
    terminal.wait_for("\nEMPTY")
    mark = find_marks(terminal)
    terminal.type("exit 4\n")
    terminal.wait_for("Error 4")
    wait_until(lambda: not find_marked(mark), 10, "processes are left")


@pytest.mark.parametrize("whom", ["tool", "shell"])
def test_killing_it_leaves_no_process(terminal: Terminal, whom: str) -> None:
    terminal.wait_for("simulated telescope) ")
    terminal.type("sleep 600 &\n")
    mark = find_marks(terminal)
    assert len(find_marked(mark)) >= 4  # database, devices, shell, sleep
    (tool,) = (process.pid for process in local.recall() if process.name.startswith("interactive"))
    if whom == "shell":
        terminal.type("kill -9 $$\n")
    else:
        os.kill(tool, signal.SIGKILL)
    wait_until(lambda: not find_marked(mark) and not local.read_start(tool), 15, "processes are left")


def test_down_ends_an_open_shell(terminal: Terminal, environ: dict[str, str]) -> None:
    terminal.wait_for("simulated telescope) ")
    mark = find_marks(terminal)
    done = subprocess.run(
        ["make", "--silent", "down"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60
    )
    assert "ended interactive" in done.stdout, done.stdout + done.stderr
    wait_until(lambda: not find_marked(mark), 10, "processes are left")
