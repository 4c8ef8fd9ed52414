"""Server-sent events from bytes, however they were cut; https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

__all__ = ["EventStream"]


class EventStream:
    """Iterates the data of the events of one stream. An event that the end of the stream cut off is not yielded.

    Attributes:
        last_id: Id to resume after, as of the event yielded last; empty when there never was one.
    """

    def __init__(self, chunks: Iterable[bytes], last_id: str = "") -> None:
        """Read from chunks of bytes.

        Args:
            chunks: What the server sent.
            last_id: Id that the stream was resumed after: events without an id of their own leave it in force.
        """
        self._chunks = chunks
        self.last_id = last_id

    def __iter__(self) -> Iterator[str]:
        """Yield the data of each event."""
        data: list[str] = []
        last_id = self.last_id
        for line in _iterate_lines(self._chunks):
            if not line:
                # Also an event without data moves the place to resume from.
                self.last_id = last_id
                if data:
                    yield "\n".join(data)
                data = []
                continue
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "data":
                data.append(value)
            elif field == "id" and "\0" not in value:
                last_id = value


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
