"""Start and end the simulated system: a Tango database, a device server, and a guard that leaves nothing behind.

Standard library of Python 3.8 only: Tango is imported by the processes that are started here.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from types import TracebackType
from typing import IO

from oet.simulation.names import (
    HOST_VARIABLE,
    MARK_VARIABLE,
    READY_LINE,
    SPEED_VARIABLE,
    SUBARRAYS_VARIABLE,
    compute_subarray_name,
)
from oet.tango.telescope import CENTRAL_NODE

__all__ = ["Simulation", "SimulationError"]

LOOPBACK = "127.0.0.1"

START_SECONDS = 30.0
"""How long one part may take to start: 0.25 s on an idle machine, a hundred times that on one that is overloaded."""

STOP_SECONDS = 3.0
"""How long one part may take to end by itself: 0.07 s, but a command that hangs holds it."""

POLL_SECONDS = 0.01

MAX_LOG_BYTES = 1024 * 1024
"""How much is read of what a part prints while it starts: the database prints 60 bytes."""


class SimulationError(RuntimeError):
    """The simulated system cannot be started. The text says what its parts printed."""


class Simulation:
    """A Tango control system with simulated devices. A context manager: everything has ended when it is left.

    Attributes:
        tango_host: HOST:PORT of its database; empty until it is started.
        devices: Names of its devices.
        processes: The database and the device server.
    """

    def __init__(self, host: str = LOOPBACK, port: int = 0, subarrays: int = 2, speed: float = 1.0) -> None:
        """Remember how it is to be.

        Args:
            host: Address of this machine that it listens on and publishes, no name: those lose Tango's events.
            port: Port of the database; 0: any that is free.
            subarrays: Number of subarrays, 1, 2, ...
            speed: How many times faster than normal the devices work.
        """
        self._host, self._port = host, port
        self._mark = uuid.uuid4().hex
        self._folder = ""
        self._parts = {HOST_VARIABLE: host, SUBARRAYS_VARIABLE: str(subarrays), SPEED_VARIABLE: repr(speed)}
        self._guard: subprocess.Popen[bytes] | None = None
        self.tango_host = ""
        self.devices = [*(compute_subarray_name(1 + at) for at in range(subarrays)), CENTRAL_NODE]
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        """Variables for processes that are to use it; they end with it."""
        return {"TANGO_HOST": self.tango_host, MARK_VARIABLE: self._mark}

    def __enter__(self) -> Simulation:
        """Start it. Raises SimulationError."""
        if importlib.util.find_spec("tango") is None or importlib.util.find_spec("databaseds") is None:
            raise SimulationError(
                f"{sys.executable} has no pytango or no pytango-db: install the extra `ska-oso-oet[tango]` there"
            )
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything that has the mark."""
        self.stop()

    def _start(self) -> None:
        # omniORB listens on Unix sockets as well, named by process id and second, in one folder for a whole machine: two
        # systems in PID namespaces that began in the same second had the same ones, and got each other's commands.
        self._folder = tempfile.mkdtemp(prefix="oet-simulation-")
        environ = {**os.environ, **self.environment, "ORBunixTransportDirectory": self._folder}
        command = [sys.executable, "-m", "oet.simulation.guard", self._mark, self._folder]
        # The guard must not kill itself, so it alone has no mark.
        plain = {name: value for name, value in environ.items() if name != MARK_VARIABLE}
        self._guard = subprocess.Popen(command, stdin=subprocess.PIPE, env=plain, start_new_session=True)
        # In memory: what is simulated needs no file, and works where nothing can be written.
        environ["PYTANGO_DATABASE_NAME"] = ":memory:"
        words = ["databaseds.database", f"--host={self._host}", f"--port={self._port}", "--print-host-port", "2"]
        self.tango_host = self._start_part(words, environ, r"listening on: host=(\S+), port=(\d+)")
        environ["TANGO_HOST"] = self.tango_host
        self._start_part(["oet.simulation.devices"], {**environ, **self._parts}, f"({READY_LINE})()")

    def _start_part(self, words: list[str], environ: dict[str, str], pattern: str) -> str:
        """Start a module and wait for what it prints then. Returns HOST:PORT of a database. Raises SimulationError."""
        # A file: nobody reads a pipe later on, and a full one would halt what writes.
        with tempfile.TemporaryFile() as log:
            part = subprocess.Popen(
                [sys.executable, "-u", "-m", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                start_new_session=True,  # Ctrl-C is for the command in the foreground: servers would end of it.
            )
            self.processes.append(part)
            found = _wait_for(part, log, pattern)
        return f"{self._host}:{found.group(2)}"

    def stop(self) -> None:
        """End everything that has the mark; the second time there is nothing to do."""
        # The device server first: it takes its devices out of the database, which it must find for that.
        for part in reversed(self.processes):
            part.send_signal(signal.SIGTERM)
            try:
                part.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                part.kill()
                part.wait()
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait()


def _wait_for(part: subprocess.Popen[bytes], log: IO[bytes], pattern: str) -> re.Match[str]:
    """Wait until a process has printed something. Raises SimulationError if it ends before, or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        code = part.poll()
        # Read at a place of its own: a seek would move the one that the process writes at, too.
        text = os.pread(log.fileno(), MAX_LOG_BYTES, 0).decode(errors="replace")
        found = re.search(pattern, text)
        if found:
            return found
        if code is not None or time.monotonic() > deadline:
            how = f"ended with exit code {code}" if code is not None else f"is not ready after {START_SECONDS:g} s"
            raise SimulationError(f"a part of the simulated Tango system {how}; it printed:\n{text[-4000:]}")
        time.sleep(POLL_SECONDS)
