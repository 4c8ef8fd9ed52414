"""Who tells what happens. Apart from the tables, so that it can be named without SQLAlchemy."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Source"]


class Source(StrEnum):
    """Who told an entry; `number` is unique within one, for each execution."""

    API = "api"
    """An action of the API; a random number."""
    STATE = "state"
    """A state; made from its place in the history and from what it is."""
    TRACE = "trace"
    """The stack trace that goes with such a state."""
    ACTIVITY = "activity"
    """What such a state means for an activity."""
    ALARM = "alarm"
    """An alarm; when it was raised, in microseconds."""
    WAIT = "wait"
    """What is waited for; made from what that is."""
    RUNNER = "runner"
    """The runner; its own number."""
    LOG = "log"
    """The Pod's log; counts what was read from its beginning."""
    DROPPED = "dropped"
    """How many lines are missing."""
