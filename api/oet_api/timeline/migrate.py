"""Brings a database to the schema that this OET knows: by Alembic alone, one at a time, and never backwards."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, select, text
from sqlalchemy.dialects import postgresql, sqlite

from oet_api.timeline.schema import HEAD

__all__ = ["REVISIONS", "ForeignDatabaseError", "migrate"]

REVISIONS = ("0001",)
"""All steps, oldest first. Known here, so that Alembic is only imported when there is something to do."""

VERSION_TABLE = "oet_alembic_version"

LOCK = 7_105_471
"""Key of PostgreSQL's advisory lock: servers that start at once migrate one after the other."""

FOLDER = Path(__file__).parent / "migrations"


class ForeignDatabaseError(Exception):
    """The database is a newer OET's, or another deployment's: nothing may be read from it or written to it."""


def migrate(engine: Engine, namespace: str) -> None:
    """Make the tables, or change them to what this version needs; do nothing where they are so.

    Args:
        engine: The database.
        namespace: Whose timeline it is: procedure ids are unique within a namespace only.

    Raises:
        ForeignDatabaseError: It belongs to a newer version of OET, or to another namespace.
        sqlalchemy.exc.SQLAlchemyError: It does not answer.
    """
    with engine.connect() as connection, _locked(connection):
        revision = _observe_revision(connection)
        if revision not in (None, *REVISIONS):
            raise ForeignDatabaseError(
                f"the timeline's database has schema {revision}, and this OET knows {REVISIONS[-1]}: a newer OET made it. "
                "Start that version, or set OET_TIMELINE_DATABASE to another database"
            )
        if revision != REVISIONS[-1]:
            _upgrade(connection)
        _claim(connection, namespace)


@contextmanager
def _locked(connection: Connection) -> Iterator[None]:
    """Hold a lock that other servers respect, whatever becomes of this one."""
    if connection.dialect.name == "sqlite":
        file = Path(str(connection.engine.url.database))
        with file.with_name(f"{file.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        return
    # Of the session, because each migration has a transaction of its own; its connection's end frees it as well.
    # A change of a large table takes its time.
    connection.execute(text("SET statement_timeout = 0"))
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK})
    connection.commit()
    try:
        yield
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK})
        connection.execute(text("RESET statement_timeout"))
        connection.commit()


def _observe_revision(connection: Connection) -> str | None:
    has_table = inspect(connection).has_table(VERSION_TABLE)
    found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar() if has_table else None
    connection.commit()
    return found


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.attributes.update(connection=connection, version_table=VERSION_TABLE)
    command.upgrade(config, "head")
    connection.commit()


def _claim(connection: Connection, namespace: str) -> None:
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    connection.execute(insert(HEAD).values(one=1, last_id=0, namespace=namespace).on_conflict_do_nothing())
    owner = connection.execute(select(HEAD.c.namespace)).scalar_one()
    connection.commit()
    if owner != namespace:
        raise ForeignDatabaseError(
            f"the timeline's database belongs to the namespace {owner}, and this server is of {namespace}: "
            "give each deployment a database of its own (OET_TIMELINE_DATABASE)"
        )
