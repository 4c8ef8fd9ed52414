"""The topics of the event stream: upstream's words, so that existing listeners understand them.

Standard library of Python 3.8 only: the runner and the script library carry this module along.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["EntryKind", "Topic"]


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
