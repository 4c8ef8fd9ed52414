"""What the disk did not take: kept in memory, read from there, and written when the disk takes something again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from oet_crds.ports import TimelineEntry
from oet_crds.topics import EntryKind, Topic
from oet_operator.local.database import Statement, build_insert_entry

__all__ = ["UNSAVED_LIMIT", "Unsaved"]

UNSAVED_LIMIT = 20_000
"""Entries and changes that wait; past it printed lines are given up and counted, states and messages never."""


class Unsaved:
    """Changes of executions, and entries of their timelines, in order. For the holder of the store's lock; reading is for all."""

    def __init__(self) -> None:
        """Nothing waits."""
        self._statements: list[Statement] = []
        self._entries: list[TimelineEntry] = []

    def __len__(self) -> int:
        return len(self._statements) + len(self._entries)

    def build_statements(self) -> list[Statement]:
        """Return what is to be written, as it must be stored."""
        return [*self._statements, *map(build_insert_entry, self._entries)]

    def add(self, statements: Sequence[Statement], entries: Sequence[TimelineEntry]) -> None:
        """Keep what was not written; when it is too much, give up printed lines and keep how many there were."""
        self._statements += statements
        entries = [*self._entries, *entries]
        self._entries = entries if len(self._statements) + len(entries) <= UNSAVED_LIMIT else _give_up_lines(entries)

    def clear(self) -> None:
        """Forget all: it was written."""
        self._statements, self._entries = [], []

    def list_entries(self) -> Sequence[TimelineEntry]:
        """Return the entries that wait, oldest first. They are newer than all that were written."""
        return self._entries


def _give_up_lines(entries: Sequence[TimelineEntry]) -> list[TimelineEntry]:
    """Return the entries with one word of each procedure in place of its printed lines, where the last of them was. Pure."""
    counts: dict[int, int] = {}
    last: dict[int, int] = {}
    for entry in entries:
        if entry.kind is EntryKind.LOG:
            counts[entry.procedure_id] = counts.get(entry.procedure_id, 0) + int(entry.payload.get("dropped", 1))
            last[entry.procedure_id] = entry.id
    return [
        _build_word(entry, counts[entry.procedure_id]) if entry.kind is EntryKind.LOG else entry
        for entry in entries
        if entry.kind is not EntryKind.LOG or last[entry.procedure_id] == entry.id
    ]


def _build_word(entry: TimelineEntry, count: int) -> TimelineEntry:
    # Without the runner's number: it is none of its entries.
    payload = {"msg_src": str(entry.procedure_id), "dropped": count}
    return replace(entry, seq=None, topic=Topic.LOG_DROPPED, payload=payload)
