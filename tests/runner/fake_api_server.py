"""An API server for one runner's execution, and faults on demand. The test plays the operator."""

import contextlib
import json
import socket
import textwrap
import threading
import time
import uuid

from oet_fake_api import FakeApi, build_error, copy_wire, merge

PREFIX = "/apis/oet.skao.int/v1alpha1/namespaces/test/scriptexecutions"
ERROR_TEXT = {404: "NotFound", 409: "Conflict", 410: "Expired"}


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


class FakeApiServer(FakeApi):
    """What it holds, what it was asked, and what goes wrong.

    Attributes:
        tokens: Tokens that came, in order.
        token: The only token that is accepted; None for any.
        faults: Called with (verb, path, body) before each request: may return a status to refuse it with, "lose" to carry it
            out and cut the connection, "late" to cut it and carry it out once `late` is set, or None.
        cuts_events: Each watch is cut after one event.
        closes_watches: Each watch ends at once.
    """

    def __init__(self):
        self.tokens, self.token = [], None
        self.faults = lambda verb, path, body: None
        self.late = threading.Event()
        self.cuts_events = self.closes_watches = False
        super().__init__()

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
        with self.lock:
            self.objects[name] = wire
            self.note("ADDED", wire)
        return wire["metadata"]["uid"]

    def grant(self, name="one"):
        self.change(name, status={"grant": {"time": "2026-01-01T00:00:00.000000Z"}})

    def stop(self, name="one", seconds=10):
        self.change(name, spec={"desiredState": "Stopped", "stop": {"gracePeriodSeconds": seconds}})

    def runner(self, name="one"):
        with self.lock:
            return copy_wire(self.objects[name]["status"].get("runner", {}))

    def states(self, name="one"):
        return [entry["state"] for entry in self.runner(name).get("transitions", [])]

    def patches(self):
        return [(json.loads(body), status) for verb, _, body, status in list(self.requests) if verb == "PATCH"]

    def wait_for(self, condition, seconds=20.0):
        deadline = time.monotonic() + seconds
        while not (result := condition()):
            assert time.monotonic() < deadline, f"{self.requests[-1:]} {self.objects}"
            time.sleep(0.002)
        return result

    def wait_state(self, state, name="one"):
        self.wait_for(lambda: state in self.states(name))

    def wait_exit(self, name="one"):
        return self.wait_for(lambda: self.runner(name).get("exit"))

    # ---- HTTP

    def answer(self, handler, path, query, body):
        token = (handler.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.tokens.append(token)
        fault = 401 if self.token not in (None, token) else self.faults(handler.command, handler.path, body)
        if isinstance(fault, int):
            self.reply(handler, body, fault, self._build_error(fault, "fault", path))
            return
        if "watch" in query:
            self._watch(handler, query)
            return
        if fault == "late":
            handler.connection.shutdown(socket.SHUT_RDWR)
            self.late.wait(20.0)
        status, found = self._perform(handler.command, path, query, body)
        if fault not in ("lose", "late"):
            self.reply(handler, body, status, found)
            return
        self.requests.append((handler.command, handler.path, body, status))
        with contextlib.suppress(OSError):
            handler.connection.shutdown(socket.SHUT_RDWR)

    def _watch(self, handler, query):
        if self.closes_watches:
            self.watches += 1
            self.begin(handler)(b"")
            return
        pod = query["fieldSelector"].removeprefix("status.podName=")
        at_most = 1 if self.cuts_events else None
        self.watch(handler, query, lambda wire: wire["status"].get("podName") == pod, at_most)

    @staticmethod
    def _build_error(status, message, path):
        parts = path.removeprefix(PREFIX).split("/")
        name = parts[1] if len(parts) > 1 else ""
        reason = ERROR_TEXT.get(status, "Fault") if message != "fault" else "Fault"
        return build_error(status, reason, message, {"name": name})

    def _perform(self, verb, path, query, body):
        assert path.startswith(PREFIX), path
        with self.lock:
            if path == PREFIX:
                pod = query["fieldSelector"].removeprefix("status.podName=")
                items = [wire for wire in self.objects.values() if wire["status"].get("podName") == pod]
                return 200, copy_wire({"metadata": {"resourceVersion": self.version}, "items": items})
            wire = self.objects.get(path.removeprefix(PREFIX).split("/")[1])
            if wire is None:
                return 404, self._build_error(404, "not found", path)
            if verb == "PATCH":
                assert path.endswith("/status")
                status = apply_patch(wire, json.loads(body))
                if status != 200:
                    return status, self._build_error(status, "refused", path)
                self.note("MODIFIED", wire)
            return 200, copy_wire(wire)
