"""A gunicorn thread worker in which only whole requests take a thread.

gunicorn's own lends a thread to each connection that says nothing for five seconds, and to each that sends a request or takes
an answer slowly for as long as it likes: some hundred such clients starve all others. Here one loop collects requests and
sends what slow clients have not taken; threads do nothing but compute answers, and feed streams.
"""

from __future__ import annotations

import errno
import selectors
import socket
import time
from functools import partial
from typing import Any, Protocol

from gunicorn.http import errors, get_parser  # type: ignore[import-untyped]
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

from oet_api.connection import Connection, Phase, build_refusal
from oet_api.intake import IntakeLimits, Refused, Verdict

__all__ = ["Lifecycle", "WholeRequestWorker"]

MAX_HEAD_BYTES = 16 * 1024
"""Request line and headers together; gunicorn's own limits, within these, are 8190 bytes for the request line and for each
header."""

MAX_CONNECTIONS = 2000
"""Open connections; past it the one that idles longest is closed. Each takes a file descriptor and some KiB."""

MAX_HELD_BYTES = 64 * 1024 * 1024
"""Unfinished requests of all connections together."""

RECEIVE_BYTES = 64 * 1024
LOOK_SECONDS = 0.25
"""How often deadlines are looked at."""

LINGER_SECONDS = 2.0
"""How long a client may take to close after the last answer; gunicorn's number."""

LINGER_BYTES = 1024 * 1024
"""What is read and thrown away meanwhile."""

DRAIN_SECONDS = 12.0
"""How long an ordered stop waits for requests that are being served: the engine needs up to 9 s to stop its scripts, and
requests to stop wait for that."""

ACCEPTS_AT_ONCE = 64

_CLIENT_ERRORS = {
    errors.LimitRequestLine: 414,
    errors.LimitRequestHeaders: 431,
    errors.ExpectationFailed: 417,
    errors.UnsupportedTransferCoding: 501,
}


class Lifecycle(Protocol):
    """What the worker tells the server about its life."""

    def on_listening(self, address: Any) -> None:
        """Requests are served from now on."""

    def on_stopping(self) -> None:
        """The server stops: end what would not end by itself."""

    def is_stopped(self) -> bool:
        """Tell whether what `on_stopping` began has ended."""
        ...


class WholeRequestWorker(ThreadWorker):  # type: ignore[misc]
    """Serves whole requests in threads; everything slow stays in the loop."""

    alive: bool

    def init_process(self) -> None:
        """Set up, and run until told to stop."""
        settings = self.app.settings
        self._limits = IntakeLimits(MAX_HEAD_BYTES, settings.max_body_bytes)
        self._timeout = settings.request_timeout_seconds
        self._connections: set[Connection] = set()
        super().init_process()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """Stop in order on Ctrl-C as well: scripts are to be stopped, not lost."""
        self.handle_exit(sig, frame)

    # ---- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until told to stop; then finish what is under way."""
        lifecycle: Lifecycle = self.app
        self.poller.register(self.method_queue.fileno(), selectors.EVENT_READ, self.method_queue.run_callbacks)
        self.set_accept_enabled(True)
        lifecycle.on_listening(self.sockets[0].getsockname())
        while self.alive and self.is_parent_alive():
            self._turn()
            self.set_accept_enabled(self._make_room())
        self.alive = False
        self.set_accept_enabled(False)
        for listener in self.sockets:
            listener.close()
        lifecycle.on_stopping()
        limit = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < limit and (self._close_idle() or not lifecycle.is_stopped()):
            self._turn()
        for connection in list(self._connections):
            self._close(connection)
        self.tpool.shutdown(wait=False, cancel_futures=True)
        self.poller.close()

    def _turn(self) -> None:
        self.notify()
        try:
            ready = self.poller.select(LOOK_SECONDS)
        except InterruptedError:
            return
        for key, _ in ready:
            key.data(key.fileobj)
        self._close_overdue()

    def accept(self, listener: Any) -> None:
        """Take new connections into the loop."""
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                raw, client = listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._close_longest_idle()
                return
            try:
                connection = Connection(raw, client, self._limits, self._timeout)
            except OSError:
                raw.close()
                continue
            connection.parser = get_parser(self.cfg, raw, client)
            self._connections.add(connection)
            self._watch(connection, selectors.EVENT_READ, self._on_readable)
            # What a client sends is usually there already: this saves a turn of the loop.
            self._step(self._on_readable, connection)

    def _watch(self, connection: Connection, events: int, callback: Any) -> None:
        if connection.is_watched:
            self.poller.modify(connection, events, partial(self._step, callback))
        else:
            self.poller.register(connection, events, partial(self._step, callback))
        connection.is_watched = True

    def _step(self, callback: Any, connection: Connection) -> None:
        """Run a step of one connection; close it if the step fails, whatever the reason: the loop must live."""
        try:
            callback(connection)
        except OSError:
            self._close(connection)
        except Exception:
            self.log.exception("cannot serve a connection")
            self._close(connection)

    def _unwatch(self, connection: Connection) -> None:
        if connection.is_watched:
            self.poller.unregister(connection)
            connection.is_watched = False

    # ---- reading -------------------------------------------------------------------------------------------------

    def _on_readable(self, connection: Connection) -> None:
        """Take what a client sent."""
        try:
            data = connection.raw.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        with connection.lock:
            if data and not len(connection.buffer):
                connection.deadline = time.monotonic() + self._timeout
            connection.buffer.feed(data)
            connection.is_at_end = not data
            is_serving = connection.phase is Phase.SERVING
            verdict = Verdict.MORE if is_serving else connection.buffer.check()
            if verdict is Verdict.WHOLE:
                connection.phase = Phase.SERVING
        if is_serving:
            # Silence, or patience with a client that sends more before it has its answer.
            if connection.is_at_end or len(connection.buffer) > RECEIVE_BYTES:
                self._unwatch(connection)
            return
        self._follow_verdict(connection, verdict)

    def _follow_verdict(self, connection: Connection, verdict: Verdict | Refused) -> None:
        if verdict is Verdict.WHOLE:
            self.tpool.submit(self._serve, connection)
        elif isinstance(verdict, Refused):
            self._refuse(connection, verdict.status, verdict.detail)
        elif connection.is_at_end:
            if len(connection.buffer):
                self._refuse(connection, 400, "The request ended too early")
            else:
                self._close(connection)
        elif verdict is Verdict.CONTINUE:
            connection.raw.send(b"HTTP/1.1 100 Continue\r\n\r\n", socket.MSG_DONTWAIT)
        elif sum(len(one.buffer) for one in self._connections) > MAX_HELD_BYTES:
            self._refuse(connection, 503, "Too many unfinished requests; try again")

    def _refuse(self, connection: Connection, status: int, detail: str) -> None:
        """Answer a request that does not reach the application, and close."""
        connection.sock.sendall(build_refusal(status, detail))
        connection.sock.flush()
        self._finish(connection)

    # ---- serving: in a thread ------------------------------------------------------------------------------------

    def _serve(self, connection: Connection) -> None:
        """Serve the request that is whole, and those that are there after it."""
        while True:
            try:
                keep = self._serve_one(connection)
            except BaseException:
                self.log.exception("cannot serve a request")
                keep = False
            if not keep or connection.sock.rest:
                self.method_queue.defer(self._step, self._finish if not keep else self._write_rest, connection)
                return
            connection.raw.setblocking(False)
            with connection.lock:
                verdict = connection.buffer.check() if len(connection.buffer) else Verdict.MORE
                if verdict is not Verdict.WHOLE:
                    connection.phase = Phase.READING
                    connection.deadline = time.monotonic() + self.cfg.keepalive
                    is_quiet = verdict is Verdict.MORE and connection.is_watched and not connection.is_at_end
            if verdict is not Verdict.WHOLE:
                if not is_quiet or not self.alive:
                    self.method_queue.defer(self._step, self._resume, connection)
                return

    def _serve_one(self, connection: Connection) -> bool:
        """Serve one request. Returns whether the connection can be used again."""
        with connection.lock:
            data = connection.buffer.take()
        # The whole request is here: only writing can take time, and only so much of it.
        connection.raw.settimeout(self._timeout)
        connection.parser.unreader.unread(data)
        request = None
        try:
            request = next(connection.parser)
            if not request:
                return False
            request._expected_100_continue = False
            keep = self.handle_request(request, connection)
            connection.sock.flush()
            keep = bool(keep and self.alive and self._keepalive_after(connection, keep))
            return keep and not connection.parser.unreader.buf.getvalue()
        except (StopIteration, errors.NoMoreData):
            return False
        except OSError as error:
            self.log.debug("the client of a request is gone: %s", error)
            return False
        except Exception as error:  # noqa: BLE001 - every failure is answered
            self.handle_error(request, connection.sock, connection.client, error)
            return False

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer a request that gunicorn's parser, or the application, failed on."""
        if isinstance(exc, errors.ParseException) and not isinstance(
            exc, (errors.InvalidResponseHeader, errors.InvalidResponseHeaderName)
        ):
            status = _CLIENT_ERRORS.get(type(exc), 400)
            detail = str(exc)[:200]
        else:
            self.log.error("cannot serve a request", exc_info=exc)
            status, detail = 500, "Internal Server Error"
        try:
            client.sendall(build_refusal(status, detail))
            client.flush()
        except OSError as error:
            self.log.debug("the client of a request is gone: %s", error)

    # ---- after an answer -----------------------------------------------------------------------------------------

    def _resume(self, connection: Connection) -> None:
        """Go on reading after an answer, where the serving thread could not decide alone."""
        with connection.lock:
            if connection.phase is not Phase.READING:
                return
            verdict = connection.buffer.check() if len(connection.buffer) else Verdict.MORE
            if verdict is Verdict.WHOLE:
                connection.phase = Phase.SERVING
        if not self.alive and verdict is not Verdict.WHOLE:
            self._finish(connection)
            return
        if not connection.is_at_end:
            self._watch(connection, selectors.EVENT_READ, self._on_readable)
        self._follow_verdict(connection, verdict)

    def _write_rest(self, connection: Connection) -> None:
        """Send what the client has not taken yet, then go on reading."""
        self._send_rest(connection, then=self._go_on_reading)

    def _go_on_reading(self, connection: Connection) -> None:
        connection.phase = Phase.READING
        connection.deadline = time.monotonic() + self.cfg.keepalive
        self._unwatch(connection)
        self._resume(connection)

    def _finish(self, connection: Connection) -> None:
        """Send what the client has not taken yet, then close as RFC 9112 says."""
        self._send_rest(connection, then=self._linger)

    def _send_rest(self, connection: Connection, then: Any) -> None:
        connection.raw.setblocking(False)
        connection.phase = Phase.WRITING
        reply = connection.sock
        if reply.rest:
            try:
                sent = connection.raw.send(reply.rest)
            except BlockingIOError:
                sent = 0
            reply.rest = reply.rest[sent:]
            if reply.rest:
                connection.deadline = time.monotonic() + self._timeout
                self._watch(connection, selectors.EVENT_WRITE, partial(self._send_rest, then=then))
                return
        then(connection)

    def _linger(self, connection: Connection) -> None:
        """Say that no more comes, and wait for the client to say the same: an early close would destroy the answer."""
        if connection.is_at_end:
            self._close(connection)
            return
        connection.raw.shutdown(socket.SHUT_WR)
        connection.phase = Phase.LINGERING
        connection.deadline = time.monotonic() + LINGER_SECONDS
        self._watch(connection, selectors.EVENT_READ, self._drain)

    def _drain(self, connection: Connection) -> None:
        data = connection.raw.recv(RECEIVE_BYTES)
        connection.drained += len(data)
        if not data or connection.drained > LINGER_BYTES:
            self._close(connection)

    # ---- closing -------------------------------------------------------------------------------------------------

    def _close(self, connection: Connection) -> None:
        self._unwatch(connection)
        self._connections.discard(connection)
        connection.close()

    def _close_overdue(self) -> None:
        """Close connections whose time is over; tell a client that sent half a request."""
        now = time.monotonic()
        for connection in [one for one in self._connections if one.deadline < now]:
            with connection.lock:
                if connection.phase is Phase.SERVING or connection.deadline >= now:
                    continue
                is_partial = connection.phase is Phase.READING and len(connection.buffer) > 0
            if is_partial:
                detail = f"The request was not complete after {self._timeout:g} s"
                self._step(lambda one, detail=detail: self._refuse(one, 408, detail), connection)
            else:
                self._close(connection)

    def _close_idle(self) -> bool:
        """Close connections on which nothing is under way. Returns whether others are left."""
        for connection in list(self._connections):
            with connection.lock:
                is_idle = connection.phase is Phase.READING and not len(connection.buffer)
            if is_idle or connection.phase is Phase.LINGERING:
                self._close(connection)
        return bool(self._connections)

    def _make_room(self) -> bool:
        """Close an idle connection when there are too many. Returns whether there is room for another one."""
        return len(self._connections) < MAX_CONNECTIONS or self._close_longest_idle()

    def _close_longest_idle(self) -> bool:
        waiting = [one for one in self._connections if one.phase in (Phase.READING, Phase.LINGERING)]
        if not waiting:
            return False
        self._close(min(waiting, key=lambda one: (len(one.buffer) > 0, one.deadline)))
        return True
