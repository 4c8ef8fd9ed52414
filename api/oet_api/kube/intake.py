"""What a runner tells becomes entries of the timeline, once, in its order and within a bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from oet_api.kube.entries import compute_state_number
from oet_api.timeline.database import Transaction
from oet_api.timeline.rows import Record, Row
from oet_api.timeline.source import Source
from oet_crds.activities import find_sb_event
from oet_crds.execution import ScriptExecution
from oet_crds.ports import RunnerEntry
from oet_crds.states import State, is_final
from oet_crds.topics import EntryKind, Topic

__all__ = ["Intake", "RunnerIntake", "find_state", "is_last"]


@dataclass(frozen=True, slots=True)
class Intake:
    """How far a runner's entries are stored.

    Attributes:
        highest: All up to this number are.
        origin: Where the execution's entries come from.
        is_done: The runner has said all.
    """

    highest: int
    origin: Source | None
    is_done: bool


def find_state(entry: RunnerEntry) -> State | None:
    """Return the state that an entry tells; None when it tells none."""
    if entry.kind is not EntryKind.STATE:
        return None
    text = entry.payload.get("new_state", entry.payload.get("state"))
    return State(text) if text in list(State) else None


def is_last(entry: RunnerEntry) -> bool:
    """Tell whether a runner says nothing after this entry."""
    state = find_state(entry)
    return entry.kind is EntryKind.STATE and ("outcome" in entry.payload or (state is not None and is_final(state)))


class RunnerIntake:
    """Takes in what runners tell. Keeps nothing itself: all is in the transaction, for every server."""

    def __init__(self, log_limit_bytes: int) -> None:
        self._log_limit_bytes = log_limit_bytes

    def take(self, transaction: Transaction, execution: ScriptExecution, entries: Sequence[RunnerEntry]) -> Intake:
        """Store entries that are not stored yet."""
        record = transaction.get_record(execution)
        highest = max([record.runner_seq, *(entry.seq for entry in entries)])
        if record.origin is Source.LOG:
            # Its Pod's log is read instead, and has the same.
            return Intake(highest, record.origin, False)
        rows: list[Row] = []
        for entry in entries:
            if entry.seq > record.runner_seq:
                rows += self._build(record, entry, execution)
                record.runner_seq = entry.seq
        record.origin = Source.RUNNER
        transaction.add(rows)
        transaction.put_record(record)
        return Intake(record.runner_seq, record.origin, record.is_runner_done)

    def _build(self, record: Record, entry: RunnerEntry, execution: ScriptExecution) -> list[Row]:
        if is_last(entry):
            # The end is told by who knows what it means: the operator, or with a plain one the server itself.
            record.is_runner_done = True
            return []
        if entry.kind is EntryKind.STATE:
            return self._build_state(record, entry, execution)
        if entry.kind is EntryKind.LOG:
            return self._build_line(record, entry)
        return [_build_row(record, entry, EntryKind.MESSAGE, entry.topic)]

    def _build_state(self, record: Record, entry: RunnerEntry, execution: ScriptExecution) -> list[Row]:
        state = find_state(entry)
        if state is None:
            return [_build_row(record, entry, EntryKind.MESSAGE, entry.topic)]
        record.runner_states += 1
        if record.is_end_told:
            return []  # Nothing comes after a final state.
        # In the history CREATING is the first, and those of the runner follow without a gap.
        number = compute_state_number(1 + record.runner_states, state)
        uid, procedure_id = record.uid, record.procedure_id
        rows = []
        if told := find_sb_event(execution, state):
            rows.append(Row(uid, procedure_id, Source.ACTIVITY, number, entry.time, EntryKind.ACTION, *told))
        payload = {"msg_src": str(procedure_id), "new_state": str(state)}
        told = Topic.STATE_CHANGE, payload
        rows.append(Row(uid, procedure_id, Source.STATE, number, entry.time, EntryKind.STATE, *told, entry.seq))
        return rows

    def _build_line(self, record: Record, entry: RunnerEntry) -> list[Row]:
        if "dropped" in entry.payload:
            return [_build_row(record, entry, EntryKind.LOG, Topic.LOG_DROPPED)]
        record.log_bytes += len(str(entry.payload.get("line"))) + 1
        if record.log_bytes > self._log_limit_bytes:
            # Nothing more from here on, also when a shorter line would fit: no reader expects a gap in the middle.
            record.log_bytes = self._log_limit_bytes + 1
            record.dropped += 1
            return []
        return [_build_row(record, entry, EntryKind.LOG, Topic.LOG)]

    def take_dropped(self, record: Record, now: float) -> list[Row]:
        """Return the entry that says how many lines are missing, if any are."""
        if not record.dropped:
            return []
        payload = {"msg_src": str(record.procedure_id), "dropped": record.dropped}
        record.dropped = 0
        number = record.runner_seq
        return [
            Row(
                record.uid,
                record.procedure_id,
                Source.DROPPED,
                number,
                now,
                EntryKind.LOG,
                Topic.LOG_DROPPED,
                payload,
            )
        ]


def _build_row(record: Record, entry: RunnerEntry, kind: EntryKind, topic: str) -> Row:
    payload: dict[str, Any] = {"msg_src": str(record.procedure_id), **entry.payload}
    number = record.procedure_id
    return Row(record.uid, number, Source.RUNNER, entry.seq, entry.time, kind, str(topic), payload, entry.seq)
