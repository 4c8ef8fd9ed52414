"""Events as lines for people: one row per topic, in the words that users of OET know. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from oet_crds.states import State
from oet_crds.subarrays import SUBARRAY_KEY
from oet_crds.topics import Topic
from oet_crds.waits import is_waiting

__all__ = ["describe_event", "describe_script", "describe_wait"]

Event = Mapping[str, Any]
Describe = Callable[[Event], str]


def describe_script(script: Mapping[str, Any]) -> str:
    """Return a script's address, or what kind it is when it has none."""
    return str(script.get("script_uri") or script.get("script_type", "?"))


def _describe_subarray(kwargs: Mapping[str, Any]) -> str:
    number = kwargs.get(SUBARRAY_KEY)
    return "" if number is None else f" on subarray {number}"


def _describe_create(event: Event) -> str:
    command = event["cmd"]
    where = _describe_subarray(command["init_args"].get("kwargs", {}))
    return f"User request: prepare {describe_script(command['script'])} for execution{where}"


def _describe_stop(event: Event) -> str:
    words = "with abort" if event["cmd"]["run_abort"] else "with no abort"
    return f"User request: stop procedure #{event['cmd']['process_uid']} {words}"


def _describe_procedure(procedure: Event, words: str) -> str:
    where = _describe_subarray(procedure["script_args"].get("init", {}).get("kwargs", {}))
    return f"Procedure {procedure['id']} ({describe_script(procedure['script'])}) {words}{where}"


def _result(words: str) -> Describe:
    return lambda event: _describe_procedure(event["result"], words)


def _describe_created(event: Event) -> str:
    # The event comes when the procedure is accepted, which is before it is ready.
    is_ready = event["result"]["state"] == State.READY
    return _describe_procedure(event["result"], "ready for execution" if is_ready else "created for execution")


def _describe_stopped(event: Event) -> str:
    result = event["result"]
    return f"Procedure stopped; procedure {result[0]['id']} ran the abort script" if result else "Procedure stopped"


def _describe_alarm(event: Event) -> str:
    severity = event["severity"]
    return f"{severity} of procedure {event['msg_src']}: {str(event['message']).removeprefix(f'{severity}: ')}"


def _text(template: str) -> Describe:
    """Build a line from the fields of the event itself."""
    return lambda event: template.format_map(event)


_LINES: dict[str, Describe] = {
    Topic.REQUEST_CREATE: _describe_create,
    Topic.REQUEST_START: lambda event: f"User request: start execution of process #{event['cmd']['process_uid']}",
    Topic.REQUEST_STOP: _describe_stop,
    Topic.REQUEST_ACTIVITY_RUN: _text("User request: run activity {cmd[activity_name]} of SB {cmd[sbd_id]}"),
    Topic.ACTIVITY_RUNNING: _text(
        "Activity {result[id]} ({result[activity_name]} of SB {result[sbd_id]}) is carried out by procedure "
        "#{result[procedure_id]}"
    ),
    Topic.SB_STARTED: _text("Observation for SB {sbi_id} started"),
    Topic.SB_SUCCEEDED: _text("Observation for SB {sbi_id} complete"),
    Topic.SB_FAILED: _text("Observation for SB {sbi_id} failed"),
    Topic.CREATED: _describe_created,
    Topic.STARTED: _result("started execution"),
    Topic.STOPPED: _describe_stopped,
    Topic.COMPLETE: _result("execution complete"),
    Topic.FAILED: _result("execution failed"),
    Topic.STATE_CHANGE: _text("Procedure {msg_src} is {new_state}"),
    Topic.WAITING: _text("Procedure {msg_src} is {state}: {message} ({reason})"),
    Topic.STACKTRACE: lambda event: f"Procedure {event['msg_src']} failed:\n{str(event['stacktrace']).rstrip()}",
    Topic.ABORT_FAILED: _describe_alarm,
    Topic.ARMING_FAILED: _describe_alarm,
    Topic.ANNOUNCE: _text("Script message: {msg}"),
    Topic.PROGRESS: lambda event: f"Progress: {float(event['fraction']):.0%} {event['text']}".rstrip(),
    # Topics of the observing scripts and of older servers, which OET itself does not publish.
    "request.procedure.list": _text("User request to list all the procedures is received"),
    "procedure.pool.list": _text("Enumerating current procedures and status"),
    "sb.lifecycle.allocated": _text("Resources allocated using SB {sb_id}"),
    "request.activity.list": _text("User request to list all the activities is received"),
    "activity.pool.list": _text("Enumerating current activities and status"),
    "sb.lifecycle.observation.started": _text("Observation for SB {sb_id} started"),
    "sb.lifecycle.observation.finished.succeeded": _text("Observation for SB {sb_id} complete"),
    "sb.lifecycle.observation.finished.failed": _text("Observation for SB {sb_id} failed"),
    "subarray.resources.allocated": _text("Subarray {subarray_id}: resources allocated"),
    "subarray.resources.deallocated": _text("Subarray {subarray_id}: resources released"),
    "subarray.configured": _text("Subarray {subarray_id} configured"),
    "subarray.scan.started": _text("Subarray {subarray_id}: scan started"),
    "subarray.scan.finished": _text("Subarray {subarray_id}: scan complete"),
    "subarray.fault": _text("Subarray {subarray_id} error: {error}"),
    "scan.lifecycle.configure.started": _text("SB {sb_id}: configuring for scan {scan_id}"),
    "scan.lifecycle.configure.complete": _text("SB {sb_id}: scan {scan_id} configuration complete"),
    "scan.lifecycle.configure.failed": _text("SB {sb_id}: scan {scan_id} configuration failed"),
    "scan.lifecycle.start": _text("SB {sb_id}: scan {scan_id} starting"),
    "scan.lifecycle.end.succeeded": _text("SB {sb_id}: scan {scan_id} complete"),
    "scan.lifecycle.end.failed": _text("SB {sb_id}: scan {scan_id} failed"),
}


_REQUEST = "request."


def _describe_origin(event: Event) -> str:
    """Return who asked and why, in brackets; empty where neither is known."""
    user, reason = event.get("user"), " ".join(str(event.get("reason") or "").split())
    words = [f"by {user}"] if user else []
    words += [f"because: {reason}"] if reason else []
    return f" ({', '.join(words)})" if words else ""


def describe_wait(procedure: Mapping[str, Any]) -> str:
    """Return what a procedure, as the server shows it, waits for before its script runs; empty for nothing that is known."""
    state, reason = str(procedure.get("state")), procedure.get("reason")
    if not is_waiting(state, reason):
        return ""
    return f"Procedure {procedure['id']} is {state}: {procedure.get('message') or reason} ({reason})"


def describe_event(event: Event) -> str:
    """Return an event in words. One of an unknown topic, or of an unusual shape, is shown as it came: none is lost."""
    topic = str(event.get("topic"))
    describe = _LINES.get(topic)
    if describe is not None:
        try:
            return describe(event) + (_describe_origin(event) if topic.startswith(_REQUEST) else "")
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            pass
    fields = {key: value for key, value in event.items() if key != "topic"}
    return f"{topic}: {json.dumps(fields)}"
