"""The topics of the event stream: upstream's words, so that existing listeners understand them.

Standard library of Python 3.8 only: the runner and the script library carry this module along.
"""

from __future__ import annotations

import re
from enum import Enum

__all__ = ["MAX_MESSAGE_BYTES", "MESSAGE_FD_VARIABLE", "MESSAGE_INODE_VARIABLE", "EntryKind", "Topic", "is_topic"]

MESSAGE_FD_VARIABLE = "OET_MESSAGE_FD"
"""Environment variable that tells a script's processes where messages go: the number of a file descriptor."""

MESSAGE_INODE_VARIABLE = "OET_MESSAGE_INODE"
"""Environment variable with the inode behind that number: where it differs, the number is something else by now."""

MAX_MESSAGE_BYTES = 128 * 1024
"""A message with its topic, as JSON: fits the kernel's default socket buffer of 208 KiB in one piece."""

_TOPIC = re.compile(r"[\w-]+(\.[\w-]+)*")
_MAX_TOPIC_CHARS = 255


class Topic(str, Enum):
    """A topic that OET itself publishes. Scripts may publish on any other as well."""

    REQUEST_CREATE = "request.procedure.create"
    REQUEST_START = "request.procedure.start"
    REQUEST_STOP = "request.procedure.stop"
    STATE_CHANGE = "procedure.lifecycle.statechange"
    STACKTRACE = "procedure.lifecycle.stacktrace"
    CREATED = "procedure.lifecycle.created"
    STARTED = "procedure.lifecycle.started"
    STOPPED = "procedure.lifecycle.stopped"
    COMPLETE = "procedure.lifecycle.complete"
    FAILED = "procedure.lifecycle.failed"
    ANNOUNCE = "script.announce"
    PROGRESS = "script.progress"
    """How far the script says it is: `fraction` from 0 to 1, and a text."""
    LOG = "script.log"
    """A line that the script printed. Not on the event stream; read it under `/procedures/{id}/logs`."""
    LOG_DROPPED = "script.log.dropped"
    """Lines that were dropped because the script printed more than OET keeps."""

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
