"""One client's connection: its socket, the bytes that came, and the bytes that are still to go."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from enum import Enum, auto
from typing import Any

from oet_api.guard import SECURITY_HEADERS
from oet_api.intake import IntakeLimits, RequestBuffer
from oet_api.wire import dump_json

__all__ = ["Connection", "Phase", "ReplySocket", "build_refusal"]

KEEPALIVE_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""A client whose machine or network died is noticed after a minute, even on a stream that sends nothing."""

_PHRASES = {
    400: "Bad Request",
    408: "Request Timeout",
    411: "Length Required",
    413: "Content Too Large",
    414: "URI Too Long",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}


class Phase(Enum):
    """What a connection is doing."""

    READING = auto()
    """Waits for a request, or for the rest of one."""
    SERVING = auto()
    """A thread serves a request."""
    WRITING = auto()
    """The answer is computed, but the client has not taken all of it yet."""
    LINGERING = auto()
    """The answer is sent; what still comes is thrown away until the client closes (RFC 9112, section 9.6)."""
    CLOSED = auto()


class ReplySocket:
    """What an answer is written to: headers and body go out together, and a thread waits for slow readers of streams only.

    The last piece of an answer that the client does not take at once stays in `rest`, for the server's loop to send.
    """

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._held = b""
        self.rest = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def sendall(self, data: bytes) -> None:
        """Send what was left before, waiting if need be; then what can be sent of this at once."""
        if not self._held and not self.rest and data.startswith(b"HTTP/") and data.endswith(b"\r\n\r\n"):
            self._held = data
            return
        if self.rest:
            rest, self.rest = self.rest, b""
            self._client.sendall(rest)
        data, self._held = self._held + data, b""
        self.rest = data[self._send(data) :]

    def close(self) -> None:
        """Do nothing: the server's loop, which listens to the socket, closes it."""

    def flush(self) -> None:
        """Send headers that no body followed."""
        if self._held:
            held, self._held = self._held, b""
            self.rest += held[self._send(held) :]

    def _send(self, data: bytes) -> int:
        try:
            return self._client.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0


class Connection:
    """One client's connection. `lock` guards `phase` and `buffer`, which the loop and a serving thread share.

    Attributes:
        client: The client's address.
        server: The address it came to.
        deadline: When the loop closes it unless something happens (monotonic seconds).
        parser: gunicorn's parser of this connection, once there is one.
        is_at_end: The client sends no more.
        is_watched: The loop listens to the socket.
    """

    def __init__(self, raw: socket.socket, client: Any, limits: IntakeLimits, timeout_seconds: float) -> None:
        raw.setblocking(False)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in KEEPALIVE_OPTIONS:
            raw.setsockopt(*option)
        self.raw = raw
        self.client = client
        self.server: Any = raw.getsockname()
        self.sock = ReplySocket(raw)
        self.lock = threading.Lock()
        self.buffer = RequestBuffer(limits)
        self.phase = Phase.READING
        self.deadline = time.monotonic() + timeout_seconds
        self.parser: Any = None
        self.is_at_end = False
        self.is_watched = False
        self.drained = 0

    def fileno(self) -> int:
        """Return the socket's number."""
        return self.raw.fileno()

    def close(self) -> None:
        """Close the socket at once."""
        self.phase = Phase.CLOSED
        with contextlib.suppress(OSError):
            self.raw.close()


def build_refusal(status: int, detail: str) -> bytes:
    """Return an error answer that closes the connection, for requests that never reach the application."""
    body = dump_json({"detail": detail})
    lines = [
        f"HTTP/1.1 {status} {_PHRASES.get(status, 'Error')}",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in SECURITY_HEADERS.items()),
    ]
    head = "\r\n".join([*lines, "", ""])
    return head.encode("ascii") + body
