"""Rehearsals through the real server: on a simulated telescope of their own, which they cannot get away from."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oet_support import BASE, Client, Refused, Server, find_descendants, find_marked, wait_until

import oet

OBSERVE = Path(oet.__file__).parent / "scripts" / "observe.py"

WAITING = """
import os, time, oet
from oet.tango.observing import *
def init(subarray_id):
    allocate(subarray_id)
def main():
    oet.announce("waiting")
    time.sleep(600)
"""


@pytest.fixture(params=["True", "False"], ids=["events", "polling"])
def flag(request: pytest.FixtureRequest) -> str:
    """How scripts wait for the telescope."""
    return str(request.param)


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server whose environment names the real telescope."""
    names = request.fixturenames
    settings = {"OET_SPARES": "1", "TANGO_HOST": "203.0.113.1:10000", "REHEARSAL_MARK": uuid.uuid4().hex}
    settings["OET_READ_VIA_PUBSUB"] = request.getfixturevalue("flag") if "flag" in names else "True"
    server = Server(tmp_path, **settings)
    server.start()
    yield server
    server.stop()


def rehearse(client: Client, source: str, **init: Any) -> int:
    """Create a rehearsal and wait until it is READY."""
    body = {
        "script": {"script_type": "inline", "source": source},
        "script_args": {"init": {"kwargs": init}},
        "mode": "Rehearsal",
    }
    number = int(client.ask("POST", "/procedures/", body)["id"])
    client.wait_for(number, "READY", "FAILED", seconds=60)
    return number


def read_lines(client: Client, number: int) -> str:
    """Return what a script printed."""
    events = client.ask("GET", f"/procedures/{number}/events?limit=1000")
    return "\n".join(str(event["payload"].get("line", "")) for event in events)


def test_example_observes_from_resources_to_release(server: Server, flag: str) -> None:
    url = f"http://127.0.0.1:{server.port}{BASE}"
    words = ["procedure", "run", str(OBSERVE), "--subarray_id=1", "--scans=1", "--rehearse"]
    command = [sys.executable, "-m", "oet_cli", "--server-url", url, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scan 1 of 1 is done" in done.stderr
    assert "TANGO_HOST=127.0.0.1:" in done.stderr


def test_rehearsal_reaches_nothing_outside_of_its_namespace(server: Server, client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as hidden:
        name = f"oet-test-{uuid.uuid4().hex}"
        hidden.bind(f"\0{name}")
        hidden.listen()
        own = _find_own_address()
        places = [("127.0.0.1", listener.getsockname()[1]), (own, server.port), ("203.0.113.1", 10000), ("8.8.8.8", 53)]
        source = f"""
import socket
def try_connect(family, place):
    with socket.socket(family) as probe:
        probe.settimeout(5)
        try:
            probe.connect(place)
        except OSError as error:
            return type(error).__name__
    return "connected"
def main():
    for place in {places!r}:
        print(place[0], try_connect(socket.AF_INET, place))
    print("hidden", try_connect(socket.AF_UNIX, "\\0{name}"))
    print("interfaces", [name for _, name in socket.if_nameindex()])
"""
        number = rehearse(client, source)
        client.start(number)
        client.wait_for(number, "COMPLETE", "FAILED")
        lines = read_lines(client, number)
    assert "connected" not in lines
    assert "127.0.0.1 ConnectionRefusedError" in lines
    assert "hidden ConnectionRefusedError" in lines
    assert "interfaces ['lo']" in lines
    # The same outside, so that the test can fail.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = client.prepare(source.replace(repr(places), repr([listener.getsockname()])), subarray=None)
        client.start(number)
        client.wait_for(number, "COMPLETE", "FAILED")
        assert "127.0.0.1 connected" in read_lines(client, number)


def _find_own_address() -> str:
    """Return an address of this machine that is not the loopback's, or that where there is no other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("203.0.113.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def test_two_rehearsals_and_an_operation_share_a_subarray(server: Server, client: Client) -> None:
    operation = client.prepare("import time\ndef init(subarray_id): pass\ndef main(): time.sleep(600)")
    client.start(operation)
    numbers = [rehearse(client, WAITING, subarray_id=1) for _ in range(2)]
    for number in numbers:
        client.start(number)
    for number in (operation, *numbers):
        assert client.wait_for(number, "RUNNING", "FAILED")["state"] == "RUNNING", read_lines(client, number)
    assert [client.get(number).get("mode") for number in (operation, *numbers)] == [None, "Rehearsal", "Rehearsal"]
    assert [client.get(number).get("subarray") for number in (operation, *numbers)] == [1, None, None]


def test_rehearsal_uses_no_spare(server: Server, client: Client) -> None:
    # unshare(1), the supervisor and its child.
    wait_until(lambda: len(_find_spares(server)) == 3, 20, "no spare came up")
    spares = _find_spares(server)
    rehearse(client, "def main(): pass")
    assert _find_spares(server) == spares


def _find_spares(server: Server) -> set[int]:
    """Return the processes below the server's children that are in its own network."""
    own = os.readlink(f"/proc/{server.pid}/ns/net")
    found = set()
    for pid in find_descendants(server.pid):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"oet_runner" in words and os.readlink(f"/proc/{pid}/ns/net") == own:
                found.add(pid)
        except OSError:
            continue
    return found


def test_stop_with_abort_stops_without_and_leaves_nothing(server: Server, client: Client) -> None:
    number = rehearse(client, WAITING, subarray_id=1)
    client.start(number)
    client.wait_for(number, "RUNNING")
    before = _find_enclosed(server)
    assert len(before) >= 5
    answer = client.ask("PUT", f"/procedures/{number}", {"state": "STOPPED", "abort": True})
    words = f"Successfully stopped script with ID {number}; it was a rehearsal, which has no telescope to abort"
    assert answer == {"abort_message": words}
    # The supervisor itself has reported, and is about to leave.
    wait_until(lambda: not _find_enclosed(server), 5, "processes of script, telescope or supervisor are left")
    assert len(client.ask("GET", "/procedures/")) == 1


def _find_enclosed(server: Server) -> list[int]:
    """Return what runs in other networks than the server, with the server's mark."""
    own = os.readlink(f"/proc/{server.pid}/ns/net")
    found = []
    for pid in find_marked(f"REHEARSAL_MARK={server.environ['REHEARSAL_MARK']}"):
        try:
            if os.readlink(f"/proc/{pid}/ns/net") != own:
                found.append(pid)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("whom", ["supervisor", "server"])
def test_killed_rehearsal_leaves_nothing_of_script_and_telescope(server: Server, client: Client, whom: str) -> None:
    number = rehearse(client, WAITING, subarray_id=1)
    client.start(number)
    client.wait_for(number, "RUNNING")
    enclosed = _find_enclosed(server)
    assert len(enclosed) >= 5
    if whom == "server":
        server.kill()
    else:
        os.kill(min(enclosed), signal.SIGKILL)
        assert client.wait_for(number, "FAILED")["reason"] == "RunnerLost"
        assert _find_enclosed_marks(server, enclosed) == []
    wait_until(lambda: not _find_enclosed_marks(server, enclosed), 20, "something of the rehearsal is left")


def _find_enclosed_marks(server: Server, enclosed: list[int]) -> list[int]:
    marked = find_marked(f"REHEARSAL_MARK={server.environ['REHEARSAL_MARK']}")
    return [pid for pid in enclosed if pid in marked]


def test_rehearsal_without_namespaces_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    server = Server(tmp_path, OET_ISOLATION="none")
    server.start()
    client = Client(server.port)
    try:
        with pytest.raises(Refused) as refused:
            rehearse(client, "def main(): pass")
        assert refused.value.status == 409
        assert "set [engine] isolation = namespace" in refused.value.body["detail"]
        assert client.ask("GET", "/procedures/") == []
    finally:
        client.close()
        server.stop()


def test_unknown_mode_is_refused(client: Client) -> None:
    body = {"script": {"script_type": "inline", "source": "def main(): pass"}, "mode": "rehearsal"}
    with pytest.raises(Refused) as refused:
        client.ask("POST", "/procedures/", body)
    assert refused.value.status == 422


def test_script_from_git_is_rehearsed_from_the_cache(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "a.py").write_text("import os\ndef main(): print('on', os.environ['TANGO_HOST'])")
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "--quiet"], ["add", "a.py"], ["commit", "--quiet", "--message=a"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    state = tmp_path / "state"
    state.mkdir()
    server = Server(state, OET_GIT_PROTOCOLS="file", OET_GIT_CACHE_DIR=str(tmp_path / "cache"), TANGO_HOST="none:1")
    server.start()
    client = Client(server.port)
    place = {"git_repo": f"file://{repository}", "git_commit": commit}
    body = {"script": {"script_type": "git", "script_uri": "git://a.py", "git_args": place}}
    try:
        client.wait_for(client.ask("POST", "/procedures/", body)["id"], "READY")
        shutil.rmtree(repository)
        number = client.ask("POST", "/procedures/", {**body, "mode": "Rehearsal"})["id"]
        found = client.wait_for(number, "READY", "FAILED")
        assert (found["state"], found["commit"]) == ("READY", commit), found
        client.start(number)
        client.wait_for(number, "COMPLETE", "FAILED")
        assert "on 127.0.0.1:" in read_lines(client, number)
    finally:
        client.close()
        server.stop()
