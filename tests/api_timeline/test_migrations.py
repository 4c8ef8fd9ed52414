"""The database becomes what this OET needs, and one that is not for it is left alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from oet_support_timeline import Start
from sqlalchemy import Engine, Inspector, create_engine, inspect, text

from oet_api.timeline.database import Database, build_url
from oet_api.timeline.migrate import FOLDER, REVISIONS, VERSION_TABLE, migrate
from oet_api.timeline.schema import METADATA
from oet_api.timeline.store import TimelineStore
from oet_crds.errors import UnavailableError
from oet_crds.settings import TimelineSettings


@contextlib.contextmanager
def opening(url: str) -> Iterator[Engine]:
    engine = create_engine(build_url(url))
    yield engine
    engine.dispose()


def test_all_steps_are_known_without_alembic() -> None:
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    steps = ScriptDirectory.from_config(config).walk_revisions()
    assert tuple(reversed([step.revision for step in steps])) == REVISIONS


def test_empty_database_gets_the_tables_that_the_code_uses_and_keeps_them(url: str) -> None:
    for _ in range(2):
        database = Database(url, 3)
        migrate(database.engine, "test")
        database.close()
    with opening(url) as engine:
        check_tables(inspect(engine))


def check_tables(found: Inspector) -> None:
    assert set(found.get_table_names()) == {*METADATA.tables, VERSION_TABLE}
    for name, table in METADATA.tables.items():
        columns = {one["name"]: one["nullable"] for one in found.get_columns(name)}
        assert columns == {column.name: column.nullable for column in table.columns}
        assert {one["name"] for one in found.get_indexes(name)} >= {index.name for index in table.indexes}


def test_servers_that_start_at_once_migrate_one_after_the_other(postgres_url: str) -> None:
    failures: list[Exception] = []

    def run() -> None:
        database = Database(postgres_url, 3)
        try:
            migrate(database.engine, "test")
        except Exception as error:  # noqa: BLE001
            failures.append(error)
        database.close()

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_newer_database_is_refused_and_left_alone(url: str, start: Start) -> None:
    start(url).stop()
    with opening(url) as engine, engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(UnavailableError, match=r"9999.*a newer OET made it"):
        start(url)


def test_database_of_another_namespace_is_refused(url: str, start: Start) -> None:
    start(url)
    other = TimelineStore(TimelineSettings(database=url), "other")
    with pytest.raises(UnavailableError, match="belongs to the namespace test"):
        other.start()


@pytest.mark.parametrize("text_", ["nonsense", "mysql://u:secret@h/d", "sqlite://", "sqlite:///:memory:"])
def test_url_of_no_database_is_refused_without_its_password(text_: str) -> None:
    with pytest.raises(UnavailableError) as refused:
        build_url(text_)
    assert "secret" not in str(refused.value)


def test_migrations_travel_in_the_package() -> None:
    assert Path(__file__).parents[2] / "api/oet_api/timeline/migrations" == FOLDER
    assert {path.name for path in FOLDER.iterdir()} >= {"env.py", "versions"}
