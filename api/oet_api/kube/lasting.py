"""The timeline in a database: states from the cache, what scripts say from their runners or from Pods' logs, own actions.

What a script prints and publishes comes from its runner, which also says in which state it did so. A state that the cache shows
therefore waits for the runner to tell it, in its place. An execution whose runner tells nothing, as one that was made before a
database was set, is read from its Pod's log. Which of both holds is decided once, in the database, for all servers.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from oet_api.kube.entries import Draft, StateLedger, compute_state_number
from oet_api.kube.intake import RunnerIntake
from oet_api.kube.merging import FINAL_HOLD_SECONDS, Merger
from oet_api.timeline.database import Transaction
from oet_api.timeline.rows import Row
from oet_api.timeline.source import Source
from oet_api.timeline.store import TimelineStore
from oet_api.timeline.writer import Ticket
from oet_crds.ends import with_final
from oet_crds.errors import NotFoundError, UnavailableError
from oet_crds.execution import ScriptExecution, parse_execution
from oet_crds.ports import RunnerEntry, TimelineEntry
from oet_crds.reasons import Reason
from oet_crds.states import State, is_final
from oet_crds.topics import EntryKind

__all__ = ["LastingTimeline", "with_removal"]

_log = logging.getLogger(__name__)

DECISION_SECONDS = 3.0
"""How long a runner has for its first word, from its first state or from this server's start on; it takes some 50 ms."""

STATE_PATIENCE_SECONDS = 10.0
"""How long a state waits for a runner that has told others before; it posts anew every few seconds while the API is away."""

END_PATIENCE_SECONDS = 5.0
"""How long the end of an execution waits for the rest of what its runner has to say: the runner itself may have been killed."""

QUIET_SECONDS = 1.0
"""The same for a runner that has told all its states and then nothing for so long; it posts what it has every 50 ms or so."""

SETTLED_SECONDS = 10.0
"""How long after the start of this server a silent runner may still be waiting to try again."""

LOOK_SECONDS = 0.2
"""How often is looked whether another server has what is waited for."""

APPEND_SECONDS = 1.0
"""How long a request waits for its entry; it takes some milliseconds."""

INGEST_SECONDS = 8.0
"""The same for a runner, which tries again then."""

_FIRST = compute_state_number(1, State.CREATING)

_REMOVED = "its ScriptExecution was removed before its end was seen; what the script does is not known"


def with_removal(execution: ScriptExecution) -> ScriptExecution:
    """Return an execution that is gone: one whose end was not seen is UNKNOWN. Pure."""
    if execution.is_finished:
        return execution
    history = execution.status.history
    when = history[-1].time if history else execution.metadata.creation_timestamp
    status = with_final(execution.status, State.UNKNOWN, Reason.POD_LOST, _REMOVED, when)
    # Another version: who remembers how that one was shown must not show it now.
    version = f"{execution.metadata.resource_version}-removed"
    metadata = execution.metadata.model_copy(update={"resource_version": version})
    return execution.model_copy(update={"metadata": metadata, "status": status})


@dataclass(slots=True)
class _Track:
    """What one execution has to tell.

    Attributes:
        execution: As last seen.
        origin: Where its messages and lines come from; None: not known here.
        held: States that the runner tells, since when, and what.
        end: The final state.
        end_at: When it was seen, in monotonic seconds.
        asked: What was asked of the database and is not answered yet.
        asked_for: How many that was: of `held`, of `end`, and of `held` those that could not wait longer.
        look_at: When to ask again, in monotonic seconds.
        seq: How far the runner's entries were stored when last asked.
        seq_at: Since when that is so, in monotonic seconds.
        lines: Entries that came from the log.
    """

    execution: ScriptExecution
    ledger: StateLedger = field(default_factory=StateLedger)
    merger: Merger = field(default_factory=Merger)
    origin: Source | None = None
    held: list[tuple[float, Draft]] = field(default_factory=list)
    end: list[Draft] = field(default_factory=list)
    end_at: float = 0.0
    asked: Ticket | None = None
    asked_for: tuple[int, int, int] = (0, 0, 0)
    look_at: float = 0.0
    seq: int = -1
    seq_at: float = 0.0
    lines: int = 0

    @property
    def is_waiting(self) -> bool:
        return bool(self.held or self.end) and self.origin is not Source.LOG

    def build_rows(self, drafts: Sequence[Draft]) -> list[Row]:
        uid, number = self.execution.uid, self.execution.procedure_id
        assert number is not None
        return [
            Row(
                uid,
                number,
                draft.source or Source.LOG,
                draft.number,
                draft.time,
                draft.kind,
                draft.topic,
                draft.payload,
            )
            for draft in drafts
        ]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the database knows of an execution."""

    origin: Source | None
    is_end_told: bool
    seq: int


class LastingTimeline:
    """The timelines of all executions. Implements `oet_crds.ports.Timeline` and `EntrySink`.

    Attributes:
        await_log: Called before entries of an execution are read from its Pod's log: waits, within reason, until they are here.
        find_log_gap: Says why what was read from such a log is not all yet; empty when it is.
        on_log_wanted: Called with each new version of an execution whose Pod's log has to be read. Must be quick.
        on_log_unwanted: Called when such an execution is gone.
    """

    def __init__(self, store: TimelineStore, log_limit_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._intake = RunnerIntake(log_limit_bytes)
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._tracks: dict[int, _Track] = {}
        self._uids: dict[str, int] = {}
        self._leaving: dict[int, tuple[ScriptExecution, Ticket]] = {}
        self._started_at = time.monotonic()
        self._due = False
        self._stopping = False
        self._pump = threading.Thread(target=self._run_pump, name="oet-timeline", daemon=True)
        self.await_log: Callable[[int], bool] = lambda procedure_id: False
        self.find_log_gap: Callable[[int], str] = lambda procedure_id: ""
        self.on_log_wanted: Callable[[ScriptExecution], None] = lambda execution: None
        self.on_log_unwanted: Callable[[int], None] = lambda procedure_id: None
        store.is_live = self._uids.__contains__

    # ---- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin. Raises UnavailableError when the database is not for this server."""
        self._store.start()
        self._started_at = time.monotonic()
        self._pump.start()

    def stop(self) -> None:
        """Write what is left, and end."""
        with self._news:
            self._stopping = True
            self._news.notify_all()
        if self._pump.is_alive():
            self._pump.join()
        self._store.stop()

    def observe_problem(self) -> str:
        """Return what is wrong with the database, for people; empty for nothing."""
        return self._store.observe_problem()

    # ---- the port ------------------------------------------------------------------------------------------------

    def append(self, procedure_id: int, topic: str, payload: Mapping[str, Any]) -> TimelineEntry:
        """Store an action of the API; see `oet_crds.ports.Timeline.append`.

        Raises:
            NotFoundError: The execution was removed.
            UnavailableError: The database does not answer. The entry is kept and stored later, unless the text says otherwise.
        """
        row = self._build_action(procedure_id, topic, payload)
        if self._store.is_overfull:
            raise UnavailableError(f"The timeline takes nothing more: {self._store.observe_problem()}")
        ticket = self._store.submit(lambda transaction: transaction.add([row]))
        number = self._store.await_ticket(ticket, 0.0 if self._store.observe_problem() else APPEND_SECONDS)
        return TimelineEntry(number, procedure_id, None, row.time, row.kind, row.topic, row.payload)

    def note(self, procedure_id: int, topic: str, payload: Mapping[str, Any]) -> None:
        """Store an action as `append` does, and do not wait."""
        row = self._build_action(procedure_id, topic, payload)
        self._store.submit(lambda transaction: transaction.add([row]))

    def flush(self) -> None:
        """Wait a moment until all is stored that was noted."""
        if not self._store.observe_problem():
            self._store.submit(lambda transaction: None, 0).is_settled.wait(APPEND_SECONDS)

    def _build_action(self, procedure_id: int, topic: str, payload: Mapping[str, Any]) -> Row:
        with self._lock:
            track = self._tracks.get(procedure_id)
        if track is None:
            raise NotFoundError(f"No information available for PID={procedure_id}: it was removed")
        number = secrets.randbits(62)  # Whatever is written twice, after an answer was lost, is there once.
        uid = track.execution.uid
        return Row(uid, procedure_id, Source.API, number, self._clock(), EntryKind.ACTION, str(topic), payload)

    def read(
        self,
        after: int,
        *,
        limit: int,
        procedure_id: int | None = None,
        kinds: Collection[EntryKind] | None = None,
    ) -> Sequence[TimelineEntry]:
        """Return entries after an id; see `oet_crds.ports.Timeline.read`. Raises UnavailableError."""
        if procedure_id is None:
            return self._store.read(after, limit, None, kinds)
        with self._lock:
            track = self._tracks.get(procedure_id)
        if track is not None:
            if track.origin is Source.LOG and (
                kinds is None or not {EntryKind.LOG, EntryKind.MESSAGE}.isdisjoint(kinds)
            ):
                self.await_log(procedure_id)
            return self._store.read(after, limit, track.execution.uid, kinds)
        known = self.find(procedure_id)
        return [] if known is None else self._store.read(after, limit, known.uid, kinds)

    def describe_gap(self, procedure_id: int) -> str:
        """Return why entries of an execution are missing for now; see `oet_crds.ports.Timeline.describe_gap`."""
        return self.find_log_gap(procedure_id)

    def last_id(self) -> int:
        """Return the id of the newest entry. Raises UnavailableError before the database has ever answered."""
        return self._store.last_id()

    def wait(self, after: int, timeout_seconds: float) -> bool:
        """Wait until an entry newer than `after` exists. Returns whether one does."""
        return self._store.wait(after, timeout_seconds)

    # ---- runners -------------------------------------------------------------------------------------------------

    def ingest(self, execution: ScriptExecution, entries: Sequence[RunnerEntry]) -> int:
        """Store what a runner tells; see `oet_crds.ports.EntrySink.ingest`.

        A state is told by its `new_state`, or `state`; one that is final, or an `outcome`, says that nothing will follow.
        """
        if execution.procedure_id is None:
            raise UnavailableError(f"execution {execution.metadata.name} has no procedure id yet")
        result = self._store.write(
            lambda transaction: self._intake.take(transaction, execution, entries), len(entries), INGEST_SECONDS
        )
        with self._news:
            track = self._tracks.get(execution.procedure_id)
            if track is not None and track.execution.uid == execution.uid and track.origin is None:
                track.origin = result.origin
            if track is not None and result.is_done:
                track.look_at = 0.0
                self._wake()
        return int(result.highest)

    # ---- the archive ---------------------------------------------------------------------------------------------

    def find(self, procedure_id: int) -> ScriptExecution | None:
        """Return an execution as last seen, None when none was. Raises UnavailableError."""
        if (leaving := self._find_leaving(procedure_id)) is not None:
            return leaving
        found = self._store.find_execution(procedure_id)
        return None if found is None else _show(*found)

    def _find_leaving(self, procedure_id: int) -> ScriptExecution | None:
        """Return an execution that is gone and not stored as such yet."""
        with self._lock:
            execution, ticket = self._leaving.get(procedure_id, (None, None))
            if ticket is not None and ticket.is_settled.is_set():
                del self._leaving[procedure_id]
                return None
            return execution

    def read_archive(self, after: int, limit: int, *, is_backwards: bool = False) -> Sequence[ScriptExecution]:
        """Return executions as last seen, those that are there among them; see `oet_crds.ports.Archive`."""
        return [_show(*one) for one in self._store.read_executions(after, limit, is_backwards=is_backwards)]

    # ---- what is seen: must be quick -----------------------------------------------------------------------------

    def on_execution(self, execution: ScriptExecution) -> None:
        """Take in a new version of an execution."""
        assert execution.procedure_id is not None
        with self._news:
            track = self._tracks.get(execution.procedure_id)
            if track is None or track.execution.uid != execution.uid:
                track = self._tracks[execution.procedure_id] = _Track(execution)
            self._uids[execution.uid] = execution.procedure_id
            track.execution = execution
            drafts = track.ledger.take(execution, self._clock())
            if drafts or execution.is_finished:
                self._put(track, self._sort(track, drafts))
            if track.origin is Source.LOG:
                self.on_log_wanted(execution)

    def _sort(self, track: _Track, drafts: Sequence[Draft]) -> list[Draft]:
        """Return what can be told now; hold the rest."""
        now = time.monotonic()
        if track.origin is Source.LOG:
            track.merger.offer_states(drafts, now)
            self._wake()
            return track.merger.release(now)
        told = []
        for draft in drafts:
            if draft.is_final:
                track.end.append(draft)
                track.end_at = track.end_at or now
            elif draft.source in (Source.ALARM, Source.WAIT) or draft.number == _FIRST:
                told.append(draft)
            else:
                track.held.append((now, draft))
        if track.is_waiting:
            track.look_at = 0.0
            self._wake()
        return told

    def _put(self, track: _Track, drafts: Sequence[Draft]) -> None:
        """Have an execution stored as it is, and entries of it."""
        execution, rows, now = track.execution, track.build_rows(drafts), self._clock()

        def put(transaction: Transaction) -> None:
            transaction.put_execution(execution, now)
            transaction.add(rows)

        self._store.submit(put, 1 + len(rows))

    def on_removed(self, procedure_id: int) -> None:
        """Tell the rest of an execution that is gone; what is stored stays."""
        with self._news:
            track = self._tracks.pop(procedure_id, None)
            if track is None:
                return
            self._uids.pop(track.execution.uid, None)
            drafts = [draft for _, draft in track.held] + track.end + track.merger.release_all()
            gone = with_removal(track.execution)
            rows = track.build_rows([*drafts, *track.ledger.take(gone, self._clock())])
        now = self._clock()

        def put(transaction: Transaction) -> None:
            transaction.put_execution(track.execution, now)
            record = transaction.get_record(track.execution)
            transaction.add([*self._intake.take_dropped(record, now), *rows])
            record.is_end_told = True
            transaction.put_record(record)
            transaction.note_removed(track.execution.uid, now)

        with self._lock:
            self._leaving = {number: one for number, one in self._leaving.items() if not one[1].is_settled.is_set()}
            self._leaving[procedure_id] = (gone, self._store.submit(put, 1 + len(rows)))
        self.on_log_unwanted(procedure_id)

    def end_initial(self, version: int) -> None:
        """Note which of those that are stored went while nobody watched.

        Args:
            version: Of the list of all that are there: what is stored with a later one was made after it.
        """
        with self._lock:
            known = set(self._uids)
        now = self._clock()

        def note(transaction: Transaction) -> None:
            for uid, seen, text in transaction.list_unremoved():
                if uid in known or seen > version:
                    continue
                gone = with_removal(parse_execution(json.loads(text)))
                transaction.add(_Track(gone).build_rows(StateLedger().take(gone, now)))
                transaction.note_removed(uid, now)

        self._store.submit(note)

    # ---- what logs hold ------------------------------------------------------------------------------------------

    def offer_lines(self, procedure_id: int, drafts: Sequence[Draft]) -> None:
        """Take in what a Pod's log holds, in order and from its beginning; wait while the database cannot follow."""
        self._store.wait_for_room()
        with self._news:
            track = self._tracks.get(procedure_id)
            if track is None:
                return
            numbered = [
                replace(draft, source=Source.LOG, number=number) for number, draft in enumerate(drafts, track.lines + 1)
            ]
            track.lines += len(drafts)
            track.merger.offer_lines(numbered, time.monotonic(), self._clock())
            self._tell(track, track.merger.release(time.monotonic()))
            self._wake()

    def refill(self, procedure_id: int, drafts: Sequence[Draft]) -> None:
        """Do nothing: what is stored did not have to go."""

    def settle(self, procedure_id: int) -> None:
        """Note that all was read that an execution's log holds."""
        with self._news:
            if (track := self._tracks.get(procedure_id)) is not None:
                track.merger.settle()
                self._tell(track, track.merger.release(time.monotonic()))

    def _tell(self, track: _Track, drafts: Sequence[Draft]) -> None:
        if not drafts:
            return
        rows, execution = track.build_rows(drafts), track.execution
        is_end = any(draft.is_final for draft in drafts)

        def tell(transaction: Transaction) -> None:
            transaction.add(rows)
            if is_end:
                record = transaction.get_record(execution)
                record.is_end_told = True
                transaction.put_record(record)

        self._store.submit(tell, len(rows))

    # ---- what waits ----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._due = True
        self._news.notify_all()

    def _run_pump(self) -> None:
        with self._news:
            while not self._stopping:
                self._due = False
                is_busy = False
                for track in list(self._tracks.values()):
                    try:
                        is_busy |= self._advance(track, time.monotonic())
                    except Exception:  # noqa: BLE001 - one execution's trouble must not keep the others from being told
                        _log.exception("cannot tell of procedure %s", track.execution.procedure_id)
                if not self._due:
                    # Lines of logs are held for 50 ms; what waits for the database is looked at as often.
                    self._news.wait(0.05 if is_busy else None)

    def _advance(self, track: _Track, now: float) -> bool:
        """Tell what is due. Returns whether anything waits."""
        if track.origin is Source.LOG:
            self._tell(track, track.merger.release(now))
            return track.merger.compute_next_due() < float("inf")
        if not track.is_waiting:
            return False
        if track.asked is not None:
            if not track.asked.is_settled.is_set():
                return True
            answer, track.asked = track.asked.result, None
            if isinstance(answer, _Answer):
                self._on_answer(track, answer, now)
            return True
        if now >= track.look_at:
            track.look_at = now + LOOK_SECONDS
            self._ask(track, now)
        return True

    def _ask(self, track: _Track, now: float) -> None:
        """Ask the database how far others are, and decide what cannot wait any longer."""
        execution = track.execution
        since = max(self._started_at, min([track.end_at or now, *(when for when, _ in track.held)]))
        # What comes between CREATING and the end was reported by a runner.
        has_runner = execution.status.runner is not None or len(execution.status.history) > 1 + execution.is_finished
        is_decision_due = now - since > DECISION_SECONDS
        is_end_due = bool(track.end) and (
            not has_runner or now - max(self._started_at, track.end_at) > END_PATIENCE_SECONDS
        )
        late = [draft for when, draft in track.held if now - max(self._started_at, when) > STATE_PATIENCE_SECONDS]
        held = track.build_rows([draft for _, draft in track.held])
        end, late_rows = track.build_rows(track.end), track.build_rows(late)
        clock, seq = self._clock(), track.seq
        is_quiet = now - track.seq_at > QUIET_SECONDS and now - self._started_at > SETTLED_SECONDS
        wanted = sum(not is_final(one.state) for one in execution.status.history) - 1

        def ask(transaction: Transaction) -> _Answer:
            record = transaction.get_record(execution)
            if record.origin is None and has_runner and is_decision_due:
                record.origin = Source.LOG
                transaction.put_record(record)
            if record.origin is Source.LOG:
                return _Answer(record.origin, record.is_end_told, record.runner_seq)
            has_told_all = is_quiet and record.runner_seq == seq and record.runner_states >= wanted
            if record.is_end_told:
                transaction.add(end)  # An end that turned out otherwise is told anew.
            elif end and (is_end_due or record.is_runner_done or has_told_all):
                transaction.add([*held, *self._intake.take_dropped(record, clock), *end])
                record.is_end_told = True
                transaction.put_record(record)
            elif record.origin is Source.RUNNER:
                transaction.add(late_rows)
            return _Answer(record.origin, record.is_end_told, record.runner_seq)

        track.asked_for = (len(held), len(end), len(late))
        track.asked = self._store.submit(ask, 1 + len(held))

    def _on_answer(self, track: _Track, answer: _Answer, now: float) -> None:
        track.origin = answer.origin
        if answer.seq != track.seq:
            track.seq, track.seq_at = answer.seq, now
        held, end, late = track.asked_for
        if answer.is_end_told and answer.origin is not Source.LOG:
            del track.held[:held], track.end[:end]
            return
        if answer.origin is Source.LOG:
            waiting = [draft for _, draft in track.held] + track.end
            track.held, track.end = [], []
            self.on_log_wanted(track.execution)
            # The log is about to be read: what it has from before a state is told before it.
            track.merger.offer_states(waiting, now + FINAL_HOLD_SECONDS)
            self._wake()
            return
        if answer.origin is Source.RUNNER:
            del track.held[:late]


def _show(execution: ScriptExecution, is_removed: bool) -> ScriptExecution:
    return with_removal(execution) if is_removed else execution
