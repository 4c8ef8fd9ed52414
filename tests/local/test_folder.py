"""The state folder is its owner's alone: others can neither read it nor put anything into it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from oet_crds.errors import UnavailableError
from oet_crds.settings import EngineSettings
from oet_operator.local.database import Database
from oet_operator.local.engine import LocalEngine
from oet_operator.local.folder import lock_folder, make_private


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def _open_umask() -> object:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_open_umask")
def test_files_are_their_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    lock_folder(folder).close()
    database = Database(folder / "oet.sqlite3")
    assert _mode(folder) == 0o700
    assert {path.name: _mode(path) for path in folder.iterdir()} == dict.fromkeys(
        ["lock", "oet.sqlite3", "oet.sqlite3-wal", "oet.sqlite3-shm"], 0o600
    )
    database.close()


def test_files_that_an_older_release_left_open_are_closed_to_others(tmp_path: Path) -> None:
    first = Database(tmp_path / "oet.sqlite3")
    for path in tmp_path.iterdir():
        path.chmod(0o644)
    second = Database(tmp_path / "oet.sqlite3")
    assert {_mode(path) for path in tmp_path.iterdir()} == {0o600}
    second.close()
    first.close()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o2775, 0o702])
def test_folder_that_others_may_write_is_refused_with_words(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UnavailableError, match=r"others may write into it \(mode .*chmod go-w") as refused:
        LocalEngine(EngineSettings(state_dir=str(folder)))
    assert str(folder) in str(refused.value)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755])
def test_folder_that_others_may_only_read_is_taken(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    lock_folder(folder).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_folder_of_somebody_else_is_refused_with_words(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    with pytest.raises(UnavailableError, match="belongs to user 65534"):
        lock_folder(folder)


@pytest.mark.parametrize("name", ["lock", "oet.sqlite3", "oet.sqlite3-wal"])
def test_link_is_not_followed(tmp_path: Path, name: str) -> None:
    folder, precious = tmp_path / "state", tmp_path / "precious"
    folder.mkdir()
    precious.write_text("precious")
    folder.joinpath(name).symlink_to(precious)
    with pytest.raises(UnavailableError, match="symbolic link"):
        LocalEngine(EngineSettings(state_dir=str(folder)))
    assert precious.read_text() == "precious"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(OSError, match="no plain file"):
        make_private(tmp_path / "lock")
