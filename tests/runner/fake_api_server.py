"""An API server for one kind of object: real HTTP, resource versions, watches, and faults on demand."""

import contextlib
import json
import socket
import textwrap
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PREFIX = "/apis/oet.skao.int/v1alpha1/namespaces/test/scriptexecutions"
ERROR_TEXT = {404: "NotFound", 409: "Conflict", 410: "Expired"}


def merge(target, patch):
    """Apply a merge patch (RFC 7396)."""
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        elif isinstance(value, dict):
            merge(target.setdefault(name, {}), value)
        else:
            target[name] = value


def apply_patch(wire, patch):
    """Apply a patch of `status` as a real API server does; return the HTTP status."""
    if isinstance(patch, dict):
        # A real one heeds the resourceVersion, and takes no notice of a uid.
        metadata = patch.pop("metadata", {})
        if metadata.get("resourceVersion", wire["metadata"]["resourceVersion"]) != wire["metadata"]["resourceVersion"]:
            return 409
        assert set(patch) == {"status"}
        assert set(patch["status"]) == {"runner"}
        merge(wire, patch)
        return 200
    for operation in patch[:-1]:
        assert operation["op"] == "test"
        value = wire
        for part in operation["path"].split("/")[1:]:
            value = value.get(part, {})
        if value != operation["value"]:
            return 422
    assert (patch[-1]["op"], patch[-1]["path"]) == ("add", "/status/runner")
    wire["status"]["runner"] = patch[-1]["value"]
    return 200


def get_written(patch):
    """Return what a patch makes of `status.runner`."""
    return patch["status"]["runner"] if isinstance(patch, dict) else patch[-1]["value"]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False

    def handle_error(self, request, client_address):
        pass  # Connections are cut on purpose.


class FakeApiServer:
    """What it holds, what it was asked, and what goes wrong.

    Attributes:
        requests: (verb, path, body, status) of all requests but watches.
        watches: Count of watches that were begun.
        tokens: Tokens that came, in order.
        token: The only token that is accepted; None for any.
        faults: Called with (verb, path, body) before each request: may return a status to refuse it with, "lose" to carry it
            out and cut the connection, "late" to cut it and carry it out once `late` is set, or None.
        is_silent: Watches tell nothing and stay open.
        cuts_events: Each watch is cut after one event.
        closes_watches: Each watch ends at once.
    """

    def __init__(self):
        self._lock = threading.Condition()
        self._objects = {}
        self._events = []
        self._oldest = 0
        self._version = 100
        self._connections = set()
        self._server = None
        self.requests, self.watches, self.tokens, self.token = [], 0, [], None
        self.faults = lambda verb, path, body: None
        self.late = threading.Event()
        self.is_silent = self.cuts_events = self.closes_watches = False
        self.port = 0
        self.come_back()

    # ---- faults

    def come_back(self):
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1
            disable_nagle_algorithm = True

            def setup(self):
                super().setup()
                owner._connections.add(self.connection)

            def finish(self):
                owner._connections.discard(self.connection)
                with contextlib.suppress(OSError):
                    super().finish()

            def log_message(self, *args):
                pass

            def do_GET(self):
                owner._answer(self)

            do_PATCH = do_GET

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def go_down(self):
        """Refuse connections, and cut those there are."""
        self._server.shutdown()
        self._server.server_close()
        self.cut()

    def cut(self):
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def forget_events(self):
        """Expire all versions so far: whoever watches from one of them gets 410."""
        with self._lock:
            self._oldest = self._version = self._version + 1

    # ---- objects

    def create(self, name="one", source="def main(): pass", pod="pod", **spec):
        wire = {
            "metadata": {"name": name, "namespace": "test", "uid": str(uuid.uuid4()), "generation": 1},
            "spec": {
                "script": source if isinstance(source, dict) else {"inline": {"source": textwrap.dedent(source)}},
                "desiredState": "Running",
                "args": {},
                "stop": {"gracePeriodSeconds": 10, "abort": False},
                **spec,
            },
            "status": {"state": "CREATING", "procedureId": 7, "podName": pod},
        }
        with self._lock:
            self._objects[name] = wire
            self._note("ADDED", wire)
        return wire["metadata"]["uid"]

    def _note(self, kind, wire):
        self._version += 1
        wire["metadata"]["resourceVersion"] = str(self._version)
        self._events.append((self._version, kind, json.dumps(wire)))
        self._lock.notify_all()

    def change(self, name="one", **patch):
        """Apply a merge patch as the operator or a user would."""
        with self._lock:
            merge(self._objects[name], json.loads(json.dumps(patch)))
            self._note("MODIFIED", self._objects[name])

    def grant(self, name="one"):
        self.change(name, status={"grant": {"time": "2026-01-01T00:00:00.000000Z"}})

    def stop(self, name="one", seconds=10):
        self.change(name, spec={"desiredState": "Stopped", "stop": {"gracePeriodSeconds": seconds}})

    def delete(self, name="one"):
        with self._lock:
            self._note("DELETED", self._objects.pop(name))

    def runner(self, name="one"):
        with self._lock:
            return json.loads(json.dumps(self._objects[name]["status"].get("runner", {})))

    def states(self, name="one"):
        return [entry["state"] for entry in self.runner(name).get("transitions", [])]

    def patches(self):
        return [(json.loads(body), status) for verb, _, body, status in list(self.requests) if verb == "PATCH"]

    def wait_for(self, condition, seconds=20.0):
        deadline = time.monotonic() + seconds
        while not (result := condition()):
            assert time.monotonic() < deadline, f"{self.requests[-1:]} {self._objects}"
            time.sleep(0.002)
        return result

    def wait_state(self, state, name="one"):
        self.wait_for(lambda: state in self.states(name))

    def wait_exit(self, name="one"):
        return self.wait_for(lambda: self.runner(name).get("exit"))

    # ---- HTTP

    def _answer(self, handler):
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        url = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        token = (handler.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.tokens.append(token)
        if "watch" in query:
            self.watches += 1
        fault = self.faults(handler.command, handler.path, body)
        if self.token not in (None, token):
            fault = 401
        if isinstance(fault, int):
            status, answer = fault, self._build_error(fault, "fault", url.path)
        elif "watch" in query:
            self._watch(handler, query)
            return
        else:
            if fault == "late":
                handler.connection.shutdown(socket.SHUT_RDWR)
                self.late.wait(20.0)
            status, answer = self._perform(handler.command, url.path, query, body)
        self.requests.append((handler.command, handler.path, body, status))
        if fault in ("lose", "late"):
            with contextlib.suppress(OSError):
                handler.connection.shutdown(socket.SHUT_RDWR)
            return
        data = json.dumps(answer).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
        handler.wfile.flush()

    @staticmethod
    def _build_error(status, message, path):
        parts = path.removeprefix(PREFIX).split("/")
        name = parts[1] if len(parts) > 1 else ""
        reason = ERROR_TEXT.get(status, "Fault") if message != "fault" else "Fault"
        return {"kind": "Status", "code": status, "reason": reason, "message": message, "details": {"name": name}}

    def _perform(self, verb, path, query, body):
        assert path.startswith(PREFIX), path
        with self._lock:
            if path == PREFIX:
                pod = query["fieldSelector"].removeprefix("status.podName=")
                items = [wire for wire in self._objects.values() if wire["status"].get("podName") == pod]
                return 200, json.loads(
                    json.dumps({"metadata": {"resourceVersion": str(self._version)}, "items": items})
                )
            wire = self._objects.get(path.removeprefix(PREFIX).split("/")[1])
            if wire is None:
                return 404, self._build_error(404, "not found", path)
            if verb == "PATCH":
                assert path.endswith("/status")
                status = apply_patch(wire, json.loads(body))
                if status != 200:
                    return status, self._build_error(status, "refused", path)
                self._note("MODIFIED", wire)
            return 200, json.loads(json.dumps(wire))

    def _watch(self, handler, query):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.flush()

        def _send(event):
            data = json.dumps(event).encode() + b"\n"
            for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                handler.wfile.flush()

        version = int(query["resourceVersion"])
        if version < self._oldest:
            _send({"type": "ERROR", "object": self._build_error(410, "too old", PREFIX)})
        elif not self.closes_watches:
            self._follow(handler, version, query["fieldSelector"].removeprefix("status.podName="), _send)
        handler.wfile.write(b"0\r\n\r\n")
        handler.wfile.flush()

    def _follow(self, handler, version, pod, send):
        while handler.connection in self._connections:
            with self._lock:
                self._lock.wait_for(lambda seen=version: self._version > seen and not self.is_silent, 0.2)
                events = [] if self.is_silent else [event for event in self._events if event[0] > version]
            if not events and not self.is_silent:
                # Also shows when the other side, or the test, has closed the connection.
                send({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version)}}})
            for number, kind, text in events:
                version = number
                wire = json.loads(text)
                if wire["status"].get("podName") == pod:
                    send({"type": kind, "object": wire})
                    if self.cuts_events:
                        handler.connection.shutdown(socket.SHUT_RDWR)
                        return
