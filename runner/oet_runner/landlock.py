"""Landlock: a process gives up rights for good, for itself and all that it starts (landlock(7)).

A process in a domain cannot trace a process outside of it, nor write its memory or take its descriptors, nor mount or unmount
anything, nor (from ABI 6 on) signal it; files it can use only as the domain's rules allow. Domains nest, up to 16: each takes
away more, none gives back. A domain needs `no_new_privs`: setuid programs give no other user's rights in it.

What Landlock does not cover: file names and attributes can be read, and modes and times of one's own files changed, everywhere;
UNIX sockets that have a name in a folder can be connected to; and root may read the environment of every process that it sees.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable, Iterator

__all__ = [
    "MIN_ABI",
    "build_domain",
    "build_writing_domain",
    "check_hidden",
    "enter_domain",
    "is_available",
    "observe_abi",
    "restrict",
]

MIN_ABI = 2
"""Linux 5.19. Before, a domain cannot allow that a file is moved from one folder to another, which scripts do."""

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""System calls: the same numbers on all architectures but alpha."""

_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38
"""From linux/landlock.h and linux/prctl.h."""

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_ALL_OF_ABI_2 = (1 << 14) - 1
"""Those, removing and making of all kinds, and LANDLOCK_ACCESS_FS_REFER: moves and links between folders."""
_TRUNCATE = 1 << 14
"""From ABI 3 on. The later right to use ioctl(2) on devices is left to every file that can be opened."""

_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_ONLY_READ = _EXECUTE | _READ_FILE | _READ_DIR

_SCOPES = (1 << 0) | (1 << 1)
"""Abstract UNIX sockets and signals, from ABI 6 on: only those inside of the domain can be reached."""

_RULESET = struct.Struct("=QQQ")
"""struct landlock_ruleset_attr: file rights, network rights, scopes. An older kernel takes a longer one that ends in zeros."""

_PATH_BENEATH = struct.Struct("=Qi")
"""struct landlock_path_beneath_attr: it is packed."""


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(number: int, *arguments: object) -> int:
    """Make a system call. Raises OSError."""
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return result


def observe_abi() -> int:
    """Return the version of Landlock that the kernel offers; 0: none, or it is switched off, or refused to this process."""
    try:
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_CREATE_RULESET_VERSION))
    except OSError:
        return 0


def is_available() -> bool:
    """Tell whether `restrict` can do its work here."""
    return observe_abi() >= MIN_ABI


def restrict(hidden: Iterable[str] = (), read_only: Iterable[str] = ()) -> None:
    """Put the calling process into a new domain, inside of the one that it is in.

    It must have one thread only: others would stay outside. Everything stays as it was but for the paths given and what cannot
    be done in any domain. To leave one path out, all its neighbours must be allowed, from the root down: so in the folders
    ABOVE a given path (not in those beside it) nothing new can be made, removed or renamed any more, and entries that others make
    there later cannot be opened. Folders can be listed everywhere.

    Args:
        hidden: Files and folders that cannot be opened or changed any more, with all below. Symbolic links are followed; a path
            that is not there is left out.
        read_only: The same for those that can only be read and executed. Where a path is below another, the lower one counts.

    Raises:
        OSError: Landlock is not there (ENOSYS), a folder above a path cannot be listed, or there are 16 domains already (E2BIG).
        ValueError: The root is to be hidden or only read.
    """
    fd = build_domain(hidden, read_only)
    try:
        enter_domain(fd)
    finally:
        os.close(fd)


def build_domain(hidden: Iterable[str] = (), read_only: Iterable[str] = ()) -> int:
    """Return a file descriptor of the domain that `restrict` would enter, as the folders are now; raise as it does."""
    rights = _find_rights()
    marks = {**_resolve(read_only, _ONLY_READ), **_resolve(hidden, 0)}
    rules = list(_find_rules("/", rights, marks))
    return _build_ruleset(rights, [("/", _READ_DIR), *rules] if marks else rules)


def build_writing_domain(writable: Iterable[str]) -> int:
    """Return a file descriptor of a domain in which only some folders, and what is below them, can be written to.

    Raises:
        OSError: Landlock is not there (ENOSYS).
    """
    rights = _find_rights()
    return _build_ruleset(rights, [("/", _ONLY_READ), *((os.path.realpath(path), rights) for path in writable)])


def enter_domain(fd: int) -> None:
    """Put the calling process, which must have one thread only, into a domain inside of the one that it is in. Raises OSError."""
    _set_no_new_privileges()
    _call(_RESTRICT_SELF, ctypes.c_int(fd), ctypes.c_uint32(0))


def _find_rights() -> int:
    """Return all rights to files that the kernel knows, of those that we take away. Raises OSError where it knows too few."""
    abi = observe_abi()
    if abi < MIN_ABI:
        raise OSError(errno.ENOSYS, f"Landlock: the kernel offers version {abi}, and {MIN_ABI} is needed")
    return _ALL_OF_ABI_2 | (_TRUNCATE if abi >= 3 else 0)


def _build_ruleset(rights: int, rules: Iterable[tuple[str, int]]) -> int:
    ruleset = _RULESET.pack(rights, 0, _SCOPES if observe_abi() >= 6 else 0)
    fd = _call(_CREATE_RULESET, ruleset, ctypes.c_size_t(len(ruleset)), ctypes.c_uint32(0))
    try:
        for path, allowed in rules:
            _allow(fd, path, allowed)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_hidden(hidden: Iterable[str]) -> None:
    """Raise as `restrict` would if paths cannot be hidden as things are."""
    for _ in _find_rules("/", _ALL_OF_ABI_2, _resolve(hidden, 0)):
        continue


def _resolve(paths: Iterable[str], rights: int) -> dict[str, int]:
    found = {}
    for path in paths:
        real = os.path.realpath(path)
        if real == "/":
            raise ValueError("Landlock: the root cannot be hidden or only read")
        if os.path.lexists(real):
            found[real] = rights
    return found


def _find_rules(path: str, rights: int, marks: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Yield what to allow below a path: the path itself, or, where a marked one is below it, its entries one by one."""
    rights = marks.get(path, rights)
    beginning = path.rstrip("/") + "/"
    if any(mark.startswith(beginning) for mark in marks):
        for name in os.listdir(path):
            yield from _find_rules(beginning + name, rights, marks)
    elif rights:
        yield path, rights


def _allow(ruleset_fd: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # Gone since it was listed, or nobody who is in this process' place can reach it.
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISLNK(mode):
            return  # Where it leads, the rules of that place count.
        rule = _PATH_BENEATH.pack(rights if stat.S_ISDIR(mode) else rights & _OF_FILES, fd)
        _call(_ADD_RULE, ctypes.c_int(ruleset_fd), ctypes.c_int(_RULE_PATH_BENEATH), rule, ctypes.c_uint32(0))
    finally:
        os.close(fd)


def _set_no_new_privileges() -> None:
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
