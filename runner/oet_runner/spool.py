"""The numbered entries on their way to the driver: bounded, and states and messages are never dropped. Pure."""

from __future__ import annotations

import json
from collections import deque
from json.encoder import encode_basestring

from oet_crds.topics import EntryKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Spool", "encode"]

LOG_LIMIT_BYTES = 4 * 1024 * 1024
"""Printed lines beyond it are dropped and counted: about a second of the fastest print loop."""

MESSAGE_LIMIT_BYTES = 1024 * 1024
"""Messages beyond it wait in the script: its publish blocks."""

BATCH_LIMIT_BYTES = 256 * 1024

ENTRY_OVERHEAD_BYTES = 120
"""Memory that an entry needs beside its text: empty lines must not fill it unseen. Measured, CPython 3.11."""

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def encode(value: object) -> bytes:
    """Return JSON in valid UTF-8; half a surrogate pair, which UTF-8 does not know, becomes `?`."""
    return _ENCODER.encode(value).encode("utf-8", "replace")


class Spool:
    """Entries that were seen and not sent yet, in order.

    Attributes:
        is_held: Whoever they go on to can take no more messages for now.
    """

    __slots__ = (
        "_dropped",
        "_entries",
        "_is_dropping",
        "_limit_bytes",
        "_message_bytes",
        "_number",
        "_size",
        "_states",
        "is_held",
    )

    def __init__(self, limit_bytes: int = LOG_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._entries: deque[tuple[bytes, EntryKind]] = deque()
        self._size = 0
        self._message_bytes = 0
        self._states = 0
        self._number = 0
        self._dropped = 0
        self._is_dropping = False
        self.is_held = False

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """Size of all that waits."""
        return self._size

    @property
    def is_full_of_messages(self) -> bool:
        """Whether no more messages should be taken from the script for now."""
        return self.is_held or self._message_bytes >= MESSAGE_LIMIT_BYTES

    def take_number(self, now: float) -> int:
        """Return the number for the entry that comes next, after the word on lines that were dropped before it."""
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._append({"n": self._next(), "t": now, "k": EntryKind.LOG, "dropped": dropped})
        return self._next()

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _append(self, entry: dict[str, Any]) -> None:
        self._push(encode(entry), entry["k"])

    def _push(self, data: bytes, kind: EntryKind) -> None:
        self._entries.append((data, kind))
        self._count(data, kind, 1)

    def _count(self, data: bytes, kind: EntryKind, sign: int) -> None:
        self._size += sign * (len(data) + ENTRY_OVERHEAD_BYTES)
        self._message_bytes += sign * len(data) if kind is EntryKind.MESSAGE else 0
        self._states += sign if kind is EntryKind.STATE else 0

    def add(self, kind: EntryKind, fields: dict[str, Any], now: float) -> None:
        """Add a state or a message. `now` is in seconds since the epoch."""
        number = self.take_number(now)
        self._append({"n": number, "t": now, "k": kind, **fields})

    def add_lines(self, stream: str, lines: list[bytes], now: float) -> None:
        """Add printed lines, or count them where too much waits already. `now` is in seconds since the epoch."""
        if self._is_dropping and self._size < self._limit_bytes // 2:
            self._is_dropping = False  # Not at once: else every second line would be a word on dropped ones.
        for position, line in enumerate(lines):
            if self._is_dropping or self._size + len(line) > self._limit_bytes:
                self._is_dropping = True
                self._dropped += len(lines) - position
                return
            text = encode_basestring(line.decode("utf-8", "replace"))
            head = f'{{"n":{self.take_number(now)},"t":{now!r},"k":"{EntryKind.LOG}","stream":"{stream}","line":'
            self._push(f"{head}{text}}}".encode(), EntryKind.LOG)

    def take_batch(self) -> bytes:
        """Remove and return entries for one report, joined by commas; empty when there are none."""
        batch: list[bytes] = []
        size = 0
        while self._entries and (not batch or size + len(self._entries[0][0]) <= BATCH_LIMIT_BYTES):
            data, kind = self._entries.popleft()
            batch.append(data)
            size += len(data)
            self._count(data, kind, -1)
        return b",".join(batch)

    def take_states(self) -> bytes:
        """Remove and return the states alone, joined by commas; empty when there are none. The rest keeps its order."""
        if not self._states:
            return b""
        states = [data for data, kind in self._entries if kind is EntryKind.STATE]
        self._entries = deque(entry for entry in self._entries if entry[1] is not EntryKind.STATE)
        for data in states:
            self._count(data, EntryKind.STATE, -1)
        return b",".join(states)
