"""The topics of the event stream: upstream's words, so that existing listeners understand them.

Standard library of Python 3.8 only: the runner and the script library carry this module along.
"""

from __future__ import annotations

import re
from enum import Enum

__all__ = [
    "MAX_MESSAGE_BYTES",
    "MAX_MESSAGE_DEPTH",
    "MESSAGE_FD_VARIABLE",
    "MESSAGE_INODE_VARIABLE",
    "EntryKind",
    "Severity",
    "Topic",
    "is_deeper",
    "is_topic",
]

MESSAGE_FD_VARIABLE = "OET_MESSAGE_FD"
"""Environment variable that tells a script's processes where messages go: the number of a file descriptor."""

MESSAGE_INODE_VARIABLE = "OET_MESSAGE_INODE"
"""Environment variable with the inode behind that number: where it differs, the number is something else by now."""

MAX_MESSAGE_BYTES = 128 * 1024
"""A message with its topic, as JSON: fits the kernel's default socket buffer of 208 KiB in one piece."""

MAX_MESSAGE_DEPTH = 64
"""Nesting of a message: every JSON reader on its way to a browser copes with that."""

_TOPIC = re.compile(r"[\w-]+(\.[\w-]+)*")
_MAX_TOPIC_CHARS = 255


class Topic(str, Enum):
    """A topic that OET itself publishes. Scripts may publish on any other as well."""

    REQUEST_CREATE = "request.procedure.create"
    """Somebody asked for a procedure to be prepared."""
    REQUEST_START = "request.procedure.start"
    """Somebody asked for its start."""
    REQUEST_STOP = "request.procedure.stop"
    """Somebody asked for its stop."""
    REQUEST_RELEASE = "request.procedure.release"
    """Somebody released the subarray of an UNKNOWN procedure: `reason` and `user` say why and who."""
    REQUEST_ACTIVITY_RUN = "request.activity.run"
    """Somebody asked for an activity of a scheduling block."""
    STATE_CHANGE = "procedure.lifecycle.statechange"
    """It reached a state: `new_state`."""
    STACKTRACE = "procedure.lifecycle.stacktrace"
    """It failed, and this is where."""
    CREATED = "procedure.lifecycle.created"
    """It was created, and has its number."""
    WAITING = "procedure.lifecycle.waiting"
    """It waits for something before its script runs, or for something else than before: `state`, `reason` and `message`."""
    STARTED = "procedure.lifecycle.started"
    """Its start was granted."""
    STOPPED = "procedure.lifecycle.stopped"
    """Its stop is certain; with abort, how that ended."""
    COMPLETE = "procedure.lifecycle.complete"
    """It is COMPLETE."""
    FAILED = "procedure.lifecycle.failed"
    """It FAILED."""
    RELEASED = "procedure.lifecycle.released"
    """It was UNKNOWN and has let go of its subarray: `reason` and `message` say by whose word."""
    ACTIVITY_RUNNING = "activity.lifecycle.running"
    """An activity was taken: it has its procedure, which is being prepared."""
    SB_STARTED = "sb.lifecycle.started"
    """`main` of an activity began: `sbi_id` is the scheduling block instance."""
    SB_SUCCEEDED = "sb.lifecycle.finished.succeeded"
    """The activity's procedure is COMPLETE."""
    SB_FAILED = "sb.lifecycle.finished.failed"
    """The activity's procedure FAILED or was STOPPED. Of one that is UNKNOWN neither is said."""
    END_UNKNOWN = "procedure.end.unknown"
    """Alarm: it is UNKNOWN and may still run; its subarray is held until its end is confirmed or a person releases it."""
    END_UNCONFIRMED = "procedure.end.unconfirmed"
    """Alarm: its runner reported the end and stayed; it was removed."""
    ABORT_FAILED = "abort.failed"
    """Alarm: it was stopped, and its abort did not work; what the subarray does is not known. Has `severity` and `message`."""
    ARMING_FAILED = "abort.arming.failed"
    """Alarm: no abort script is held READY for the subarray, so that its abort would take as long as a start."""
    ANNOUNCE = "script.announce"
    """What a script says by `oet.announce`."""
    PROGRESS = "script.progress"
    """How far the script says it is: `fraction` from 0 to 1, and a text."""
    LOG = "script.log"
    """A line that the script printed. Not on the event stream; read it under `/procedures/{id}/logs`."""
    LOG_DROPPED = "script.log.dropped"
    """Lines that were dropped because the script printed more than OET keeps."""

    __str__ = str.__str__


class Severity(str, Enum):
    """How much an alarm matters: `severity` in its payload."""

    ALARM = "ALARM"
    """Somebody must look now."""
    WARNING = "WARNING"
    """Somebody should look; nothing is in danger yet."""

    __str__ = str.__str__


class EntryKind(str, Enum):
    """What sort of entry a line of an execution's timeline is."""

    STATE = "state"
    """A state that the execution reached."""
    MESSAGE = "message"
    """A message that the script published."""
    LOG = "log"
    """A line that the script printed."""
    ACTION = "action"
    """What a user asked for, and what OET did."""

    __str__ = str.__str__


def is_topic(name: str) -> bool:
    """Tell whether scripts may publish on a topic of this name: words with dots between them."""
    return len(name) <= _MAX_TOPIC_CHARS and _TOPIC.fullmatch(name) is not None


def is_deeper(value: object, limit: int) -> bool:
    """Tell whether a JSON value is nested over so many levels."""
    level = [value]
    for _ in range(limit):
        containers = [item for item in level if isinstance(item, (dict, list))]
        if not containers:
            return False
        level = [part for item in containers for part in (item.values() if isinstance(item, dict) else item)]
    return True
