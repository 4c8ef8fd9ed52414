"""How a runner in a Pod writes its timeline into the container's log, and how that is read back.

What a script prints on standard output is a line of the log as it is: `kubectl logs` shows it. The rest begins with a control
character that no terminal shows::

    hello                                                         printed on standard output
    <US>Traceback (most recent call last):                        printed on standard error
    <RS>{"k": "message", "topic": "script.announce", "data": {}}  published by the script
    <RS>{"k": "log", "dropped": 12}                               lines that were dropped

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

__all__ = ["build_log_line", "parse_log_line"]

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
