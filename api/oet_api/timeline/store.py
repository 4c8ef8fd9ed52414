"""The lasting timeline: written by one thread, followed by another, read from memory where that has it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from oet_api.timeline.database import CHANNEL, Database, Transaction
from oet_api.timeline.migrate import ForeignDatabaseError, migrate
from oet_api.timeline.tail import Tail
from oet_api.timeline.writer import KEPT_SIZE, Ticket, Writer
from oet_crds.errors import UnavailableError
from oet_crds.execution import ScriptExecution
from oet_crds.ports import TimelineEntry
from oet_crds.settings import TimelineSettings
from oet_crds.topics import EntryKind

__all__ = ["TimelineStore"]

_log = logging.getLogger(__name__)

START_SECONDS = 5.0
"""How long the start waits for the database. One that is away longer is waited for while the server works."""

POLL_SECONDS = 1.0
"""How often the database is asked for what no notification told of."""

PAGE = 500
"""Entries read at once from other servers: a message may have 128 KiB."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 2.0

STOP_SECONDS = 5.0
"""How long the end waits for what is still to be written."""

RETENTION_SECONDS = 600.0
"""Time between two looks for what is too old."""

RETENTION_PIECE = 1_000
"""Entries deleted in one transaction, and a moment's rest after it: whoever adds has to wait no longer."""

RETENTION_REST_SECONDS = 0.02
RETENTION_LOCK = 7_105_472
DAY_SECONDS = 86_400.0


class TimelineStore:
    """Entries and last known executions of one namespace. For any thread.

    Attributes:
        is_live: Tells of a uid whether Kubernetes still has the execution: what it has is not removed here.
    """

    def __init__(self, settings: TimelineSettings, namespace: str, clock: Callable[[], float] = time.time) -> None:
        """Remember what to use. Raises UnavailableError when the URL is none."""
        self._settings = settings
        self._namespace = namespace
        self._clock = clock
        self._database = Database(settings.database, settings.pool_size)
        self._tail = Tail()
        self._is_ready = threading.Event()
        self._stopping = threading.Event()
        self._gap = threading.Event()
        self._foreign: ForeignDatabaseError | None = None
        self._problem = "it has not answered yet"
        self._writer = Writer(self._database, self._tail, self._is_ready.is_set)
        self._writer.on_gap = self._gap.set
        self.is_live: Callable[[str], bool] = lambda uid: False
        self._follower = threading.Thread(target=self._run_follower, name="oet-timeline-follower", daemon=True)
        self._keeper = threading.Thread(target=self._run_retention, name="oet-timeline-retention", daemon=True)

    # ---- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, and wait a moment for the database. Raises UnavailableError when it is not for this server."""
        self._writer.start()
        self._follower.start()
        self._keeper.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready.wait(0.02) and self._foreign is None and time.monotonic() < deadline:
            pass
        if self._foreign is not None:
            self.stop()
            raise UnavailableError(str(self._foreign)) from self._foreign

    def stop(self) -> None:
        """Write what is left, and end."""
        self._writer.stop(STOP_SECONDS)
        self._stopping.set()
        self._gap.set()
        self._tail.end()
        for thread in (self._follower, self._keeper):
            thread.join(POLL_SECONDS + STOP_SECONDS)
        self._database.close()

    def observe_problem(self) -> str:
        """Return what is wrong with the database, for people; empty for nothing."""
        problem = self._problem or self._writer.problem
        if not problem:
            return ""
        waiting = self._writer.waiting
        kept = f"; {waiting} entries wait for it" if waiting else ""
        return f"the timeline's database does not answer ({problem}){kept}"

    # ---- writing -------------------------------------------------------------------------------------------------

    def submit(self, job: Callable[[Transaction], Any], size: int = 1) -> Ticket:
        """Have something written, now or as soon as the database is there; return at once."""
        return self._writer.submit(Ticket(job, size))

    def write(self, job: Callable[[Transaction], Any], size: int, seconds: float) -> Any:
        """Have something written and wait for it; return what the job returned, when it is durable.

        Raises:
            UnavailableError: It is not written now; nobody will try again unless it was under way.
        """
        return self.await_ticket(self._writer.submit(Ticket(job, size, is_kept=False)), seconds)

    def await_ticket(self, ticket: Ticket, seconds: float) -> Any:
        """Wait until something is written. Raises UnavailableError if it is not within some seconds, or was given up."""
        if not ticket.is_settled.wait(seconds):
            raise UnavailableError(
                f"The timeline's database does not answer: {self._problem or self._writer.problem or 'it is slow'}"
            )
        if ticket.error is not None:
            raise UnavailableError(f"The timeline cannot be written: {ticket.error}") from ticket.error
        return ticket.result

    def wait_for_room(self) -> None:
        """Wait while too much waits for the database: for threads that read what can be read later as well."""
        self._writer.wait_for_room()

    # ---- reading -------------------------------------------------------------------------------------------------

    def _check_ready(self) -> None:
        if not self._is_ready.is_set():
            raise UnavailableError(f"The timeline's database does not answer: {self._problem}. Try again")

    def read(
        self, after: int, limit: int, uid: str | None = None, kinds: Collection[EntryKind] | None = None
    ) -> Sequence[TimelineEntry]:
        """Return entries after an id, in order; None for a filter means all. Raises UnavailableError."""
        found = self._tail.read(after, limit, uid, kinds)
        if found is not None:
            return found
        self._check_ready()
        return [stored.entry for stored in self._database.read_entries(after, limit, uid, kinds)]

    def last_id(self) -> int:
        """Return the id of the newest entry that is known here. Raises UnavailableError before any was."""
        head = self._tail.head
        if head is None:
            self._check_ready()
        return head or 0

    def wait(self, after: int, timeout_seconds: float) -> bool:
        """Wait until an entry newer than `after` exists. Returns whether one does."""
        return self._tail.wait(after, timeout_seconds)

    def find_execution(self, procedure_id: int) -> tuple[ScriptExecution, bool] | None:
        """Return an execution as last seen, and whether it is gone; None when none was. Raises UnavailableError."""
        self._check_ready()
        return self._database.find_execution(procedure_id)

    def read_executions(
        self, after: int, limit: int, *, is_backwards: bool = False
    ) -> list[tuple[ScriptExecution, bool]]:
        """Return those with greater ids than `after`, as `find_execution` does; `is_backwards`: the greatest first."""
        self._check_ready()
        return self._database.read_executions(after, limit, is_backwards=is_backwards)

    @property
    def is_overfull(self) -> bool:
        """Tell whether so much waits for the database that nothing more should be kept."""
        return self._writer.waiting >= KEPT_SIZE

    # ---- following the others ------------------------------------------------------------------------------------

    def _run_follower(self) -> None:
        pause_seconds = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            try:
                if not self._is_ready.is_set():
                    self._open()
                pause_seconds = FIRST_PAUSE_SECONDS
                self._follow()
            except ForeignDatabaseError as error:
                self._foreign, self._problem = error, str(error)
                self._stopping.wait(LONGEST_PAUSE_SECONDS)
            except Exception as error:  # noqa: BLE001 - everybody waits for this thread
                self._note(error)
                self._stopping.wait(pause_seconds)
                pause_seconds = min(LONGEST_PAUSE_SECONDS, 2 * pause_seconds)

    def _note(self, error: Exception) -> None:
        told = self._database.describe(error.__cause__ or error)
        if not self._stopping.is_set() and told != self._problem:
            _log.warning("the timeline's database cannot be followed: %s", told)
        self._problem = told

    def _open(self) -> None:
        migrate(self._database.engine, self._namespace)
        self._tail.begin(self._database.read_last_id())
        self._foreign, self._problem = None, ""
        self._is_ready.set()
        self._writer.wake()

    def _follow(self) -> None:
        """Take in what others write, until the connection breaks or the server ends."""
        if self._database.is_sqlite:
            while not self._stopping.is_set():
                self._advance()
                self._gap.wait(POLL_SECONDS)
                self._gap.clear()
            return
        with self._database.open_listener() as listener:
            listener.execute(f"LISTEN {CHANNEL}")
            while not self._stopping.is_set():
                self._advance()
                for _ in listener.notifies(timeout=POLL_SECONDS, stop_after=1):
                    pass

    def _advance(self) -> None:
        """Bring the tail to where the database is."""
        while True:
            head = self._tail.head or 0
            last = self._database.read_last_id()
            self._problem = ""
            if last <= head or self._stopping.is_set():
                return
            found = self._database.read_entries(head, PAGE)
            newest = found[-1].entry.id if found else last
            self._tail.extend(head, newest if len(found) == PAGE else max(last, newest), found)

    # ---- retention -----------------------------------------------------------------------------------------------

    def _run_retention(self) -> None:
        while not self._stopping.wait(RETENTION_SECONDS):
            try:
                self.remove_old()
            except (UnavailableError, SQLAlchemyError) as error:
                _log.info("old entries are removed another time: %s", self._database.describe(error))

    def remove_old(self) -> int:
        """Remove what ended too long ago and is not in Kubernetes any more; return how many procedures went.

        One server does this at a time. Raises UnavailableError.
        """
        self._check_ready()
        before = self._clock() - self._settings.retention_days * DAY_SECONDS
        removed = 0
        with self._database.holding(RETENTION_LOCK) as is_ours:
            if not is_ours:
                return 0
            for uid in self._database.list_ended(before, PAGE):
                if self.is_live(uid):
                    continue
                while not self._database.delete_some(uid, RETENTION_PIECE):
                    if self._stopping.wait(RETENTION_REST_SECONDS):
                        return removed
                removed += 1
        return removed
