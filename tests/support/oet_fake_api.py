"""The part of an API server that every test against a faked one needs: real HTTP, resource versions, watches, and faults."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["FakeApi", "Wire", "build_error", "copy_wire", "merge"]

Wire = dict[str, Any]
Handler = BaseHTTPRequestHandler


def merge(target: Wire, patch: Wire) -> None:
    """Apply a merge patch (RFC 7396)."""
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        elif isinstance(value, dict):
            merge(target.setdefault(name, {}), value)
        else:
            target[name] = value


def copy_wire(wire: Any) -> Any:
    """Return a copy as JSON would carry it."""
    return json.loads(json.dumps(wire))


def build_error(code: int, reason: str, message: str, details: Wire | None = None) -> Wire:
    """Build Kubernetes' Status."""
    return {"kind": "Status", "code": code, "reason": reason, "message": message, "details": details or {}}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # Connections are cut on purpose.


class FakeApi:
    """What it holds, what it was asked, and what goes wrong. A subclass says in `answer` what requests do.

    Attributes:
        objects: What it holds, by name.
        requests: (verb, path with query, body, status) of all requests but watches.
        watches: Count of watches that were begun.
        is_silent: Watches tell nothing and stay open.
    """

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.objects: dict[str, Wire] = {}
        self.events: list[tuple[int, str, str]] = []
        self.requests: list[tuple[str, str, bytes, int]] = []
        self.watches = 0
        self.is_silent = False
        self._oldest = 0
        self._version = 100
        self._connections: set[socket.socket] = set()
        self.port = 0
        self.come_back()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def version(self) -> str:
        return str(self._version)

    def answer(self, handler: Handler, path: str, query: dict[str, str], body: bytes) -> None:
        """Answer a request."""
        raise NotImplementedError

    # ---- faults

    def come_back(self) -> None:
        """Take connections, on the same port as before."""
        owner = self

        class _Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                owner._connections.add(self.connection)

            def finish(self) -> None:
                owner._connections.discard(self.connection)
                with contextlib.suppress(OSError):
                    super().finish()

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                url = urlsplit(self.path)
                owner.answer(self, url.path, {name: one[0] for name, one in parse_qs(url.query).items()}, body)

            do_PATCH = do_POST = do_DELETE = do_GET

        self._server = _Server(("127.0.0.1", self.port), _Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def go_down(self) -> None:
        """Refuse connections, and cut those there are."""
        self._server.shutdown()
        self._server.server_close()
        self.cut()

    def cut(self) -> None:
        """Cut all connections."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def is_open(self, handler: Handler) -> bool:
        """Tell whether a connection was not cut."""
        return handler.connection in self._connections

    def forget_events(self) -> None:
        """Expire all versions so far: whoever watches from one of them gets 410."""
        with self.lock:
            self._oldest = self._version = self._version + 1
            self.events.clear()

    # ---- objects

    def note(self, kind: str, wire: Wire) -> None:
        """Give an object its new version, and tell of it. Under the lock."""
        self._version += 1
        wire["metadata"]["resourceVersion"] = self.version
        self.events.append((self._version, kind, json.dumps(wire)))
        self.lock.notify_all()

    def change(self, name: str = "one", **patch: Any) -> None:
        """Apply a merge patch as the operator or a user would."""
        with self.lock:
            merge(self.objects[name], copy_wire(patch))
            self.note("MODIFIED", self.objects[name])

    def delete(self, name: str = "one") -> None:
        """Remove an object."""
        with self.lock:
            self.note("DELETED", self.objects.pop(name))

    # ---- HTTP

    def reply(self, handler: Handler, body: bytes, status: int, found: Wire) -> None:
        """Note a request, and answer it with JSON."""
        self.requests.append((handler.command, handler.path, body, status))
        data = json.dumps(found).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
        handler.wfile.flush()

    def begin(self, handler: Handler) -> Callable[[bytes], None]:
        """Begin an answer in pieces; return what sends one, the empty one for the end."""
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.flush()

        def send(data: bytes) -> None:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            handler.wfile.flush()

        return send

    def watch(
        self,
        handler: Handler,
        query: dict[str, str],
        is_wanted: Callable[[Wire], bool],
        events_at_most: int | None = None,
    ) -> None:
        """Tell what happens to objects, until the client's time is over or the connection is cut.

        Args:
            handler: The request.
            query: Its options.
            is_wanted: Which objects.
            events_at_most: Cut the connection after so many events; None: do not.
        """
        self.watches += 1
        send = self.begin(handler)
        version, left = int(query["resourceVersion"]), events_at_most
        until = time.monotonic() + float(query.get("timeoutSeconds", 3600))

        def tell(kind: str, wire: Wire) -> None:
            data = json.dumps({"type": kind, "object": wire}).encode() + b"\n"
            send(data[: len(data) // 2])
            send(data[len(data) // 2 :])

        if version < self._oldest:
            tell("ERROR", build_error(410, "Expired", "too old resource version"))
            send(b"")
            return
        while self.is_open(handler) and (self.is_silent or time.monotonic() < until):
            with self.lock:
                self.lock.wait_for(lambda seen=version: self._version > seen and not self.is_silent, 0.1)  # type: ignore[misc]
                events = [] if self.is_silent else [event for event in self.events if event[0] > version]
            for number, kind, text in events:
                version, wire = number, json.loads(text)
                if is_wanted(wire):
                    tell(kind, wire)
                    left = None if left is None else left - 1
                if left == 0:
                    handler.connection.shutdown(socket.SHUT_RDWR)
                    return
            if not events and not self.is_silent:
                # Also shows when the other side, or the test, has closed the connection.
                tell("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})
        send(b"")
