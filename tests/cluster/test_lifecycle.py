"""Up and down on this machine, for real: only with OET_CLUSTER=1 and while no cluster is up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from oet_cluster.cluster import BackendName, Cluster, State, choose_backend
from oet_cluster.components import Component
from oet_cluster.machine import CGROUP, parse_cgroup_roots
from oet_cluster.network import HOST_DEVICE
from oet_cluster.places import Places
from oet_cluster.processes import INIT, find_recorded
from oet_cluster.waiting import wait_for

pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster(places: Places) -> Iterator[Cluster]:
    """The cluster of our own, down before and after."""
    if os.environ.get("OET_CLUSTER") != "1":
        pytest.skip("set OET_CLUSTER=1 to bring a cluster up and down on this machine")
    if choose_backend(os.environ.get("OET_CLUSTER_BACKEND", "")) is not BackendName.OWN:
        pytest.skip("this machine uses kind")
    cluster = Cluster(places)
    if cluster.observe_state() is not State.DOWN:
        pytest.skip("a cluster is up: taking it down would disturb whoever uses it")
    yield cluster
    cluster.down()


def find_remains(places: Places) -> list[str]:
    """Return what a cluster has on the machine outside its namespaces, and who still runs from its work folder."""
    roots = parse_cgroup_roots(Path("/proc/mounts").read_text(encoding="utf-8"))
    remains = [str(root / CGROUP) for root in roots if (root / CGROUP).exists()]
    remains += [str(path) for path in [Path("/sys/class/net") / HOST_DEVICE] if path.exists()]
    mounts = Path("/proc/mounts").read_text(encoding="utf-8")
    remains += [line for line in mounts.splitlines() if str(places.work) in line]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(os.fsdecode(argument).startswith(f"{places.work}/") for argument in arguments[:-1]):
            remains.append(f"process {folder.name}: {arguments[0]!r}")
    return remains


def run_command(*words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "oet_cluster", *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_up_and_down_can_be_repeated_and_leave_nothing(cluster: Cluster) -> None:
    assert run_command("status").returncode == 3
    up = run_command("up")
    assert up.returncode == 0, up.stderr
    assert f"export KUBECONFIG={cluster.places.kubeconfig}" in up.stdout
    assert run_command("status").returncode == 0
    assert "up already" in run_command("up").stdout
    assert run_command("down").returncode == 0
    # The processes outside the namespaces end by themselves once those inside are gone.
    wait_for(lambda: not find_remains(cluster.places), 5, "something is left")
    assert "down already" in run_command("down").stdout


def test_up_after_a_component_was_killed_starts_it_again(cluster: Cluster) -> None:
    cluster.up()
    before = {name: find_recorded(cluster.places.pids / name) for name in (INIT, *Component)}
    assert cluster.get_own_node().kill_component(Component.API_SERVER)
    assert cluster.observe_state() is State.HALF_UP
    cluster.up()
    after = {name: find_recorded(cluster.places.pids / name) for name in (INIT, *Component)}
    assert {name for name in before if before[name] != after[name]} == {Component.API_SERVER}


@pytest.mark.parametrize("seconds", [0.2, 0.5, 0.8, 2.0, 4.0])
def test_down_cleans_up_wherever_up_was_killed(cluster: Cluster, seconds: float) -> None:
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "oet_cluster", "up"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
    cluster.down()
    wait_for(lambda: not find_remains(cluster.places), 5, "something is left")
    assert cluster.observe_state() is State.DOWN


def test_up_after_the_whole_cluster_was_killed_makes_a_new_one(cluster: Cluster) -> None:
    cluster.up()
    init = find_recorded(cluster.places.pids / INIT)
    assert init
    os.kill(init, signal.SIGKILL)
    wait_for(lambda: find_recorded(cluster.places.pids / INIT) is None, 10, "the namespaces do not end")
    cluster.up()
    assert cluster.observe_state() is State.UP
