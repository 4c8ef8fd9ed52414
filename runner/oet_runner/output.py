"""What the script prints, cut into lines. Pure."""

from __future__ import annotations

from oet_crds.mailbox import MAX_LINE_BYTES

__all__ = ["LineSplitter"]

_UTF8_CONTINUATION = range(0x80, 0xC0)
_UTF8_MAX_TAIL = 3
"""A UTF-8 character has at most 3 continuation bytes."""


def _find_cut(data: bytes | bytearray, limit: int) -> int:
    """Return where to cut, at most `limit`, so that no UTF-8 character is cut in two."""
    cut = limit
    while cut > limit - _UTF8_MAX_TAIL and data[cut] in _UTF8_CONTINUATION:
        cut -= 1
    return limit if data[cut] in _UTF8_CONTINUATION else cut


class LineSplitter:
    r"""Cuts a stream of bytes into lines of text.

    A line longer than the limit comes in pieces. `\r\n` ends a line as `\n` does. Bytes that are not UTF-8 are replaced.
    """

    __slots__ = ("_is_continued", "_limit_bytes", "_rest")

    def __init__(self, limit_bytes: int = MAX_LINE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._rest = bytearray()
        self._is_continued = False

    @property
    def has_partial(self) -> bool:
        """Whether a line was begun and not ended."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """Add data; return the lines that are complete now, without their ends."""
        if self._rest:
            self._rest += data
            data = bytes(self._rest)
            self._rest.clear()
        *complete, rest = data.split(b"\n")
        lines: list[bytes] = []
        for line in complete:
            pieces = self._cut(line[:-1] if line.endswith(b"\r") else line)
            # The end of a line that was handed out in part already is not an empty line.
            if not (self._is_continued and pieces == [b""]):
                lines += pieces
            self._is_continued = False
        if len(rest) > self._limit_bytes:
            *pieces, rest = self._cut(rest)
            lines += pieces
            self._is_continued = True
        self._rest += rest
        return lines

    def _cut(self, line: bytes) -> list[bytes]:
        pieces = []
        while len(line) > self._limit_bytes:
            cut = _find_cut(line, self._limit_bytes)
            pieces.append(line[:cut])
            line = line[cut:]
        pieces.append(line)
        return pieces

    def flush(self) -> list[bytes]:
        """Return the line that was begun, as one that counts as handed out; none where none was begun."""
        if not self._rest:
            return []
        line = bytes(self._rest)
        self._rest.clear()
        self._is_continued = True
        return [line[:-1] if line.endswith(b"\r") else line]
