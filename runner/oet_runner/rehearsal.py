"""The simulated telescope of a rehearsal: started before its script, in the same container or namespaces, and ended with it."""

from __future__ import annotations

import os
import sys

from oet_crds.states import Mode
from oet_runner.output import LineSplitter

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from typing import Any

    from oet_runner.polling import Poller

__all__ = ["TANGO_HOST_VARIABLE", "Rehearsal", "is_rehearsal"]

TANGO_HOST_VARIABLE = "TANGO_HOST"
"""Where Tango's clients look for the database."""

COMMAND = ("-u", "-m", "oet.simulation", "--subarrays=16")
"""As many subarrays as the telescope has, so that a script finds the one that it names."""

READY_PREFIX = "TANGO_HOST="
"""Begins the line that the simulation prints when all its devices answer."""

KEPT_LINES = 40
"""Lines of a simulation that did not start which are reported: the traceback of one part, and what was said around it."""

READ_BYTES = 64 * 1024


def is_rehearsal(assignment: dict[str, Any]) -> bool:
    """Tell whether an execution is a rehearsal. Pure."""
    return assignment.get("mode") == Mode.REHEARSAL


class Rehearsal:
    """A simulated telescope, as the supervisor sees it. Nothing in it blocks.

    Attributes:
        pid: Its first process; None before the start.
        tango_host: Where its Tango database answers; empty until it does.
        problem: Why the telescope is not there, in words; empty while it is, or may come yet.
    """

    __slots__ = ("_fd", "_lines", "_process", "_splitter", "pid", "problem", "tango_host")

    def __init__(self) -> None:
        self.pid: int | None = None
        self.tango_host = ""
        self.problem = ""
        self._fd: int | None = None
        self._lines: list[str] = []
        self._splitter = LineSplitter()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; the second time there is nothing to do. Whatever goes wrong is a `problem`, not an exception.

        It tells that it is ready only once the telescope of this environment is out of reach.
        """
        if self.pid is not None or self.problem:
            return
        import subprocess  # Every spare runner would pay for it, and few runners rehearse.

        try:
            # Kept, not waited for: the supervisor reaps whatever ends.
            self._process = subprocess.Popen(
                [sys.executable, *COMMAND, f"--away-from={os.environ.get(TANGO_HOST_VARIABLE, '')}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            self.problem = f"the simulated telescope could not be started: {error}"
            return
        assert self._process.stdout is not None
        self.pid, self._fd = self._process.pid, self._process.stdout.fileno()
        os.set_blocking(self._fd, False)

    def watch(self, poller: Poller) -> None:
        """Register what is waited for now."""
        if self._fd is not None:
            poller.set(self._fd, readable=True)

    def receive(self, poller: Poller) -> list[bytes]:
        """Take in what it printed, and return the lines."""
        lines: list[bytes] = []
        while self._fd is not None:
            try:
                data = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                break
            lines += self._splitter.feed(data)
            if not data:
                lines += self._splitter.flush()
                poller.set(self._fd)
                self._fd = None  # Its file object stays open: the number must not become another's.
        if not self.tango_host:
            self._find_host(lines)
        return lines

    def _find_host(self, lines: list[bytes]) -> None:
        texts = [line.decode("utf-8", "replace") for line in lines]
        self._lines = [*self._lines, *texts][-KEPT_LINES:]
        ready = [text for text in texts if text.startswith(READY_PREFIX)]
        if ready:
            self.tango_host = ready[0][len(READY_PREFIX) :].strip()
        elif self._process is not None and self._fd is None:
            self.problem = "the simulated telescope did not start, so the script was not loaded"

    @property
    def words(self) -> str:
        """What a simulation printed that did not start."""
        return "\n".join(self._lines)
