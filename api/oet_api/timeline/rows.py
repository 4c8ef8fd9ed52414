"""What is stored, as values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oet_api.timeline.source import Source
from oet_crds.ports import TimelineEntry
from oet_crds.topics import EntryKind

__all__ = ["Record", "Row", "Stored", "build_entry"]

OVERHEAD_BYTES = 600
"""About what an entry costs in memory besides its text, measured with `sys.getsizeof` on CPython 3.11."""


@dataclass(frozen=True, slots=True)
class Row:
    """An entry before it has its id.

    Attributes:
        uid: The execution's.
        procedure_id: The same for users.
        source: Who told it.
        number: The same number from the same source is the same entry.
        time: Seconds since the epoch.
        kind: What sort of entry.
        topic: Dotted topic.
        payload: Fields of the message.
        seq: The runner's number; None when it is not the runner's.
    """

    uid: str
    procedure_id: int
    source: Source
    number: int
    time: float
    kind: EntryKind
    topic: str
    payload: Mapping[str, Any]
    seq: int | None = None

    def build_values(self, number: int) -> dict[str, Any]:
        """Return the columns of the row under an id. Pure."""
        return {
            "id": number,
            "execution_uid": self.uid,
            "procedure_id": self.procedure_id,
            "source": str(self.source),
            "number": self.number,
            "seq": self.seq,
            "time": self.time,
            "kind": str(self.kind),
            # PostgreSQL's texts have neither a zero nor half a character; JSON writes both as escapes.
            "topic": str(self.topic).encode("utf-8", "replace").decode().replace("\0", "?"),
            "payload": json.dumps(self.payload, separators=(",", ":")),
        }


@dataclass(frozen=True, slots=True)
class Stored:
    """An entry as it is stored.

    Attributes:
        uid: The execution's.
        entry: The entry.
        size: Bytes it takes in memory, about.
    """

    uid: str
    entry: TimelineEntry
    size: int


@dataclass(slots=True)
class Record:
    """A procedure as it is stored: how far the entries of its runner are here.

    Attributes:
        uid: The execution's.
        procedure_id: The same for users.
        origin: Where its messages and lines come from, `Source.RUNNER` or `Source.LOG`; None: not known yet.
        runner_seq: All of the runner's entries up to this number are stored.
        runner_states: So many states were among them.
        log_bytes: Printed text that is kept.
        dropped: Lines that are not, and were not told of yet.
        is_runner_done: The runner has said all.
        is_end_told: The final state is in the timeline.
    """

    uid: str
    procedure_id: int
    origin: Source | None = None
    runner_seq: int = 0
    runner_states: int = 0
    log_bytes: int = 0
    dropped: int = 0
    is_runner_done: bool = False
    is_end_told: bool = False


def build_entry(values: Mapping[str, Any]) -> Stored:
    """Return an entry from the columns of its row. Pure."""
    entry = TimelineEntry(
        values["id"],
        values["procedure_id"],
        values["seq"],
        values["time"],
        EntryKind(values["kind"]),
        values["topic"],
        json.loads(values["payload"]),
    )
    return Stored(values["execution_uid"], entry, OVERHEAD_BYTES + len(values["payload"]))
