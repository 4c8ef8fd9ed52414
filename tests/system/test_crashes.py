"""The server is killed, the disk is full, a runner dies: what is said afterwards is true, and nothing runs on."""

from __future__ import annotations

import random
import uuid
from pathlib import Path

import pytest
from oet_support import Client, Server, find_marked, wait_until

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
