"""The simulated Tango system: real servers, a real database, and nothing of it left afterwards."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from oet_support import wait_until

from oet.simulation import Simulation, SimulationError
from oet.simulation.guard import find_marked

SPEED = 20.0
SUBARRAY = "ska_mid/tm_subarray_node/1"


@pytest.fixture(scope="module")
def tango() -> Any:
    return pytest.importorskip("tango")


@pytest.fixture(scope="module")
def simulation() -> Iterator[Simulation]:
    with Simulation(speed=SPEED) as simulation:
        yield simulation


@pytest.fixture
def proxy(tango: Any, simulation: Simulation) -> Callable[[str], Any]:
    """Return a proxy by a full name, since a process keeps the first TANGO_HOST that it used."""

    def build(name: str) -> Any:
        return tango.DeviceProxy(f"tango://{simulation.tango_host}/{name}")

    return build


def wait_for(device: Any, state: str) -> None:
    wait_until(lambda: device.obsState.name == state, 5, f"obsState is not {state}")


@pytest.mark.parametrize(
    ("before", "name", "argument", "passing", "target"),
    [
        ("EMPTY", "AssignResources", "{}", "RESOURCING", "IDLE"),
        ("IDLE", "AssignResources", "{}", "RESOURCING", "IDLE"),
        ("IDLE", "ReleaseAllResources", None, "RESOURCING", "EMPTY"),
        ("IDLE", "Configure", "{}", "CONFIGURING", "READY"),
        ("READY", "Configure", "{}", "CONFIGURING", "READY"),
        ("READY", "Scan", "{}", "SCANNING", "READY"),
        ("READY", "End", None, None, "IDLE"),
        ("SCANNING", "EndScan", None, None, "READY"),
        ("SCANNING", "Abort", None, "ABORTING", "ABORTED"),
        ("CONFIGURING", "Abort", None, "ABORTING", "ABORTED"),
        ("ABORTED", "ObsReset", None, "RESETTING", "IDLE"),
        ("FAULT", "ObsReset", None, "RESETTING", "IDLE"),
        ("ABORTED", "Restart", None, "RESTARTING", "EMPTY"),
        ("FAULT", "Restart", None, "RESTARTING", "EMPTY"),
    ],
)
def test_command_leads_through_its_states_and_sends_each_as_an_event(
    tango: Any, proxy: Callable[[str], Any], before: str, name: str, argument: str | None, passing: str, target: str
) -> None:
    device = proxy(SUBARRAY)
    device.ForceState(before)
    seen: list[str] = []
    states = list(type(device.obsState))
    event = device.subscribe_event(
        "obsState", tango.EventType.CHANGE_EVENT, lambda one: seen.append(states[one.attr_value.value].name)
    )
    # The first is told by the subscription itself, whose connection is still being made: what is sent then may be lost.
    wait_until(lambda: device.ForceState(before) or len(seen) > 1, 5, "no event comes")
    device.command_inout(name, argument) if argument is not None else device.command_inout(name)
    wait_until(lambda: seen[-1] == target and (target != before or passing in seen), 5, f"obsState is not {target}")
    device.unsubscribe_event(event)
    assert [state for state, _ in itertools.groupby(seen)] == [state for state in (before, passing, target) if state]
    assert device.obsState.name == target


@pytest.mark.parametrize(
    ("before", "name", "argument"),
    [
        ("EMPTY", "Configure", "{}"),
        ("IDLE", "Scan", "{}"),
        ("SCANNING", "Scan", "{}"),
        ("IDLE", "End", None),
        ("READY", "ReleaseAllResources", None),
        ("EMPTY", "Abort", None),
        ("IDLE", "ObsReset", None),
        ("READY", "Restart", None),
    ],
)
def test_command_in_a_wrong_state_is_refused_and_changes_nothing(
    tango: Any, proxy: Callable[[str], Any], before: str, name: str, argument: str | None
) -> None:
    device = proxy(SUBARRAY)
    device.ForceState(before)
    with pytest.raises(tango.DevFailed, match=f"{name} is not allowed in obsState {before}"):
        device.command_inout(name, argument) if argument is not None else device.command_inout(name)
    assert device.obsState.name == before


def test_abort_wins_over_what_goes_on(proxy: Callable[[str], Any]) -> None:
    device = proxy(SUBARRAY)
    device.ForceState("READY")
    device.Scan("{}")
    device.Abort()
    wait_for(device, "ABORTED")
    time.sleep(2 / SPEED)  # Twice what the scan would have lasted: its end must not come any more.
    assert device.obsState.name == "ABORTED"


@pytest.mark.parametrize("key", ["subarray_id", "subarrayID"])
def test_central_node_assigns_to_the_subarray_that_is_named(proxy: Callable[[str], Any], key: str) -> None:
    first, second = proxy(SUBARRAY), proxy("ska_mid/tm_subarray_node/2")
    for device in (first, second):
        device.ForceState("EMPTY")
    central = proxy("ska_mid/tm_central/central_node")
    central.AssignResources(json.dumps({key: 2}))
    wait_for(second, "IDLE")
    central.ReleaseResources(json.dumps({key: 2}))
    wait_for(second, "EMPTY")
    assert first.obsState.name == "EMPTY"


@pytest.mark.parametrize("argument", ["", "{}", "[]", '{"subarray_id": 99}', '{"subarray_id": null}'])
def test_central_node_refuses_a_subarray_that_is_not_there(
    tango: Any, proxy: Callable[[str], Any], argument: str
) -> None:
    with pytest.raises(tango.DevFailed, match="subarray_id of a subarray that there is"):
        proxy("ska_mid/tm_central/central_node").AssignResources(argument)


# ---- as a command ------------------------------------------------------------------------------------------------------


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "oet.simulation", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def read_mark(pid: int) -> str:
    """Return the mark of a process that a simulation started."""
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(word for word in words if word.startswith(b"OET_SIMULATION_MARK=")).decode().partition("=")[2]


@pytest.fixture
def running() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A simulation with a command that has started a process which hides in a session of its own."""
    hide = "import os; os.setsid(); print(os.getpid(), flush=True); import time; time.sleep(600)"
    process = start("--subarrays=1", "--", "sh", "-c", f'{sys.executable} -c "{hide}" & sleep 600')
    assert process.stdout is not None
    try:
        hidden = next(int(line) for line in process.stdout if line.strip().isdigit())
        mark = read_mark(hidden)
        # The database, the devices, the shell, its sleep, and what hides.
        wait_until(lambda: len(find_marked(mark)) == 5, 10, "not all processes have the mark")
        yield process, mark
    finally:
        process.stdout.close()
        process.kill()
        process.wait()


def list_sockets(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_socket()]


def test_two_systems_share_no_socket_though_their_processes_have_the_same_ids() -> None:
    """In PID namespaces they often have; omniORB names its Unix sockets by process id and second."""
    with Simulation(subarrays=1) as one, Simulation(subarrays=1) as other:
        folders = [read_folder(each.processes[0].pid) for each in (one, other)]
        assert folders[0] != folders[1]
        assert [len(list_sockets(folder)) for folder in folders] == [2, 2]
    assert not any(folder.exists() for folder in folders)


def read_folder(pid: int) -> Path:
    """Return the folder of the Unix sockets of a part."""
    words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return Path(next(word for word in words if word.startswith("ORBunixTransportDirectory=")).partition("=")[2])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_however_it_ends(running: tuple[subprocess.Popen[str], str], number: int) -> None:
    process, mark = running
    (database, *_) = [pid for pid in find_marked(mark) if b"databaseds" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    folder = read_folder(database)
    process.send_signal(number)
    process.wait(10)
    wait_until(lambda: not find_marked(mark), 10, "processes of the simulation are left")
    wait_until(lambda: not folder.exists(), 10, "the folder of sockets is left")


@pytest.mark.parametrize(
    ("words", "code"), [(["true"], 0), (["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -9 $$"], 137)]
)
def test_exit_code_is_that_of_the_command(words: list[str], code: int) -> None:
    process = start("--subarrays=1", "--", *words)
    assert "TANGO_HOST=127.0.0.1:" in process.communicate(timeout=30)[0]
    assert process.returncode == code


def test_command_finds_the_system_by_its_environment() -> None:
    ask = "import tango; print(tango.DeviceProxy('ska_mid/tm_subarray_node/3').obsState.name)"
    process = start("--subarrays=3", "--", sys.executable, "-c", ask, env={**os.environ, "TANGO_HOST": "nowhere:1"})
    assert process.communicate(timeout=30)[0].splitlines()[-1] == "EMPTY"


def test_interrupt_is_for_the_command_to_decide(tmp_path: Path) -> None:
    wait = "trap 'echo interrupted; exit 5' INT; echo waiting; while :; do sleep 0.05; done"
    process = start("--subarrays=1", "--", "sh", "-c", wait, start_new_session=True)
    assert process.stdout is not None
    assert any(line == "waiting\n" for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    assert process.stdout.read() == "interrupted\n"
    process.stdout.close()
    assert process.wait(10) == 5


def test_state_file_tells_others_while_it_serves(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    process = start("--subarrays=1", f"--state-file={path}")
    wait_until(path.exists, 30, "no state file")
    state = json.loads(path.read_text())
    assert state["pid"] == process.pid
    host, _, port = state["tango_host"].partition(":")
    socket.create_connection((host, int(port)), 5).close()
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 0
    assert not path.exists()


def test_port_that_is_taken_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start(f"--port={taken.getsockname()[1]}", stderr=subprocess.STDOUT)
        text = process.communicate(timeout=40)[0]
    assert process.returncode == 1
    assert "a part of the simulated Tango system ended" in text


def test_command_that_is_not_there_is_said() -> None:
    process = start("--", "/no/such/command", stderr=subprocess.STDOUT)
    assert "cannot run '/no/such/command'" in process.communicate(timeout=30)[0]
    assert process.returncode == 1


def test_part_that_dies_ends_the_whole(tmp_path: Path) -> None:
    process = start("--subarrays=1", stderr=subprocess.STDOUT)
    assert process.stdout is not None
    assert next(process.stdout).startswith("TANGO_HOST=")
    (guard, *parts) = sorted(int(pid) for pid in _list_children(process.pid))
    os.kill(parts[-1], signal.SIGKILL)
    text = process.communicate(timeout=20)[0]
    assert "ended with exit code -9" in text
    assert process.returncode == 1
    wait_until(lambda: not Path(f"/proc/{guard}").exists(), 5, "the guard is left")


def _list_children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_python_without_tango_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(SimulationError, match=r"ska-oso-oet\[tango\]"), Simulation():
        pass  # pragma: no cover


def test_starting_it_imports_no_tango() -> None:
    code = "import sys, oet, oet.simulation; print({'tango', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
