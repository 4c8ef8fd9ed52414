"""The supervisor's ear: what the script's processes print, publish and report becomes entries in the spool."""

from __future__ import annotations

import json
import os
import time

from oet_crds.git import is_commit
from oet_crds.states import State, is_allowed
from oet_crds.topics import MAX_MESSAGE_BYTES, EntryKind
from oet_runner.messages import parse_message
from oet_runner.output import LineSplitter
from oet_runner.verdict import Ending, Phase, compute_phase, parse_ending

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator

    from oet_runner.channels import Channels
    from oet_runner.polling import Poller
    from oet_runner.spool import Spool

__all__ = ["Listener"]

PARTIAL_LINE_SECONDS = 0.25
"""Silence after which the begun line is shown: a prompt or a row of dots is seen without its end."""

READ_BYTES = 64 * 1024
"""Capacity of a pipe: one read empties it."""

READS_PER_PASS = 4
"""Reads of one channel before the others have their turn: a flood of output must not keep a stop waiting."""

RECORD_READS = 16
"""Reads of the control channel at a time: all that its buffer holds, also when nobody writes to it any more."""

MAX_STATES = 16
"""More than a script has, which is 9 at most. What lies goes to and fro for ever, and each state costs its driver a write."""

RECORD_ROUNDS = 8
"""Times that records are read again for one pass: more than a script has states. What lies sends them without end."""

ROUNDS_SECONDS = 0.05
"""After so long nothing is read again: a round takes a millisecond, or a second with all channels full of the worst there is."""

MESSAGE_READS = 512
"""Messages at a time: all that the kernel's default buffer holds (278). What is left comes after the state that follows."""

MAX_HEARD_BYTES = 256 * 1024
"""Messages taken in one go: what they go on to holds 1 MiB of them."""

READS_AT_END = 1024
"""Reads of one channel at most when all processes are gone: 64 MiB, more than the largest pipe holds."""

EMPTY_DATAGRAMS = 8
"""So many in a row are the end: at the end a read gives nothing, and so does an empty datagram."""

MAX_RECORD_BYTES = 1024 * 1024
"""A record longer than this is not one of our child's: its stack trace has 32 Ki characters."""

MAX_CLOCK_SKEW_SECONDS = 60.0
"""A time in a record that is further off was not read from this machine's clock just now."""

_BEGINNINGS = (State.PREP_ENV, State.LOADING, State.INITIALISING, State.RUNNING)
"""What is printed in the same instant belongs after these states, and before the others."""


def _read(fd: int, size: int) -> bytes | None:
    """Return what can be read; empty at the end; None when there is nothing yet."""
    try:
        return os.read(fd, size)
    except BlockingIOError:
        return None
    except OSError:
        return b""


HOLD_SECONDS = 0.002
"""How long the states on the way to READY wait for the next one: most scripts load and initialise in less, and one report
costs the driver a millisecond that the script's READY would have to wait for."""

_PASSING_STATES = frozenset({State.IDLE, State.LOADING, State.INITIALISING})


class Listener:
    """Reads the channels of one script; whatever the script writes there, it only ever harms its own entries.

    Attributes:
        is_up: The script's process waits for an assignment, or had one.
        is_confined: It can reach neither this process nor what is hidden from it. Said before it has a script.
        ending: What it said of its end; None before.
        commit: The commit that it fetched; None before, and for scripts that are not from git.
        hold_until: Until when (monotonic seconds) a report may wait for what comes next; 0 when it may not.
    """

    def __init__(self, channels: Channels, spool: Spool) -> None:
        self._channels = channels
        self._spool = spool
        self._splitters = {channels.stdout_fd: LineSplitter(), channels.stderr_fd: LineSplitter()}
        self._names = {channels.stdout_fd: "stdout", channels.stderr_fd: "stderr"}
        self._open = {channels.control_fd, channels.message_fd, *self._splitters}
        self._last_output = 0.0
        self._record_rest = b""
        self._state = State.CREATING
        self._states = 0
        self._has_run = False
        self.is_up = False
        self.is_confined = False
        self.ending: Ending | None = None
        self.commit: str | None = None
        self.hold_until = 0.0

    @property
    def phase(self) -> Phase:
        """What the script's process was last known to be at."""
        return compute_phase(self._state, has_run=self._has_run)

    def watch(self, poller: Poller) -> None:
        """Register what is waited for now."""
        for fd in (*self._splitters, self._channels.message_fd, self._channels.control_fd):
            readable = fd in self._open
            if fd == self._channels.message_fd and self._spool.is_full_of_messages:
                readable = False  # The script's next publish waits: messages are never dropped.
            writable = fd == self._channels.control_fd and len(self._channels.to_child) > 0
            poller.set(fd, readable=readable, writable=writable)

    def compute_timeout(self, now: float) -> float | None:
        """Return after how many seconds a begun line is to be shown; None when there is none. `now` is monotonic."""
        if not any(splitter.has_partial for splitter in self._splitters.values()):
            return None
        return max(0.0, self._last_output + PARTIAL_LINE_SECONDS - now)

    def receive(self, ready: dict[int, bool]) -> None:
        """Read from the channels that are ready, and from all where the order matters."""
        # The records always: poll looks at one channel after the other, so it can miss a RUNNING that was sent before the message
        # which it then sees.
        is_spoken_to = any(
            fd in ready for fd in (self._channels.control_fd, self._channels.message_fd, *self._splitters)
        )
        records = self._read_records() if is_spoken_to else []
        # All that was printed before a record was sent can be read by now.
        heard = self._hear(ready, is_all=bool(records))
        # And what was read may have been said in a state that was sent after the records were read, yet in none of later rounds.
        begun = time.thread_time()  # A machine that is busy with something else takes no round away.
        for _ in range(RECORD_ROUNDS if heard else 0):
            if time.thread_time() - begun > ROUNDS_SECONDS or not (late := self._read_records()):
                break
            records = self._accept_up_to_beginning(records + late)
            self._tell(heard)
            heard = self._hear({}, is_all=True)
        records = self._accept_up_to_beginning(records)
        self._tell(heard)
        if ready.get(self._channels.message_fd, False) and self._channels.message_fd in self._open:
            self._read_last_messages()
            self._open.discard(self._channels.message_fd)
        for record in records:
            self._accept(record)
        self._show_partial_lines()

    def _accept_up_to_beginning(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Take in the records that come before what is printed in the same instant; return the others."""
        first = max((i + 1 for i, record in enumerate(records) if record.get("state") in _BEGINNINGS), default=0)
        for record in records[:first]:
            self._accept(record)
        return records[first:]

    def _hear(self, ready: dict[int, bool], *, is_all: bool) -> list[tuple[int, bytes]]:
        """Return what can be read of output and messages, by descriptor; of those that are ready, or of all."""
        heard = []
        for fd in self._splitters:
            if fd in ready or is_all:
                heard += [(fd, data) for data in self._read_output(fd, READS_PER_PASS)]
        fd = self._channels.message_fd
        if fd in ready or is_all:
            heard += [(fd, datagram) for datagram in self._read_messages(MESSAGE_READS)]
        return heard

    def _tell(self, heard: list[tuple[int, bytes]]) -> None:
        """Put what was read into the spool."""
        for fd, data in heard:
            if fd == self._channels.message_fd:
                self._accept_message(data)
            else:
                self._accept_output(fd, data)

    def drain(self) -> None:
        """Read all that is left, when all processes of the script are gone."""
        records = self._accept_up_to_beginning(self._read_records())
        for fd in self._splitters:
            for data in self._read_output(fd, READS_AT_END):
                self._accept_output(fd, data)
        self._read_last_messages()
        for record in records:
            self._accept(record)
        self._last_output = 0.0
        self._show_partial_lines()

    # ---- records of the child ------------------------------------------------------------------------------------

    def receive_records(self) -> None:
        """Read what the child has reported by now."""
        self.receive({self._channels.control_fd: False})

    def _read_records(self) -> list[dict[str, Any]]:
        received = [self._record_rest]
        while self._channels.control_fd in self._open and len(received) < RECORD_READS:
            data = _read(self._channels.control_fd, READ_BYTES)
            if data is None:
                break
            if not data:
                self._open.discard(self._channels.control_fd)
            received.append(data)
        *lines, self._record_rest = b"".join(received).split(b"\n")
        if len(self._record_rest) > MAX_RECORD_BYTES:
            self._record_rest = b""
        records = []
        for line in filter(None, lines):
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("not a JSON object")
                records.append(record)
            except (ValueError, RecursionError) as error:
                self._complain(f"a record is ignored: {error}")
        return records

    def _accept(self, record: dict[str, Any]) -> None:
        try:
            if "state" in record:
                self._accept_state(State(record["state"]), record.get("t"))
            elif "ending" in record:
                self.ending = self.ending or parse_ending(record["ending"])
            elif record.get("isUp") is True:
                # Only the first time: what comes later may be a script's words.
                self.is_confined = self.is_confined if self.is_up else record.get("isConfined") is True
                self.is_up = True
            elif is_commit(record.get("commit")):
                self.commit = self.commit or record["commit"]
        except (ValueError, TypeError, AttributeError) as error:
            self._complain(f"a record is ignored: {error}")

    def _accept_state(self, state: State, at: object) -> None:
        if not is_allowed(self._state, state) or self.ending is not None or self._states == MAX_STATES:
            raise ValueError(f"{state} cannot follow {self._state}")
        self._states += 1
        now = time.time()
        is_plausible = isinstance(at, float) and abs(at - now) < MAX_CLOCK_SKEW_SECONDS
        self._state = state
        self._has_run = self._has_run or state is State.RUNNING
        fields = {"state": state, "commit": self.commit} if self.commit else {"state": state}
        self._spool.add(EntryKind.STATE, fields, float(at) if is_plausible else now)  # type: ignore[arg-type]
        self.hold_until = time.monotonic() + HOLD_SECONDS if state in _PASSING_STATES else 0.0

    def _complain(self, text: str) -> None:
        self._spool.add_lines("stderr", [f"oet_runner: {text}"[:500].encode("utf-8", "replace")], time.time())

    # ---- output --------------------------------------------------------------------------------------------------

    def _read_output(self, fd: int, reads: int) -> Iterator[bytes]:
        while fd in self._open and reads > 0:
            data = _read(fd, READ_BYTES)
            if data is None:
                return
            if not data:
                self._open.discard(fd)
                return
            reads -= 1
            yield data

    def _accept_output(self, fd: int, data: bytes) -> None:
        self._last_output = time.monotonic()
        self._spool.add_lines(self._names[fd], self._splitters[fd].feed(data), time.time())

    def _show_partial_lines(self) -> None:
        if self.compute_timeout(time.monotonic()) == 0.0:
            for fd, splitter in self._splitters.items():
                self._spool.add_lines(self._names[fd], splitter.flush(), time.time())

    # ---- messages ------------------------------------------------------------------------------------------------

    def _read_messages(self, reads: int) -> Iterator[bytes]:
        room = 0 if self._spool.is_full_of_messages else MAX_HEARD_BYTES
        while self._channels.message_fd in self._open and reads > 0 and room > 0:
            datagram = _read(self._channels.message_fd, MAX_MESSAGE_BYTES + 1)
            if not datagram:
                return  # Nothing there, or an empty datagram.
            reads -= 1
            room -= len(datagram)
            yield datagram

    def _read_last_messages(self) -> None:
        """Read what nobody can add to any more, however much it is: the kernel's buffer bounds it."""
        empty = 0
        while self._channels.message_fd in self._open and empty < EMPTY_DATAGRAMS:
            datagram = _read(self._channels.message_fd, MAX_MESSAGE_BYTES + 1)
            if datagram is None:
                return
            if datagram:
                self._accept_message(datagram)
            empty = 0 if datagram else empty + 1

    def _accept_message(self, datagram: bytes) -> None:
        try:
            topic, data = parse_message(datagram)
        except ValueError as error:
            self._complain(f"a message is ignored: {error}")
        else:
            self._spool.add(EntryKind.MESSAGE, {"topic": topic, "data": data}, time.time())
