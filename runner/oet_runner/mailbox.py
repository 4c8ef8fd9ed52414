"""The mailbox port: how the runner learns what is desired and reports what it saw; and its form as pipes."""

from __future__ import annotations

import json
import os
import sys

from oet_crds.mailbox import MailKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from oet_runner.polling import Poller
else:
    Protocol = object  # Importing typing would cost every spare runner a megabyte.

__all__ = ["Desired", "Mailbox", "Outbox", "PipeMailbox", "log"]

READ_BYTES = 256 * 1024


def log(text: str) -> None:
    """Write a line to the supervisor's own standard error, whether somebody reads that or not."""
    try:
        print(f"oet_runner: {text}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return


class Desired:
    """What the driver has asked for so far; it only ever grows.

    Attributes:
        assignment: The execution to serve; None while this runner is a spare.
        grant: The arguments of `main`; None while it must not start.
        stop_deadline: When the grace period ends (monotonic seconds); None while nobody asked for a stop.
        is_abandoned: The driver is gone.
    """

    __slots__ = ("assignment", "grant", "is_abandoned", "stop_deadline", "stop_grace_seconds")

    def __init__(self) -> None:
        self.assignment: dict[str, Any] | None = None
        self.grant: dict[str, Any] | None = None
        self.stop_deadline: float | None = None
        self.stop_grace_seconds = 0.0
        self.is_abandoned = False

    def accept(self, mail: dict[str, Any], now: float) -> None:
        """Add one mail. A second assignment or grant changes nothing; a second stop can only shorten the grace period.

        Args:
            mail: As `oet_crds.mailbox` says.
            now: Monotonic seconds.

        Raises:
            ValueError: It is not a mail that a runner understands.
        """
        kind = mail.get("kind")
        if kind == MailKind.ASSIGN:
            self.assignment = self.assignment or mail
        elif kind == MailKind.GRANT:
            self.grant = self.grant or mail
        elif kind == MailKind.STOP:
            seconds = mail.get("gracePeriodSeconds", 0.0)
            if not isinstance(seconds, (int, float)) or seconds != seconds:
                raise ValueError(f"gracePeriodSeconds is {seconds!r}, not a number")
            self.ask_stop(float(seconds), now)
        else:
            raise ValueError(f"unknown kind {kind!r}")

    def ask_stop(self, grace_seconds: float, now: float) -> None:
        """Ask for the stop, or shorten the grace period of one that was asked for before."""
        deadline = now + max(0.0, grace_seconds)
        if self.stop_deadline is None or deadline < self.stop_deadline:
            self.stop_deadline = deadline
            self.stop_grace_seconds = max(0.0, grace_seconds)


class Mailbox(Protocol):
    """What the supervisor needs of its driver. Nothing in it blocks.

    Attributes:
        desired: What was asked for so far.
        sends_states_apart: States go another way than printed lines and messages, and need not wait behind them.
    """

    desired: Desired
    sends_states_apart: bool

    def watch(self, poller: Poller) -> None:
        """Register at `poller` what this mailbox waits for now."""

    def receive(self, now: float) -> None:
        """Take in what has come into `desired`. `now` is in monotonic seconds."""

    def send(self, mail: bytes) -> None:
        """Queue one mail (a JSON object without newline) and send what can be sent."""

    def flush(self) -> None:
        """Send what can be sent of what is queued."""

    def has_unsent(self) -> bool:
        """Tell whether something is still queued."""

    def is_stuck(self, now: float) -> bool:
        """Tell whether printed lines have not moved for so long that the exit must not wait for them any more."""

    def is_full(self) -> bool:
        """Tell whether no more messages should be taken from the script for now."""

    def is_delivering(self, now: float) -> bool:
        """Tell, when all is sent and the exit is known, whether it is worth to go on for what nobody waits for."""

    def find_exit_code(self) -> int:
        """Return the supervisor's exit code, once all is sent that can be."""


class Outbox:
    """Bytes on their way into a non-blocking file descriptor."""

    __slots__ = ("_buffer", "fd", "is_broken")

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.is_broken = False
        self._buffer = bytearray()

    def __len__(self) -> int:
        return len(self._buffer)

    def write(self, data: bytes) -> None:
        """Queue data and write what can be written."""
        self._buffer += data
        self.flush()

    def flush(self) -> None:
        """Write what can be written; where nobody reads any more, forget it all and set `is_broken`."""
        try:
            while self._buffer:
                del self._buffer[: os.write(self.fd, self._buffer)]
        except BlockingIOError:
            return
        except OSError:
            self.is_broken = True
            self._buffer.clear()


class PipeMailbox:
    """A mailbox of JSON lines on two inherited file descriptors, or on one socket."""

    sends_states_apart = False

    def __init__(self, fd_in: int, fd_out: int) -> None:
        """Take the file descriptors over.

        Raises:
            OSError: One of them is not open.
        """
        self.desired = Desired()
        self._fd_in = fd_in
        self._outbox = Outbox(fd_out)
        os.set_blocking(fd_in, False)
        self._incoming = bytearray()
        self._is_reading = True

    def watch(self, poller: Poller) -> None:
        """Register what this mailbox waits for now."""
        has_unsent = len(self._outbox) > 0
        if self._fd_in == self._outbox.fd:
            poller.set(self._fd_in, readable=self._is_reading, writable=has_unsent)
        else:
            poller.set(self._fd_in, readable=self._is_reading)
            poller.set(self._outbox.fd, writable=has_unsent)

    def receive(self, now: float) -> None:
        """Take in all that has come."""
        while self._is_reading:
            try:
                data = os.read(self._fd_in, READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._is_reading = False
                self.desired.is_abandoned = True
                return
            self._incoming += data
            *lines, self._incoming = self._incoming.split(b"\n")
            for line in lines:
                self._accept(line, now)

    def _accept(self, line: bytearray, now: float) -> None:
        try:
            mail = json.loads(line)
            if not isinstance(mail, dict):
                raise ValueError("not a JSON object")
            self.desired.accept(mail, now)
        except (ValueError, RecursionError) as error:
            log(f"a mail from the driver is ignored: {error}")

    def send(self, mail: bytes) -> None:
        """Queue one mail and send what can be sent."""
        self._outbox.write(mail + b"\n")
        self._note_broken()

    def flush(self) -> None:
        """Send what can be sent of what is queued."""
        self._outbox.flush()
        self._note_broken()

    def _note_broken(self) -> None:
        if self._outbox.is_broken:
            self.desired.is_abandoned = True

    def has_unsent(self) -> bool:
        """Tell whether something is still queued."""
        return len(self._outbox) > 0

    def is_stuck(self, now: float) -> bool:
        """Tell that the exit always waits its turn: all goes the same way."""
        return False

    def is_full(self) -> bool:
        """Tell that there is always room: what the driver has not read holds the spool up."""
        return False

    def is_delivering(self, now: float) -> bool:
        """Tell that all goes one way, and nothing is left when that is empty."""
        return False

    def find_exit_code(self) -> int:
        """Return 0: what the driver does not read it does not want to know."""
        return 0
