"""Processes are known by PID and start time, and the cluster's commands can be repeated. No root, no cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from oet_cluster import __main__ as command_line
from oet_cluster.cluster import BackendName, Cluster, State, choose_backend, decide_state
from oet_cluster.errors import ClusterError
from oet_cluster.kind import KindNode, build_create_command
from oet_cluster.machine import find_absent, parse_cgroup_roots
from oet_cluster.places import Places
from oet_cluster.processes import Namespaces, find_recorded, parse_start_time, record
from oet_cluster.toolchain import Toolchain
from oet_cluster.waiting import wait_for


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(work=tmp_path / "w", cache=tmp_path / "c")


def test_recorded_process_is_found_while_it_runs(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    record(tmp_path / "pid", sleeper.pid)
    assert find_recorded(tmp_path / "pid") == sleeper.pid
    sleeper.kill()
    # A zombie is no running process, although its PID is still taken.
    wait_for(lambda: find_recorded(tmp_path / "pid") is None, 10, "the killed process is still found")
    assert sleeper.wait() == -9


def test_pid_of_another_process_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text(f"{os.getpid()} 1\n")
    assert find_recorded(tmp_path / "pid") is None


@pytest.mark.parametrize("content", ["", "12", "a b", "999999999 1"])
def test_broken_pid_file_names_no_process(tmp_path: Path, content: str) -> None:
    (tmp_path / "pid").write_text(content)
    assert find_recorded(tmp_path / "pid") is None


def test_process_that_ended_at_once_is_not_recorded(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(ClusterError, match="ended as soon as it was started"):
        record(tmp_path / "component", process.pid)


@pytest.mark.parametrize(
    ("begin", "threads", "started"),
    [
        pytest.param("7 (a) S", "3", "99", id="runs"),
        pytest.param("7 (a) b) S) S", "3", "99", id="brackets in the name"),
        pytest.param("7 (a) Z", "1", None, id="zombie"),
        pytest.param("7 (a) Z", "0", None, id="zombie whose threads are no longer counted"),
        pytest.param("7 (a) Z", "2", "99", id="zombie with a living thread"),
    ],
)
def test_start_time_is_told_until_the_last_thread_has_ended(begin: str, threads: str, started: str | None) -> None:
    between = " ".join(["0"] * 16)
    assert parse_start_time(f"{begin} {between} {threads} 0 99 0 0") == started


def test_kill_of_what_does_not_run_says_so(tmp_path: Path) -> None:
    namespaces = Namespaces(tmp_path, tmp_path / "pid", tmp_path / "log")
    assert not namespaces.kill("kubelet")
    with pytest.raises(ClusterError, match="namespaces are gone"):
        namespaces.enter(["true"])


def test_kill_waits_for_the_end(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    record(tmp_path / "pid" / "kubelet", sleeper.pid)
    assert Namespaces(tmp_path, tmp_path / "pid", tmp_path / "log").kill("kubelet")
    assert sleeper.wait(0) == -9


def test_wait_ends_with_the_complaint_when_nothing_comes() -> None:
    with pytest.raises(ClusterError, match=r"it is late \(waited 0.01 s\)"):
        wait_for(lambda: None, 0.01, "it is late", 0.001)


@pytest.mark.parametrize(
    ("mounts", "roots"),
    [
        pytest.param("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", ["/sys/fs/cgroup"], id="version 2"),
        pytest.param(
            "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
            "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\nproc /proc proc rw 0 0\n",
            ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"],
            id="version 1 with 2 beside it",
        ),
    ],
)
def test_every_cgroup_hierarchy_is_found(mounts: str, roots: list[str]) -> None:
    assert [str(root) for root in parse_cgroup_roots(mounts)] == roots


def test_absent_folders_are_listed_from_the_top(tmp_path: Path) -> None:
    absent = find_absent([str(tmp_path / "a" / "b"), str(tmp_path / "a" / "c"), str(tmp_path)])
    assert absent == [str(tmp_path / "a"), str(tmp_path / "a" / "b"), str(tmp_path / "a" / "c")]


@pytest.mark.parametrize(
    ("wanted", "has_engine", "chosen"),
    [
        pytest.param("", True, BackendName.KIND, id="with an engine"),
        pytest.param("", False, BackendName.OWN, id="without an engine"),
        pytest.param("own", True, BackendName.OWN, id="own although there is an engine"),
        pytest.param("kind", False, BackendName.KIND, id="kind although no engine answers"),
    ],
)
def test_backend_is_kind_where_docker_is_unless_told_otherwise(
    wanted: str, has_engine: bool, chosen: BackendName
) -> None:
    assert choose_backend(wanted, lambda: has_engine) is chosen


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(ClusterError, match="'k3s'; it may be `kind` or `own`"):
        choose_backend("k3s", lambda: False)


@pytest.mark.parametrize(
    ("is_claimed", "is_up", "state"),
    [(False, False, State.DOWN), (True, False, State.HALF_UP), (True, True, State.UP)],
)
def test_cluster_that_was_begun_and_does_not_work_is_half_up(is_claimed: bool, is_up: bool, state: State) -> None:
    assert decide_state(is_claimed, is_up) is state


def test_down_when_down_says_so(places: Places) -> None:
    lines: list[str] = []
    Cluster(places, lines.append).down()
    assert lines == ["the cluster is down already"]


def test_purge_when_down_removes_the_work_folder(places: Places) -> None:
    Cluster(places, lambda line: None).down(is_purge=True)
    assert not places.work.exists()


def test_image_for_a_cluster_that_is_down_is_refused(places: Places, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    archive.touch()
    with pytest.raises(ClusterError, match="not up"):
        Cluster(places, lambda line: None).load(archive)


def test_image_that_does_not_exist_is_refused(places: Places, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="there is no image archive"):
        Cluster(places).load(tmp_path / "none.tar")


def test_component_of_a_cluster_that_is_down_cannot_be_killed(places: Places) -> None:
    with pytest.raises(ClusterError, match="only the components of a running node of our own"):
        Cluster(places).get_own_node()


def test_kind_is_told_name_configuration_and_kubeconfig(places: Places) -> None:
    command = build_create_command("kind", places.kubeconfig)
    assert f"--kubeconfig={places.kubeconfig}" in command
    (config,) = (word.partition("=")[2] for word in command if word.startswith("--config="))
    assert "kind: Cluster" in Path(config).read_text()


def test_kind_without_an_engine_says_what_to_do(places: Places) -> None:
    node = KindNode(places, Toolchain(places), has_engine=lambda: False)
    assert not node.is_up()
    assert node.describe() == ["the Docker engine does not answer"]
    with pytest.raises(ClusterError, match=f"remove {places.claim}"):
        node.stop()


@pytest.fixture
def own_environ(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OET_CLUSTER_DIR", str(places.work))
    monkeypatch.setenv("OET_CLUSTER_BACKEND", "own")


@pytest.mark.usefixtures("own_environ")
def test_status_of_a_cluster_that_is_down_is_3(capsys: pytest.CaptureFixture[str], places: Places) -> None:
    assert command_line.main(["status"]) == 3
    assert capsys.readouterr().out == f"cluster: down\nwork folder: {places.work}\n"


@pytest.mark.usefixtures("own_environ")
def test_kubeconfig_command_prints_the_path_alone(capsys: pytest.CaptureFixture[str], places: Places) -> None:
    assert command_line.main(["kubeconfig"]) == 0
    assert capsys.readouterr().out == f"{places.kubeconfig}\n"


@pytest.mark.usefixtures("own_environ")
def test_what_the_user_must_repair_is_one_message_without_a_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command_line.main(["load", str(tmp_path / "none.tar")]) == 1
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", f"oet_cluster: there is no image archive {tmp_path / 'none.tar'}\n")


@pytest.mark.usefixtures("own_environ")
def test_up_without_root_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert command_line.main(["up"]) == 1
    assert "needs root" in capsys.readouterr().err
