"""Entries that the timeline's server has not acknowledged yet: in order and bounded. States and messages are never dropped."""

from __future__ import annotations

import json
import os
from collections import deque

from oet_crds.topics import EntryKind
from oet_runner.spool import ENTRY_OVERHEAD_BYTES, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Backlog", "Batch", "SpillFile"]

LINES_LIMIT_BYTES = 4 * 1024 * 1024
"""Printed lines beyond it are dropped and counted: they are in the container's log as well."""

MEMORY_LIMIT_BYTES = 4 * 1024 * 1024
"""States and messages beyond it go into a file: some 15,000 announcements of 150 bytes, an hour of a chatty script."""

FILE_LIMIT_BYTES = 256 * 1024 * 1024
"""Messages beyond it wait in the script. The fastest publish loop makes some 3 MiB/s (10,000 messages of 300 bytes): more than a
minute of that fits, and a day of a script that says something ten times a second."""

REFILL_BYTES = 1024 * 1024
"""Read back from the file at a time."""

BATCH_LIMIT_BYTES = 256 * 1024
BATCH_LIMIT_ENTRIES = 500
"""What one request holds; an entry is longer at most when it is alone."""


class SpillFile:
    """Lines that were too many for the memory, in a file that has no name: it goes with the process, however that ends."""

    def __init__(self, folder: str = "/tmp") -> None:
        self._folder = folder
        self._fd = -1
        self._begin = 0
        self.size_bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether all was read back."""
        return self._begin == self.size_bytes

    def append(self, data: bytes) -> None:
        """Add a line. Raises OSError; the line is not in it then."""
        if self._fd < 0:
            path = os.path.join(self._folder, f".oet-timeline-{os.urandom(8).hex()}")
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.unlink(path)
        line = data + b"\n"
        if os.pwrite(self._fd, line, self.size_bytes) != len(line):
            raise OSError("the disk is full")
        self.size_bytes += len(line)

    def read(self) -> list[bytes]:
        """Remove and return lines from its beginning. Raises OSError."""
        want = REFILL_BYTES
        while True:
            data = os.pread(self._fd, want, self._begin)
            end = data.rfind(b"\n", 0, max(0, self.size_bytes - self._begin)) + 1
            if end or len(data) < want:
                break
            want *= 2
        lines = data[:end].split(b"\n")[:-1]
        self._begin += end
        if self.is_empty:
            os.ftruncate(self._fd, 0)
            self._begin = self.size_bytes = 0
        return lines


class Batch:
    """What one request holds.

    Attributes:
        first: Number of its first entry.
        last: Number of its last one.
        body: The request's JSON.
    """

    __slots__ = ("body", "first", "last")

    def __init__(self, first: int, entries: list[bytes]) -> None:
        self.first = first
        self.last = first + len(entries) - 1
        self.body = b'{"entries":[' + b",".join(entries) + b"]}"


def _encode(entry: dict[str, Any]) -> bytes:
    data = encode(entry)
    if b"NaN" in data or b"Infinity" in data:
        # A number like 1e999, or just these words in a text: only the former are not JSON, and become text.
        data = encode(json.loads(data, parse_constant=str))
    return data


class Backlog:
    """Entries on their way. It takes the mailbox's numbers to put them in order, and gives numbers of its own, without gaps.

    First comes the memory, then the file, then what the file did not take: entries only ever move to the front.
    """

    def __init__(
        self,
        spill: SpillFile | None = None,
        lines_bytes: int = LINES_LIMIT_BYTES,
        memory_bytes: int = MEMORY_LIMIT_BYTES,
        file_bytes: int = FILE_LIMIT_BYTES,
    ) -> None:
        self._spill = spill or SpillFile()
        self._limits = (lines_bytes, memory_bytes, file_bytes)
        self._early: dict[int, dict[str, Any]] = {}
        self._due = 1
        self._seq = 0
        self._first = 1
        self._entries: deque[tuple[bytes, bool]] = deque()
        self._tail: deque[bytes] = deque()
        self._line_bytes = 0
        self._memory_bytes = 0
        self._dropped = 0
        self._dropped_at = 0.0
        self._is_dropping = False

    @property
    def is_empty(self) -> bool:
        """Whether all is acknowledged."""
        return not self._entries and self._spill.is_empty and not self._tail and not self._dropped

    @property
    def is_full(self) -> bool:
        """Whether no more messages should come for now."""
        return len(self._tail) > 0 or self._spill.size_bytes >= self._limits[2]

    @property
    def size_bytes(self) -> int:
        """What it holds in memory."""
        return self._line_bytes + self._memory_bytes + sum(map(len, self._tail))

    # ---- in ------------------------------------------------------------------------------------------------------

    def add(self, entry: dict[str, Any]) -> None:
        """Add an entry of the mailbox. States may come before entries with smaller numbers; they wait for those."""
        self._early[entry["n"]] = entry
        while self._due in self._early:
            self._append(self._early.pop(self._due))
            self._due += 1

    def _append(self, entry: dict[str, Any]) -> None:
        if entry["k"] != EntryKind.LOG:
            self._push_dropped()
            self._push(entry)
        elif "dropped" in entry:
            self._drop(entry["dropped"], entry["t"])
        elif self._must_drop(len(entry["line"])):
            self._drop(1, entry["t"])
        else:
            self._push_dropped()
            self._push(entry)

    def _must_drop(self, length: int) -> bool:
        if self._is_dropping and self._line_bytes < self._limits[0] // 2:
            self._is_dropping = False
        if self._line_bytes + length > self._limits[0] or not self._spill.is_empty or self._tail:
            self._is_dropping = True
        return self._is_dropping

    def _drop(self, count: int, at: float) -> None:
        self._dropped += count
        self._dropped_at = at

    def _push_dropped(self) -> None:
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._push({"k": EntryKind.LOG, "t": self._dropped_at, "dropped": dropped})

    def _push(self, entry: dict[str, Any]) -> None:
        self._seq += 1
        data, is_line = _encode({**entry, "n": self._seq}), "line" in entry
        # Behind what is in the file already, also a line: entries never overtake each other.
        if self._spill.is_empty and not self._tail and (is_line or self._memory_bytes < self._limits[1]):
            self._enter(data, is_line=is_line)
        else:
            self._tail.append(data)
            self._move_tail()

    def _enter(self, data: bytes, *, is_line: bool) -> None:
        self._entries.append((data, is_line))
        self._count(data, 1, is_line=is_line)

    def _count(self, data: bytes, sign: int, *, is_line: bool) -> None:
        size = sign * (len(data) + ENTRY_OVERHEAD_BYTES)
        if is_line:
            self._line_bytes += size
        else:
            self._memory_bytes += size

    def _move_tail(self) -> None:
        try:
            while self._tail and self._spill.size_bytes < 2 * self._limits[2]:
                self._spill.append(self._tail[0])
                self._tail.popleft()
        except OSError:
            return  # No room on the disk: they wait in memory, and messages in the script.

    # ---- out -----------------------------------------------------------------------------------------------------

    def build_batch(self, limit_entries: int = BATCH_LIMIT_ENTRIES) -> Batch | None:
        """Return the first entries, which stay until they are acknowledged; None when there are none."""
        self._refill()
        if not self._entries:
            self._push_dropped()
        entries: list[bytes] = []
        size = 0
        for data, _ in self._entries:
            size += len(data) + 1
            if entries and (size > BATCH_LIMIT_BYTES or len(entries) >= limit_entries):
                break
            entries.append(data)
        return Batch(self._first, entries) if entries else None

    def _refill(self) -> None:
        if self._memory_bytes > REFILL_BYTES:
            return
        self._move_tail()
        if not self._spill.is_empty:
            try:
                lines = self._spill.read()
            except OSError:
                return
            for data in lines:
                self._enter(data, is_line=False)
        elif self._tail:
            self._enter(self._tail.popleft(), is_line=False)

    def acknowledge(self, seq: int) -> None:
        """Forget all entries up to this number."""
        while self._entries and self._first <= seq:
            data, is_line = self._entries.popleft()
            self._count(data, -1, is_line=is_line)
            self._first += 1

    def replace_first(self, text: str) -> None:
        """Put words for people in the place of the first entry, which the server will never take."""
        data, is_line = self._entries.popleft()
        self._count(data, -1, is_line=is_line)
        at = json.loads(data)["t"]
        line = {"n": self._first, "t": at, "k": EntryKind.LOG, "stream": "stderr", "line": f"oet_runner: {text}"}
        data = encode(line)
        self._entries.appendleft((data, True))
        self._count(data, 1, is_line=True)
