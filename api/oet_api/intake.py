"""Collects the bytes of a request until it is whole, so that no thread waits for a slow client. Pure: bytes in, verdict out.

This is no HTTP parser: it finds out how long a request is and whether that is allowed. What it lets through is parsed, and
judged, by gunicorn.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

__all__ = ["IntakeLimits", "Refused", "RequestBuffer", "Verdict"]

_END = b"\r\n\r\n"
_MAX_LENGTH_DIGITS = 18


class Verdict(Enum):
    """What is to be done with the bytes so far."""

    MORE = auto()
    """The request is not whole yet."""
    CONTINUE = auto()
    """The same, and the client waits for `100 Continue` before it sends the body. Said once a request."""
    WHOLE = auto()
    """`RequestBuffer.take` returns the request."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The request is not taken, and the bytes after it make no sense: answer and close.

    Attributes:
        status: HTTP status.
        detail: Why.
    """

    status: int
    detail: str


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """What a request may have.

    Attributes:
        head_bytes: Request line and headers.
        body_bytes: Body.
    """

    head_bytes: int
    body_bytes: int


class RequestBuffer:
    """The bytes of one connection that were not served yet."""

    def __init__(self, limits: IntakeLimits) -> None:
        self._limits = limits
        self._bytes = bytearray()
        self._searched = 0
        self._length: int | None = None

    def __len__(self) -> int:
        """Return how many bytes there are."""
        return len(self._bytes)

    def feed(self, data: bytes) -> None:
        """Add what the client sent."""
        self._bytes += data

    def check(self) -> Verdict | Refused:
        """Return what is to be done now."""
        expects = False
        if self._length is None:
            # An empty line before a request is to be ignored: RFC 9112, section 2.2.
            while self._bytes.startswith(b"\r\n"):
                del self._bytes[:2]
            end = self._bytes.find(_END, max(0, self._searched - len(_END)))
            if end < 0 or end > self._limits.head_bytes:
                return self._check_head_size()
            head = _measure(bytes(self._bytes[:end]), self._limits)
            if isinstance(head, Refused):
                return head
            self._length = end + len(_END) + head.body_bytes
            expects = head.expects_continue
        if len(self._bytes) >= self._length:
            return Verdict.WHOLE
        if expects:
            return Verdict.CONTINUE
        return Verdict.MORE

    def take(self) -> bytes:
        """Return the bytes of the first request, and forget them. Only after `Verdict.WHOLE`."""
        assert self._length is not None
        request = bytes(self._bytes[: self._length])
        del self._bytes[: self._length]
        self._searched, self._length = 0, None
        return request

    def _check_head_size(self) -> Verdict | Refused:
        self._searched = len(self._bytes)
        if len(self._bytes) <= self._limits.head_bytes:
            return Verdict.MORE
        if b"\r\n" not in self._bytes[: self._limits.head_bytes]:
            return Refused(414, f"The request line is longer than {self._limits.head_bytes} bytes")
        return Refused(431, f"The headers are longer than {self._limits.head_bytes} bytes")


@dataclass(frozen=True, slots=True)
class _Head:
    body_bytes: int
    expects_continue: bool


def _measure(head: bytes, limits: IntakeLimits) -> _Head | Refused:
    """Return what the headers say about the body; what makes no sense counts as no body, for gunicorn to refuse."""
    lengths: list[bytes] = []
    expects = False
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        name, value = name.strip().lower(), value.strip().lower()
        if name == b"transfer-encoding":
            return Refused(411, "The length of the body must be given (Content-Length)")
        if name == b"content-length":
            lengths.append(value)
        expects = expects or (name == b"expect" and value == b"100-continue")
    if len(lengths) != 1 or not lengths[0].isdigit():
        return _Head(0, False)
    if len(lengths[0]) > _MAX_LENGTH_DIGITS or int(lengths[0]) > limits.body_bytes:
        return Refused(413, f"The body has {lengths[0][:30].decode()} bytes; this server takes {limits.body_bytes}")
    return _Head(int(lengths[0]), expects)
