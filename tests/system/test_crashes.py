"""The server is killed, the disk is full, a runner dies: what is said afterwards is true, and nothing runs on."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import uuid
from pathlib import Path

import pytest
from oet_support import Client, Refused, Server, find_descendants, find_marked, wait_until

ROUNDS = 20

RUNNING = """
import os, subprocess, sys, time
os.environ["SCRIPT_MARK"] = "{mark}"
def main():
    for detached in (False, True):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=detached)
    time.sleep(600)
"""


@pytest.mark.serial
@pytest.mark.timeout(600)
def test_killed_server_leaves_no_orphan_and_loses_nothing(tmp_path: Path, isolation: str) -> None:
    random.seed(1)
    rounds = ROUNDS if isolation == "namespace" else ROUNDS // 2
    server = Server(tmp_path, OET_ISOLATION=isolation, OET_HISTORY_LIMIT="1000")
    server.start()
    settled: dict[int, dict[str, object]] = {}
    try:
        for _ in range(rounds):
            client, mark = Client(server.port), uuid.uuid4().hex
            done = client.prepare("def main(): print('done')", 99)
            client.start(done)
            settled[done] = client.wait_for(done, "COMPLETE")
            running = [client.create(RUNNING.format(mark=mark), number) for number in range(5)]
            for procedure in running:
                client.wait_for(procedure, "READY")
                client.start(procedure)
            wait_until(lambda: len(find_marked(mark)) >= random.randint(1, 10), 20, "the scripts do not run")  # noqa: B023
            server.kill()
            client.close()
            wait_until(lambda: not find_marked(mark), 3, "processes of killed servers' scripts live on")  # noqa: B023
            server.start()
            client = Client(server.port)
            assert client.create("def main(): pass", 98) > max(running)
            for procedure in running:
                ended = client.wait_for(procedure, "FAILED")
                assert ended["reason"] == "EngineLost"
                settled[procedure] = ended
            for procedure, known in settled.items():
                assert client.get(procedure) == known
            client.close()
    finally:
        server.stop()


NAMELESS = """
import subprocess
def main():
    # It says nothing of who it belongs to: no group, no environment.
    subprocess.run(["sleep", "{seconds}"], env={{"PATH": "/usr/bin:/bin"}}, start_new_session=True)
"""


def find_sleepers(seconds: str) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if (folder / "cmdline").read_bytes() == f"sleep\0{seconds}\0".encode():
                    found.append(int(folder.name))
    return found


def find_supervisors(server: Server) -> list[int]:
    return [pid for pid in find_descendants(server.pid) if b"--mailbox-in" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize("is_supervisor_killed", [True, False])
def test_end_that_nobody_saw_is_not_claimed(tmp_path: Path, isolation: str, is_supervisor_killed: bool) -> None:
    """A PID namespace ends with its supervisor. Without one nobody knows what lives on when engine and supervisor are killed."""
    seconds = str(random.SystemRandom().randint(10**6, 10**7))
    server = Server(tmp_path, OET_ISOLATION=isolation)
    server.start()
    client = Client(server.port)
    try:
        procedure = client.prepare(NAMELESS.format(seconds=seconds))
        client.start(procedure)
        wait_until(lambda: find_sleepers(seconds), 20, "the script does not run")
        supervisors = find_supervisors(server) if is_supervisor_killed else []
        os.killpg(server.pid, signal.SIGSTOP)  # So that the engine does not end what is left.
        for pid in supervisors:
            os.kill(pid, signal.SIGKILL)
        server.kill()
        client.close()
        server.start()
        client = Client(server.port)
        ended = client.wait_for(procedure, "FAILED", "UNKNOWN")
        assert ended["reason"] == "EngineLost"
        following = client.prepare("def main(): pass")
        if is_supervisor_killed and isolation == "none":
            assert ended["state"] == "UNKNOWN"
            assert find_sleepers(seconds)
            with pytest.raises(Refused, match="409"):
                client.start(following)
            client.ask("POST", f"/procedures/{procedure}/release", {"reason": "I looked"})
        else:
            assert ended["state"] == "FAILED"
            assert not find_sleepers(seconds)
        client.start(following)
        client.wait_for(following, "COMPLETE")
        client.close()
        assert server.stop() == 0
        # Nothing is said of a script that has ended in order.
        server.start()
        assert list((tmp_path / "state").glob("traces/*")) == []
    finally:
        client.close()
        server.kill()
        for pid in find_sleepers(seconds):
            os.kill(pid, signal.SIGKILL)


def test_ordered_shutdown_stops_scripts_and_says_so(tmp_path: Path) -> None:
    begun, cleaned, mark = tmp_path / "begun", tmp_path / "cleaned", uuid.uuid4().hex
    source = RUNNING.format(mark=mark).replace(
        "    time.sleep(600)\n",
        f"    try:\n        open({str(begun)!r}, 'w').close()\n        time.sleep(600)\n"
        f"    finally:\n        open({str(cleaned)!r}, 'w').close()\n",
    )
    server = Server(tmp_path)
    server.start()
    client = Client(server.port)
    procedure = client.prepare(source)
    client.start(procedure)
    wait_until(begun.exists, 20, "the script does not run")
    client.close()
    assert server.stop() == 0
    assert cleaned.exists()
    assert find_marked(mark) == []
    server.start()
    try:
        again = Client(server.port)
        ended = again.get(procedure)
        again.close()
        assert (ended["state"], ended["reason"]) == ("STOPPED", "EngineShutdown")
    finally:
        server.stop()


def test_second_server_on_the_same_state_folder_is_refused(server: Server, tmp_path: Path) -> None:
    second = Server(tmp_path)
    with pytest.raises(ChildProcessError, match="another OET uses the state folder"):
        second.start()
