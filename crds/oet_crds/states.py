"""The eleven states of an execution and the table of allowed transitions.

Standard library of Python 3.8 only: the runner carries this module into any image.
"""

from __future__ import annotations

from enum import Enum

__all__ = [
    "ACTIVE_STATES",
    "FINAL_STATES",
    "TRANSITIONS",
    "ConditionType",
    "DesiredState",
    "Mode",
    "Purpose",
    "State",
    "is_allowed",
    "is_final",
]


class State(str, Enum):
    """What an execution is doing, in the words that OET's users know."""

    CREATING = "CREATING"
    """Accepted; no process of the script exists yet."""
    IDLE = "IDLE"
    """The script's process is up and between two steps."""
    PREP_ENV = "PREP_ENV"
    """The script's own Python environment is being built."""
    LOADING = "LOADING"
    """The script is fetched, compiled and its module level code runs."""
    INITIALISING = "INITIALISING"
    """The script's `init` runs."""
    READY = "READY"
    """Prepared: `main` begins the moment a start is granted. Also seen for an instant after `main` returned."""
    RUNNING = "RUNNING"
    """The script's `main` runs."""
    COMPLETE = "COMPLETE"
    """Final: `main` returned, and no process of the script is left."""
    STOPPED = "STOPPED"
    """Final: stopped on request, and every process of the script is known to be gone."""
    FAILED = "FAILED"
    """Final: the script, or what it ran on, failed; the reason and the message say how."""
    UNKNOWN = "UNKNOWN"
    """Final: the truth cannot be known, for example because the node was lost. The script may still run, so that its subarray is
    held until its end is confirmed or a person releases it."""

    __str__ = str.__str__


class DesiredState(str, Enum):
    """What the user wants of an execution (`spec.desiredState`)."""

    READY = "Ready"
    """Prepare the script and hold it."""
    RUNNING = "Running"
    """Run `main` as soon as the script is prepared and its subarray is free."""
    STOPPED = "Stopped"
    """Stop it for certain. Final: there is no way back."""

    __str__ = str.__str__


class Mode(str, Enum):
    """What an execution works on (`spec.mode`)."""

    OPERATION = "Operation"
    """The telescope. Who runs on a subarray holds it."""
    REHEARSAL = "Rehearsal"
    """A simulated telescope of its own, out of reach of the real one. It holds no subarray."""

    __str__ = str.__str__


class Purpose(str, Enum):
    """What an execution is for (`spec.purpose`)."""

    SCRIPT = "Script"
    """A user's script."""
    ABORT = "Abort"
    """The abort script of a deployment: it runs after a stop with abort, or is held READY for one. OET alone makes these."""

    __str__ = str.__str__


class ConditionType(str, Enum):
    """The conditions that OET sets."""

    READY = "Ready"
    """True once the script is prepared."""
    STARTED = "Started"
    """True once `main` was granted its start; False with the reason while it waits or was refused."""
    STOPPING = "Stopping"
    """True once the script is being stopped, with the reason."""
    COMPLETE = "Complete"
    """True when `main` returned; False when the execution ended in any other way."""
    FINISHED = "Finished"
    """True at any end, with its reason."""
    IDLE = "Idle"
    """True while the script is READY and nobody has asked for its start; so it ends after `[engine] ready_limit_seconds`."""
    ABORTED = "Aborted"
    """Of an execution stopped with abort: True when its abort script is COMPLETE; False when that did not work: an alarm."""
    ARMED = "Armed"
    """Of an abort script that is held READY: True once it is; False when it could not be, or ended: an alarm."""
    NEEDED = "Needed"
    """Of an abort script that is held READY: whether its subarray is in use."""
    RELEASED = "Released"
    """Of an UNKNOWN execution that was granted a subarray: False while it holds that, which is an alarm; True once its end was
    confirmed, or a person released it."""
    LEAVING = "Leaving"
    """Of a runner that reported the end of its script: True while it may take its time to leave; False when it stayed, so that it
    had to be removed: an alarm."""
    ABORT_ASKED = "AbortAsked"
    """True since the engine knows of an abort that was asked for when the execution was UNKNOWN already."""

    __str__ = str.__str__


FINAL_STATES: frozenset[State] = frozenset({State.COMPLETE, State.STOPPED, State.FAILED, State.UNKNOWN})
ACTIVE_STATES: frozenset[State] = frozenset(State) - FINAL_STATES

_ENDS = frozenset({State.STOPPED, State.FAILED, State.UNKNOWN})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.CREATING: frozenset({State.IDLE}) | _ENDS,
    State.IDLE: frozenset({State.PREP_ENV, State.LOADING, State.INITIALISING, State.READY}) | _ENDS,
    State.PREP_ENV: frozenset({State.IDLE}) | _ENDS,
    State.LOADING: frozenset({State.IDLE}) | _ENDS,
    State.INITIALISING: frozenset({State.READY}) | _ENDS,
    State.READY: frozenset({State.RUNNING, State.COMPLETE}) | _ENDS,
    State.RUNNING: frozenset({State.READY}) | _ENDS,
    State.COMPLETE: frozenset(),
    State.STOPPED: frozenset(),
    State.FAILED: frozenset(),
    State.UNKNOWN: frozenset(),
}
"""Which states may follow a state. Data, so that code, tests and documentation share it."""


def is_final(state: State) -> bool:
    """Tell whether nothing can change this state any more."""
    return state in FINAL_STATES


def is_allowed(before: State, after: State) -> bool:
    """Tell whether `after` may follow `before`."""
    return after in TRANSITIONS[before]
