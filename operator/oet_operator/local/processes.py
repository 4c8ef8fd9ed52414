"""What the engine must know of Linux processes: who is whose child, who belongs to this engine, how to end them.

The engine's process is a child subreaper (prctl(2), PR_SET_CHILD_SUBREAPER): when a runner dies, whatever its script left
becomes a child of the engine's process, where it can be found, killed and reaped. The engine starts no other children
than runners, so a child that is no runner is such an orphan.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Collection, Iterator
from pathlib import Path

__all__ = ["ENGINE_VARIABLE", "become_subreaper", "kill_and_reap_orphans", "kill_leftovers"]

ENGINE_VARIABLE = "OET_ENGINE"
"""Environment variable that marks every process below an engine: `<store id>:<start of the engine>`. Runners have it on their
command line as well: nobody can trace them, so nobody but root can read their environment."""

_PR_SET_CHILD_SUBREAPER = 36
"""From linux/prctl.h."""


def become_subreaper() -> None:
    """Make this process the parent of every orphan among its descendants. Raises OSError where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _observe_parents() -> dict[int, int]:
    """Return the parent of every process that can be seen: pid -> parent's pid."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path("/proc", name, "stat").read_bytes()
            except OSError:
                continue  # It ended meanwhile.
            # The command name may hold spaces and brackets; the fields after the last bracket are state and parent.
            parents[int(name)] = int(stat[stat.rindex(b")") + 2 :].split()[1])
    return parents


def _compute_descendants(parents: dict[int, int], root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found, queue = [], [root]
    while queue:
        for pid in children.get(queue.pop(), ()):
            found.append(pid)
            queue.append(pid)
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # Gone, or changed its user; the caller goes on looking and never reports what it does not see.
        return


def kill_and_reap_orphans(runner_pids: Collection[int]) -> int:
    """Kill what dead runners left behind, one round of it.

    Args:
        runner_pids: Children of this process that are runners, alive or not yet reaped.

    Returns:
        The number of orphans that are still there. 0 is a proof: the kernel hands the children of a process to the
        subreaper before that process can be reaped, so nothing of a reaped runner can be elsewhere.
    """
    parents = _observe_parents()
    orphans = [pid for pid, parent in parents.items() if parent == os.getpid() and pid not in runner_pids]
    for orphan in orphans:
        for pid in (orphan, *_compute_descendants(parents, orphan)):
            _kill(pid)
    left = 0
    for orphan in orphans:
        try:
            left += os.waitpid(orphan, os.WNOHANG)[0] == 0
        except ChildProcessError:
            continue
    # What the reaped ones had below them became our children just now: another round must look.
    return left if left else int(bool(orphans))


def _read_words(pid: str, file: str) -> list[bytes]:
    """Return the strings in a file of a process; none when it is gone, or another user's."""
    try:
        return Path("/proc", pid, file).read_bytes().split(b"\0")
    except OSError:
        return []


def _observe_marked(store_id: str, own_mark: str) -> Iterator[int]:
    """Yield processes that an earlier engine of this store started."""
    prefix = f"{ENGINE_VARIABLE}={store_id}:".encode()
    own = f"{ENGINE_VARIABLE}={own_mark}".encode()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            words = [*_read_words(name, "environ"), *_read_words(name, "cmdline")]
            if any(word.startswith(prefix) for word in words) and own not in words:
                yield int(name)


def kill_leftovers(store_id: str, own_mark: str, *, kill: bool) -> int:
    """Count, and if asked kill, the processes that an earlier engine of this store left behind.

    Args:
        store_id: Identity of the store.
        own_mark: The mark of the engine that asks; its own processes are left alone.
        kill: False only counts: runners end by themselves when their engine dies.
    """
    pids = list(_observe_marked(store_id, own_mark))
    if kill:
        for pid in pids:
            _kill(pid)
    return len(pids)
