"""End all that a simulation started, when the process that started it is gone, however it ended.

`python -m oet.simulation.guard MARK FOLDER`: standard input is a pipe whose other end that process holds, and nobody else. When
it closes, every process with the mark in its environment is killed, and the folder is removed. Standard library of Python 3.8
only, Linux only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time

from oet.simulation.names import MARK_VARIABLE

__all__ = ["find_marked", "kill_marked"]

PAUSE_SECONDS = 0.01
"""Between two looks: a killed process needs about a millisecond to be gone."""

LIMIT_SECONDS = 10.0
"""A process that the kernel does not let go is not worth waiting for any longer: nothing can end it."""


def find_marked(mark: str) -> list[int]:
    """Return the ids of the processes that have the mark, but for this one; those of other users cannot be seen."""
    wanted = f"{MARK_VARIABLE}={mark}".encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and wanted in _read_environment(name):
            found.append(int(name))
    return found


def _read_environment(pid: str) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def kill_marked(mark: str) -> None:
    """Kill what has the mark, again and again until nothing has it: what is killed may just have started something."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while (found := find_marked(mark)) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE_SECONDS)


def main(mark: str, folder: str) -> None:
    """Wait until the pipe closes, then end what is left and remove the folder of its sockets."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    kill_marked(mark)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
