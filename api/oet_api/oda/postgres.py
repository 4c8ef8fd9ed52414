"""The archive in PostgreSQL: the tables of ska-db-oda, as far as activities need them.

The tables belong to the archive: they are never made or changed from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import URL, Column, Integer, MetaData, Table, Text, create_engine, select
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.exc import SQLAlchemyError

from oet_api.oda.port import Sbd, build_missing, check_document, is_sbd_id
from oet_crds.errors import UnavailableError
from oet_crds.settings import OdaSettings

__all__ = ["PostgresOda", "build_tables"]

POOL_SIZE = 2
"""Connections that stay open: an activity needs one for some milliseconds, twice."""

POOL_OVERFLOW = 6
"""More of them while many activities are asked for at once."""


def build_tables(settings: OdaSettings) -> tuple[Table, Table]:
    """Return the tables of definitions and of instances. Pure.

    The columns are those of ska-db-oda's `create_tables.sql`.
    """
    metadata = MetaData()

    def build(name: str, *columns: Column[Any]) -> Table:
        return Table(
            name,
            metadata,
            Column("id", Integer, primary_key=True),
            *columns,
            Column("info", JSONB, nullable=False),
            Column("version", Integer, nullable=False, server_default="1"),
            Column("created_by", Text, nullable=False),
            Column("created_on", TIMESTAMP, nullable=False),
            Column("last_modified_by", Text, nullable=False),
            Column("last_modified_on", TIMESTAMP, nullable=False),
        )

    sbd = build(settings.sbd_table, Column("sbd_id", Text, nullable=False))
    sbi = build(
        settings.sbi_table,
        Column("sbi_id", Text, nullable=False),
        Column("sbd_id", Text, nullable=False),
        Column("sbd_version", Integer, nullable=False),
    )
    return sbd, sbi


class PostgresOda:
    """Implements `oet_api.oda.port.Oda`."""

    def __init__(self, settings: OdaSettings) -> None:
        """Use a database; no connection is made before something is asked."""
        self._where = f"{settings.postgres_database} at {settings.postgres_host}:{settings.postgres_port}"
        self._sbd, self._sbi = build_tables(settings)
        url = URL.create(
            "postgresql+psycopg",
            settings.postgres_user,
            settings.postgres_password.get_secret_value() or None,
            settings.postgres_host,
            settings.postgres_port,
            settings.postgres_database,
        )
        milliseconds = int(settings.timeout_seconds * 1000)
        self._engine = create_engine(
            url,
            pool_size=POOL_SIZE,
            max_overflow=POOL_OVERFLOW,
            pool_timeout=settings.timeout_seconds,
            # A connection that the server or a firewall closed meanwhile is replaced, not reported.
            pool_pre_ping=True,
            connect_args={
                # libpq counts whole seconds, and takes one for two.
                "connect_timeout": max(2, round(settings.timeout_seconds)),
                "options": f"-c statement_timeout={milliseconds}",
            },
        )

    def get_sbd(self, sbd_id: str) -> Sbd:
        """Return the latest version of a definition; see `oet_api.oda.port.Oda.get_sbd`."""
        if not is_sbd_id(sbd_id):
            raise build_missing(sbd_id, self._where)
        table = self._sbd.c
        latest = (
            select(table.version, table.info)
            .where(table.sbd_id == sbd_id)
            .order_by(table.version.desc(), table.id.desc())
            .limit(1)
        )
        try:
            with self._engine.connect() as connection:
                row = connection.execute(latest).first()
        except SQLAlchemyError as error:
            raise self._build_unavailable(error) from error
        if row is None:
            raise build_missing(sbd_id, self._where)
        return Sbd(sbd_id, row.version, check_document(sbd_id, row.info))

    def add_sbi(self, sbi: Mapping[str, Any]) -> None:
        """Store a new instance; see `oet_api.oda.port.Oda.add_sbi`."""
        metadata = sbi["metadata"]
        # The archive's columns have no time zone; its times are UTC.
        now = datetime.fromisoformat(metadata["created_on"]).astimezone(UTC).replace(tzinfo=None)
        who = metadata["created_by"]
        row = {
            **{name: sbi[name] for name in ("sbi_id", "sbd_version")},
            "sbd_id": sbi["sbd_ref"],
            "info": dict(sbi),
            "version": metadata["version"],
            "created_by": who,
            "created_on": now,
            "last_modified_by": who,
            "last_modified_on": now,
        }
        try:
            with self._engine.begin() as connection:
                connection.execute(self._sbi.insert().values(row))
        except SQLAlchemyError as error:
            raise self._build_unavailable(error) from error

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def _build_unavailable(self, error: SQLAlchemyError) -> UnavailableError:
        # The first line of the driver's own words; the rest repeats the statement and what is in it.
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()
        return UnavailableError(
            f"The archive {self._where} does not answer: {cause[0] if cause else type(error).__name__}"
        )
