"""Open streams: a bounded number of them, one reader of the timeline for all, and an end when the server stops.

One thread reads the timeline, serialises each entry once and wakes the listeners; printed lines, which are many and not on
the event stream, wake nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from oet_api.sse import FAREWELL, HEARTBEAT, OPENING, build_frame
from oet_crds.errors import OetError, OverloadedError
from oet_crds.ports import Timeline, TimelineEntry
from oet_crds.topics import EntryKind

__all__ = ["Broadcast", "EventFilter", "Frame", "Pace", "SlotIterator", "Slots", "iterate_events", "join_chunks"]

_log = logging.getLogger(__name__)

STREAM_KINDS = frozenset(EntryKind) - {EntryKind.LOG}

RECENT_FRAMES = 4096
"""Frames kept for listeners that lag a little; who lags more reads from the timeline."""

RECENT_BYTES = 8 * 1024 * 1024
"""Bound of the same in bytes: a message may have 128 KiB."""

READ_LIMIT = 500
"""Entries read at once."""

LOOK_SECONDS = 0.5
"""How often the reader of the timeline looks whether the server stops."""

CLIENT_LOOK_SECONDS = 2.0
"""How often a silent stream looks whether its client is gone: bounds how long a dead stream holds its place."""

CHUNK_BYTES = 64 * 1024
"""About the size of one write to a client."""


@dataclass(frozen=True, slots=True)
class Pace:
    """When a stream sends comments.

    Attributes:
        heartbeat_seconds: Silence after which one is sent.
        clock: Seconds, growing; replaced in tests.
    """

    heartbeat_seconds: float
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class Frame:
    """One event, serialised once for all listeners."""

    id: int
    procedure_id: int
    topic: str
    data: bytes


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events a listener wants; None: all."""

    procedure_id: int | None = None
    topics: frozenset[str] | None = None
    is_on_subarray: Callable[[int], bool] | None = None
    """Tells of a procedure whether it is on the wanted subarray."""

    def is_wanted(self, frame: Frame) -> bool:
        """Tell whether a frame is wanted."""
        return (
            (self.procedure_id is None or frame.procedure_id == self.procedure_id)
            and (self.topics is None or frame.topic in self.topics)
            and (self.is_on_subarray is None or self.is_on_subarray(frame.procedure_id))
        )


class Slots:
    """The places for streams."""

    def __init__(self, limit: int) -> None:
        """Allow `limit` open streams."""
        self.limit = limit
        self._lock = threading.Lock()
        self._taken = 0

    @property
    def taken(self) -> int:
        """How many streams are open."""
        return self._taken

    def take(self) -> None:
        """Take a place. Raises OverloadedError when none is left."""
        with self._lock:
            if self._taken >= self.limit:
                raise OverloadedError(f"{self.limit} streams are open, as many as this server allows; close some", 5)
            self._taken += 1

    def release(self) -> None:
        """Give a place back."""
        with self._lock:
            self._taken -= 1


class SlotIterator:
    """An iterable that holds a place until `close()`, which WSGI servers call however the answer ends."""

    def __init__(self, slots: Slots, chunks: Iterator[bytes]) -> None:
        """Wrap an iterator of chunks; the place is taken already."""
        self._slots: Slots | None = slots
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        """Return itself."""
        return self

    def __next__(self) -> bytes:
        """Return the next chunk."""
        return next(self._chunks)

    def close(self) -> None:
        """End the stream and give its place back; repeats do nothing."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.release()


class Broadcast:
    """Follows the timeline for all listeners. Its thread starts with the first listener."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._news = threading.Condition()
        self._recent: deque[Frame] = deque()
        self._recent_bytes = 0
        self._floor = 0
        self._head = 0
        self._thread: threading.Thread | None = None
        self._stopping = False

    @property
    def is_stopping(self) -> bool:
        """Tell whether the streams have to end."""
        return self._stopping

    def stop(self) -> None:
        """End all streams, soon."""
        with self._news:
            self._stopping = True
            self._news.notify_all()

    def start(self) -> int:
        """Begin to follow the timeline unless that was done. Returns the id after which events are new."""
        with self._news:
            if self._thread is None:
                self._head = self._floor = self._timeline.last_id()
                self._thread = threading.Thread(target=self._follow, name="oet-broadcast", daemon=True)
                self._thread.start()
        return self._timeline.last_id()

    def _follow(self) -> None:
        while not self._stopping:
            try:
                if self._timeline.wait(self._head, LOOK_SECONDS):
                    self._advance()
            except OetError as error:
                _log.warning("cannot read the timeline: %s", error)
                time.sleep(LOOK_SECONDS)
            except Exception:  # noqa: BLE001 - the streams must outlive a failure of the engine
                if not self._stopping:
                    _log.exception("cannot read the timeline")
                    time.sleep(LOOK_SECONDS)

    def _advance(self) -> None:
        """Take over what is new."""
        newest = self._timeline.last_id()
        entries = self._timeline.read(self._head, limit=READ_LIMIT, kinds=STREAM_KINDS)
        # Entries up to `newest` that were not returned are none of ours: they need not be looked at again.
        head = entries[-1].id if len(entries) == READ_LIMIT else max([newest, *(entry.id for entry in entries[-1:])])
        frames = [_build_frame(entry) for entry in entries]
        with self._news:
            self._recent.extend(frames)
            self._recent_bytes += sum(len(frame.data) for frame in frames)
            while self._recent and (len(self._recent) > RECENT_FRAMES or self._recent_bytes > RECENT_BYTES):
                dropped = self._recent.popleft()
                self._recent_bytes -= len(dropped.data)
                self._floor = dropped.id
            self._head = head
            if frames:
                self._news.notify_all()

    def wait(self, after: int, timeout_seconds: float) -> None:
        """Wait until there are frames newer than `after`, or the streams have to end."""
        with self._news:
            self._news.wait_for(lambda: self._stopping or self._has_newer(after), timeout_seconds)

    def _has_newer(self, after: int) -> bool:
        return after < self._floor or (bool(self._recent) and self._recent[-1].id > after)

    def read(self, after: int) -> tuple[Sequence[Frame], int]:
        """Return frames newer than `after`, and the id after which to go on. Does not wait."""
        with self._news:
            if after >= self._floor:
                found = []
                for frame in reversed(self._recent):
                    if frame.id <= after:
                        break
                    found.append(frame)
                found.reverse()
                return found, max(after, self._head)
        newest = self._head
        entries = self._timeline.read(after, limit=READ_LIMIT, kinds=STREAM_KINDS)
        entries = [entry for entry in entries if entry.id <= newest]
        frames = [_build_frame(entry) for entry in entries]
        return frames, entries[-1].id if len(entries) == READ_LIMIT else newest


def _build_frame(entry: TimelineEntry) -> Frame:
    return Frame(entry.id, entry.procedure_id, str(entry.topic), build_frame(entry))


def iterate_events(
    broadcast: Broadcast, after: int, wanted: EventFilter, pace: Pace, is_gone: Callable[[], bool]
) -> Iterator[bytes]:
    """Yield the bytes of an event stream until the server stops or the client is gone.

    Args:
        broadcast: Where events come from; it must have been started.
        after: Id after which events are sent.
        wanted: Which events.
        pace: When to send comments.
        is_gone: Tells whether the client closed the connection.
    """
    yield OPENING
    quiet_since = pace.clock()
    while not broadcast.is_stopping:
        try:
            frames, after = broadcast.read(after)
            chosen = [frame.data for frame in frames if wanted.is_wanted(frame)]
        except OetError as error:
            # The client comes back with the id of its last event, and misses nothing.
            _log.warning("a stream ends: %s", error)
            break
        if not chosen and pace.clock() - quiet_since >= pace.heartbeat_seconds:
            chosen = [HEARTBEAT]
        for chunk in join_chunks(chosen):
            yield chunk
            quiet_since = pace.clock()
        if not frames:
            if is_gone():
                return
            left = quiet_since + pace.heartbeat_seconds - pace.clock()
            broadcast.wait(after, min(max(0.01, left), CLIENT_LOOK_SECONDS))
    yield FAREWELL


def join_chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield pieces joined to chunks of about `CHUNK_BYTES`: few writes, and none that a slow client cannot take in time."""
    joined: list[bytes] = []
    size = 0
    for piece in pieces:
        joined.append(piece)
        size += len(piece)
        if size >= CHUNK_BYTES:
            yield b"".join(joined)
            joined, size = [], 0
    if joined:
        yield b"".join(joined)
