"""/stream: what happens, as server-sent events."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

import falcon
from pydantic import BaseModel, ConfigDict, Field

from oet_api.errors import BadRequestError
from oet_api.limits import shorten
from oet_api.openapi import EVENT_STREAM, Operation, endpoint
from oet_api.services import Services
from oet_api.streams import EventFilter, Pace, SlotIterator, iterate_events

__all__ = ["StreamQuery", "StreamResource", "build_is_gone", "parse_last_event_id"]

MAX_NUMBER = 2**63 - 1


class StreamQuery(BaseModel):
    """Query of GET /stream."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    procedure_id: int | None = Field(None, ge=0, le=MAX_NUMBER, description="Only events of this procedure.")
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
        Printed lines are not among the events; they are under /procedures/{procedure_id}/logs.
        """
        services = self._services
        text = req.get_header("Last-Event-ID") or query.last_event_id
        newest = services.timeline.last_id()
        after = parse_last_event_id(text, newest)
        resp.content_type = EVENT_STREAM
        resp.cache_control = ["no-cache"]
        resp.set_header("X-Accel-Buffering", "no")
        if req.method == "HEAD":
            return
        services.slots.take()
        after = services.broadcast.start() if after is None else after
        services.broadcast.start()
        topics = None if query.topics is None else frozenset(part.strip() for part in query.topics.split(","))
        wanted = EventFilter(query.procedure_id, topics)
        pace = Pace(services.settings.heartbeat_seconds)
        events = iterate_events(services.broadcast, after, wanted, pace, build_is_gone(req))
        resp.stream = SlotIterator(services.slots, events)


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
