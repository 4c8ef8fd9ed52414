"""What a script of the local engine cannot reach, and what it can do all the same."""

from __future__ import annotations

import json
import textwrap
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from oet_support import Client, Server, running_server

from oet_operator.local.runner import is_isolation_available
from oet_runner.landlock import is_available

needs_landlock = pytest.mark.skipif(not is_available(), reason="the kernel has no Landlock")

DOORS = """
import os, ctypes, sqlite3

def attempt(name, action):
    try:
        action()
        print("open", name)
    except (OSError, sqlite3.Error) as error:
        print("closed", name)

def attach(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, pid, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(pid, 0)
    libc.ptrace(17, pid, 0, 0)

def take_descriptor(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(438, os.pidfd_open(pid), 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")

def main(state):
    supervisor = os.getppid()
    attempt("store", lambda: sqlite3.connect(f"file:{state}/oet.sqlite3?mode=ro", uri=True).execute("select 1 from executions"))
    attempt("store for writing", lambda: os.open(f"{state}/oet.sqlite3", os.O_RDWR))
    attempt("lock", lambda: open(f"{state}/lock"))
    attempt("new file beside the store", lambda: open(f"{state}/new", "w"))
    attempt("unmounting", lambda: os.rmdir(state))
    attempt("memory", lambda: open(f"/proc/{supervisor}/mem", "rb"))
    attempt("descriptor by name", lambda: os.open(f"/proc/{supervisor}/fd/0", os.O_RDONLY))
    attempt("tracing", lambda: attach(supervisor))
    attempt("descriptor by pidfd", lambda: take_descriptor(supervisor))
    attempt("signal", lambda: os.kill(supervisor, 0))
"""


@pytest.fixture(params=["namespace", "none"])
def confined(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose scripts are confined, with namespaces and without."""
    if request.param == "namespace" and not is_isolation_available():
        pytest.skip("no PID namespaces here")
    # Without namespaces nothing new can be made right in a folder above the state folder.
    temporary = str(tmp_path_factory.mktemp("temporary"))
    with running_server(OET_ISOLATION=request.param, OET_SPARES="1", TMPDIR=temporary) as server:
        yield server


def read_detail(server: Server) -> str:
    """Return what the server says of its health."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/readyz", timeout=10) as answer:
        return str(json.loads(answer.read())["detail"])


def run(server: Server, source: str, *arguments: str) -> list[str]:
    """Run a script to its end, and return what it printed."""
    client = Client(server.port)
    procedure = client.prepare(textwrap.dedent(source), None)
    client.start(procedure, *arguments)
    ended = client.wait_for(procedure, "COMPLETE", "FAILED", "UNKNOWN")
    events = client.ask("GET", f"/procedures/{procedure}/events?kind=log&limit=1000")
    lines = [event["payload"]["line"] for event in events]
    assert ended["state"] == "COMPLETE", lines
    client.close()
    return lines


@needs_landlock
def test_script_cannot_take_its_supervisors_place_nor_open_the_store(confined: Server) -> None:
    lines = run(confined, DOORS, confined.environ["OET_STATE_DIR"])
    assert len(lines) == DOORS.count("attempt(") - 1
    assert [line for line in lines if not line.startswith("closed ")] == []
    assert read_detail(confined).endswith("confined by Landlock")


@needs_landlock
def test_same_doors_are_open_to_a_script_that_is_not_confined() -> None:
    with running_server(OET_CONFINEMENT="none") as server:
        lines = run(server, DOORS, server.environ["OET_STATE_DIR"])
        assert {"open store", "open store for writing", "open signal"} <= set(lines)
        assert read_detail(server).endswith("not confined")


@needs_landlock
def test_confined_script_does_what_scripts_do(confined: Server) -> None:
    source = """
        import multiprocessing, os, pathlib, socket, subprocess, sys, tempfile, _decimal

        def double(number):
            return 2 * number

        def main():
            for folder in (tempfile.gettempdir(), os.path.expanduser("~"), os.getcwd()):
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    first, second = pathlib.Path(own, "first"), pathlib.Path(own, "second")
                    first.mkdir(), second.mkdir()
                    (first / "file").write_text("moved")
                    os.rename(first / "file", second / "file")
                    print((second / "file").read_text())
            with multiprocessing.get_context("fork").Pool(2) as pool:
                print(pool.map(double, [1, 2]))
            child = subprocess.Popen(["sleep", "600"])
            child.kill()
            print(child.wait())
            with socket.create_server(("127.0.0.1", 0)) as server:
                socket.create_connection(server.getsockname()).close()
            print(subprocess.run([sys.executable, "-c", "print('child')"], capture_output=True, text=True).stdout.strip())
        """
    lines = run(confined, source)
    assert lines == ["moved", "moved", "moved", "[2, 4]", "-9", "child"]


@needs_landlock
def test_state_folder_that_scripts_need_stays_open_and_health_says_so(tmp_path: Path) -> None:
    server = Server(tmp_path, OET_SPARES="1", HOME=str(tmp_path / "state"))
    server.start()
    try:
        lines = run(server, "import os\ndef main(): print('oet.sqlite3' in os.listdir(os.path.expanduser('~')))")
        assert lines == ["True"]
        assert read_detail(server).endswith("confined by Landlock, but for the state folder: they need what is in it")
    finally:
        server.stop()
