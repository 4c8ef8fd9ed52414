"""A REST server that takes runners' entries as the real one does, and fails as real ones do."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import oet_crds.names as names

TOKEN = "token-of-the-pod"


class FakeTimeline:
    """What it stored, by uid, and what goes wrong.

    Attributes:
        stored: Entries by uid, each once.
        token: The only one that is accepted.
        tokens: Those that came.
        faults: Called with a request's entries: may return a status to refuse it with, "cut" to cut the connection in the middle
            of the body, "lose" to store it and cut the connection instead of the answer, "half" to store half of it, or None.
        requests: Count of requests that came.
        connections: Count of connections.
        in_flight: Most requests at once.
        longest: Longest body, in bytes.
    """

    def __init__(self, token=TOKEN):
        self.stored, self.token, self.tokens = {}, token, []
        self.faults = lambda entries: None
        self.requests = self.connections = self.in_flight = self.longest = 0
        self._now = 0
        self._lock = threading.Lock()
        self._server = None
        self.port = 0
        self.come_up()

    def come_up(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self):
                super().setup()
                with fake._lock:
                    fake.connections += 1
                    fake._open.add(self.connection)

            def finish(self):
                with fake._lock:
                    fake._open.discard(self.connection)
                super().finish()

            def do_POST(self):
                with fake._lock:
                    fake._now += 1
                    fake.in_flight = max(fake.in_flight, fake._now)
                try:
                    fake._answer(self)
                finally:
                    with fake._lock:
                        fake._now -= 1

            def log_message(self, *args):
                pass

        self._open = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *args: None
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()

    def go_down(self):
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        with self._lock:
            for connection in list(self._open):
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def _answer(self, handler):
        self.requests += 1
        token = (handler.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.tokens.append(token)
        length = int(handler.headers["Content-Length"])
        self.longest = max(self.longest, length)
        uid = handler.path.removeprefix(names.ENTRIES_PATH.partition("{")[0]).removesuffix("/entries")
        assert names.ENTRIES_PATH.replace("{uid}", uid) == handler.path
        if self.faults is not None and self.faults(None) == "cut":
            handler.rfile.read(length // 2)
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        entries = json.loads(handler.rfile.read(length))["entries"]
        fault = 401 if token != self.token else self.faults(entries)
        if isinstance(fault, int):
            self._reply(handler, fault, {"detail": "fault"})
            return
        seq = self._store(uid, entries[: (len(entries) + 1) // 2] if fault == "half" else entries)
        if fault == "lose":
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        self._reply(handler, 200, {"seq": seq})

    def _store(self, uid, entries):
        with self._lock:
            stored = self.stored.setdefault(uid, [])
            known = len(stored)
            for entry in entries:
                if entry["n"] > known:
                    stored.append(entry)
            return len(stored)

    @staticmethod
    def _reply(handler, status, body):
        data = json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
        handler.wfile.flush()

    # ---- what a test asks

    def entries(self):
        """Return all that was stored of the one execution there is."""
        with self._lock:
            assert len(self.stored) <= 1
            return [entry for entries in self.stored.values() for entry in entries]

    def kinds(self, kind):
        return [entry for entry in self.entries() if entry["k"] == kind]

    def lines(self):
        return [entry["line"] for entry in self.kinds("log") if "line" in entry]

    def dropped(self):
        return sum(entry.get("dropped", 0) for entry in self.kinds("log"))

    def messages(self):
        return [entry["data"] for entry in self.kinds("message")]

    def wait_for(self, condition, seconds=30.0):
        deadline = time.monotonic() + seconds
        while not (result := condition()):
            assert time.monotonic() < deadline, f"{self.requests} requests; {self.entries()[-5:]}"
            time.sleep(0.005)
        return result

    def check_numbers(self):
        """Check that nothing is missing, nothing is there twice, and all is in order."""
        assert [entry["n"] for entry in self.entries()] == list(range(1, len(self.entries()) + 1))
