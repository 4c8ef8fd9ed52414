"""Exit codes: a program that calls `oet` learns the outcome without reading text."""

from __future__ import annotations

from enum import IntEnum

from oet_crds.states import State

__all__ = ["EPILOG", "CliError", "Exit", "compute_exit"]


class Exit(IntEnum):
    """What an exit code of `oet` means."""

    OK = 0
    """Done; a script that was followed is COMPLETE."""
    FAILED = 1
    """The script FAILED."""
    USAGE = 2
    """The command line is wrong, or there is nothing to do it with."""
    STOPPED = 3
    """The script was STOPPED."""
    UNREACHABLE = 4
    """No OET server answers at the URL."""
    REFUSED = 5
    """The server refused the request."""
    NOT_CERTAIN = 6
    """The time is over, or the answer was lost: what was asked for has not happened yet, or it is not known."""
    UNKNOWN = 7
    """The script's state is UNKNOWN."""
    ABORT_FAILED = 8
    """An alarm: the script is stopped, and its abort did not work, or is not known to have worked."""
    DEFECT = 70
    """`oet` itself failed; sysexits.h calls it EX_SOFTWARE."""
    INTERRUPTED = 130
    """Ctrl-C: 128 and the number of SIGINT, as shells do it."""
    PIPE_CLOSED = 141
    """Who read the output went away: 128 and the number of SIGPIPE, as shells do it."""


EPILOG = (
    "Exit codes: 0 done, and a followed script is COMPLETE; 1 the script FAILED; 2 usage, or nothing to do; 3 the script was "
    "STOPPED; 4 no server answers; 5 the server refused; 6 not certain or timed out; 7 the script's state is UNKNOWN; 8 ALARM: "
    "stopped, but the abort did not work; 70 a defect of oet; 130 Ctrl-C; 141 the reader of the output went away."
)


class CliError(Exception):
    """Something went wrong that the user should read, with the exit code that tells it to programs.

    Attributes:
        code: The exit code.
        status: HTTP status of the answer that said so; None when it was no answer.
    """

    def __init__(self, message: str, code: Exit, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


_OF_STATE: dict[str, Exit] = {
    State.COMPLETE: Exit.OK,
    State.FAILED: Exit.FAILED,
    State.STOPPED: Exit.STOPPED,
    State.UNKNOWN: Exit.UNKNOWN,
}


def compute_exit(state: str) -> Exit:
    """Return the exit code for the final state of a script; for one that is not final, that it is not certain. Pure."""
    return _OF_STATE.get(state, Exit.NOT_CERTAIN)
