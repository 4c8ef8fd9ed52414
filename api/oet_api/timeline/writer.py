"""One thread that writes: all that piled up while it wrote goes into its next transaction."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from oet_api.timeline.database import Database, Transaction, is_away
from oet_api.timeline.tail import Tail
from oet_crds.errors import UnavailableError

__all__ = ["Ticket", "Writer"]

_log = logging.getLogger(__name__)

BATCH_SIZE = 5_000
"""Entries in one transaction, about: others wait for it."""

KEPT_SIZE = 200_000
"""Entries that wait for a database that is away. Beyond it who can wait has to, and who can come again is sent away."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 1.0


@dataclass(slots=True)
class Ticket:
    """Something to write.

    Attributes:
        job: Does it; may be called again after a failure.
        size: Entries in it, about.
        is_kept: It is tried until it is done; else it is given up with the first failure.
        is_settled: Set when it is done, or given up.
        result: What the job returned.
        error: Why it was given up; None: it was not.
    """

    job: Callable[[Transaction], Any]
    size: int = 1
    is_kept: bool = True
    is_settled: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: Exception | None = None


class Writer:
    """Writes in the order of `submit`. For any thread."""

    def __init__(self, database: Database, tail: Tail, may_write: Callable[[], bool]) -> None:
        self._database = database
        self._tail = tail
        self._may_write = may_write
        self._lock = threading.Condition()
        self._queue: deque[Ticket] = deque()
        self._size = 0
        self._is_stopping = False
        self._stop_at = 0.0
        self.problem = ""
        self.on_gap: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="oet-timeline-writer", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Write what is left, for some seconds at most, and end."""
        with self._lock:
            self._is_stopping, self._stop_at = True, time.monotonic() + seconds
            self._lock.notify_all()
        self._thread.join(seconds + 1)

    @property
    def waiting(self) -> int:
        """How many entries, about, wait to be written."""
        return self._size

    def submit(self, ticket: Ticket) -> Ticket:
        """Have something written. Raises UnavailableError when it is not taken."""
        with self._lock:
            is_refused = self._size >= KEPT_SIZE or (not ticket.is_kept and (self.problem or not self._may_write()))
            if is_refused and not ticket.is_kept:
                raise UnavailableError(
                    f"The timeline's database takes nothing now: {self.problem or 'too much waits for it'}. Try again"
                )
            self._queue.append(ticket)
            self._size += ticket.size
            self._lock.notify_all()
        return ticket

    def wait_for_room(self) -> None:
        """Wait while too much is waiting already: for threads that have the time."""
        with self._lock:
            self._lock.wait_for(lambda: self._size < KEPT_SIZE or self._is_stopping)

    def wake(self) -> None:
        """Have it look whether it may write now."""
        with self._lock:
            self._lock.notify_all()

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            batch = self._take()
            if batch is None:
                return
            if not batch:
                continue
            try:
                self._write(batch)
                pause_seconds = FIRST_PAUSE_SECONDS
            except Exception as error:  # noqa: BLE001 - nothing is lost, whatever it was
                self._on_failure(batch, error)
                with self._lock:
                    self._lock.wait_for(lambda: self._is_stopping, pause_seconds)
                pause_seconds = min(LONGEST_PAUSE_SECONDS, 2 * pause_seconds)

    def _take(self) -> list[Ticket] | None:
        """Wait for something to write; return it, None for the end. It stays in the queue until it is written."""
        with self._lock:
            self._lock.wait_for(lambda: (self._queue and self._may_write()) or self._is_stopping)
            is_late = self._is_stopping and (time.monotonic() > self._stop_at or not self._may_write())
            if is_late or not self._queue:
                self._give_up()
                return None
            batch, size = [], 0
            for ticket in self._queue:
                batch.append(ticket)
                size += ticket.size
                if size >= BATCH_SIZE:
                    break
            return batch

    def _give_up(self) -> None:
        if self._queue:
            _log.error("%d entries of the timeline could not be written before the server's end", self._size)
        for ticket in self._queue:
            ticket.error = UnavailableError("The server is shutting down")
            ticket.is_settled.set()
        self._queue.clear()

    def _write(self, batch: list[Ticket]) -> None:
        results, base, last, stored = self._database.write([ticket.job for ticket in batch])
        if self.problem:
            _log.warning("the timeline's database takes entries again")
            self.problem = ""
        # Before anybody is told that it is done: who asked can read it then.
        if not self._tail.extend(base, last, stored):
            self.on_gap()
        with self._lock:
            for ticket, result in zip(batch, results, strict=True):
                self._queue.popleft()
                self._size -= ticket.size
                ticket.result = result
                ticket.is_settled.set()
            self._lock.notify_all()

    def _on_failure(self, batch: list[Ticket], error: Exception) -> None:
        if not is_away(error):
            self._drop_culprit(batch, error)
            return
        if not self.problem:
            _log.warning(
                "the timeline's database does not answer; entries are kept: %s", self._database.describe(error)
            )
        self.problem = self._database.describe(error)
        refusal = UnavailableError(f"The timeline's database does not answer: {self.problem}")
        with self._lock:
            given_up = [ticket for ticket in self._queue if not ticket.is_kept]
            self._queue = deque(ticket for ticket in self._queue if ticket.is_kept)
            for ticket in given_up:
                self._size -= ticket.size
                ticket.error = refusal
                ticket.is_settled.set()
            self._lock.notify_all()

    def _drop_culprit(self, batch: list[Ticket], error: Exception) -> None:
        """Write each by itself; what fails by itself must not keep the others from being written."""
        for ticket in batch:
            try:
                self._write([ticket])
            except SQLAlchemyError as own:
                if is_away(own):
                    return
                self._drop(ticket, own)
            except Exception as own:  # noqa: BLE001 - a fault of ours in one entry
                self._drop(ticket, own)

    def _drop(self, ticket: Ticket, error: Exception) -> None:
        # Without its traceback, which could show what a driver was given, passwords among it.
        _log.error("something cannot be written into the timeline: %s", self._database.describe(error)[:500])
        with self._lock:
            self._queue.popleft()
            self._size -= ticket.size
            ticket.error = error
            ticket.is_settled.set()
            self._lock.notify_all()
