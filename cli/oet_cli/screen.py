"""Where a command writes: results to standard output, news to standard error, and on a terminal a line on how it stands."""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import suppress

import click

__all__ = ["Screen"]

ERASE_LINE = "\r\x1b[2K"
"""Back to the first column, and erase the line (ECMA-48)."""


class Screen:
    """Standard output and error, with a last line on a terminal that says how it stands.

    Without a terminal that line is not written at all. Text passes as it is: colours of a script stay colours.
    """

    def __init__(self) -> None:
        """Look whether there is a terminal; nothing is written yet."""
        # Without standard error (`2>&-`) there is none.
        self._has_line = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._shown = ""
        self._begun = time.monotonic()

    def write(self, text: str) -> None:
        """Write a line of the result."""
        self.clear()
        click.echo(text)

    def note(self, text: str) -> None:
        """Write a line of news, whether somebody reads that or not: the command is there for the result."""
        self.clear()
        with suppress(OSError):
            click.echo(text, err=True)

    def show(self, text: str) -> None:
        """Say below everything else how it stands, and for how many seconds the command has been running."""
        if not self._has_line:
            return
        # The last column stays free: some terminals begin a new line when it is written.
        line = f"{text} ({time.monotonic() - self._begun:.0f} s)"[: shutil.get_terminal_size().columns - 1]
        if line != self._shown:
            self._shown = line
            sys.stderr.write(ERASE_LINE + line)
            sys.stderr.flush()

    def clear(self) -> None:
        """Erase how it stands."""
        if self._shown:
            self._shown = ""
            sys.stderr.write(ERASE_LINE)
            sys.stderr.flush()
