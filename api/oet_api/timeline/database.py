"""The timeline's database: one transaction at a time that adds, any number that read."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Dialect,
    Engine,
    Select,
    create_engine,
    delete,
    event,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from oet_api.timeline.rows import Record, Row, Stored, build_entry
from oet_api.timeline.schema import ENTRIES, HEAD, PROCEDURES
from oet_api.timeline.source import Source
from oet_crds.errors import UnavailableError
from oet_crds.execution import ScriptExecution, parse_execution
from oet_crds.settings import mask_password
from oet_crds.topics import EntryKind

__all__ = ["CHANNEL", "Database", "Transaction", "build_url", "is_away"]

CHANNEL = "oet_timeline"
"""PostgreSQL's channel on which servers tell each other of new entries."""

CONNECT_SECONDS = 3
"""How long a connection may take: requests wait for it."""

STATEMENT_SECONDS = 15
"""How long a statement may take; the longest wait is for the others' transactions, of some milliseconds each."""

IDLE_SECONDS = 10
"""How long a server may be silent within a transaction: one whose machine vanished must not keep the others from adding."""

_ALIVE = {"keepalives": 1, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
"""A server whose machine vanished is noticed within some 10 s, https://www.postgresql.org/docs/current/libpq-connect.html"""

UNACKNOWLEDGED_MILLISECONDS = 10_000
"""The same for what was sent and not acknowledged."""

SQLITE_BUSY_SECONDS = 5.0

_WRITE = {"oet_write": True}
_KNOWN = select(PROCEDURES.c.execution_uid, PROCEDURES.c.version, PROCEDURES.c.execution, PROCEDURES.c.removed_at)

PARSED_LIMIT = 2_000
"""Executions that are remembered as they were read: lists are asked for again and again."""


def build_url(text_: str) -> URL:
    """Return the database's address with the drivers that OET brings along. Raises UnavailableError."""
    try:
        url = make_url(text_)
    except ArgumentError as error:
        raise UnavailableError(
            f"OET_TIMELINE_DATABASE is no URL of a database: {mask_password(text_)!r}; "
            "write sqlite:////FOLDER/timeline.db or postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from error
    backend = url.get_backend_name()
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and url.database and url.database != ":memory:":
        return url.set(drivername="sqlite")
    raise UnavailableError(
        f"OET_TIMELINE_DATABASE = {mask_password(text_)}: it must be a PostgreSQL server or a file of SQLite"
    )


def is_away(error: BaseException) -> bool:
    """Tell whether an error says that the database cannot be used now, and nothing of what was asked of it.

    So does a server that takes no changes, for example because another one has taken over, or one that lacks a right.
    """
    return isinstance(error, DBAPIError | PoolTimeoutError) and not isinstance(error, DataError)


_POSTGRESQL: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy gives it no type
_TYPES = {column.name: column.type.compile(_POSTGRESQL) for column in ENTRIES.columns}

_INSERT_ARRAYS = text(
    f"INSERT INTO {ENTRIES.name} ({', '.join(_TYPES)}) "
    f"SELECT * FROM unnest({', '.join(f'CAST(:{name} AS {kind}[])' for name, kind in _TYPES.items())}) "
    "ON CONFLICT ON CONSTRAINT oet_entries_once DO NOTHING RETURNING id"
)
"""Ten arrays instead of ten values for each entry: three times as fast."""


class Transaction:
    """One transaction that adds. Ids are given when it began; nobody else can add until it has ended."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._insert: Any = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        row = connection.execute(select(HEAD.c.last_id).with_for_update()).one()
        self.base: int = row.last_id
        self._values: list[dict[str, Any]] = []
        self._records: dict[str, Record] = {}
        self._changed: set[str] = set()

    def add(self, rows: Sequence[Row]) -> int:
        """Add entries, in order; those that are stored already stay as they are. Returns the id of the first."""
        first = self.base + len(self._values) + 1
        self._values += [row.build_values(first + index) for index, row in enumerate(rows)]
        return first

    # ---- procedures ----------------------------------------------------------------------------------------------

    def put_execution(self, execution: ScriptExecution, now: float) -> None:
        """Store an execution as it is now, unless a newer version is there."""
        self.get_record(execution)
        values = {
            "version": int(execution.metadata.resource_version),
            "execution": json.dumps(execution.to_wire(), separators=(",", ":")),
        }
        where = (PROCEDURES.c.execution_uid == execution.uid) & (PROCEDURES.c.version < values["version"])
        self._connection.execute(update(PROCEDURES).where(where).values(**values))
        if execution.is_finished:
            where = (PROCEDURES.c.execution_uid == execution.uid) & (PROCEDURES.c.ended_at.is_(None))
            self._connection.execute(update(PROCEDURES).where(where).values(ended_at=now))

    def note_removed(self, uid: str, now: float) -> bool:
        """Note that an execution is gone. Returns whether that is news of one that is known here."""
        where = (PROCEDURES.c.execution_uid == uid) & (PROCEDURES.c.removed_at.is_(None))
        done = self._connection.execute(update(PROCEDURES).where(where).values(removed_at=now))
        where = (PROCEDURES.c.execution_uid == uid) & (PROCEDURES.c.ended_at.is_(None))
        self._connection.execute(update(PROCEDURES).where(where).values(ended_at=now))
        return done.rowcount > 0

    def list_unremoved(self) -> list[tuple[str, int, str]]:
        """Return uid, version and JSON of those that were not noted as gone."""
        wanted = select(PROCEDURES.c.execution_uid, PROCEDURES.c.version, PROCEDURES.c.execution)
        return [tuple(row) for row in self._connection.execute(wanted.where(PROCEDURES.c.removed_at.is_(None)))]

    def get_record(self, execution: ScriptExecution) -> Record:
        """Return what is known of an execution; it is stored from now on. Change it, then call `put_record`."""
        record = self._records.get(execution.uid)
        if record is not None:
            return record
        assert execution.procedure_id is not None
        found = self._connection.execute(
            select(PROCEDURES).where(PROCEDURES.c.execution_uid == execution.uid)
        ).one_or_none()
        if found is None:
            record = Record(execution.uid, execution.procedure_id)
            self._connection.execute(self._insert(PROCEDURES).values(**_build_first(execution)))
        else:
            origin = None if found.origin is None else Source(found.origin)
            record = Record(
                execution.uid,
                found.procedure_id,
                origin,
                found.runner_seq,
                found.runner_states,
                found.log_bytes,
                found.dropped,
                found.is_runner_done,
                found.is_end_told,
            )
        self._records[execution.uid] = record
        return record

    def put_record(self, record: Record) -> None:
        """Store what has changed."""
        self._changed.add(record.uid)

    # ---- the end -------------------------------------------------------------------------------------------------

    def flush(self) -> tuple[int, list[Stored]]:
        """Send what was added. Returns the newest id then, and what is new, in order."""
        for uid in self._changed:
            record = self._records[uid]
            values = {
                "origin": None if record.origin is None else str(record.origin),
                "runner_seq": record.runner_seq,
                "runner_states": record.runner_states,
                "log_bytes": record.log_bytes,
                "dropped": record.dropped,
                "is_runner_done": record.is_runner_done,
                "is_end_told": record.is_end_told,
            }
            self._connection.execute(update(PROCEDURES).where(PROCEDURES.c.execution_uid == uid).values(**values))
        if not self._values:
            return self.base, []
        new = self._insert_entries()
        stored = [build_entry(values) for values in self._values if values["id"] in new]
        if not stored:
            return self.base, []
        last = stored[-1].entry.id
        self._connection.execute(update(HEAD).values(last_id=last))
        if self._connection.dialect.name == "postgresql":
            self._connection.execute(text(f"SELECT pg_notify('{CHANNEL}', :last)"), {"last": str(last)})
        return last, stored

    def _insert_entries(self) -> set[int]:
        """Insert all that was added; return the ids of what was not there."""
        if self._connection.dialect.name == "sqlite":
            same = [ENTRIES.c.execution_uid, ENTRIES.c.source, ENTRIES.c.number]
            statement = self._insert(ENTRIES).on_conflict_do_nothing(index_elements=same).returning(ENTRIES.c.id)
            return set(self._connection.execute(statement, self._values).scalars())
        columns = {name: [values[name] for values in self._values] for name in _TYPES}
        return set(self._connection.execute(_INSERT_ARRAYS, columns).scalars())


def _build_first(execution: ScriptExecution) -> dict[str, Any]:
    return {
        "execution_uid": execution.uid,
        "procedure_id": execution.procedure_id,
        "version": 0,
        "execution": json.dumps(execution.to_wire(), separators=(",", ":")),
        "runner_seq": 0,
        "runner_states": 0,
        "log_bytes": 0,
        "dropped": 0,
        "is_runner_done": False,
        "is_end_told": False,
    }


class Database:
    """Connections to it. For any thread; every method raises UnavailableError when it does not answer."""

    def __init__(self, url: str, pool_size: int) -> None:
        """Remember where it is; nothing is asked of it yet. Raises UnavailableError when the URL is none."""
        self.url = build_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        arguments: dict[str, Any] = {"timeout": SQLITE_BUSY_SECONDS, "check_same_thread": False}
        if not self.is_sqlite:
            arguments = {
                "connect_timeout": CONNECT_SECONDS,
                "options": f"-c statement_timeout={STATEMENT_SECONDS}s -c idle_in_transaction_session_timeout={IDLE_SECONDS}s",
                "tcp_user_timeout": UNACKNOWLEDGED_MILLISECONDS,
                "application_name": "oet-api",
                **_ALIVE,
            }
        self._arguments = arguments
        self.engine: Engine = create_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=CONNECT_SECONDS,
            pool_pre_ping=not self.is_sqlite,
            connect_args=arguments,
        )
        if self.is_sqlite:
            event.listen(self.engine, "connect", _on_sqlite_connect)
            event.listen(self.engine, "begin", _on_sqlite_begin)
        self._writing = threading.Lock()
        self._parsed: dict[tuple[str, int], ScriptExecution] = {}

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Raise UnavailableError in place of what the driver says when the database does not answer."""
        try:
            yield
        except SQLAlchemyError as error:
            if is_away(error):
                raise UnavailableError(f"The timeline's database does not answer: {self.describe(error)}") from error
            raise

    def describe(self, error: BaseException) -> str:
        """Return what went wrong in one line, without the password."""
        origin = getattr(error, "orig", None) or error
        line = str(origin).strip().split("\n")[0]
        secret = self.url.password
        return line.replace(str(secret), "***") if secret else line

    # ---- writing -------------------------------------------------------------------------------------------------

    def write(self, jobs: Sequence[Callable[[Transaction], Any]]) -> tuple[list[Any], int, int, list[Stored]]:
        """Do jobs in one transaction; all is durable when this returns, or nothing is.

        Returns:
            What the jobs return, the newest id before, the newest id after, and the entries that are new.
        """
        with self._writing, self.engine.connect() as connection:
            if self.is_sqlite:
                connection = connection.execution_options(**_WRITE)
            with connection.begin():
                transaction = Transaction(connection)
                results = [job(transaction) for job in jobs]
                last, stored = transaction.flush()
            return results, transaction.base, last, stored

    # ---- reading -------------------------------------------------------------------------------------------------

    def read_last_id(self) -> int:
        """Return the id of the newest entry; 0 when there was none."""
        with self.translating(), self.engine.connect() as connection:
            return int(connection.execute(select(HEAD.c.last_id)).scalar_one())

    def read_entries(
        self, after: int, limit: int, uid: str | None = None, kinds: Collection[EntryKind] | None = None
    ) -> list[Stored]:
        """Return entries after an id, in order; None for a filter means all."""
        wanted = select(ENTRIES).where(ENTRIES.c.id > after).order_by(ENTRIES.c.id).limit(limit)
        if uid is not None:
            wanted = wanted.where(ENTRIES.c.execution_uid == uid)
        if kinds is not None:
            wanted = wanted.where(ENTRIES.c.kind.in_(sorted(str(kind) for kind in kinds)))
            if EntryKind.LOG not in kinds:
                wanted = wanted.where(text("kind <> 'log'"))  # as the index has it
        with self.translating(), self.engine.connect() as connection:
            return [build_entry(row._asdict()) for row in connection.execute(wanted)]

    def find_execution(self, procedure_id: int) -> tuple[ScriptExecution, bool] | None:
        """Return the execution of this procedure id as last seen, and whether it is gone; None when none was stored."""
        # A namespace that was made anew counts from 1 again: the one that was stored last is meant.
        wanted = _KNOWN.where(PROCEDURES.c.procedure_id == procedure_id).limit(1)
        return next(iter(self._read_executions(wanted.order_by(PROCEDURES.c.ended_at.desc().nulls_first()))), None)

    def read_executions(self, after: int, limit: int, *, is_backwards: bool) -> list[tuple[ScriptExecution, bool]]:
        """Return those with greater ids than `after`, as `find_execution` does; `is_backwards`: the greatest first."""
        number = PROCEDURES.c.procedure_id
        return self._read_executions(
            _KNOWN.where(number > after).order_by(number.desc() if is_backwards else number).limit(limit)
        )

    def _read_executions(self, wanted: Select[Any]) -> list[tuple[ScriptExecution, bool]]:
        with self.translating(), self.engine.connect() as connection:
            rows = list(connection.execute(wanted))
        return [
            (self._parse(row.execution_uid, row.version, row.execution), row.removed_at is not None) for row in rows
        ]

    def _parse(self, uid: str, version: int, text_: str) -> ScriptExecution:
        known = self._parsed.get((uid, version))
        if known is None:
            known = parse_execution(json.loads(text_))
            if len(self._parsed) >= PARSED_LIMIT:
                self._parsed.clear()
            self._parsed[uid, version] = known
        return known

    def open_listener(self) -> Any:
        """Return a connection of its own to PostgreSQL, psycopg's, that commits at once; the caller closes it."""
        import psycopg

        words, options = self.engine.dialect.create_connect_args(self.url)
        arguments = {**options, **self._arguments, "autocommit": True}
        return psycopg.connect(*words, **arguments)

    # ---- retention -----------------------------------------------------------------------------------------------

    @contextmanager
    def holding(self, key: int) -> Iterator[bool]:
        """Hold a lock that one server has at a time. Yields whether it is ours."""
        if self.is_sqlite:
            yield True
            return
        with self.translating(), self.engine.connect() as connection:
            is_ours = bool(connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar())
            connection.commit()
            try:
                yield is_ours
            finally:
                with contextlib.suppress(SQLAlchemyError):
                    connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": key})
                    connection.commit()

    def list_ended(self, before: float, limit: int) -> list[str]:
        """Return the uids of those that ended, and were removed, before a time in seconds since the epoch."""
        wanted = select(PROCEDURES.c.execution_uid).where(PROCEDURES.c.ended_at < before)
        with self.translating(), self.engine.connect() as connection:
            return list(connection.execute(wanted.order_by(PROCEDURES.c.ended_at).limit(limit)).scalars())

    def delete_some(self, uid: str, limit: int) -> bool:
        """Delete at most `limit` entries of an execution, and itself when none is left. Returns whether it is gone."""
        some = select(ENTRIES.c.id).where(ENTRIES.c.execution_uid == uid).limit(limit).scalar_subquery()
        with self.translating(), self._writing, self.engine.connect() as connection:
            if self.is_sqlite:
                connection = connection.execution_options(**_WRITE)
            with connection.begin():
                done = connection.execute(delete(ENTRIES).where(ENTRIES.c.id.in_(some)))
                is_gone = done.rowcount < limit
                if is_gone:
                    connection.execute(delete(PROCEDURES).where(PROCEDURES.c.execution_uid == uid))
        return is_gone


def _on_sqlite_connect(connection: Any, record: Any) -> None:
    # The driver's own idea of transactions would commit before a change of the schema.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = WAL")
    # A runner forgets what is acknowledged, so it has to be on the disk: https://www.sqlite.org/pragma.html#pragma_synchronous
    connection.execute("PRAGMA synchronous = FULL")


def _on_sqlite_begin(connection: Connection) -> None:
    is_writing = connection.get_execution_options().get("oet_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")
