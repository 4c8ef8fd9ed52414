"""All processes that come from the script: found, signalled, killed and reaped, however they hide.

The supervisor is a child subreaper (prctl(2)) or PID 1: whatever loses its parent becomes its child. So when the kernel says
"no child left" (ECHILD), nothing of the script exists: that is the proof behind every STOPPED and COMPLETE.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time

__all__ = [
    "Family",
    "Process",
    "become_subreaper",
    "compute_descendants",
    "hide_process",
    "parse_stat",
    "set_parent_death_signal",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
"""All from linux/prctl.h."""

_WALL = 0x40000000
"""__WALL of linux/wait.h: wait for children of every kind, also those made by clone(2) without SIGCHLD."""

_FULL_SCAN_EVERY = 20
"""Rounds between two looks at all processes; in between only new ones are looked at, which is fast enough to catch a
process that does nothing but fork and exit."""


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def become_subreaper() -> None:
    """Make this process the parent of every orphan among its descendants. PID 1 is that already.

    Raises:
        OSError: The kernel refuses; then nothing could ever be called stopped.
    """
    if os.getpid() != 1:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_parent_death_signal() -> None:
    """Have the kernel kill this process when its parent dies. Raises OSError where the kernel refuses."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def hide_process() -> None:
    """Keep other processes of the same user from tracing this one and from reading its memory and environment.

    Children that it has already are not touched by that. Raises OSError where the kernel refuses.
    """
    _prctl(_PR_SET_DUMPABLE, 0)


_THREADS_FIELD = 17
"""Place of num_threads behind the command name in /proc/PID/stat: its field 20, less pid, name, and counted from 0."""


class Process:
    """What /proc says of one process."""

    __slots__ = ("group", "is_dead", "parent")

    def __init__(self, parent: int, group: int, is_dead: bool) -> None:
        self.parent = parent
        self.group = group
        self.is_dead = is_dead


def parse_stat(stat: bytes) -> Process:
    """Parse the content of /proc/PID/stat. Pure.

    Raises:
        ValueError: It is not such a content.
    """
    # The command name may hold spaces and brackets; the fields after the last bracket are state, parent, group...
    fields = stat[stat.rindex(b")") + 2 :].split()
    # A process whose main thread ended shows as a zombie while its other threads run on (proc(5): num_threads is field 20).
    has_threads = len(fields) > _THREADS_FIELD and int(fields[_THREADS_FIELD]) > 1
    return Process(int(fields[1]), int(fields[2]), fields[0] in (b"Z", b"X") and not has_threads)


def compute_descendants(processes: dict[int, Process], *roots: int) -> list[int]:
    """Return the processes below `roots`, parents before children. Pure."""
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    found = []
    queue = list(roots)
    while queue:
        below = children.pop(queue.pop(), [])
        found += below
        queue += below
    return found


def _observe(skip: set[int]) -> dict[int, Process]:
    processes = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in skip:
            try:
                fd = os.open(f"/proc/{name}/stat", os.O_RDONLY)
            except OSError:
                continue  # It ended meanwhile.
            try:
                processes[int(name)] = parse_stat(os.read(fd, 512))
            except (OSError, ValueError):
                continue
            finally:
                os.close(fd)
    return processes


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        # Gone, or changed its user. Who asks goes on asking and never reports what it does not see.
        return


class Family:
    """The script's process and everything that came from it.

    Attributes:
        child_pid: The script's process.
        child_status: Its wait status; None while it lives.
    """

    def __init__(self, child_pid: int) -> None:
        self.child_pid = child_pid
        self.child_status: int | None = None
        self._own_pid = os.getpid()
        self._own_group = os.getpgrp()
        self._foreign: set[int] = set()
        self._killed: set[int] = set()
        self._terminated: set[int] = set()
        self._is_group_terminated = False
        self._rounds = 0

    def reap(self) -> bool:
        """Reap what has ended; tell whether nothing is left, dead or alive."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | _WALL)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == self.child_pid and self.child_status is None:
                self.child_status = status

    def terminate_group(self) -> None:
        """Send SIGTERM to the script's process group, continued if it is stopped: at once, before any look at /proc."""
        if self.child_status is None:
            _signal(-self.child_pid, signal.SIGTERM)
            _signal(-self.child_pid, signal.SIGCONT)
            self._is_group_terminated = True

    def terminate_others(self, spare: int | None = None) -> int:
        """Send SIGTERM to every other process of the family; stopped ones are continued, so that they can act on it.

        Called again, it reaches only what has lost its parent meanwhile: what else is new was started by a process
        that has had the signal, to tidy up.

        Args:
            spare: A process that is left alone with all that it started; None: there is none.

        Returns:
            How many processes of the family there are, without those.
        """
        processes = _observe({self._own_pid})
        if spare in processes:
            spared = {spare, *compute_descendants(processes, spare)}
            processes = {pid: process for pid, process in processes.items() if pid not in spared}
        heads = {pid for pid, process in processes.items() if process.parent == self._own_pid} - self._terminated
        pids = [*heads, *compute_descendants(processes, *heads)]
        for pid in pids:
            was_sent = self._is_group_terminated and processes[pid].group == self.child_pid
            if not was_sent and not processes[pid].is_dead:
                _signal(pid, signal.SIGTERM)
                _signal(pid, signal.SIGCONT)
        self._terminated.update(pids)
        return len(compute_descendants(processes, self._own_pid))

    def kill(self, budget_seconds: float) -> bool:
        """Kill and reap, in rounds, until nothing is left or the time is over.

        Returns:
            Whether nothing is left. False: call again.
        """
        deadline = time.monotonic() + budget_seconds
        pause_seconds = 0.0002
        while not self.reap():
            has_victims = self._kill_round()
            if time.monotonic() > deadline:
                return self.reap()
            if not has_victims:
                time.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, 0.005)
        return True

    def _kill_round(self) -> bool:
        """Kill all that can be found; tell whether there was any that had not been killed before."""
        if self._own_pid == 1:
            _signal(-1, signal.SIGKILL)  # Everything in this PID namespace but ourselves, in one step.
            return False
        if self._rounds % _FULL_SCAN_EVERY == 0:
            self._foreign.clear()
        self._rounds += 1
        processes = _observe(self._foreign | {self._own_pid})
        # Only what hangs below a known stranger is a stranger: a process whose parent ended during the look is not.
        self._foreign.update(compute_descendants(processes, 0, *self._foreign))
        alive = [pid for pid in compute_descendants(processes, self._own_pid) if not processes[pid].is_dead]
        # A signal to a group reaches all its members in one step, also one that is being forked just now.
        for group in {processes[pid].group for pid in alive} - {self._own_group, 0}:
            _signal(-group, signal.SIGKILL)
        for pid in alive:
            _signal(pid, signal.SIGKILL)
        has_new = not self._killed.issuperset(alive)
        self._killed.update(alive)
        return has_new
