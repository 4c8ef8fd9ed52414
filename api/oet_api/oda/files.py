"""The archive as files: `FOLDER/sbd/ID/VERSION.json` and `FOLDER/sbi/ID/VERSION.json`, a whole document each."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oet_api.oda.port import Sbd, build_missing, check_document, is_sbd_id
from oet_crds.errors import RequestRefusedError, UnavailableError

__all__ = ["FileOda"]

SBD_FOLDER, SBI_FOLDER = "sbd", "sbi"


class FileOda:
    """Implements `oet_api.oda.port.Oda`."""

    def __init__(self, folder: Path) -> None:
        """Use a folder; it is looked at when something is asked."""
        self._folder = folder

    def get_sbd(self, sbd_id: str) -> Sbd:
        """Return the latest version of a definition; see `oet_api.oda.port.Oda.get_sbd`."""
        if not is_sbd_id(sbd_id):
            raise build_missing(sbd_id, str(self._folder))
        folder = self._folder / SBD_FOLDER / sbd_id
        try:
            if not self._folder.is_dir():
                raise UnavailableError(f"There is no archive: {self._folder} is no folder. See [oda] in oet.ini")
            names = os.listdir(folder) if folder.is_dir() else []
            versions = {int(name[:-5]): name for name in names if name.endswith(".json") and _is_number(name[:-5])}
            if not versions:
                raise build_missing(sbd_id, str(self._folder))
            version = max(versions)
            text = (folder / versions[version]).read_bytes()
        except OSError as error:
            raise UnavailableError(f"The archive cannot be read: {error}") from error
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RequestRefusedError(f"{folder / versions[version]} is not JSON: {error}") from error
        return Sbd(sbd_id, version, check_document(sbd_id, document))

    def add_sbi(self, sbi: Mapping[str, Any]) -> None:
        """Store a new instance; see `oet_api.oda.port.Oda.add_sbi`."""
        folder = self._folder / SBI_FOLDER / str(sbi["sbi_id"])
        data = json.dumps(sbi, indent=1).encode()
        try:
            folder.mkdir(parents=True)
            _write(folder / "1.json", data)
        except OSError as error:
            with contextlib.suppress(OSError):
                folder.rmdir()
            raise UnavailableError(f"The archive does not take the SBInstance: {error}") from error


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _write(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, whenever the power goes."""
    fd, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    for folder in (path.parent, path.parent.parent):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
