"""Observing scripts through the real server, on a real Tango control system with simulated devices; by events and by polling."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oet_support import Client, Server, find_marked, wait_until

import oet
from oet.simulation import Simulation
from oet.tango import Attribute, Command, Tango

SCRIPTS = Path(oet.__file__).parent / "scripts"
SUBARRAY = "ska_mid/tm_subarray_node/1"


@pytest.fixture(scope="module")
def simulation() -> Iterator[Simulation]:
    with Simulation(subarrays=1, speed=4) as simulation:
        yield simulation


@pytest.fixture
def subarray(simulation: Simulation) -> Attribute:
    """The state of the subarray, which is EMPTY at first."""
    device = f"tango://{simulation.tango_host}/{SUBARRAY}"
    Tango().execute(Command(device, "ForceState", "EMPTY"))
    return Attribute(device, "obsState")


@pytest.fixture(params=["True", "False"], ids=["events", "polling"])
def telescope(request: pytest.FixtureRequest, simulation: Simulation, tmp_path: Path) -> Iterator[Server]:
    """A server whose scripts use the simulated telescope."""
    settings = {"TANGO_HOST": simulation.tango_host, "OET_READ_VIA_PUBSUB": request.param, "OET_SPARES": "1"}
    server = Server(tmp_path, **settings)
    server.start()
    yield server
    server.stop()


def call_oet(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    url = f"http://127.0.0.1:{server.port}/ska-oso-oet/oet/api/v7"
    command = [sys.executable, "-m", "oet_cli", "--server-url", url, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)


def test_example_observes_from_resources_to_release(telescope: Server, subarray: Attribute) -> None:
    done = call_oet(telescope, "procedure", "run", str(SCRIPTS / "observe.py"), "--subarray_id=1", "--scans=2")
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("subarray 1 is EMPTY", "scan 1 of 2 is done", "scan 2 of 2 is done"):
        assert words in done.stderr
    assert Tango().read(subarray) == "EMPTY"


def test_stop_ends_a_wait_for_the_telescope(telescope: Server, subarray: Attribute, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    script = tmp_path / "waits.py"
    script.write_text(
        f"import os\nos.environ['WAIT_MARK'] = {mark!r}\nimport subprocess, sys, oet\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "from oet.tango.observing import ObsState, wait_for\n"
        "def init(subarray_id): pass\n"
        "def main():\n"
        "    oet.announce('waiting')\n"
        "    try:\n        wait_for(1, ObsState.READY)\n"
        "    finally:\n        oet.announce('tidied up')\n"
    )
    call_oet(telescope, "procedure", "create", str(script), "--subarray_id=1", "--wait")
    call_oet(telescope, "procedure", "start", "--listen=False")
    wait_until(lambda: _has_announced(telescope, "waiting"), 20, "the script does not wait")
    assert find_marked(mark)
    stopped = call_oet(telescope, "procedure", "stop", "--run_abort=False")
    assert stopped.returncode == 0, stopped.stderr
    assert find_marked(mark) == []
    assert _has_announced(telescope, "tidied up")


@pytest.mark.parametrize("state", ["SCANNING", "IDLE", "EMPTY", "ABORTED"])
def test_stop_with_abort_aborts_what_the_subarray_does(
    telescope: Server, subarray: Attribute, tmp_path: Path, state: str
) -> None:
    script = tmp_path / "observes.py"
    script.write_text("import time\ndef init(subarray_id): pass\ndef main(): time.sleep(600)\n")
    call_oet(telescope, "procedure", "create", str(script), "--subarray_id=1", "--wait")
    call_oet(telescope, "procedure", "start", "--listen=False")
    Tango().execute(Command(subarray.device, "ForceState", state))
    stopped = call_oet(telescope, "procedure", "stop", "--pid=1")
    assert "aborted subarray activity" in stopped.stdout, stopped.stderr
    assert Tango().read(subarray) == ("EMPTY" if state == "EMPTY" else "ABORTED")


def test_abort_that_the_telescope_refuses_is_an_alarm(telescope: Server, subarray: Attribute, tmp_path: Path) -> None:
    script = tmp_path / "observes.py"
    script.write_text("import time\ndef init(subarray_id): pass\ndef main(): time.sleep(600)\n")
    call_oet(telescope, "procedure", "create", str(script), "--subarray_id=1", "--wait")
    call_oet(telescope, "procedure", "start", "--listen=False")
    Tango().execute(Command(subarray.device, "ForceState", "FAULT"))
    stopped = call_oet(telescope, "procedure", "stop", "--pid=1")
    assert "aborted" not in stopped.stdout
    described = call_oet(telescope, "procedure", "describe", "--pid=2").stdout
    assert "FAILED" in described
    assert "subarray 1 is FAULT and refused the abort" in described


def test_smallest_script_runs(telescope: Server) -> None:
    done = call_oet(telescope, "procedure", "run", str(SCRIPTS / "hello_world.py"), "--name=Telescope")
    assert (done.returncode, "Hello, Telescope!" in done.stderr) == (0, True), done.stderr


def _has_announced(server: Server, words: str) -> bool:
    client = Client(server.port)
    try:
        events: Any = client.ask("GET", "/procedures/1/events")
    finally:
        client.close()
    return any(event["payload"].get("msg") == words for event in events)
