"""One runner process as the engine sees it: started, written to, read from, and known to be gone.

Everything here runs in the engine's thread, and nothing in it blocks.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from oet_crds.execution import FunctionArgs, ScriptExecution
from oet_crds.mailbox import MailKind

__all__ = [
    "MAX_PENDING_BYTES",
    "Isolation",
    "Reading",
    "Runner",
    "RunnerProtocolError",
    "is_isolation_available",
]

READ_BYTES = 128 * 1024
"""Read from one runner at a time, so that a talkative script does not keep the others waiting. Under the 208 KiB that a
socket holds by default on Linux, so that a read which is filled tells a flood."""

MAX_PENDING_BYTES = 4 * 1024 * 1024
"""A line from a runner longer than this is not from a runner of ours: its longest is a batch of 256 KiB."""

_UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL", "--")
"""util-linux' unshare(1): the runner becomes PID 1 of a namespace with a /proc of its own."""

_AS_USER = ("--user", "--map-current-user")
"""In addition for an ordinary user, where the kernel lets users make namespaces."""

_WITHOUT_NETWORK = ("--net",)
"""In addition for a rehearsal: a network with nothing but a loopback of its own, which must still be switched on."""

_KEEP_RIGHTS = ("--keep-caps",)
"""What an ordinary user needs for that switch, and to put an empty folder over another; the runner gives it back."""


class Reading(Enum):
    """How a read from a runner went."""

    NOTHING = "nothing to read now"
    SOME = "read all there was"
    FLOOD = "the read was filled; there is more"
    CLOSED = "the runner sends nothing any more"


class RunnerProtocolError(Exception):
    """What came over the mailbox is not what a runner says."""


class Isolation(Enum):
    """What a runner's script is kept away from."""

    NONE = "none"
    PROCESSES = "processes"
    """All processes but its own: a PID namespace."""
    NETWORK = "network"
    """Those, and every network: what a rehearsal runs in."""


def _build_prefix(isolation: Isolation) -> Sequence[str]:
    """Return the command that a runner's command comes after."""
    if isolation is Isolation.NONE:
        return ()
    is_root, has_network = os.geteuid() == 0, isolation is not Isolation.NETWORK
    words = [_UNSHARE[0], *(() if is_root else (*_AS_USER, *_KEEP_RIGHTS))]
    if has_network:
        return (*words, *_UNSHARE[1:])
    words += [*_WITHOUT_NETWORK, *_UNSHARE[1:]]
    return (*words, sys.executable, "-m", "oet_operator.local.loopback")


def is_isolation_available(isolation: Isolation = Isolation.PROCESSES) -> bool:
    """Tell whether scripts can be kept apart like this here."""
    try:
        done = subprocess.run([*_build_prefix(isolation), "true"], capture_output=True, timeout=5.0, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


class Runner:
    """A runner process: first a spare, then the runner of one execution, then gone.

    Attributes:
        procedure_id: The execution it serves; None while it is a spare.
        is_up: Whether it said hello.
        is_confined: Whether its script can reach neither it nor what is hidden. False until it said hello.
        exit_seen: Whether its last line, the exit, was read.
        has_lied: It said something after that.
        pidfd: Readable when the process ends (pidfd_open(2)).
    """

    def __init__(self, environ: Mapping[str, str], isolation: Isolation, options: Sequence[str] = ()) -> None:
        """Start a runner.

        Args:
            environ: Its environment, and its script's.
            isolation: What its script is kept away from.
            options: More options of the runner's command line.

        Raises:
            OSError: No process could be started.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            fd = str(theirs.fileno())
            command = [sys.executable, "-m", "oet_runner", "--mailbox-in", fd, "--mailbox-out", fd, *options]
            try:
                self._process = subprocess.Popen(
                    [*_build_prefix(isolation), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=dict(environ),
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        self.socket = ours
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.procedure_id: int | None = None
        self.is_up = False
        self.is_confined = False
        self.exit_seen = False
        self.has_lied = False
        self._incoming = bytearray()
        self._outgoing = bytearray()

    # ---- writing -------------------------------------------------------------------------------------------------

    def send_assignment(self, execution: ScriptExecution) -> None:
        """Hand it the execution that it serves from now on."""
        init, activity = execution.spec.args.init, execution.spec.activity
        self._send(
            {
                "kind": MailKind.ASSIGN,
                "uid": execution.uid,
                "procedureId": execution.procedure_id,
                "mode": execution.spec.mode,
                "script": execution.spec.script.to_wire(),
                "init": init.to_wire() if init else None,
                "file": {"path": activity.sb_path, "text": activity.sb_json} if activity else None,
            }
        )

    def send_grant(self, main: FunctionArgs | None) -> None:
        """Let it start `main`."""
        self._send({"kind": MailKind.GRANT, "main": (main or FunctionArgs()).to_wire()})

    def send_stop(self, grace_period_seconds: float) -> None:
        """Make it stop the script."""
        self._send({"kind": MailKind.STOP, "gracePeriodSeconds": grace_period_seconds})

    def _send(self, mail: Mapping[str, Any]) -> None:
        self._outgoing += json.dumps(mail).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Write what waits to be written, as far as the runner takes it."""
        try:
            while self._outgoing:
                del self._outgoing[: self.socket.send(self._outgoing)]
        except BlockingIOError:
            return
        except OSError:
            self._outgoing.clear()  # It is dead; that is seen and handled when its pidfd turns readable.

    @property
    def has_unsent(self) -> bool:
        """Tell whether the runner has not taken all yet."""
        return bool(self._outgoing)

    # ---- reading -------------------------------------------------------------------------------------------------

    def read_mail(self) -> tuple[list[dict[str, Any]], Reading]:
        """Read what has come, at most `READ_BYTES`.

        Returns:
            The mails, and how the reading went.

        Raises:
            RunnerProtocolError: It is not a mail.
        """
        try:
            data = self.socket.recv(READ_BYTES)
        except BlockingIOError:
            return [], Reading.NOTHING
        except OSError:
            data = b""
        self._incoming += data
        *lines, rest = self._incoming.split(b"\n")
        if len(rest) > MAX_PENDING_BYTES:
            raise RunnerProtocolError(f"a line of over {MAX_PENDING_BYTES} bytes")
        self._incoming = rest
        try:
            mails = [json.loads(line) for line in lines]
        except (ValueError, RecursionError) as error:
            raise RunnerProtocolError(f"not JSON: {error}") from error
        if not all(isinstance(mail, dict) for mail in mails):
            raise RunnerProtocolError("not a JSON object")
        if not data:
            return mails, Reading.CLOSED
        return mails, Reading.FLOOD if len(data) == READ_BYTES else Reading.SOME

    # ---- the end -------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Kill the runner's process at once; its script's processes are then found as orphans, or die with their namespace."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)

    def reap(self) -> int | None:
        """Return the exit status of the runner's process once it has ended, negative for a signal; None while it lives."""
        return self._process.poll()

    def close(self) -> None:
        """Give back the file descriptors. The process must have been reaped."""
        self.socket.close()
        os.close(self.pidfd)
