"""/stream: what happens, as server-sent events."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

import falcon
from pydantic import BaseModel, ConfigDict, Field

from oet_api.decisions import compute_subarrays
from oet_api.errors import BadRequestError
from oet_api.limits import shorten
from oet_api.openapi import EVENT_STREAM, Operation, endpoint
from oet_api.services import Services
from oet_api.streams import EventFilter, Pace, SlotIterator, iterate_events
from oet_crds.errors import NotFoundError
from oet_crds.ports import Timeline
from oet_crds.subarrays import MAX_SUBARRAY

__all__ = ["StreamQuery", "StreamResource", "build_is_gone", "find_resumption", "parse_last_event_id"]

MAX_NUMBER = 2**63 - 1

LEARN_SECONDS = 1.0
"""How long an id that is not known yet may take from the server that gave it; it takes some milliseconds."""

REMEMBERED_PROCEDURES = 10_000
"""Procedures whose subarray is remembered for one stream."""


class StreamQuery(BaseModel):
    """Query of GET /stream."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    procedure_id: int | None = Field(None, ge=0, le=MAX_NUMBER, description="Only events of this procedure.")
    subarray: int | None = Field(
        None, ge=0, le=MAX_SUBARRAY, description="Only events of procedures that hold, or name, this subarray."
    )
    topics: str | None = Field(None, max_length=2000, description="Only these topics, with commas between them.")
    last_event_id: str | None = Field(None, description="Resume after this event, as the header Last-Event-ID does.")


class StreamResource:
    """The event stream."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @endpoint(Operation("listen", media=[EVENT_STREAM], query=StreamQuery, errors=[503]))
    def on_get(self, req: falcon.Request, resp: falcon.Response, query: StreamQuery) -> None:
        """Listen to events: states, messages of scripts, and requests.

        Starts now, or after the event that the header Last-Event-ID names: nothing is missed and nothing comes twice.
        The answer's header Last-Event-ID says where it starts, for who comes back before the first event.
        Printed lines are not among the events; they are under /procedures/{procedure_id}/logs.
        """
        services = self._services
        text = req.get_header("Last-Event-ID") or query.last_event_id
        after = find_resumption(text, services.timeline)
        resp.content_type = EVENT_STREAM
        resp.set_header("X-Accel-Buffering", "no")
        if req.method == "HEAD":
            return
        newest = services.broadcast.start()
        after = newest if after is None else after
        resp.set_header("Last-Event-ID", str(after))
        services.slots.take()
        topics = None if query.topics is None else frozenset(part.strip() for part in query.topics.split(","))
        wanted = EventFilter(query.procedure_id, topics, self._build_subarray_test(query.subarray))
        pace = Pace(services.settings.heartbeat_seconds)
        events = iterate_events(services.broadcast, after, wanted, pace, build_is_gone(req))
        resp.stream = SlotIterator(services.slots, events)

    def _build_subarray_test(self, subarray: int | None) -> Callable[[int], bool] | None:
        """Return what tells of a procedure whether it is on a subarray."""
        if subarray is None:
            return None
        settled: dict[int, bool] = {}

        def is_on_it(procedure_id: int) -> bool:
            if procedure_id not in settled:
                try:
                    execution = self._services.store.get(procedure_id)
                except NotFoundError:
                    return False
                is_on = subarray in compute_subarrays(execution)
                if execution.status.grant is None and not execution.is_finished:
                    return is_on  # The arguments of its start may name another one.
                if len(settled) >= REMEMBERED_PROCEDURES:
                    settled.clear()
                settled[procedure_id] = is_on
            return settled[procedure_id]

        return is_on_it


def find_resumption(text: str | None, timeline: Timeline) -> int | None:
    """Return the id to resume after, as `parse_last_event_id`; wait a moment for one that another server has told already."""
    newest = timeline.last_id()
    try:
        return parse_last_event_id(text, newest)
    except BadRequestError:
        if not (text and text.isascii() and text.isdigit() and len(text) < 20):
            raise
        timeline.wait(int(text) - 1, LEARN_SECONDS)
        return parse_last_event_id(text, timeline.last_id())


def parse_last_event_id(text: str | None, newest: int) -> int | None:
    """Return the id to resume after; None to start now.

    Args:
        text: What the client sent; None or empty for nothing.
        newest: Id of the newest event.

    Raises:
        BadRequestError: Not an id, or one that does not exist yet.
    """
    if not text:
        return None
    problem = {"type": "value_error", "loc": ["header", "Last-Event-ID"], "input": shorten(text)}
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BadRequestError(422, [{**problem, "msg": "The id of an event is a whole number"}])
    if int(text) > newest:
        raise BadRequestError(422, [{**problem, "msg": f"There is no such event yet; the newest is {newest}"}])
    return int(text)


def build_is_gone(req: falcon.Request) -> Callable[[], bool]:
    """Return a function that tells whether the client of a request closed its connection."""
    client: socket.socket | None = req.env.get("gunicorn.socket")
    poller = select.poll()
    if client is not None:
        poller.register(client.fileno(), select.POLLIN)

    def is_gone() -> bool:
        if client is None:
            return False
        try:
            # poll(2) first: a Python socket with a timeout waits before it receives, whatever the flags say.
            return bool(poller.poll(0)) and client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except (OSError, ValueError):
            return True

    return is_gone
