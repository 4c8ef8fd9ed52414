"""Server-sent events from bytes, however they were cut; https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = ["ServerEvent", "iterate_events"]


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event: its data, and the id to resume after (empty when the server never sent one)."""

    data: str
    last_id: str


def _iterate_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield complete lines; they end with CR, LF or both."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
    text = ""
    for chunk in chunks:
        text += decoder.decode(chunk)
        # A CR at the very end may be the first half of a CRLF that was cut in two.
        held = text[-1:] == "\r"
        *lines, text = (text[:-1] if held else text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        text += "\r" if held else ""
        yield from lines


def iterate_events(chunks: Iterable[bytes]) -> Iterator[ServerEvent]:
    """Yield the events of a stream. One that the end of the stream cut off is not yielded."""
    data: list[str] = []
    last_id = ""
    for line in _iterate_lines(chunks):
        if not line:
            if data:
                yield ServerEvent("\n".join(data), last_id)
            data = []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "id" and "\0" not in value:
            last_id = value
