"""What keeps a script away from its supervisor and from what is not for scripts.

Three locks: a folder is covered by an empty one, where the runner has a mount namespace of its own; the script's process enters
a Landlock domain before it is handed a script; and the supervisor cannot be traced (`oet_runner.family.hide_process`).
"""

from __future__ import annotations

import ctypes
import os

from oet_crds.mailbox import CONFINEMENT_VARIABLE, Confinement
from oet_runner.landlock import check_hidden, restrict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Mapping, Sequence

__all__ = ["Hidden", "confine", "cover_folder", "drop_rights", "forget_working_folder", "hide_more", "is_wanted"]

_READ_ONLY_AND_INERT = 1 | 2 | 4 | 8
"""MS_RDONLY, MS_NOSUID, MS_NODEV and MS_NOEXEC of linux/mount.h."""

_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
"""From linux/prctl.h."""

_CAPABILITY_VERSION = 0x20080522
"""_LINUX_CAPABILITY_VERSION_3 of linux/capability.h."""


class Hidden:
    """Files and folders that a script cannot open.

    Attributes:
        at_once: From the beginning of its process on.
        at_load: From when it is loaded. Until then the folders above can change: what is made there later cannot be opened, and a
            spare may wait for days.
    """

    __slots__ = ("at_load", "at_once")

    def __init__(self, at_once: Sequence[str] = (), at_load: Sequence[str] = ()) -> None:
        self.at_once = at_once
        self.at_load = at_load


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Tell whether the script is to be confined as far as the kernel can. Pure."""
    return environ.get(CONFINEMENT_VARIABLE, "").strip().lower() != Confinement.NONE


def cover_folder(folder: str) -> None:
    """Put an empty folder, in which nothing can be made, over one. The process must have a mount namespace of its own.

    Raises:
        OSError: It is refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(os.path.realpath(folder))
    if libc.mount(b"tmpfs", path, b"tmpfs", ctypes.c_ulong(_READ_ONLY_AND_INERT), b"mode=0555,size=4k") != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), folder)
    try:
        os.chdir(os.getcwd())  # Who is in it already would be below the cover.
    except OSError:
        os.chdir("/")


def drop_rights() -> None:
    """Give back the rights over namespaces that an ordinary user's runner was started with. Raises OSError."""
    if os.geteuid() == 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, nothing = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    if libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0 or libc.capset(header, nothing) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot give back rights: {os.strerror(code)}")


def forget_working_folder(path: list[str]) -> None:
    """Take out of `sys.path` where `python -m` begins its search for modules: a script may be able to write there."""
    if path and path[0] in ("", os.getcwd()):
        del path[0]


def confine(hidden: Hidden | None) -> bool:
    """Put this process, which must have one thread only, out of reach of all others and of some files.

    Args:
        hidden: What it cannot open any more; None: nothing is done.

    Returns:
        Whether all of it is in force, or will be when `hide_more` is given the rest.
    """
    if hidden is None:
        return False
    try:
        check_hidden(hidden.at_load)
        restrict(hidden=hidden.at_once)
    except (OSError, ValueError):
        _confine_at_least()
        return False
    return True


def _confine_at_least() -> None:
    try:
        restrict()
    except OSError:
        return  # The kernel has no Landlock.


def hide_more(hidden: Sequence[str]) -> None:
    """Put more files and folders out of reach of this process, which is confined. Raises OSError and ValueError."""
    restrict(hidden=hidden)
