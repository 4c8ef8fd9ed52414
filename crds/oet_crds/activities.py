"""What an execution's states mean for the activity that it carries out. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from oet_crds.execution import ScriptExecution
from oet_crds.states import State
from oet_crds.topics import Topic

__all__ = ["ACTIVITY_SOURCE", "ActivityState", "find_activity_state", "find_sb_event"]


class ActivityState(StrEnum):
    """What an activity is in: it follows its procedure."""

    TODO = "TODO"
    """What upstream shows of every activity, and OET where that is wanted."""
    REQUESTED = "REQUESTED"
    """Its procedure is being prepared."""
    PREPARED = "PREPARED"
    """Its procedure is READY."""
    RUNNING = State.RUNNING.value
    COMPLETE = State.COMPLETE.value
    FAILED = State.FAILED.value
    STOPPED = State.STOPPED.value
    UNKNOWN = State.UNKNOWN.value


_STATES = {
    State.CREATING: ActivityState.REQUESTED,
    State.READY: ActivityState.PREPARED,
    State.RUNNING: ActivityState.RUNNING,
    State.COMPLETE: ActivityState.COMPLETE,
    State.FAILED: ActivityState.FAILED,
    State.STOPPED: ActivityState.STOPPED,
    State.UNKNOWN: ActivityState.UNKNOWN,
}


def find_activity_state(state: State) -> ActivityState | None:
    """Return what an activity is in when its execution reaches a state; None for what it was in before."""
    return _STATES.get(state)


ACTIVITY_SOURCE = "ActivityServiceWorker"
"""`msg_src` of what is said of activities, upstream's word."""

_TOPICS = {
    State.RUNNING: Topic.SB_STARTED,
    State.COMPLETE: Topic.SB_SUCCEEDED,
    State.FAILED: Topic.SB_FAILED,
    State.STOPPED: Topic.SB_FAILED,
}


def find_sb_event(execution: ScriptExecution, state: State) -> tuple[Topic, Mapping[str, Any]] | None:
    """Return what is told of the scheduling block instance when its execution reaches a state; None for nothing.

    Topic and payload. It comes before the state itself, so that who listens up to the final state has heard it.
    """
    activity, topic = execution.spec.activity, _TOPICS.get(state)
    if activity is None or topic is None:
        return None
    return topic, {"msg_src": ACTIVITY_SOURCE, "sbi_id": activity.sbi_id}
