"""What a script printed, as lines of text or as events, read from the timeline page by page."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from oet_api.sse import FAREWELL, HEARTBEAT, OPENING, build_frame
from oet_api.streams import LOOK_SECONDS, Pace, join_chunks
from oet_crds.errors import NotFoundError, OetError
from oet_crds.ports import ExecutionStore, Timeline, TimelineEntry
from oet_crds.topics import EntryKind, Topic

__all__ = ["LogReader", "LogRequest", "build_line"]

_log = logging.getLogger(__name__)

PAGE = 1000
"""Lines read at once."""

PAUSE_SECONDS = 0.05
"""Least time between two looks of one follower: lines come in batches, and a flood must not cost a look each."""


@dataclass(frozen=True, slots=True)
class LogRequest:
    """Which lines, and how.

    Attributes:
        procedure_id: Whose lines.
        after: Timeline id after which lines are sent.
        tail: Only so many of the last lines there are now; None for all.
        follow: Go on until the procedure has ended.
        as_events: Server-sent events with ids and heartbeats instead of plain text.
    """

    procedure_id: int
    after: int = 0
    tail: int | None = None
    follow: bool = False
    as_events: bool = False


def build_line(entry: TimelineEntry) -> bytes:
    """Return a log entry as a line of text."""
    line, message = entry.payload.get("line"), entry.payload.get("message")
    note = message or f"{entry.payload.get('dropped')} lines dropped"
    text = f"[oet: {note}]" if line is None else str(line)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _build_gap(procedure_id: int, after: int, gap: str) -> TimelineEntry:
    """Return what is said in place of lines that are missing; with the id of the last line before."""
    payload = {"msg_src": str(procedure_id), "dropped": None, "message": gap}
    return TimelineEntry(after, procedure_id, None, time.time(), EntryKind.LOG, Topic.LOG_DROPPED, payload)


@dataclass(frozen=True, slots=True)
class LogReader:
    """Reads and follows printed lines.

    Attributes:
        store: Tells whether the procedure has ended.
        timeline: Has the lines.
        pace: When to send comments, for events.
        is_stopping: Tells whether the server stops.
    """

    store: ExecutionStore
    timeline: Timeline
    pace: Pace
    is_stopping: Callable[[], bool]

    def iterate(self, request: LogRequest, is_gone: Callable[[], bool]) -> Iterator[bytes]:
        """Yield the bytes of an answer; see `LogRequest`.

        Args:
            request: Which lines, and how.
            is_gone: Tells whether the client closed the connection.
        """
        if not request.as_events:
            # Text that cannot be read on breaks off, so that nobody takes it for the whole.
            yield from self._iterate(request, is_gone)
            return
        try:
            yield from self._iterate(request, is_gone)
        except OetError as error:
            # The client comes back with the id of its last line.
            _log.warning("a followed log ends: %s", error)
            yield FAREWELL

    def _iterate(self, request: LogRequest, is_gone: Callable[[], bool]) -> Iterator[bytes]:
        build = build_frame if request.as_events else build_line
        if request.as_events:
            yield OPENING
        after, first = self._read_tail(request)
        yield from join_chunks(build(entry) for entry in first)
        quiet_since = self.pace.clock()
        while not self.is_stopping():
            is_over = not request.follow or self._is_finished(request.procedure_id)
            # Asked before the lines are read: only then are they all.
            gap, newest = self.timeline.describe_gap(request.procedure_id), self.timeline.last_id()
            page = self._read_page(request.procedure_id, after)
            for chunk in join_chunks(build(entry) for entry in page):
                yield chunk
                quiet_since = self.pace.clock()
            # While older lines may still come, no id but those of lines that came says how far this is.
            newest = after if gap else newest
            after = page[-1].id if len(page) == PAGE else max([after, newest, *(entry.id for entry in page[-1:])])
            if len(page) == PAGE or (gap and (page or not self.timeline.describe_gap(request.procedure_id))):
                continue
            if is_over or is_gone():
                if gap:
                    yield build(_build_gap(request.procedure_id, after, gap))
                return
            if request.as_events and self.pace.clock() - quiet_since >= self.pace.heartbeat_seconds:
                yield HEARTBEAT
                quiet_since = self.pace.clock()
            self._wait(after, request)
        if request.as_events:
            yield FAREWELL

    def _read_tail(self, request: LogRequest) -> tuple[int, Sequence[TimelineEntry]]:
        """Return the last lines if only those are wanted, and the id after which to go on."""
        if request.tail is None:
            return request.after, ()
        last: deque[TimelineEntry] = deque(maxlen=request.tail)
        after = request.after
        while True:
            gap = self.timeline.describe_gap(request.procedure_id)
            page = self._read_page(request.procedure_id, after)
            last.extend(page)
            after = page[-1].id if page else after
            if not page and (not gap or self.timeline.describe_gap(request.procedure_id)):
                return after, tuple(last)

    def _read_page(self, procedure_id: int, after: int) -> Sequence[TimelineEntry]:
        return self.timeline.read(after, limit=PAGE, procedure_id=procedure_id, kinds=[EntryKind.LOG])

    def _is_finished(self, procedure_id: int) -> bool:
        try:
            return self.store.get(procedure_id).is_finished
        except NotFoundError:
            return True

    def _wait(self, after: int, request: LogRequest) -> None:
        """Wait until there may be more: news in the timeline, or the end of the procedure."""
        with contextlib.suppress(NotFoundError):
            self.store.wait(request.procedure_id, lambda one: one.is_finished, PAUSE_SECONDS)
            self.timeline.wait(after, min(LOOK_SECONDS, self.pace.heartbeat_seconds))
