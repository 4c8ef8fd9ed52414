"""The newest entries in memory: what listeners read, and wait on, without asking the database each."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Collection, Sequence

from oet_api.timeline.rows import Stored
from oet_crds.ports import TimelineEntry
from oet_crds.topics import EntryKind

__all__ = ["Tail"]

LIMIT_BYTES = 32 * 1024 * 1024
"""Of all entries kept: some 50,000 usual lines. Who lags more reads from the database."""


def _get_id(stored: Stored) -> int:
    return stored.entry.id


class Tail:
    """The newest entries without a gap, up to `head`. For any thread."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._news = threading.Condition()
        self._stored: list[Stored] = []
        self._size = 0
        self._floor = 0
        self._head: int | None = None
        self._is_over = False

    @property
    def head(self) -> int | None:
        """Id of the newest entry that is known here; None before the database was ever read."""
        return self._head

    def begin(self, head: int) -> None:
        """Begin after an id; nothing when that was done."""
        with self._news:
            if self._head is None:
                self._head = self._floor = head
                self._news.notify_all()

    def extend(self, base: int, head: int, stored: Sequence[Stored]) -> bool:
        """Take in what comes after `base`, up to `head`. Returns whether it fits; if not, it has to be read."""
        with self._news:
            if self._head != base:
                return False
            if head == base:
                return True
            self._stored += stored
            self._size += sum(one.size for one in stored)
            self._head = head
            if self._size > self._limit_bytes:
                self._cut()
            self._news.notify_all()
            return True

    def _cut(self) -> None:
        wanted, index = self._limit_bytes * 3 // 4, 0
        while index < len(self._stored) and self._size > wanted:
            self._size -= self._stored[index].size
            self._floor = self._stored[index].entry.id
            index += 1
        del self._stored[:index]

    def wait(self, after: int, timeout_seconds: float) -> bool:
        """Wait until there is an entry newer than `after`. Returns whether there is."""
        with self._news:
            self._news.wait_for(lambda: self._is_over or (self._head or 0) > after, timeout_seconds)
            return (self._head or 0) > after

    def end(self) -> None:
        """Let nobody wait any more."""
        with self._news:
            self._is_over = True
            self._news.notify_all()

    def read(
        self, after: int, limit: int, uid: str | None, kinds: Collection[EntryKind] | None
    ) -> list[TimelineEntry] | None:
        """Return entries after an id, in order; None when they are older than what is kept."""
        with self._news:
            if self._head is None or after < self._floor:
                return None
            found = []
            for stored in self._stored[bisect_right(self._stored, after, key=_get_id) :]:
                entry = stored.entry
                if (uid is None or stored.uid == uid) and (kinds is None or entry.kind in kinds):
                    found.append(entry)
                    if len(found) == limit:
                        break
            return found
