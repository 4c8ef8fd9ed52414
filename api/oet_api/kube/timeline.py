"""Every execution's timeline in memory, within a bound: states from the cache, output from Pods' logs, own actions.

An entry's id is the time at which it happened, in microseconds, or the next free one: so ids mean about the same in every
replica of the server and after a restart, and a listener that comes back with the id of its last event goes on from there.
What happened before this replica started is filled in at its own time, once, when it is read.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from typing import Any

from oet_api.kube.entries import Draft, StateLedger
from oet_api.kube.merging import Merger
from oet_crds.errors import NotFoundError
from oet_crds.execution import ScriptExecution
from oet_crds.ports import TimelineEntry
from oet_crds.topics import EntryKind, Topic

__all__ = ["KubeTimeline"]

LIMIT_BYTES = 64 * 1024 * 1024
"""Of all timelines together: some 100,000 usual lines."""

LAG_MICROSECONDS = 200_000
"""How much older than now an entry may be when it comes, and still get the id of its time: lines are held for 50 ms, and travel
as long. Ids up to then may be named before there is such an entry: another replica may have given them."""

_MICRO = 1_000_000
_FROM_LOG = frozenset({EntryKind.LOG, EntryKind.MESSAGE})
_get_id = attrgetter("id")


@dataclass(slots=True)
class _Track:
    """The timeline of one execution."""

    procedure_id: int
    ledger: StateLedger = field(default_factory=StateLedger)
    merger: Merger = field(default_factory=Merger)
    entries: list[TimelineEntry] = field(default_factory=list)
    size: int = 0
    is_finished: bool = False
    is_old: bool = False
    """It was there when this replica started."""
    read_to: int = 0
    """Id of the last entry that was put in its place of the past."""
    lacks: set[EntryKind] = field(default_factory=set)
    """What had to go, and can be read again."""


class KubeTimeline:
    """The timelines of all executions. Implements `oet_crds.ports.Timeline`.

    Attributes:
        await_log: Called before entries of one execution are read: waits, within reason, until what its log holds is here. Tells
            whether older entries than those that are here may still come.
        find_log_gap: Says why what is here of an execution is not all yet; empty when it is.
        on_evicted: Called with a finished execution whose lines had to go; they can be read again. Must not call back.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._limit_bytes = limit_bytes
        self._started_at = clock()
        self._is_initial = True
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._pump_news = threading.Condition(self._lock)
        self._tracks: dict[int, _Track] = {}
        self._all: list[TimelineEntry] = []
        self._sizes: dict[int, int] = {}
        self._size = 0
        self._floor = 0
        self._newest = 0
        self._due = math.inf
        self._stopping = False
        self._pump = threading.Thread(target=self._run_pump, name="oet-timeline", daemon=True)
        self.await_log: Callable[[int], bool] = lambda procedure_id: False
        self.find_log_gap: Callable[[int], str] = lambda procedure_id: ""
        self.on_evicted: Callable[[int], None] = lambda procedure_id: None

    # ---- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to tell what was held back."""
        self._pump.start()

    def stop(self) -> None:
        """End."""
        with self._news:
            self._stopping = True
            self._pump_news.notify_all()
        self._pump.join()

    def end_initial(self) -> None:
        """Note that all executions that were there at the start are known: what comes now is new."""
        with self._news:
            self._is_initial = False

    def _run_pump(self) -> None:
        with self._news:
            while not self._stopping:
                now = time.monotonic()
                if self._due > now:
                    self._pump_news.wait(None if self._due == math.inf else self._due - now)
                    continue
                for track in self._tracks.values():
                    self._store(track, track.merger.release(now))
                self._due = min((one.merger.compute_next_due() for one in self._tracks.values()), default=math.inf)

    # ---- the port ------------------------------------------------------------------------------------------------

    def append(self, procedure_id: int, topic: str, payload: Mapping[str, Any]) -> TimelineEntry:
        """Store an action of the API, in this replica; see `oet_crds.ports.Timeline.append`.

        Raises:
            NotFoundError: The execution was removed, and its timeline with it.
        """
        draft = Draft(self._clock(), EntryKind.ACTION, topic, payload)
        with self._news:
            track = self._tracks.get(procedure_id)
            if track is None:
                raise NotFoundError(f"No information available for PID={procedure_id}: it was removed")
            return self._store(track, [draft])[0]

    def note(self, procedure_id: int, topic: str, payload: Mapping[str, Any]) -> None:
        """Store an action as `append` does, which waits for nothing here."""
        self.append(procedure_id, topic, payload)

    def flush(self) -> None:
        """Do nothing: all is stored that was noted."""

    def observe_problem(self) -> str:
        """Return what is wrong, for people; empty, because nothing can be."""
        return ""

    def read(
        self,
        after: int,
        *,
        limit: int,
        procedure_id: int | None = None,
        kinds: Collection[EntryKind] | None = None,
    ) -> Sequence[TimelineEntry]:
        """Return entries after an id; see `oet_crds.ports.Timeline.read`."""
        is_past = False
        if procedure_id is not None and (kinds is None or not _FROM_LOG.isdisjoint(kinds)):
            is_past = self.await_log(procedure_id)
        with self._news:
            if procedure_id is None:
                entries, end = self._all, None
            else:
                track = self._tracks.get(procedure_id)
                entries = track.entries if track else []
                # Who goes on after what it got must not miss what is put before that.
                end = bisect_right(entries, track.read_to, key=_get_id) if track and is_past else None
            chosen = islice(entries, bisect_right(entries, after, key=_get_id), end)
            return list(islice((one for one in chosen if kinds is None or one.kind in kinds), limit))

    def describe_gap(self, procedure_id: int) -> str:
        """Return why entries of an execution are missing for now; see `oet_crds.ports.Timeline.describe_gap`."""
        return self.find_log_gap(procedure_id)

    def last_id(self) -> int:
        """Return the id after which all entries are new: the newest entry's, or one of a moment ago."""
        with self._news:
            self._floor = max(self._floor, self._newest, int(self._clock() * _MICRO) - LAG_MICROSECONDS)
            return self._floor

    def wait(self, after: int, timeout_seconds: float) -> bool:
        """Wait until an entry newer than `after` exists. Returns whether one does."""
        with self._news:
            return self._news.wait_for(lambda: self._newest > after or self._stopping, timeout_seconds) and (
                self._newest > after
            )

    # ---- what is seen --------------------------------------------------------------------------------------------

    def on_execution(self, execution: ScriptExecution) -> None:
        """Take in the states of a new version of an execution."""
        assert execution.procedure_id is not None
        with self._news:
            track = self._tracks.setdefault(execution.procedure_id, _Track(execution.procedure_id))
            track.is_old |= self._is_initial
            track.is_finished = execution.is_finished
            self._accept(track, track.ledger.take(execution, self._clock()), is_state=True)

    def on_removed(self, procedure_id: int) -> None:
        """Forget the timeline of an execution that is gone."""
        with self._news:
            track = self._tracks.pop(procedure_id, None)
            if track is not None:
                self._remove(track, track.entries)

    def offer_lines(self, procedure_id: int, drafts: Sequence[Draft]) -> None:
        """Take in what a log holds, in order."""
        with self._news:
            if track := self._tracks.get(procedure_id):
                self._accept(track, drafts, is_state=False)

    def refill(self, procedure_id: int, drafts: Sequence[Draft]) -> None:
        """Put lines that had to go back in their place."""
        with self._news:
            if track := self._tracks.get(procedure_id):
                self._insert(track, [draft for draft in drafts if draft.kind in track.lacks])

    def settle(self, procedure_id: int) -> None:
        """Note that all was read that an execution's log holds."""
        with self._news:
            track = self._tracks.get(procedure_id)
            if track is not None:
                track.merger.settle()
                self._store(track, track.merger.release(time.monotonic()))

    # ---- inside: under the lock ----------------------------------------------------------------------------------

    def _accept(self, track: _Track, drafts: Sequence[Draft], *, is_state: bool) -> None:
        since = self._started_at if track.is_old else -math.inf
        if past := [draft for draft in drafts if draft.time < since]:
            self._insert(track, past)
        new = [draft for draft in drafts if draft.time >= since]
        if not new:
            return
        now = time.monotonic()
        if is_state:
            track.merger.offer_states(new, now)
        else:
            track.merger.offer_lines(new, now, self._clock())
        self._store(track, track.merger.release(now))
        due = track.merger.compute_next_due()
        if due < self._due:
            self._due = due
            self._pump_news.notify_all()

    def _store(self, track: _Track, drafts: Sequence[Draft]) -> list[TimelineEntry]:
        """Append entries; wake who waits for them."""
        stored = []
        for draft in drafts:
            number = max(self._newest + 1, self._floor + 1, int(draft.time * _MICRO))
            # A clock that is wrong by a day must not take the ids of a day.
            number = max(self._newest + 1, self._floor + 1, min(number, int(self._clock() * _MICRO)))
            stored.append(self._build(track, draft, number))
            self._newest = number
        if stored:
            track.entries += stored
            self._all += stored
            self._news.notify_all()
            self._evict(track)
        return stored

    def _insert(self, track: _Track, drafts: Sequence[Draft]) -> None:
        """Put entries where their time says."""
        added: list[TimelineEntry] = []
        number = 0
        for draft in drafts:
            number = self._find_free(max(number + 1, int(draft.time * _MICRO)))
            added.append(self._build(track, draft, number))
        if added and drafts[-1].kind in _FROM_LOG:
            track.read_to = max(track.read_to, number)
        for entries in (track.entries, self._all):
            entries += added
            entries.sort(key=_get_id)
        if self._all:
            self._newest = max(self._newest, self._all[-1].id)
        self._news.notify_all()
        self._evict(track)

    def _find_free(self, number: int) -> int:
        index = bisect_left(self._all, number, key=_get_id)
        while index < len(self._all) and self._all[index].id == number:
            number, index = number + 1, index + 1
        return number

    def _build(self, track: _Track, draft: Draft, number: int) -> TimelineEntry:
        # States do not count against the bound: they stay, whatever goes.
        size = 0 if draft.kind is EntryKind.STATE else draft.size
        self._sizes[number] = size
        track.size += size
        self._size += size
        return TimelineEntry(number, track.procedure_id, None, draft.time, draft.kind, str(draft.topic), draft.payload)

    # ---- the bound -----------------------------------------------------------------------------------------------

    def _evict(self, current: _Track) -> None:
        """Let go of the oldest finished executions' lines, then messages, then actions; then of the largest one's oldest half.

        States stay: they are few, and nothing would bring them back.
        """
        if self._size <= self._limit_bytes:
            return
        wanted = self._limit_bytes * 0.9
        for kind in (EntryKind.LOG, EntryKind.MESSAGE, EntryKind.ACTION):
            for track in self._iter_finished(current):
                if self._size <= wanted:
                    return
                # Lines are read again from the log together with the messages among them: the ones go with the others.
                kinds = {kind, *track.lacks}
                if gone := [entry for entry in track.entries if entry.kind in kinds]:
                    self._remove(track, gone)
                    track.lacks |= {kind} & _FROM_LOG
                    track.read_to = 0
                    self.on_evicted(track.procedure_id)
        while self._size > wanted and self._halve(max(self._tracks.values(), key=lambda track: track.size)):
            pass

    def _iter_finished(self, current: _Track) -> Iterator[_Track]:
        tracks = sorted(self._tracks.values(), key=lambda track: track.procedure_id)
        return (track for track in tracks if track.is_finished and track is not current)

    def _halve(self, track: _Track) -> bool:
        """Let go of the older half of an execution's output, and say so. Returns whether there was any."""
        output = [entry for entry in track.entries if entry.kind in (EntryKind.LOG, EntryKind.MESSAGE)]
        gone = output[: len(output) // 2]
        if len(gone) < 2:
            return False
        lines = sum(int(entry.payload.get("dropped", 1) or 0) for entry in gone if entry.kind is EntryKind.LOG)
        self._remove(track, gone)
        payload = {"msg_src": str(track.procedure_id), "dropped": lines}
        self._insert(track, [Draft(gone[-1].time, EntryKind.LOG, Topic.LOG_DROPPED, payload)])
        return True

    def _remove(self, track: _Track, gone: Sequence[TimelineEntry]) -> None:
        numbers = {entry.id for entry in gone}
        size = sum(self._sizes.pop(number, 0) for number in numbers)
        track.size -= size
        self._size -= size
        track.entries = [entry for entry in track.entries if entry.id not in numbers]
        self._all = [entry for entry in self._all if entry.id not in numbers]
