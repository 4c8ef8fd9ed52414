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
    """The server does not answer."""
    REFUSED = 5
    """The server refused the request."""
    NOT_CERTAIN = 6
    """The time is over, and what was asked for has not happened yet, or it is not known."""
    UNKNOWN = 7
    """The script's state is UNKNOWN."""
    INTERRUPTED = 130
    """Ctrl-C: 128 and the number of SIGINT, as shells do it."""


class CliError(Exception):
    """Something went wrong that the user should read, with the exit code that tells it to programs."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.code = code


EPILOG = (
    "Exit codes: 0 complete, 1 the script failed, 2 usage, 3 stopped, 4 server unreachable, 5 refused by the server, "
    "6 not certain or timed out, 7 unknown, 130 interrupted."
)

_OF_STATE = {
    State.COMPLETE: Exit.OK,
    State.FAILED: Exit.FAILED,
    State.STOPPED: Exit.STOPPED,
    State.UNKNOWN: Exit.UNKNOWN,
}


def compute_exit(state: str) -> Exit:
    """Return the exit code for the final state of a script. Pure."""
    return _OF_STATE.get(State(state), Exit.NOT_CERTAIN)
