"""The tables of the lasting timeline. The database itself is made and changed by the migrations alone."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

__all__ = ["ENTRIES", "HEAD", "METADATA", "PROCEDURES"]

METADATA = MetaData()

HEAD = Table(
    "oet_head",
    METADATA,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("last_id", BigInteger, nullable=False),
    Column("namespace", Text, nullable=False),
)
"""One row. Who adds entries holds its lock until the commit: so ids grow in the order in which entries become visible."""

ENTRIES = Table(
    "oet_entries",
    METADATA,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("execution_uid", Text, nullable=False),
    Column("procedure_id", BigInteger, nullable=False),
    Column("source", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("seq", BigInteger),
    Column("time", Double, nullable=False),
    Column("kind", Text, nullable=False),
    Column("topic", Text, nullable=False),
    Column("payload", Text, nullable=False),
    UniqueConstraint("execution_uid", "source", "number", name="oet_entries_once"),
    Index("oet_entries_by_execution", "execution_uid", "id"),
    Index("oet_entries_on_stream", "id", postgresql_where=text("kind <> 'log'"), sqlite_where=text("kind <> 'log'")),
)
"""What happened. `source` and `number` say who told it: what is told twice is stored once."""

PROCEDURES = Table(
    "oet_procedures",
    METADATA,
    Column("execution_uid", Text, primary_key=True),
    Column("procedure_id", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("execution", Text, nullable=False),
    Column("ended_at", Double),
    Column("removed_at", Double),
    Column("origin", Text),
    Column("runner_seq", BigInteger, nullable=False),
    Column("runner_states", Integer, nullable=False),
    Column("log_bytes", BigInteger, nullable=False),
    Column("dropped", BigInteger, nullable=False),
    Column("is_runner_done", Boolean, nullable=False),
    Column("is_end_told", Boolean, nullable=False),
    Index("oet_procedures_by_id", "procedure_id"),
    Index("oet_procedures_by_end", "ended_at"),
)
"""Executions as last seen, and how far their runners' entries are stored."""
