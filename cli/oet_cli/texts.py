"""Events as lines for people: one row per topic. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from oet_crds.topics import Topic

__all__ = ["describe_event"]

Event = Mapping[str, Any]


def _describe_create(event: Event) -> str:
    command = event["cmd"]
    script = command["script"]
    uri = script.get("script_uri") or script["script_type"]
    subarray = command["init_args"]["kwargs"].get("subarray_id")
    where = "" if subarray is None else f" on subarray {subarray}"
    return f"User request: prepare {uri} for execution{where}"


def _describe_result(words: str) -> Callable[[Event], str]:
    def describe(event: Event) -> str:
        result = event["result"]
        uri = result["script"].get("script_uri") or result["script"]["script_type"]
        return f"Procedure {result['id']} ({uri}) {words}{_describe_subarray(result)}"

    return describe


def _describe_subarray(procedure: Event) -> str:
    number = procedure["script_args"].get("init", {}).get("kwargs", {}).get("subarray_id")
    return "" if number is None else f" on subarray {number}"


def _describe_stop(event: Event) -> str:
    words = "with abort" if event["cmd"]["run_abort"] else "with no abort"
    return f"User request: stop procedure #{event['cmd']['process_uid']} {words}"


def _describe_stopped(event: Event) -> str:
    result = event["result"]
    return f"Procedure stopped; procedure {result[0]['id']} ran the abort script" if result else "Procedure stopped"


_LINES: dict[str, Callable[[Event], str]] = {
    Topic.REQUEST_CREATE: _describe_create,
    Topic.REQUEST_START: lambda event: f"User request: start execution of process #{event['cmd']['process_uid']}",
    Topic.REQUEST_STOP: _describe_stop,
    Topic.CREATED: _describe_result("is prepared for execution"),
    Topic.STARTED: _describe_result("started execution"),
    Topic.STOPPED: _describe_stopped,
    Topic.STATE_CHANGE: lambda event: f"Procedure {event['msg_src']} is {event['new_state']}",
    Topic.STACKTRACE: lambda event: f"Procedure {event['msg_src']} failed:\n{str(event['stacktrace']).rstrip()}",
    Topic.ANNOUNCE: lambda event: f"Script message: {event['msg']}",
    Topic.PROGRESS: lambda event: f"Progress: {float(event['fraction']):.0%} {event['text']}".rstrip(),
    "sb.lifecycle.started": lambda event: f"Observation for SB {event['sbi_id']} started",
    "sb.lifecycle.finished.succeeded": lambda event: f"Observation for SB {event['sbi_id']} complete",
    "sb.lifecycle.finished.failed": lambda event: f"Observation for SB {event['sbi_id']} failed",
}


def describe_event(event: Event) -> str:
    """Return an event in words. One of an unknown topic, or of an unusual shape, is shown as it came: none is lost."""
    topic = str(event.get("topic"))
    describe = _LINES.get(topic)
    if describe is not None:
        try:
            return describe(event)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            pass
    fields = {key: value for key, value in event.items() if key != "topic"}
    return f"{topic}: {json.dumps(fields)}"
