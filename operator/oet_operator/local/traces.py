"""Which executions may have left processes behind: a link each in the state folder, for as long as that is so.

A PID namespace ends with its supervisor, whatever ends that. Without one, what a script has started ends only when the supervisor
or the engine ends it: when both are killed, nobody knows. So a link is made before a supervisor is handed a script, and removed
by whoever has seen that nothing is left: the supervisor, or the engine whose child it was. Landlock keeps the script from it.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

__all__ = ["Traces", "observe_boot_id"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Another text after each start of the machine (random(4)): nothing outlives one."""


def observe_boot_id() -> str:
    """Return what names this run of the machine; the same text for all of them where that is not known."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip() or "unknown"
    except (OSError, ValueError):
        return "unknown"


class Traces:
    """The links. For the engine's thread only.

    Attributes:
        folder: Where they are; a supervisor takes them away there.
    """

    def __init__(self, folder: Path, boot_id: str, *, is_wanted: bool) -> None:
        """Look at the links in a folder; it is made when there is one to make.

        Args:
            folder: Where they are.
            boot_id: Which run of the machine this is.
            is_wanted: New ones are made: scripts run without PID namespaces.
        """
        self.folder = folder
        self._boot_id = boot_id
        self._is_wanted = is_wanted

    def note(self, uid: str) -> None:
        """Note that an execution's script is about to be handed over. Raises OSError; it must not be then."""
        if self._is_wanted:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            link = self.folder / uid
            link.unlink(missing_ok=True)
            # A link and no file: it needs no block of the disk, and is never half written.
            link.symlink_to(self._boot_id)

    def forget(self, uid: str) -> None:
        """Note that nothing of an execution's script is left."""
        # One that cannot be removed says less than is known, and nothing false.
        with suppress(OSError):
            (self.folder / uid).unlink(missing_ok=True)

    def is_left(self, uid: str) -> bool:
        """Tell whether nobody has seen that nothing of an execution's script is left, and it may be."""
        try:
            return str((self.folder / uid).readlink()) == self._boot_id
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def keep(self, uids: Collection[str]) -> None:
        """Remove the links of all other executions: they are over, and were released or removed."""
        with suppress(OSError):
            for link in self.folder.iterdir():
                if link.name not in uids:
                    self.forget(link.name)
