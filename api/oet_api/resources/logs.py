"""/procedures/{procedure_id}/logs: what a script printed."""

from __future__ import annotations

from typing import Literal

import falcon
from pydantic import BaseModel, ConfigDict, Field

from oet_api.log_lines import LogReader, LogRequest
from oet_api.openapi import EVENT_STREAM, PLAIN_TEXT, Operation, endpoint
from oet_api.resources.stream import build_is_gone, find_resumption
from oet_api.services import Services
from oet_api.streams import Pace, SlotIterator

__all__ = ["LogsQuery", "LogsResource"]


class LogsQuery(BaseModel):
    """Query of GET /procedures/{procedure_id}/logs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    follow: bool = Field(False, description="Go on with what is printed from now on, until the procedure has ended.")
    tail: int | None = Field(None, ge=1, le=100_000, description="Only so many of the last lines; absent: all.")
    format: Literal["text", "sse"] | None = Field(
        None,
        description="sse: server-sent events with ids and heartbeats. Absent: as the header Accept says, else text.",
    )
    last_event_id: str | None = Field(None, description="With sse: resume after this event.")


class LogsResource:
    """The printed lines of one procedure."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._reader = LogReader(
            services.store,
            services.timeline,
            Pace(services.settings.heartbeat_seconds),
            lambda: services.broadcast.is_stopping,
        )

    @endpoint(Operation("read_logs", media=[PLAIN_TEXT, EVENT_STREAM], query=LogsQuery, errors=[503]))
    def on_get(self, req: falcon.Request, resp: falcon.Response, procedure_id: int, query: LogsQuery) -> None:
        """Read what a procedure printed.

        Both stdout and stderr, in order. Where a script printed more than is kept, a line says how many are missing.
        """
        services = self._services
        services.store.get(procedure_id)
        accept = req.get_header("Accept", default="")
        as_events = query.format == "sse" or (query.format is None and accept.startswith("text/event-stream"))
        text = (req.get_header("Last-Event-ID") or query.last_event_id) if as_events else None
        after = find_resumption(text, services.timeline) or 0
        resp.content_type = EVENT_STREAM if as_events else PLAIN_TEXT
        resp.set_header("X-Accel-Buffering", "no")
        if req.method == "HEAD":
            return
        slots = services.slots if query.follow else services.downloads
        slots.take()
        request = LogRequest(procedure_id, after, query.tail, query.follow, as_events)
        resp.stream = SlotIterator(slots, self._reader.iterate(request, build_is_gone(req)))
