"""Folders that are made once and shared by runners on one volume: commits and environments; and folders of one execution each.

A folder is made under a name that nothing else has, and becomes visible by a symbolic link that is put in place in one step: who
finds the link finds it whole, and its path never changes. Who uses a folder holds a shared lock on the file `lock` in it for as
long as its process lives; who removes one takes that lock alone. The kernel gives back the locks of the dead.

Scripts may be able to write here. So whatever is found may be anything: a name that is no link to a folder beside it, or a lock
that somebody else holds, counts for nothing that is there; and what a folder holds is for `is_good` to judge.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Iterator

__all__ = ["Cache"]

LOCK = "lock"
SIZE = "size"
_MAKING = "making"
_SIZE_DIGITS = 20
"""2^64 has as many."""

UNLOCKED_SECONDS = 3600.0
"""A folder without a lock file was left by who died between two system calls, or is being made this moment."""


class Cache:
    """The folders of one cache. Not for several threads."""

    def __init__(self, folder: str, limit_bytes: int) -> None:
        """Take a folder, which is made where it is missing.

        Args:
            folder: Where all is kept.
            limit_bytes: Folders that nobody uses are removed, those that were used longest ago first, until all is under it.

        Raises:
            OSError: It cannot be made or used.
        """
        self._folder = folder
        self._limit_bytes = limit_bytes
        making = os.path.join(folder, _MAKING)
        if os.path.islink(making):
            os.unlink(making)
        os.makedirs(making, mode=0o700, exist_ok=True)

    def take(self, name: str, make: Callable[[str], None], is_good: Callable[[str], bool]) -> str:
        """Return the folder of a name, made if it is not there; it stays while this process lives.

        Args:
            name: Must be a plain file name.
            make: Fills the new, empty folder. What it raises is raised, and nothing is kept.
            is_good: Tells whether a folder that is there can be used; one that cannot is replaced.

        Raises:
            OSError: The cache cannot be read or written.
        """
        found = self._find(name, is_good)
        if found is not None:
            return found
        making = self._lock_alone(os.path.join(self._folder, _MAKING, name))
        try:
            found = self._find(name, is_good)  # Somebody else may have made it meanwhile.
            if found is not None:
                return found
            self.prune()
            fresh = self._make(name, make)
            self.prune()
            return fresh
        finally:
            os.close(making)

    def make_own(self, name: str) -> str:
        """Return a new folder of this process alone, which is anybody's to remove once the process has ended.

        Raises:
            OSError: It cannot be made.
        """
        folder, _ = self._begin(name)
        return folder

    def sweep(self, name: str) -> None:
        """Remove the folders that `make_own` made for processes that have ended. Raises OSError."""
        for entry in os.listdir(self._folder):
            if entry.startswith(f"{name}."):
                self._remove_unused(os.path.join(self._folder, entry), None)

    def _find(self, name: str, is_good: Callable[[str], bool]) -> str | None:
        """Return a folder that is there and good, locked against removal; None where there is none."""
        try:
            target = os.readlink(os.path.join(self._folder, name))
            folder = os.path.join(self._folder, target)
            if os.path.basename(target) != target or not stat.S_ISDIR(os.lstat(folder).st_mode):
                return None
            lock = os.open(os.path.join(folder, LOCK), os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            # Who holds it alone is removing the folder, or wants us to wait for ever.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if _is_same(lock, os.path.join(folder, LOCK)) and is_good(folder):
                os.utime(lock)  # When it was last used.
                lock = -1  # The lock stays open: it is what keeps the folder.
                return folder
        except BlockingIOError:
            return None
        finally:
            if lock != -1:
                os.close(lock)
        return None

    @staticmethod
    def _lock_alone(path: str) -> int:
        """Wait for a lock file, and return it open; closing it gives it back."""
        while True:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_same(lock, path):
                return lock
            os.close(lock)  # It was removed while we waited.

    def _make(self, name: str, make: Callable[[str], None]) -> str:
        fresh, lock = self._begin(name)
        try:
            make(fresh)
            size = _make_read_only(fresh)
            with open(os.path.join(fresh, SIZE), "w", encoding="ascii") as file:
                file.write(str(size))
            self._publish(fresh, name)
        except Exception:
            os.close(lock)
            _remove(fresh)
            raise
        except BaseException:
            os.close(lock)  # A stop must not wait for a large folder to be removed: who makes the next one does that.
            raise
        return fresh

    def _publish(self, fresh: str, name: str) -> None:
        path, link = os.path.join(self._folder, name), f"{fresh}.link"
        os.symlink(os.path.basename(fresh), link)
        try:
            os.replace(link, path)
        except (IsADirectoryError, NotADirectoryError, FileExistsError):  # A folder has the name of a link.
            os.rename(path, f"{fresh}.old")
            os.replace(link, path)

    def _begin(self, name: str) -> tuple[str, int]:
        """Return a new folder, and its lock, held."""
        while True:
            fresh = tempfile.mkdtemp(prefix=f"{name}.", dir=self._folder)
            path = os.path.join(fresh, LOCK)
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(lock, fcntl.LOCK_SH)
            if _is_same(lock, path):
                return fresh, lock
            os.close(lock)  # Who tidies up found it before it was locked, and took it for one that nobody finished.

    # ---- removal -------------------------------------------------------------------------------------------------

    def prune(self) -> None:
        """Remove what was never finished, what was replaced, and what was used longest ago beyond the limit."""
        links = dict(self._list_links())
        targets = {target: name for name, target in links.items()}
        sizes: dict[str, int] = {}
        for entry in os.listdir(self._folder):
            path = os.path.join(self._folder, entry)
            if entry == _MAKING or os.path.islink(path):
                continue
            size = _read_size(path) if entry in targets else None
            if size is None:
                self._remove_unused(path, None)
            else:
                sizes[path] = size
        total = sum(sizes.values())
        for path in sorted(sizes, key=_observe_use):
            if total <= self._limit_bytes:
                return
            if self._remove_unused(path, targets[os.path.basename(path)]):
                total -= sizes[path]

    def _list_links(self) -> Iterator[tuple[str, str]]:
        for entry in os.listdir(self._folder):
            path = os.path.join(self._folder, entry)
            try:
                if os.path.islink(path):
                    yield entry, os.readlink(path)
            except FileNotFoundError:
                continue

    def _remove_unused(self, path: str, name: str | None) -> bool:
        """Remove a folder, and the link to it, unless somebody uses it; tell whether it is gone."""
        if os.path.islink(path):
            return False  # It leads who knows where.
        try:
            lock = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            if time.time() - _observe_age(path) > UNLOCKED_SECONDS:
                _remove(path)
            return False
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if name is not None:
                os.unlink(os.path.join(self._folder, name))
                self._forget(name)
            os.unlink(os.path.join(path, LOCK))  # First of all: who waits for the lock must find that it is another's.
            _remove(path)
        except OSError:
            return False  # It is used, or somebody else removes it.
        finally:
            os.close(lock)
        return True

    def _forget(self, name: str) -> None:
        """Remove the lock file of a name that nobody makes."""
        path = os.path.join(self._folder, _MAKING, name)
        try:
            lock = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        except OSError:
            return
        finally:
            os.close(lock)


def _is_same(fd: int, path: str) -> bool:
    """Tell whether an open file is still the one of that path."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _read_size(path: str) -> int | None:
    try:
        fd = os.open(os.path.join(path, SIZE), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, encoding="ascii") as file:
            return int(file.read(_SIZE_DIGITS))
    except (OSError, ValueError):
        return None


def _observe_use(path: str) -> float:
    """Return when a folder was last used, in seconds since the epoch; 0 when it is gone."""
    return _observe_age(os.path.join(path, LOCK))


def _observe_age(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _make_read_only(folder: str) -> int:
    """Take the right to write from all below a folder; return the bytes that it takes on the disk."""
    size = 0
    for base, folders, files in os.walk(folder):
        for path in [os.path.join(base, name) for name in (*folders, *files)]:
            about = os.lstat(path)
            size += about.st_blocks * 512  # stat(2): blocks of 512 bytes, whatever the file system's are.
            if not stat.S_ISLNK(about.st_mode) and path != os.path.join(folder, LOCK):
                os.chmod(path, stat.S_IMODE(about.st_mode) & ~0o222)
    return size


def _remove(folder: str) -> None:
    with contextlib.suppress(RecursionError):  # Nobody's project is so deep.
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
        for base, folders, _ in os.walk(folder):
            for name in folders:
                if not os.path.islink(os.path.join(base, name)):
                    os.chmod(os.path.join(base, name), 0o700)
        shutil.rmtree(folder, ignore_errors=True)
