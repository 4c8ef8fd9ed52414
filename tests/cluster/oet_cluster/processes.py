"""Processes in namespaces of their own, known by PID files, ended by PID only.

All processes of the cluster live in one PID namespace. When its first process ends, the kernel ends all others, and with
them go the mounts, network interfaces, iptables chains and Pods' networks that they made: that makes `down` certain.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from oet_cluster.errors import ClusterError
from oet_cluster.waiting import wait_for

__all__ = ["INIT", "Namespaces", "find_recorded", "parse_start_time", "record"]

INIT = "init"
"""Name of the namespaces' first process."""

_SPAWN_SECONDS = 10.0
"""A fork takes milliseconds; this is for a machine that is busy with something else."""
_END_SECONDS = 30.0
"""The kernel ends some 50 processes; slow only when one is in the middle of disk I/O."""

_ENVIRON = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
"""Nothing of the user's: a proxy's address, for example, would lead the components astray."""


def parse_start_time(stat: str) -> str | None:
    """Return the start time in the text of a /proc/PID/stat, in clock ticks after boot; None if the process has ended.

    PID and start time together name one process for as long as the machine runs (proc(5), fields 3, 20 and 22). A zombie
    whose other threads still run has not ended: they keep its files and ports open.
    """
    fields = stat.rpartition(")")[2].split()
    state, thread_count, started = fields[0], int(fields[17]), fields[19]
    return None if state == "Z" and thread_count <= 1 else started


def _observe_start_time(pid: int) -> str | None:
    try:
        return parse_start_time(Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None


def record(file: Path, pid: int) -> None:
    """Write a PID file. Raises ClusterError if the process has ended already."""
    started = _observe_start_time(pid)
    if started is None:
        raise ClusterError(f"{file.name} ended as soon as it was started")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{pid} {started}\n", encoding="ascii")


def find_recorded(file: Path) -> int | None:
    """Return the PID in a file if that very process still runs; None if it ended, or its PID now is another's."""
    try:
        word, started = file.read_text(encoding="ascii").split()
        pid = int(word)
    except (OSError, ValueError):
        return None
    return pid if _observe_start_time(pid) == started else None


def _find_child(pid: int) -> int | None:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return None
    return int(children[0]) if children else None


class Namespaces:
    """One PID, mount, network and IPC namespace for all processes of a cluster."""

    def __init__(self, work: Path, pids: Path, logs: Path) -> None:
        self._work = work
        self._pids = pids
        self._logs = logs

    def find(self, name: str) -> int | None:
        """Return the PID of a process that runs; None if it does not."""
        return find_recorded(self._pids / name)

    def create(self, pause: Path) -> None:
        """Start the first process, which waits and reaps, in new namespaces."""
        options = [
            "--pid",
            "--mount",
            "--net",
            "--ipc",
            "--fork",
            "--mount-proc",
            "--propagation",
            "private",
            "--wd",
            "/",
        ]
        # The work folder as an argument marks the process as ours, should we die before its PID is recorded.
        self._start(INIT, ["unshare", *options, "--", str(pause), str(self._work)])

    def enter(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs a command inside. Raises ClusterError if the namespaces are gone."""
        init = self.find(INIT)
        if init is None:
            raise ClusterError("the cluster's namespaces are gone: take it down and up again")
        return ["nsenter", "--target", str(init), "--mount", "--net", "--pid", "--ipc", "--wd=/", "--", *command]

    def run(self, command: Sequence[str], timeout_seconds: float = 60.0) -> str:
        """Run a command inside and return what it printed.

        Raises:
            ClusterError: It failed, or took too long.
        """
        try:
            done = subprocess.run(
                self.enter(command), capture_output=True, text=True, check=False, timeout=timeout_seconds
            )
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"`{' '.join(command)}` took longer than {timeout_seconds:g} s") from error
        if done.returncode != 0:
            raise ClusterError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
        return done.stdout

    def spawn(self, name: str, command: Sequence[str]) -> None:
        """Start a process inside, unless it runs."""
        if self.find(name) is None:
            self._start(name, self.enter(command))

    def _start(self, name: str, command: Sequence[str]) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{name}.log"
        # Not subprocess.Popen: that complains about a child which is meant to outlive us.
        parent = os.posix_spawnp(
            command[0],
            list(command),
            _ENVIRON,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        child = wait_for(lambda: _find_child(parent), _SPAWN_SECONDS, f"{name} did not start: see {log}", 0.005)
        record(self._pids / name, child)

    def kill(self, name: str) -> bool:
        """Kill one process at once and wait for its end. Returns False if it did not run."""
        pid = self.find(name)
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: self.find(name) is None, _END_SECONDS, f"{name} (PID {pid}) does not end", 0.005)
        return True

    def destroy(self) -> None:
        """Kill the first process, also one that was never recorded, and with it everything inside; wait for its end."""
        self.kill(INIT)
        for pid in self._find_unrecorded():
            record(self._pids / INIT, pid)
            self.kill(INIT)

    def _find_unrecorded(self) -> list[int]:
        """Find first processes by their arguments: the program `pause` with exactly our work folder."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                arguments = (folder / "cmdline").read_bytes().split(b"\0")
                if Path(os.fsdecode(arguments[0])).name == "pause" and arguments[1:2] == [os.fsencode(self._work)]:
                    found.append(int(folder.name))
        return found
