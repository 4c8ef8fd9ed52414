"""How a runner in a Pod writes its timeline into the container's log, and how that is read back.

What a script prints on standard output is a line of the log as it is: `kubectl logs` shows it. The rest begins with a control
character that no terminal shows::

    hello                                                         printed on standard output
    <US>Traceback (most recent call last):                        printed on standard error
    <RS>{"k": "message", "topic": "script.announce", "data": {}}  published by the script
    <RS>{"k": "log", "dropped": 12}                               lines that were dropped
    <RS>{"k": "log", "dropped": 0, "before": 900}                 a mark: so many entries of the log came before it

The kubelet keeps only the newest part of a long log and says nothing of what it throws away; from the marks a reader knows how
many entries are missing where. A log that no kubelet would cut has none.

<US> and <RS> are ASCII's unit and record separator; RFC 7464 begins JSON texts in a stream with the latter. A line of the script
that begins with one of them, or with a backslash, gets a backslash in front, so that no script can forge an entry.

Standard library of Python 3.8 only: the runner carries this module into any image.
"""

from __future__ import annotations

import json

from oet_crds.topics import EntryKind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["LogWriter", "build_log_line", "find_mark", "parse_log_line"]

MARK_CHARS = 64 * 1024
"""Text between two marks, at most: short against any `containerLogMaxSize` (10 MiB by default), and one line in a thousand."""

MARK_SECONDS = 1.0
"""Time between two marks in a log that has some: so what is missing is known soon of a script that prints little by now."""

_ERROR = "\x1f"
_RECORD = "\x1e"
_ESCAPE = "\\"


def build_log_line(entry: dict[str, Any]) -> str:
    """Return the line of the container's log, without its end, for an entry of the mailbox other than a state. Pure."""
    if entry.get("k") == EntryKind.LOG and "line" in entry:
        line = str(entry["line"])
        text = _ESCAPE + line if line.startswith((_ERROR, _RECORD, _ESCAPE)) else line
        return _ERROR + text if entry.get("stream") == "stderr" else text
    return _RECORD + json.dumps({name: value for name, value in entry.items() if name not in ("n", "t")})


def parse_log_line(text: str) -> dict[str, Any]:
    """Return the entry that a line of the container's log stands for. Pure; every text stands for one.

    Returns:
        As `oet_crds.mailbox` describes entries, without `n` and `t`.
    """
    if text.startswith(_RECORD):
        try:
            entry = json.loads(text[1:])
        except (ValueError, RecursionError):
            entry = None
        # A line that was cut by the kubelet's log rotation: shown as it is, nothing is kept back.
        return entry if isinstance(entry, dict) else {"k": EntryKind.LOG, "stream": "stdout", "line": text}
    stream = "stderr" if text.startswith(_ERROR) else "stdout"
    text = text[1:] if stream == "stderr" else text
    line = text[1:] if text.startswith(_ESCAPE) else text
    return {"k": EntryKind.LOG, "stream": stream, "line": line}


def find_mark(entry: dict[str, Any]) -> int | None:
    """Return how many entries came before a mark; None for an entry that is none. Pure."""
    before = entry.get("before")
    is_mark = entry.get("k") == EntryKind.LOG and isinstance(before, int) and 0 <= before < 2**53
    return before if is_mark else None


class LogWriter:
    """Makes the text of a log out of entries, with marks in it.

    Attributes:
        entries: How many there were so far, the marks not among them.
    """

    __slots__ = ("_marked_at", "_unmarked_chars", "entries")

    def __init__(self) -> None:
        self.entries = 0
        self._unmarked_chars = 0
        self._marked_at: float | None = None

    def build(self, entry: dict[str, Any], now: float) -> str:
        """Return the text for an entry of the mailbox other than a state, with a mark before it where one is due.

        Args:
            entry: The entry.
            now: Monotonic seconds.
        """
        line = build_log_line(entry) + "\n"
        mark = self._build_mark(now) if self._is_due(now) else ""
        self.entries += 1
        self._unmarked_chars += len(line)
        return mark + line

    def _is_due(self, now: float) -> bool:
        if self._marked_at is None or self._unmarked_chars >= MARK_CHARS:
            return self._unmarked_chars >= MARK_CHARS
        return now - self._marked_at >= MARK_SECONDS

    def _build_mark(self, now: float) -> str:
        self._marked_at, self._unmarked_chars = now, 0
        # A server that knows no marks takes it for the word that nothing was dropped.
        return build_log_line({"k": EntryKind.LOG, "dropped": 0, "before": self.entries}) + "\n"
