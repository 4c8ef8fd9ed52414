"""The file that an execution brings along for its script: made before the script is loaded, gone when all of it has ended."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["GivenFile"]


class GivenFile:
    """At most one file, which this process made and no other."""

    def __init__(self) -> None:
        self._path = ""

    def write(self, assignment: dict[str, Any]) -> str:
        """Make the file of an assignment, if it has one, readable by this user alone.

        Returns:
            Why it cannot be made; empty when nothing is wrong. One that is there already is left alone: whose it is is not known.
        """
        file = assignment.get("file")
        if not file:
            return ""
        try:
            os.makedirs(os.path.dirname(file["path"]), exist_ok=True)
            # O_EXCL follows no symbolic link either: in a folder that others can write to, nobody can lead this elsewhere.
            fd = os.open(file["path"], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._path = file["path"]
            with open(fd, "w", encoding="utf-8") as stream:
                stream.write(file["text"])
        except (OSError, ValueError) as error:
            return f"the file for the script cannot be written: {error}"
        return ""

    def remove(self) -> None:
        """Remove what was made."""
        if self._path:
            try:
                os.unlink(self._path)
            except OSError:
                return  # The script did.
