"""What every archive back-end promises to activities: on files, and on a real PostgreSQL."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from oet_support import find_free_port
from oet_support_postgres import Postgres, running_postgres
from sqlalchemy import create_engine, make_url, select

from oet_api.oda.choose import build_oda
from oet_api.oda.files import FileOda
from oet_api.oda.port import Oda, is_sbd_id
from oet_api.oda.postgres import PostgresOda, build_tables
from oet_crds.errors import NotFoundError, RequestRefusedError, UnavailableError
from oet_crds.settings import OdaBackend, OdaSettings

AT = datetime(2026, 11, 26, 12, tzinfo=UTC)


def build_sbi(number: int = 1) -> dict[str, Any]:
    """Return an instance as activities make it."""
    stamp = AT.isoformat()
    metadata = {"version": 1, "created_by": "alice", "created_on": stamp}
    return {"sbi_id": f"sbi-{number}", "sbd_ref": "sbd-1", "sbd_version": 3, "metadata": metadata, "activities": []}


class Archive:
    """A back-end, and what its owner does with it behind its back."""

    def __init__(self, oda: Oda, put: Callable[[str, int, Any], None], read_sbis: Callable[[], list[Any]]) -> None:
        self.oda = oda
        self.put = put
        self.read_sbis = read_sbis


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


def _build_settings(url: str) -> OdaSettings:
    parts = make_url(url)
    return OdaSettings(
        backend=OdaBackend.POSTGRES,
        postgres_host=str(parts.host),
        postgres_port=int(parts.port or 0),
        postgres_database=str(parts.database),
        postgres_user=str(parts.username),
        timeout_seconds=2,
    )


@pytest.fixture(params=[str(backend) for backend in OdaBackend])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Archive]:
    if request.param == OdaBackend.FILESYSTEM:
        yield _build_files(tmp_path)
        return
    url = request.getfixturevalue("postgres").make_database()
    settings = _build_settings(url)
    sbd, sbi = build_tables(settings)
    engine = create_engine(url)
    sbd.metadata.create_all(engine)

    def put(sbd_id: str, version: int, document: Any) -> None:
        who = {"created_by": "x", "created_on": AT, "last_modified_by": "x", "last_modified_on": AT}
        with engine.begin() as connection:
            connection.execute(sbd.insert().values(sbd_id=sbd_id, version=version, info=document, **who))

    def read_sbis() -> list[Any]:
        with engine.connect() as connection:
            return [row.info for row in connection.execute(select(sbi.c.info).order_by(sbi.c.sbi_id))]

    with closing(PostgresOda(settings)) as oda:
        yield Archive(oda, put, read_sbis)
    engine.dispose()


def _build_files(folder: Path) -> Archive:
    def put(sbd_id: str, version: int, document: Any) -> None:
        path = folder / "sbd" / sbd_id / f"{version}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))

    def read_sbis() -> list[Any]:
        return [json.loads(path.read_text()) for path in sorted(folder.glob("sbi/*/*.json"))]

    return Archive(FileOda(folder), put, read_sbis)


def test_latest_version_is_found_by_number_and_not_by_name(archive: Archive) -> None:
    for version in (9, 10, 2):
        archive.put("sbd-1", version, {"version": version})
    archive.put("sbd-2", 11, {"version": 11})
    found = archive.oda.get_sbd("sbd-1")
    assert (found.sbd_id, found.version, found.document) == ("sbd-1", 10, {"version": 10})


@pytest.mark.parametrize("sbd_id", ["sbd-9", "", "..", "../sbd-1", "a/b", "a\0b", "x" * 300, "'; drop table x; --"])
def test_definition_that_is_not_there_is_not_found_whatever_its_name(archive: Archive, sbd_id: str) -> None:
    archive.put("sbd-1", 1, {})
    with pytest.raises(NotFoundError, match="No SBDefinition"):
        archive.oda.get_sbd(sbd_id)


def test_definition_that_is_no_object_is_refused(archive: Archive) -> None:
    archive.put("sbd-1", 1, ["not", "an", "object"])
    with pytest.raises(RequestRefusedError, match="sbd-1"):
        archive.oda.get_sbd("sbd-1")


def test_instance_is_stored_as_it_is(archive: Archive) -> None:
    archive.oda.add_sbi(build_sbi())
    assert archive.read_sbis() == [build_sbi()]


def test_many_instances_at_once_are_all_stored(archive: Archive) -> None:
    threads = [threading.Thread(target=archive.oda.add_sbi, args=[build_sbi(number)]) for number in range(1, 21)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one["sbi_id"] for one in archive.read_sbis()) == sorted(f"sbi-{number}" for number in range(1, 21))


# ---- each in its own way ---------------------------------------------------------------------------------------------


def test_instances_row_says_who_and_when_in_columns_too(postgres: Postgres) -> None:
    url = postgres.make_database()
    settings = _build_settings(url)
    _, sbi = build_tables(settings)
    engine = create_engine(url)
    sbi.metadata.create_all(engine)
    with closing(PostgresOda(settings)) as oda:
        oda.add_sbi(build_sbi())
    with engine.connect() as connection:
        row = connection.execute(select(sbi)).one()
    engine.dispose()
    assert (row.sbi_id, row.sbd_id, row.sbd_version, row.version) == ("sbi-1", "sbd-1", 3, 1)
    assert (row.created_by, row.created_on) == ("alice", AT.replace(tzinfo=None))


@pytest.mark.parametrize("has_server", [False, True], ids=["no_server", "no_tables"])
def test_database_that_cannot_serve_is_unavailable_soon_and_in_one_line(postgres: Postgres, has_server: bool) -> None:
    settings = _build_settings(postgres.make_database())
    if not has_server:
        settings = settings.model_copy(update={"postgres_port": find_free_port()})
    with closing(PostgresOda(settings)) as oda:
        for ask in (lambda: oda.get_sbd("sbd-1"), lambda: oda.add_sbi(build_sbi())):
            with pytest.raises(UnavailableError, match=settings.postgres_database) as raised:
                ask()
            assert "\n" not in str(raised.value)


def test_database_that_was_away_serves_again(postgres: Postgres) -> None:
    url = postgres.make_database()
    settings = _build_settings(url)
    sbd, _ = build_tables(settings)
    engine = create_engine(url)
    sbd.metadata.create_all(engine)
    engine.dispose()
    with closing(PostgresOda(settings)) as oda:
        oda.add_sbi(build_sbi())
        postgres.kill()
        postgres.start()
        oda.add_sbi(build_sbi(2))
        with pytest.raises(NotFoundError):
            oda.get_sbd("sbd-9")


def test_folder_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"\[oda\]"):
        FileOda(tmp_path / "nowhere").get_sbd("sbd-1")


def test_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sbd/sbd-1").mkdir(parents=True)
    (tmp_path / "sbd/sbd-1/1.json").write_text("{")
    with pytest.raises(RequestRefusedError, match=r"1\.json is not JSON"):
        FileOda(tmp_path).get_sbd("sbd-1")


def test_file_that_cannot_be_read_or_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "sbd/sbd-1/1.json").mkdir(parents=True)
    (tmp_path / "sbi").write_text("in the way")
    with pytest.raises(UnavailableError, match="cannot be read"):
        FileOda(tmp_path).get_sbd("sbd-1")
    with pytest.raises(UnavailableError, match="does not take"):
        FileOda(tmp_path).add_sbi(build_sbi())


def test_instance_is_never_overwritten(tmp_path: Path) -> None:
    FileOda(tmp_path).add_sbi(build_sbi())
    with pytest.raises(UnavailableError):
        FileOda(tmp_path).add_sbi({**build_sbi(), "activities": ["other"]})
    assert json.loads((tmp_path / "sbi/sbi-1/1.json").read_text()) == build_sbi()


def test_settings_choose_the_archive(tmp_path: Path) -> None:
    assert isinstance(build_oda(OdaSettings(data_dir=str(tmp_path))), FileOda)
    assert isinstance(build_oda(OdaSettings(backend=OdaBackend.POSTGRES)), PostgresOda)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "oet_api.oda.postgres", None)
    with pytest.raises(UnavailableError, match="ODA_BACKEND_TYPE=filesystem"):
        build_oda(OdaSettings(backend=OdaBackend.POSTGRES))


@pytest.mark.parametrize(("text", "good"), [("sbd-1", True), ("a.b_c", True), (".", False), ("-", False), ("ä", False)])
def test_id_is_a_word_and_no_path(text: str, good: bool) -> None:
    assert is_sbd_id(text) is good
