"""Executions and their timeline in memory, backed by the database: what the REST server reads and waits on.

Reads come from memory and take no lock. Changes are gathered in a `Transaction`, written in one commit, and become visible
and are announced only then.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from oet_crds.aborts import is_armed
from oet_crds.errors import NotFoundError, UnavailableError
from oet_crds.execution import ScriptExecution
from oet_crds.ports import TimelineEntry
from oet_crds.topics import EntryKind
from oet_crds.waiters import Waiters
from oet_operator.core.locks import is_holding
from oet_operator.local.database import (
    Database,
    Statement,
    build_delete,
    build_delete_entries,
    build_insert_entry,
    build_upsert,
)
from oet_operator.local.unsaved import Unsaved

__all__ = ["At", "LocalStore", "Transaction"]

_log = logging.getLogger(__name__)

RECENT_BYTES = 8 * 1024 * 1024
"""Size of the newest entries that are kept in memory for streams: some thousand usual ones, 128 of the largest."""

_ENTRY_OVERHEAD_BYTES = 512
"""About what an entry costs in memory besides its text, measured with `sys.getsizeof` on CPython 3.11."""

PRUNE_ENTRIES_AT_ONCE = 2000
"""Rows deleted in one commit: about 10 ms on the reference machine."""


def _size(entry: TimelineEntry) -> int:
    return _ENTRY_OVERHEAD_BYTES + sum(len(value) for value in entry.payload.values() if isinstance(value, str))


@dataclass(frozen=True, slots=True)
class At:
    """When an entry happened, and which number the runner gave it.

    Attributes:
        time: Seconds since the epoch; None for now.
        seq: The runner's number; None when the entry is not from a runner.
    """

    time: float | None = None
    seq: int | None = None


_NOW = At()

_Statements = list[Statement]


def _is_active(execution: ScriptExecution) -> bool:
    """Tell whether decisions on others depend on an execution.

    It may hold or want a subarray: it is not finished, or its abort is still to be created. Or it is why no other abort script
    is held for its subarray.
    """
    return not execution.is_finished or is_holding(execution) or is_armed(execution)


class Transaction:
    """Changes that become durable and visible together. Only inside `LocalStore.transaction`, under the store's lock."""

    def __init__(self, store: LocalStore, last_id: int) -> None:
        self._store = store
        self.executions: dict[int, ScriptExecution] = {}
        self.entries: list[TimelineEntry] = []
        self.removed: list[int] = []
        self._last_id = last_id

    def allocate_procedure_id(self) -> int:
        """Return the next procedure id; it is taken when the execution that carries it was put."""
        return max(self._store.last_procedure_id, *self.executions, 0) + 1

    def get(self, procedure_id: int) -> ScriptExecution | None:
        """Return an execution as it is after the changes so far, None when there is none."""
        return self.executions.get(procedure_id) or self._store.find(procedure_id)

    def put(self, execution: ScriptExecution) -> ScriptExecution:
        """Store an execution under a new resource version, and return it so."""
        version = str(int(execution.metadata.resource_version) + 1)
        metadata = execution.metadata.model_copy(update={"resource_version": version})
        stored = execution.model_copy(update={"metadata": metadata})
        assert stored.procedure_id is not None
        self.executions[stored.procedure_id] = stored
        return stored

    def stage(self, execution: ScriptExecution) -> None:
        """Set an execution under its present version, for what is yet to be decided on in this transaction."""
        assert execution.procedure_id is not None
        self.executions[execution.procedure_id] = execution

    def remove(self, procedure_id: int) -> None:
        """Remove an execution and, in time, its timeline."""
        self.removed.append(procedure_id)

    def append(
        self,
        procedure_id: int,
        kind: EntryKind,
        topic: str,
        payload: Mapping[str, Any],
        at: At = _NOW,
    ) -> TimelineEntry:
        """Append an entry to the timeline, and return it."""
        self._last_id += 1
        when = time.time() if at.time is None else at.time
        entry = TimelineEntry(self._last_id, procedure_id, at.seq, when, kind, topic, payload)
        self.entries.append(entry)
        return entry

    @property
    def is_empty(self) -> bool:
        """Tell whether there is nothing to write."""
        return not (self.executions or self.entries or self.removed)

    def build_statements(self) -> list[Statement]:
        """Return what is to be written beside the entries."""
        statements = [build_upsert(execution) for execution in self.executions.values()]
        for procedure_id in self.removed:
            statements += build_delete(procedure_id)
        return statements


class LocalStore:
    """All executions of one state folder, and their timeline."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.RLock()
        self._executions: dict[int, ScriptExecution] = {}
        self._ordered: tuple[ScriptExecution, ...] = ()
        self._active: dict[int, ScriptExecution] = {}
        self._waiters = Waiters(self._lock)
        self._recent: deque[TimelineEntry] = deque()
        self._recent_bytes = 0
        self._news = threading.Condition()
        self._unsaved = Unsaved()
        self.write_error: str | None = None
        for execution in database.read_executions():
            assert execution.procedure_id is not None
            self._executions[execution.procedure_id] = execution
        self._ordered = tuple(self._executions.values())
        self._active = {number: one for number, one in self._executions.items() if _is_active(one)}
        self._last_procedure_id = database.read_last_id("executions")
        self._last_id = database.read_last_id("entries")

    # ---- reading -------------------------------------------------------------------------------------------------

    def find(self, procedure_id: int) -> ScriptExecution | None:
        """Return an execution, None when there is none."""
        return self._executions.get(procedure_id)

    def get(self, procedure_id: int) -> ScriptExecution:
        """Return an execution. Raises NotFoundError."""
        execution = self._executions.get(procedure_id)
        if execution is None:
            raise NotFoundError(f"No information available for PID={procedure_id}")
        return execution

    def list(self) -> Sequence[ScriptExecution]:
        """Return all executions, oldest first."""
        return self._ordered

    def list_active(self) -> Mapping[int, ScriptExecution]:
        """Return the executions that decisions on others depend on, by procedure id; the finished ones are far more."""
        return self._active

    def wait(
        self, procedure_id: int, until: Callable[[ScriptExecution], bool], timeout_seconds: float
    ) -> ScriptExecution:
        """Wait until `until` holds for an execution; see `oet_crds.ports.ExecutionStore.wait`."""
        return self._waiters.wait(procedure_id, self.get, until, timeout_seconds)

    # ---- the timeline --------------------------------------------------------------------------------------------

    def last_id(self) -> int:
        """Return the id of the newest entry, 0 when there is none."""
        return self._last_id

    def wait_entries(self, after: int, timeout_seconds: float) -> bool:
        """Wait until an entry newer than `after` exists. Returns whether one does."""
        with self._news:
            return self._news.wait_for(lambda: self._last_id > after, timeout_seconds)

    def read_entries(
        self, after: int, limit: int, procedure_id: int | None = None, kinds: Collection[EntryKind] | None = None
    ) -> Sequence[TimelineEntry]:
        """Return entries after an id, in order, at most `limit`; None for a filter means all."""
        stored: Sequence[TimelineEntry] = ()
        entries = self._read_recent(after)
        if entries is None:
            # Asked first: what is written meanwhile is in both, and not in none.
            entries = self._unsaved.list_entries()
            stored = self._database.read_entries(after, limit, procedure_id, kinds)
            after = stored[-1].id if stored else after
        chosen = (
            entry
            for entry in entries
            if entry.id > after
            and (procedure_id is None or entry.procedure_id == procedure_id)
            and (kinds is None or entry.kind in kinds)
        )
        return [*stored, *(entry for entry, _ in zip(chosen, range(limit - len(stored)), strict=False))]

    def _read_recent(self, after: int) -> Sequence[TimelineEntry] | None:
        """Return the entries after an id from memory, None when memory does not reach back so far."""
        with self._news:
            if after >= self._last_id:
                return []
            if not self._recent or self._recent[0].id > after + 1:
                return None
            found = []
            for entry in reversed(self._recent):
                if entry.id <= after:
                    break
                found.append(entry)
        found.reverse()
        return found

    # ---- writing -------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self, *, durable: bool) -> Iterator[Transaction]:
        """Gather changes and write them at the end, holding the store's lock all the while.

        Args:
            durable: What to do when the disk takes nothing. True: nothing becomes visible, UnavailableError. False: the
                changes are the truth all the same (a script did end), are visible, and are written when the disk is back.
        """
        with self._lock:
            transaction = Transaction(self, self._last_id)
            yield transaction
            if not transaction.is_empty:
                self._write(transaction.build_statements(), transaction.entries, durable=durable)
                self._publish(transaction)

    @property
    def last_procedure_id(self) -> int:
        """The highest procedure id that was ever given."""
        return self._last_procedure_id

    def retry_unsaved(self) -> None:
        """Write what the disk did not take before."""
        with self._lock:
            if self._unsaved:
                self._write([], [], durable=False)

    def prune_entries(self) -> bool:
        """Delete some entries of removed executions. Returns whether more are left."""
        with self._lock:
            try:
                if self._unsaved or not self._database.has_pruned_entries():
                    return False
                self._database.write(build_delete_entries(PRUNE_ENTRIES_AT_ONCE))
                return self._database.has_pruned_entries()
            except sqlite3.Error as error:
                _log.warning("cannot delete entries of removed executions: %s", error)
                return False

    def _write(self, statements: _Statements, entries: Sequence[TimelineEntry], *, durable: bool) -> None:
        try:
            waiting = self._unsaved.build_statements()
            self._database.write([*waiting, *statements, *map(build_insert_entry, entries)])
        except sqlite3.Error as error:
            if self.write_error is None:
                _log.error("cannot write %s: %s", self._database.path, error)
            self.write_error = f"cannot write {self._database.path}: {error}"
            if durable:
                raise UnavailableError(
                    f"The store takes nothing: {self.write_error}. Free the disk and try again"
                ) from error
            self._unsaved.add(statements, entries)
        else:
            if self.write_error is not None:
                _log.info("writes %s again", self._database.path)
            self._unsaved.clear()
            self.write_error = None

    def _publish(self, transaction: Transaction) -> None:
        executions = dict(self._executions)
        executions.update(transaction.executions)
        for procedure_id in transaction.removed:
            executions.pop(procedure_id, None)
        if transaction.executions:
            self._last_procedure_id = max(self._last_procedure_id, *transaction.executions)
        active = {**self._active, **transaction.executions}
        gone = transaction.removed
        self._active = {number: one for number, one in active.items() if _is_active(one) and number not in gone}
        self._executions = executions
        self._ordered = tuple(executions.values())
        for procedure_id in transaction.executions:
            self._waiters.wake(procedure_id)
        for procedure_id in transaction.removed:
            self._waiters.dismiss(procedure_id)
        if transaction.entries:
            self._publish_entries(transaction.entries)

    def _publish_entries(self, entries: Sequence[TimelineEntry]) -> None:
        with self._news:
            self._last_id = entries[-1].id
            self._recent.extend(entries)
            self._recent_bytes += sum(_size(entry) for entry in entries)
            while self._recent_bytes > RECENT_BYTES and len(self._recent) > 1:
                self._recent_bytes -= _size(self._recent.popleft())
            self._news.notify_all()
