"""The words that a runner and whoever drives it exchange.

Standard library of Python 3.8 only: the runner carries this module into any image.

Towards the runner, one JSON object a line, each at most once but for `stop`, which may be repeated::

    {"kind": "assign", "uid": "...", "procedureId": 7, "mode": <Mode>, "script": {<spec.script>},
     "init": {"args": [], "kwargs": {}} | null,
     "file": {"path": "...", "text": "..."} | null}          made before the script is loaded, removed when all has ended
    {"kind": "grant", "main": {"args": [], "kwargs": {}}}
    {"kind": "stop", "gracePeriodSeconds": 10.0}

From the runner, one JSON object a line::

    {"kind": "hello", "pid": 123, "python": "3.11.7",       the child interpreter is up; an assignment can come
     "confined": true}                                        the script cannot take its runner's identity; before it is there
    {"kind": "report", "entries": [<entry>, ...]}            what was seen, in order
    {"kind": "exit", ...}                                     the last line: see `EXIT_FIELDS`

An entry has `n` (1, 2, 3... per execution, no gaps), `t` (seconds since the epoch) and `k` (`EntryKind`), and by kind::

    state    "state": <State>                                  and "commit": "<hash>" once it was fetched from git
    message  "topic": "script.announce", "data": {...}
    log      "stream": "stdout" | "stderr", "line": "text"     or  "dropped": <count of lines>

The exit has `n` and `t` as well (it is the last entry), `outcome` (`Outcome`), `reason` (`Reason`), `message` (text for
people), `stacktrace` (text or null), `exitCode` and `signal` (integers or null),
`commit` (text or null). A runner sends it only after every
process of the script has been reaped: whoever reads it may say STOPPED.

End of file towards the runner means that its driver died: the runner then stops the script for certain and exits.
"""

from __future__ import annotations

from enum import Enum

__all__ = [
    "CONFINEMENT_VARIABLE",
    "CUT_OFF_EXIT_CODE",
    "DELIVERY_SECONDS",
    "EXIT_FIELDS",
    "MAX_LINE_BYTES",
    "MAX_STACKTRACE_CHARS",
    "UNCONFINED_DELIVERY_SECONDS",
    "Confinement",
    "MailKind",
]


class MailKind(str, Enum):
    """The kinds of lines between a runner and its driver."""

    ASSIGN = "assign"
    GRANT = "grant"
    STOP = "stop"
    HELLO = "hello"
    REPORT = "report"
    EXIT = "exit"

    __str__ = str.__str__


class Confinement(str, Enum):
    """Whether a runner confines its script."""

    AUTO = "auto"
    """Where the kernel has Landlock."""
    NONE = "none"

    __str__ = str.__str__


CONFINEMENT_VARIABLE = "OET_CONFINEMENT"
"""Environment variable by which a runner knows which of these is wanted; absent: auto."""

EXIT_FIELDS = ("n", "t", "outcome", "reason", "message", "stacktrace", "exitCode", "signal", "commit")

MAX_LINE_BYTES = 64 * 1024
"""A printed line longer than this is cut in pieces: one line must not fill a buffer that 200 streams share."""

MAX_STACKTRACE_CHARS = 32 * 1024
"""The tail of a stack trace that is kept: fits Kubernetes' 1.5 MiB object limit many times."""

CUT_OFF_EXIT_CODE = 69
"""Exit code of a supervisor in a Pod that the API server does not let report: EX_UNAVAILABLE of sysexits.h."""

DELIVERY_SECONDS = 120.0
"""After the script's end was reported, how long a Pod goes on trying to bring the rest to the timeline: longer than a replacement
of the REST server takes. All of it is in the container's log as well."""

UNCONFINED_DELIVERY_SECONDS = 3.0
"""The same where the script could have said its end itself: that is believed only once its container has ended, and the subarray
waits for it. Long enough for a timeline that answers; the container's log has the rest."""
