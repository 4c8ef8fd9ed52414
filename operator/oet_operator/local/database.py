"""The SQLite file of the local engine: schema, writing in transactions, reading old entries.

One connection writes (the caller holds the store's lock), another reads, so that a long read never delays a stop.
Write-ahead log with `synchronous=NORMAL`: a commit survives the death of any process; after a loss of power the last
moments may be missing, the file never is (https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from oet_crds.execution import Metadata, ScriptExecution, ScriptExecutionSpec, ScriptExecutionStatus
from oet_crds.ports import TimelineEntry
from oet_crds.topics import EntryKind
from oet_operator.local.folder import make_private

__all__ = ["Database", "Statement", "build_delete", "build_delete_entries", "build_insert_entry", "build_upsert"]

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE executions (
    procedure_id INTEGER PRIMARY KEY AUTOINCREMENT,
    metadata TEXT NOT NULL,
    spec TEXT NOT NULL,
    status TEXT NOT NULL
);
CREATE TABLE entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    procedure_id INTEGER NOT NULL,
    seq INTEGER,
    time REAL NOT NULL,
    kind TEXT NOT NULL,
    topic TEXT NOT NULL,
    payload TEXT NOT NULL
);
CREATE TABLE pruned (procedure_id INTEGER PRIMARY KEY);
CREATE UNIQUE INDEX entries_once ON entries (procedure_id, seq) WHERE seq IS NOT NULL;
CREATE INDEX entries_by_procedure ON entries (procedure_id, id);
"""

Statement = tuple[str, tuple[Any, ...]]
"""One SQL statement with its parameters."""


def build_upsert(execution: ScriptExecution) -> Statement:
    """Return the statement that stores an execution as it is now."""
    return (
        "INSERT INTO executions (procedure_id, metadata, spec, status) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (procedure_id) DO UPDATE SET metadata = excluded.metadata, spec = excluded.spec, "
        "status = excluded.status",
        (
            execution.procedure_id,
            execution.metadata.model_dump_json(by_alias=True, exclude_none=True),
            execution.spec.model_dump_json(by_alias=True, exclude_none=True),
            execution.status.model_dump_json(by_alias=True, exclude_none=True),
        ),
    )


def build_insert_entry(entry: TimelineEntry) -> Statement:
    """Return the statement that stores a timeline entry; one that is stored already stays as it is."""
    return (
        "INSERT OR IGNORE INTO entries (id, procedure_id, seq, time, kind, topic, payload) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            entry.id,
            entry.procedure_id,
            entry.seq,
            entry.time,
            str(entry.kind),
            entry.topic,
            json.dumps(entry.payload, separators=(",", ":")),
        ),
    )


def build_delete(procedure_id: int) -> tuple[Statement, Statement]:
    """Return the statements that remove an execution and note that its entries are to go (`build_delete_entries`)."""
    return (
        ("DELETE FROM executions WHERE procedure_id = ?", (procedure_id,)),
        ("INSERT OR IGNORE INTO pruned VALUES (?)", (procedure_id,)),
    )


def build_delete_entries(limit: int) -> tuple[Statement, Statement]:
    """Return the statements that remove entries of one execution that is gone, at most `limit` of them.

    In pieces, because removing the log of a talkative script at once would keep the one writer from a stop.
    """
    return (
        (
            "DELETE FROM entries WHERE id IN "
            "(SELECT id FROM entries WHERE procedure_id = (SELECT min(procedure_id) FROM pruned) LIMIT ?)",
            (limit,),
        ),
        (
            "DELETE FROM pruned WHERE procedure_id = (SELECT min(procedure_id) FROM pruned) "
            "AND procedure_id NOT IN (SELECT procedure_id FROM entries)",
            (),
        ),
    )


class Database:
    """The file. `write` is for one caller at a time; `read_entries` is for any thread."""

    def __init__(self, path: Path) -> None:
        """Open the file, and create or check its schema.

        Raises:
            OSError: The file cannot be opened, or is a link.
            sqlite3.Error: It is not a database.
            RuntimeError: The file was written by a newer version of OET.
        """
        self.path = path
        # SQLite gives the files beside it the same mode, unless they are there from earlier.
        for ending in ("", "-wal", "-shm"):
            if not ending or Path(f"{path}{ending}").is_file():
                make_private(Path(f"{path}{ending}"))
        self._writer = self._connect()
        # The checkpoint's fsync is the slow part of SQLite; `checkpoint` does it where nobody waits.
        self._writer.execute("PRAGMA wal_autocheckpoint = 0")
        self._create_schema()
        self._reader = self._connect()
        self._reader_lock = threading.Lock()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5.0)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def _create_schema(self) -> None:
        version = self._writer.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise RuntimeError(
                f"{self.path} was written by a newer OET (schema {version}, this one knows {SCHEMA_VERSION}): "
                "start that version, or give another OET_STATE_DIR"
            )
        if version == 0:
            self._writer.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
            self.write([("INSERT INTO meta VALUES ('store_id', ?)", (uuid.uuid4().hex,))])

    def write(self, statements: Iterable[Statement]) -> None:
        """Execute all statements in one transaction; either all of them are durable when this returns, or none.

        Raises:
            sqlite3.Error: Nothing was written.
        """
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            for sql, parameters in statements:
                self._writer.execute(sql, parameters)
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise

    def has_pruned_entries(self) -> bool:
        """Tell whether entries of removed executions are still to be deleted."""
        return bool(self._writer.execute("SELECT EXISTS (SELECT 1 FROM pruned)").fetchone()[0])

    def checkpoint(self) -> None:
        """Move the write-ahead log into the file, without getting in the way of writers."""
        with self._reader_lock:
            self._reader.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Close both connections; the last one out folds the write-ahead log into the file."""
        with self._reader_lock:
            self._reader.close()
        self._writer.close()

    def read_store_id(self) -> str:
        """Return the identity of this store, made with the file."""
        return str(self._writer.execute("SELECT value FROM meta WHERE key = 'store_id'").fetchone()[0])

    def read_executions(self) -> list[ScriptExecution]:
        """Return all executions, oldest first."""
        rows = self._writer.execute("SELECT metadata, spec, status FROM executions ORDER BY procedure_id")
        return [
            ScriptExecution(
                metadata=Metadata.model_validate_json(metadata),
                spec=ScriptExecutionSpec.model_validate_json(spec),
                status=ScriptExecutionStatus.model_validate_json(status),
            )
            for metadata, spec, status in rows
        ]

    def read_last_id(self, table: str) -> int:
        """Return the highest number that a table's key ever had, also if that row is gone; 0 for none."""
        row = self._writer.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        return int(row[0]) if row else 0

    def read_entries(
        self, after: int, limit: int, procedure_id: int | None, kinds: Collection[EntryKind] | None
    ) -> Sequence[TimelineEntry]:
        """Return stored entries after an id, in order, at most `limit`; None for a filter means all."""
        where, parameters = ["id > ?"], [after]
        if procedure_id is not None:
            where.append("procedure_id = ?")
            parameters.append(procedure_id)
        if kinds is not None:
            where.append(f"kind IN ({', '.join('?' * len(kinds))})")
            parameters += [str(kind) for kind in kinds]  # type: ignore[misc]
        sql = (
            "SELECT id, procedure_id, seq, time, kind, topic, payload FROM entries "
            f"WHERE {' AND '.join(where)} ORDER BY id LIMIT ?"
        )
        with self._reader_lock:
            rows = self._reader.execute(sql, [*parameters, limit]).fetchall()
        return [
            TimelineEntry(id_, procedure, seq, time, EntryKind(kind), topic, json.loads(payload))
            for id_, procedure, seq, time, kind, topic, payload in rows
        ]
