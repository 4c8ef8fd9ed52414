"""Framing of server-sent events, as upstream does it: no space after the colon, the topic last in the object."""

from __future__ import annotations

from oet_api.wire import dump_json, mask_payload
from oet_crds.ports import TimelineEntry

__all__ = ["FAREWELL", "HEARTBEAT", "OPENING", "build_frame"]

OPENING = b"\n"
"""Sent at once, so that the headers leave the server."""

HEARTBEAT = b":\n\n"
"""A comment: keeps proxies from closing a silent stream, and shows the server that a client is gone."""

FAREWELL = b":the server stops\n\n"
"""The last bytes when the server stops in order: a comment, which no client takes for an event."""


def build_frame(entry: TimelineEntry) -> bytes:
    """Return an entry as the frame of one event; its id is what `Last-Event-ID` resumes after."""
    event = {
        **{name: value for name, value in mask_payload(entry.payload).items() if name != "topic"},
        "topic": str(entry.topic),
    }
    return b"data:%b\nid:%d\n\n" % (dump_json(event, compact=False), entry.id)
