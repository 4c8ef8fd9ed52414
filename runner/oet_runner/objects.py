"""The files of a commit, made from git's objects, whoever kept them: each object is checked against its name as it is written.

The name of an object is the hash of what it holds, and a commit names its tree, which names what is in it. So whoever knows the
name of a commit needs to trust nobody for the rest.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
import zlib

from oet_runner.script import SourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO, Iterator

__all__ = ["ObjectStore", "ObjectsError", "make_git_dir", "write_files"]

GIT_DIR = ".git"

_HEADER_LIMIT_BYTES = 200
"""An object's line has two words and two numbers, of 64 digits at most."""

_FILE, _EXECUTABLE, _LINK, _FOLDER, _SUBMODULE = b"100644", b"100755", b"120000", b"40000", b"160000"
_OLD_FILE = b"100664"
"""What git before 1.0 wrote for a file that its group may write."""

_CONFIG = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = false\n"


class ObjectsError(Exception):
    """The objects are not those of the commit, or not all of them."""


class ObjectStore:
    """Objects in a file, as `git cat-file --batch` writes them. What it says of them is taken for a hint only."""

    def __init__(self, path: str, commit: str) -> None:
        """Take a file.

        Args:
            path: Where it is.
            commit: Full name of the commit that is wanted of it; it tells the kind of hash.

        Raises:
            ObjectsError: It cannot be read, or is no such file.
        """
        self._hash = hashlib.sha256 if len(commit) == 64 else hashlib.sha1
        try:
            self._file = _open_plain(path)
            self._places = dict(self._scan())
        except (OSError, ValueError) as error:
            raise ObjectsError(f"{path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _scan(self) -> Iterator[tuple[str, tuple[int, int]]]:
        while True:
            line = self._file.readline(_HEADER_LIMIT_BYTES)
            if not line:
                return
            name, _, digits = line.decode("ascii").rstrip("\n").split(" ")
            if not digits.isdigit():
                raise ValueError(f"an object of the size {digits!r}")
            place = self._file.tell()
            yield name, (place, int(digits))
            self._file.seek(place + int(digits) + 1)

    def read(self, name: str, kind: str) -> bytes:
        """Return what the object of a name holds.

        Raises:
            ObjectsError: It is not there, of another kind, or does not have this name.
        """
        try:
            place, size = self._places[name]
            data = os.pread(self._file.fileno(), size, place)
            while len(data) < size:  # Linux gives at most 2 GiB at once.
                more = os.pread(self._file.fileno(), size - len(data), place + len(data))
                if not more:
                    break
                data += more
        except (KeyError, OSError, ValueError, OverflowError, MemoryError) as error:
            raise ObjectsError(f"there is no object {name}") from error
        if self.compute_name(kind, data) != name:
            raise ObjectsError(f"object {name} is not what its name says")
        return data

    def compute_name(self, kind: str, data: bytes) -> str:
        """Return the name of an object."""
        digest = self._hash(f"{kind} {len(data)}\0".encode())
        digest.update(data)
        return digest.hexdigest()

    def find_commit(self, name: str) -> str:
        """Return the commit of a name, which may be an annotated tag's as well. Raises ObjectsError."""
        while True:
            try:
                self.read(name, "commit")
                return name
            except ObjectsError:
                about = self.read(name, "tag").split(b"\n", 1)[0]
                name = about[len(b"object ") :].decode("ascii", "replace")

    def list_entries(self, name: str) -> Iterator[tuple[bytes, bytes, str]]:
        """Yield mode, name and object of each entry of a tree. Raises ObjectsError."""
        data, begin, width = self.read(name, "tree"), 0, self._hash().digest_size
        while begin < len(data):
            end = data.find(b"\0", begin)
            mode, _, entry = data[begin:end].partition(b" ")
            begin = end + 1 + width
            if end < 0 or begin > len(data) or not _is_plain(entry):
                raise ObjectsError(f"tree {name} has an entry {entry!r} that no folder can have")
            yield mode, entry, data[end + 1 : begin].hex()


def _open_plain(path: str) -> BinaryIO:
    """Open a file, but no link, pipe or device that somebody put in its place."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError("not a regular file")
    return open(fd, "rb")


def _is_plain(name: bytes) -> bool:
    return name not in (b"", b".", b"..") and b"/" not in name and name.lower() != GIT_DIR.encode()


def write_files(store: ObjectStore, commit: str, folder: str, seconds: float, has_index: bool = False) -> None:
    """Write the files of a commit, byte for byte as they were committed, into a new folder.

    Of a submodule there is an empty folder. git can be asked there which commit it is, but not for its history.

    Args:
        store: Where its objects are.
        commit: Its full name.
        folder: Is made.
        seconds: Longest time that it may take.
        has_index: Whether git is to find also what it needs to say that no file is changed.

    Raises:
        ObjectsError: The objects are not those of the commit.
        SourceError: It takes too long.
        OSError: It cannot be written.
    """
    deadline = time.monotonic() + seconds
    about = store.read(commit, "commit")
    head, _, _ = about.partition(b"\n")
    if not head.startswith(b"tree "):
        raise ObjectsError(f"commit {commit} names no tree")
    make_git_dir(os.path.join(folder, GIT_DIR), commit)
    known = [("commit", commit)]
    todo = [(folder.encode(), head[5:].decode("ascii", "replace"))]
    while todo:
        base, tree = todo.pop()
        known += [("tree", tree)] if has_index else []
        for mode, name, child in store.list_entries(tree):
            if time.monotonic() > deadline:
                raise SourceError(f"to write the files of commit {commit} took longer than {seconds:g} s")
            path = base + b"/" + name
            if mode in (_FOLDER, _SUBMODULE):
                os.mkdir(path)
                todo += [(path, child)] if mode == _FOLDER else []
            else:
                _write_entry(path, mode, store.read(child, "blob"))
    for kind, one in dict.fromkeys(known):
        _write_object(os.path.join(folder, GIT_DIR), one, kind, store.read(one, kind))


def _write_entry(path: bytes, mode: bytes, data: bytes) -> None:
    if mode == _LINK:
        os.symlink(data, path)
    elif mode in (_FILE, _OLD_FILE, _EXECUTABLE):
        _write(path, data, 0o755 if mode == _EXECUTABLE else 0o644)
    else:
        raise ObjectsError(f"{os.fsdecode(path)} has the mode {mode!r}")


def _write(path: bytes | str, data: bytes, mode: int = 0o644) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with open(fd, "wb", buffering=0) as file:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) or 0 :]


def _write_object(git_dir: str, name: str, kind: str, data: bytes) -> None:
    """Write an object in git's own form, so that git can be asked for it."""
    folder = os.path.join(git_dir, "objects", name[:2])
    os.makedirs(folder, exist_ok=True)
    _write(os.path.join(folder, name[2:]), zlib.compress(f"{kind} {len(data)}\0".encode() + data, 1))


def make_git_dir(folder: str, commit: str | None = None) -> None:
    """Make a repository without objects, which has no settings but our own.

    Args:
        folder: Where; it must not be there.
        commit: What is checked out, without the commits before it; None: nothing.

    Raises:
        OSError: It cannot be made.
    """
    os.makedirs(os.path.join(folder, "objects", "pack"))
    os.mkdir(os.path.join(folder, "refs"))
    _write(os.path.join(folder, "config"), _CONFIG.encode())
    _write(os.path.join(folder, "HEAD"), f"{commit or 'ref: refs/heads/none'}\n".encode())
    if commit:
        _write(os.path.join(folder, "shallow"), f"{commit}\n".encode())
