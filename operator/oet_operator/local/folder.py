"""The state folder: one engine's at a time, and nobody else's business: arguments and logs of scripts are in it."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import IO

from oet_crds.errors import UnavailableError

__all__ = ["lock_folder", "make_private"]

_OWNER_ONLY = 0o600


def lock_folder(folder: Path) -> IO[bytes]:
    """Make the state folder and take its lock, so that two engines never share a store.

    Returns:
        The open lock file; closing it gives the lock back.

    Raises:
        UnavailableError: It cannot be used, another engine uses it, or others could write into it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if problem := _find_problem(folder):
            raise UnavailableError(f"the state folder {folder} is not used: {problem}, or set OET_STATE_DIR to another")
        lock_file = os.fdopen(_open_private(folder / "lock"), "r+b")
    except OSError as error:
        raise UnavailableError(
            f"cannot use the state folder {folder}: {error}; set OET_STATE_DIR to another"
        ) from error
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock_file.close()
        raise UnavailableError(f"another OET uses the state folder {folder}: end it, or set OET_STATE_DIR") from error
    return lock_file


def _find_problem(folder: Path) -> str | None:
    """Say who else could put files into a folder, and what to do; None when nobody could. Root always can."""
    found = folder.stat()
    if found.st_uid not in (os.geteuid(), 0):
        return (
            f"it belongs to user {found.st_uid}, who could change what OET finds there: give it to user {os.geteuid()}"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write into it (mode {stat.S_IMODE(found.st_mode):04o}): chmod go-w it"
    return None


def make_private(path: Path) -> None:
    """See to it that a file is there, and that its owner alone reads and writes it, whatever the umask.

    Raises:
        OSError: It cannot be made so, or is a link: it would lead out of the folder.
    """
    os.close(_open_private(path))


def _open_private(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, _OWNER_ONLY)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is no plain file")
        if stat.S_IMODE(found.st_mode) != _OWNER_ONLY:
            os.fchmod(descriptor, _OWNER_ONLY)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
