"""Reads what scripts print and publish from their Pods' logs: one follower for each Pod at work, a few readers for the rest."""

from __future__ import annotations

import itertools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from typing import Protocol

from oet_api.kube.client import KubeClient, Stream
from oet_api.kube.entries import Draft, LogIntake, LogPosition, parse_stamped_line
from oet_api.kube.errors import NO_ANSWER, ApiError
from oet_api.kube.informer import Backoff
from oet_api.kube.paths import Paths
from oet_crds.execution import ScriptExecution
from oet_crds.names import SCRIPT_CONTAINER

__all__ = ["LineSink", "LogKeeper"]

_log = logging.getLogger(__name__)

SILENCE_SECONDS = 120.0
"""A script may print nothing for hours: a stream that is silent so long is begun anew, in case nobody is at its other end."""

READ_SILENCE_SECONDS = 20.0
"""The same for a log that is read to its present end."""

READERS = 4
"""Logs of finished executions that are read at once."""

PATIENCE_SECONDS = 5.0
"""How long somebody who reads an execution's entries waits for its log, at each page. 44,000 lines take 1.0 s of a
processor (measured, CPython 3.11); a client gives up an answer after 30 s of silence."""

TAIL_PATIENCE_SECONDS = 3.0
"""The same for the rest of a log whose execution has just ended."""

SETTLE_SECONDS = 0.1
"""How long the last lines may take from the script through the container runtime into the file that the kubelet reads from."""

LAST_LOOK_SECONDS = 60.0
"""How long a container may go on after its execution's end; what it prints later is not read."""

READ_TRIES = 5
"""A kubelet that is restarted is back within some seconds."""

MAX_LINE_BYTES = 1024 * 1024
"""The runner cuts lines at 64 KiB and messages at 128 KiB."""

BATCH_LINES = 1000


class LineSink(Protocol):
    """Where it goes what a log holds."""

    def offer_lines(self, procedure_id: int, drafts: Sequence[Draft]) -> None:
        """Take in what a log holds, in order."""

    def refill(self, procedure_id: int, drafts: Sequence[Draft]) -> None:
        """Put lines that had to go back in their place."""

    def settle(self, procedure_id: int) -> None:
        """Note that all was read that an execution's log holds."""


STILL_READ = "the Pod's log is still being read, or cannot be read now: what is missing here comes later; ask again"


class _End(Enum):
    """How reading a log ended."""

    COMPLETE = auto()
    """It was read to its end, as it is now."""
    BROKEN = auto()
    """The connection broke."""
    NOT_YET = auto()
    """The container has not begun."""
    GONE = auto()
    """There is no such Pod, or it may not be read."""


@dataclass(slots=True)
class _Source:
    """The log of one execution's Pod.

    Attributes:
        deadline: Monotonic seconds: nobody waits for it any longer than until then.
        is_unread: Nobody has read it, or what was read had to go.
        is_refill: What was read had to go.
        is_past: What is read was printed before this server knew of it: older entries than those that are known may still come.
        is_over: Nobody reads it any more.
        total: How many entries the runner wrote into it; None: it has not said.
        ended_at: When the execution ended, in seconds since the epoch.
        settled: Set when nothing is to be waited for.
        ended: Set when the execution is finished.
    """

    procedure_id: int
    pod: str
    deadline: float = math.inf
    is_unread: bool = False
    is_refill: bool = False
    is_past: bool = False
    is_over: bool = False
    total: int | None = None
    ended_at: float = 0.0
    settled: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    follower: _Reader | None = None

    def note_end(self, execution: ScriptExecution) -> None:
        """Note how many entries there are, as the runner counted them."""
        status = execution.status
        self.total = status.runner.exit.log_entries if status.runner and status.runner.exit else None
        self.ended_at = status.history[-1].time.timestamp()


class _Reader:
    """Reads one log, from where it was, again and again."""

    def __init__(
        self, client: KubeClient, path: str, intake: LogIntake, deliver: Callable[[Sequence[Draft]], None]
    ) -> None:
        self._client = client
        self._path = path
        self._intake = intake
        self._deliver = deliver
        self._position = LogPosition()
        self._stream: Stream | None = None
        self.is_cut = threading.Event()
        self.has_read = False

    def cut(self) -> None:
        """Have the stream end soon; called by any thread."""
        self.is_cut.set()
        if (stream := self._stream) is not None:
            stream.cut()

    def read(self, *, follow: bool) -> _End:
        """Read what is new, and with `follow` what comes, until the end."""
        query = {"container": SCRIPT_CONTAINER, "timestamps": "true", **self._position.begin()}
        if follow:
            query["follow"] = "true"
        else:
            self._intake.hold()
        self.has_read = False
        try:
            self._stream = self._client.open_stream(
                self._path, query, SILENCE_SECONDS if follow else READ_SILENCE_SECONDS
            )
            if follow and self.is_cut.is_set():
                return _End.BROKEN
            self._read(self._stream)
        except ApiError as error:
            return _judge(error)
        finally:
            stream, self._stream = self._stream, None
            if stream is not None:
                stream.close()
            if drafts := self._intake.release():
                self._deliver(drafts)
        return _End.BROKEN if follow and self.is_cut.is_set() else _End.COMPLETE

    def finish(self) -> None:
        """Say how many lines were dropped, if any."""
        if drafts := self._intake.take_dropped():
            self._deliver(drafts)

    def is_short(self, source: _Source) -> bool:
        """Tell whether less was read than was written."""
        return self._intake.count_missing(source.total) > 0

    def note_missing(self, source: _Source, end: _End) -> None:
        """Say what is missing, now that nothing more will come."""
        if drafts := self._intake.take_missing(source.total, source.ended_at, is_gone=end is _End.GONE):
            self._deliver(drafts)

    def _read(self, stream: Stream) -> None:
        """Read a stream piece by piece. A line without an end is not taken: it comes whole when the log is read again."""
        rest = b""
        for piece in stream.iter_pieces():
            *lines, rest = (rest + piece).split(b"\n")
            for start in range(0, len(lines), BATCH_LINES):
                self._take(lines[start : start + BATCH_LINES])
            if len(rest) > MAX_LINE_BYTES:
                raise ApiError(NO_ANSWER, "the log holds a line without an end")

    def _take(self, lines: Sequence[bytes]) -> None:
        drafts: list[Draft] = []
        for line in lines:
            parsed = parse_stamped_line(line)
            if parsed is None:
                continue  # A word of the kubelet, for example that the log was rotated away.
            stamp, when, text = parsed
            if self._position.is_new(stamp):
                drafts += self._intake.take(when, text)
                self.has_read = True
        if drafts:
            self._deliver(drafts)


def _judge(error: ApiError) -> _End:
    if error.status == HTTPStatus.BAD_REQUEST:
        return _End.NOT_YET
    if error.status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return _End.GONE
    if error.status == HTTPStatus.FORBIDDEN:
        _log.warning("logs of script Pods cannot be read: %s", error)
        return _End.GONE
    return _End.BROKEN


class LogKeeper:
    """Sees to it that every log is read, once."""

    def __init__(self, client: KubeClient, paths: Paths, timeline: LineSink, limit_bytes: int) -> None:
        self._client = client
        self._paths = paths
        self._timeline = timeline
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._sources: dict[int, _Source] = {}
        self._jobs: queue.PriorityQueue[tuple[float, int, _Source | None]] = queue.PriorityQueue()
        self._count = itertools.count()
        self._stopping = threading.Event()
        self._is_initial = True
        self._threads: list[threading.Thread] = []

    # ---- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to read."""
        for _ in range(READERS):
            self._start_thread(self._run_jobs)

    def stop(self) -> None:
        """End all reading."""
        self._stopping.set()
        with self._lock:
            sources, threads = list(self._sources.values()), list(self._threads)
        for source in sources:
            source.settled.set()
            source.ended.set()
        for _ in range(READERS):
            self._jobs.put((float("-inf"), next(self._count), None))
        deadline = time.monotonic() + PATIENCE_SECONDS
        while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
            for source in sources:
                if source.follower is not None:
                    source.follower.cut()
            for thread in threads:
                thread.join(0.02)

    def _start_thread(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name="oet-logs", daemon=True)
        self._threads = [one for one in self._threads if one.is_alive()] + [thread]
        thread.start()

    def end_initial(self) -> None:
        """Note that all executions that were there at the start are known."""
        with self._lock:
            self._is_initial = False

    def wait_initial(self, timeout_seconds: float) -> None:
        """Wait until the logs of those that were active at the start are here, as far as they go."""
        deadline = time.monotonic() + timeout_seconds
        with self._lock:
            sources = [one for one in self._sources.values() if not one.is_unread]
        for source in sources:
            source.settled.wait(max(0.0, deadline - time.monotonic()))

    # ---- what is seen: must be quick -----------------------------------------------------------------------------

    def on_execution(self, execution: ScriptExecution) -> None:
        """Take in a new version of an execution; begin to read its log, or end it."""
        assert execution.procedure_id is not None
        with self._lock:
            source = self._sources.get(execution.procedure_id)
            pod, is_finished = execution.status.pod_name, execution.is_finished
            # Before the runner's first state there is nothing to read, and asking for it again and again would cost much.
            has_begun = len(execution.status.history) > 1 + is_finished
            if pod and has_begun and (source is None or source.pod != pod) and not self._stopping.is_set():
                source = self._open(execution, pod, source)
        if not is_finished:
            return
        if source is None:
            self._timeline.settle(execution.procedure_id)
        elif not source.ended.is_set():
            self._end(source, execution)

    def _open(self, execution: ScriptExecution, pod: str, before: _Source | None) -> _Source:
        assert execution.procedure_id is not None
        if before is not None:
            before.settled.set()
            before.ended.set()
        source = _Source(execution.procedure_id, pod, is_past=self._is_initial)
        self._sources[execution.procedure_id] = source
        if execution.is_finished:
            source.note_end(execution)
        if execution.is_finished and self._is_initial:
            # The newest first: they are what people ask for.
            source.is_unread = True
            source.ended.set()
            self._jobs.put((-float(execution.procedure_id), next(self._count), source))
            return source
        source.follower = self._build_reader(source)
        if not self._is_initial:
            source.settled.set()
        if execution.is_finished:
            source.settled.clear()
        self._start_thread(lambda: self._follow(source))
        return source

    def _end(self, source: _Source, execution: ScriptExecution) -> None:
        """Have the rest of a log read, now that its execution has ended."""
        with self._lock:
            source.note_end(execution)
            source.deadline = time.monotonic() + TAIL_PATIENCE_SECONDS
            if not source.is_over:
                source.settled.clear()
            source.ended.set()
        if source.follower is not None:
            source.follower.cut()

    def _build_reader(self, source: _Source) -> _Reader:
        intake = LogIntake(source.procedure_id, self._limit_bytes)
        return _Reader(self._client, self._paths.log(source.pod), intake, partial(self._deliver, source))

    def _deliver(self, source: _Source, drafts: Sequence[Draft]) -> None:
        if self._sources.get(source.procedure_id) is not source:
            return  # What it read had to go meanwhile: all is read again when somebody asks for it.
        put = self._timeline.refill if source.is_refill else self._timeline.offer_lines
        put(source.procedure_id, drafts)

    def on_removed(self, procedure_id: int) -> None:
        """Forget an execution that is gone."""
        with self._lock:
            source = self._sources.pop(procedure_id, None)
        if source is not None:
            source.settled.set()
            source.ended.set()
            if source.follower is not None:
                source.follower.cut()

    def on_evicted(self, procedure_id: int) -> None:
        """Have a log read again, should somebody ask for it, whose lines had to go."""
        with self._lock:
            if source := self._sources.get(procedure_id):
                fresh = _Source(procedure_id, source.pod, is_unread=True, is_refill=True, is_past=True)
                fresh.total, fresh.ended_at = source.total, source.ended_at
                fresh.ended.set()
                self._sources[procedure_id] = fresh

    def await_log(self, procedure_id: int) -> bool:
        """Wait, within reason, until what an execution's log holds is in its timeline.

        Returns:
            Whether older entries than those that are known may still come.
        """
        with self._lock:
            source = self._sources.get(procedure_id)
            if source is None:
                return False
            if source.is_unread:
                self._jobs.put((float("-inf"), next(self._count), source))
        source.settled.wait(min(PATIENCE_SECONDS, max(0.0, source.deadline - time.monotonic())))
        return source.is_past

    def describe_gap(self, procedure_id: int) -> str:
        """Return why an execution's timeline does not hold yet all that its log does; empty when it does, as far as is known."""
        with self._lock:
            source = self._sources.get(procedure_id)
        return "" if source is None or source.settled.is_set() else STILL_READ

    # ---- threads -------------------------------------------------------------------------------------------------

    def _run_jobs(self) -> None:
        while not self._stopping.is_set():
            _, _, source = self._jobs.get()
            if source is None:
                return
            with self._lock:
                is_mine, source.is_unread = source.is_unread, False
            if is_mine:
                self._run_safely(lambda source=source: self._read_once(source), source)  # type: ignore[misc]

    def _run_safely(self, run: Callable[[], None], source: _Source) -> None:
        try:
            run()
        except Exception:  # noqa: BLE001 - one log's trouble must not end the reading of the others
            _log.exception("cannot read the log of procedure %d", source.procedure_id)
        finally:
            with self._lock:
                source.is_over = True
                if not source.is_unread:
                    source.is_past = False
                    source.settled.set()

    def _read_once(self, source: _Source) -> None:
        """Read the log of a finished execution, if it is still there; one that cannot be read is left for who asks next."""
        reader, backoff = source.follower or self._build_reader(source), Backoff()
        source.follower, end = reader, _End.BROKEN
        for _ in range(READ_TRIES):
            end = reader.read(follow=False)
            if end is not _End.BROKEN or self._stopping.wait(backoff.compute_seconds()):
                break
        if end is _End.BROKEN:
            self._leave_unread(source)
            return
        reader.finish()
        reader.note_missing(source, end)
        self._timeline.settle(source.procedure_id)

    def _leave_unread(self, source: _Source) -> None:
        """Have a log that cannot be read now be read when somebody asks for it."""
        with self._lock:
            source.is_unread, source.is_past, source.deadline = True, False, math.inf

    def _follow(self, source: _Source) -> None:
        self._run_safely(lambda: self._follow_to_end(source), source)
        self._timeline.settle(source.procedure_id)

    def _follow_to_end(self, source: _Source) -> None:
        """Follow the log of an active execution until it has ended and all was read."""
        reader, backoff = source.follower, Backoff()
        assert reader is not None
        end = self._catch_up(source, reader, backoff)
        while not source.ended.is_set() and end is not _End.GONE:
            end = reader.read(follow=True)
            if reader.has_read:
                backoff.note_success()
            if end is not _End.GONE:
                source.ended.wait(backoff.compute_seconds())
        if end is not _End.GONE:
            self._read_tail(source, reader)
            return
        source.settled.set()
        source.ended.wait()
        reader.finish()
        reader.note_missing(source, end)

    def _catch_up(self, source: _Source, reader: _Reader, backoff: Backoff) -> _End:
        """Read what was printed before this server knew of the execution."""
        end = _End.NOT_YET
        while not source.settled.is_set() and not source.ended.is_set():
            end = reader.read(follow=False)
            if end is _End.BROKEN:
                # States are shown meanwhile, and nobody waits for lines that may not come for long.
                source.is_past, source.deadline = False, 0.0
                source.ended.wait(backoff.compute_seconds())
                continue
            with self._lock:
                source.is_past = False
                if not source.ended.is_set():
                    source.settled.set()
            break
        return end

    def _read_tail(self, source: _Source, reader: _Reader) -> None:
        """Read the rest after the end; then what a container that has not quite ended may still say."""
        backoff, limit = Backoff(), time.monotonic() + LAST_LOOK_SECONDS
        end, pause_seconds = _End.BROKEN, SETTLE_SECONDS
        while end is not _End.GONE and (end is not _End.COMPLETE or reader.has_read) and time.monotonic() < limit:
            if self._stopping.wait(pause_seconds):
                return
            end = reader.read(follow=False)
            # A quick script may end before the kubelet has told the API server of its beginning: NOT_YET.
            pause_seconds = SETTLE_SECONDS if end is _End.COMPLETE else backoff.compute_seconds()
        source.is_past = False
        if end is _End.BROKEN:
            self._leave_unread(source)
            return
        is_short = reader.is_short(source)
        if end is _End.COMPLETE and is_short and not self._stopping.is_set():
            # The end was reported before the rest was written, or the rest is missing: the container's end tells.
            self._read_last(reader)
        reader.finish()
        reader.note_missing(source, end)
        self._timeline.settle(source.procedure_id)
        source.settled.set()
        if end is _End.COMPLETE and not is_short and not self._stopping.is_set():
            self._read_last(reader)
            reader.finish()

    def _read_last(self, reader: _Reader) -> None:
        reader.is_cut.clear()
        reader.read(follow=True)
