"""A namespace of an API server: executions, logs and the Lease, and faults on demand. The test plays the operator."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from typing import Any

from oet_fake_api import FakeApi, Wire, build_error, copy_wire, merge

from oet_crds.states import State

NAMESPACE = "test"
PREFIX = f"/apis/oet.skao.int/v1alpha1/namespaces/{NAMESPACE}/scriptexecutions"
REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods/"


def stamp(seconds: float | None = None) -> str:
    when = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return f"{when:%Y-%m-%dT%H:%M:%S.%f}Z"


class FakeCluster(FakeApi):
    """What it holds, and what goes wrong.

    Attributes:
        faults: Called with (verb, path, query) before each request: may return a status to refuse it with, "lose" to carry it
            out and cut the connection, or None.
        has_operator: Every new execution gets its procedure id and first state at once.
        lists: Count of lists.
        logs: Text of each Pod's log, with timestamps; a Pod that is not here does not exist.
        ended: Pods whose container has ended: a followed log ends.
        tokens: Status of the review of each token that is valid for some audience, `audiences` among it.
        reviews: Tokens that were reviewed.
    """

    def __init__(self) -> None:
        self.lists = 0
        self.faults: Callable[[str, str, Wire], int | str | None] = lambda verb, path, query: None
        self.has_operator = True
        self.next_id = 1
        self.lease: Wire | None = None
        self.logs: dict[str, bytes] = {}
        self.ended: set[str] = set()
        self.tokens: dict[str, Wire] = {}
        self.reviews: list[str] = []
        self.log_requests: list[tuple[str, Wire]] = []
        super().__init__()

    # ---- objects: the operator's, the runner's and other users' doing

    def add(self, name: str = "one", procedure_id: int | None = None, **status: Any) -> Wire:
        with self.lock:
            return copy_wire(
                self.store(
                    {"metadata": {"name": name}, "spec": {"script": {"file": {"path": "a"}}}}, procedure_id, status
                )
            )

    def store(self, body: Wire, procedure_id: int | None, status: Wire) -> Wire:
        name = body["metadata"]["name"]
        metadata = {
            **body["metadata"],
            "namespace": NAMESPACE,
            "uid": str(uuid.uuid4()),
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [],
        }
        wire = {"apiVersion": "oet.skao.int/v1alpha1", "kind": "ScriptExecution", **body, "metadata": metadata}
        wire.setdefault("spec", {}).setdefault("args", {})
        if procedure_id is not None:
            self.next_id = max(self.next_id, procedure_id + 1)
            wire["status"] = {"procedureId": procedure_id, "state": "CREATING", "history": [], **status}
            if not wire["status"]["history"]:
                wire["status"]["history"] = [{"seq": 1, "state": "CREATING", "time": stamp()}]
        self.objects[name] = wire
        self.note("ADDED", wire)
        return wire

    def born(self, name: str) -> None:
        with self.lock:
            number, self.next_id = self.next_id, self.next_id + 1
            history = [{"seq": 1, "state": "CREATING", "time": stamp()}]
            self.objects[name]["status"] = {"procedureId": number, "state": "CREATING", "history": history}
            self.note("MODIFIED", self.objects[name])

    def change(self, name: str = "one", **patch: Any) -> None:
        """Apply a merge patch as the operator or a user would."""
        with self.lock:
            if "spec" in patch:
                self.objects[name]["metadata"]["generation"] += 1
            super().change(name, **patch)

    def reach(self, *states: State, name: str = "one", at: float | None = None, **status: Any) -> None:
        """Have the operator write states."""
        with self.lock:
            history = list(self.objects[name]["status"]["history"])
            for state in states:
                seq = history[-1]["seq"] + 1
                history.append({"seq": seq, "state": str(state), "time": stamp(at)})
        self.change(name, status={"state": str(states[-1]), "history": history, **status})

    def find(self, procedure_id: int) -> Wire:
        with self.lock:
            return next(
                copy_wire(one)
                for one in self.objects.values()
                if one.get("status", {}).get("procedureId") == procedure_id
            )

    def print(self, pod: str, text: str, at: float | None = None) -> None:
        with self.lock:
            self.logs[pod] = self.logs.get(pod, b"") + f"{stamp(at)} {text}\n".encode()
            self.lock.notify_all()

    def end(self, pod: str) -> None:
        with self.lock:
            self.ended.add(pod)
            self.lock.notify_all()

    # ---- HTTP

    def answer(self, handler: BaseHTTPRequestHandler, path: str, query: dict[str, str], body: bytes) -> None:
        fault = self.faults(handler.command, path, query)
        if isinstance(fault, int):
            self.reply(handler, body, fault, build_error(fault, "Fault", "a fault on demand"))
        elif path == REVIEWS:
            self.reply(handler, b"", 201, self.review(json.loads(body)["spec"]))
        elif path.startswith(PODS):
            self.send_log(handler, path.removeprefix(PODS).removesuffix("/log"), query)
        elif "watch" in query:
            self.watch(handler, query, lambda wire: True)
        else:
            status, found = self.perform(handler, path, json.loads(body) if body else None)
            if fault == "lose":
                handler.connection.shutdown(socket.SHUT_RDWR)
            else:
                self.reply(handler, body, status, found)

    def perform(self, handler: BaseHTTPRequestHandler, path: str, content: Any) -> tuple[int, Wire]:
        with self.lock:
            if "/leases/" in path:
                return (200, self.lease) if self.lease else (404, build_error(404, "NotFound", "no lease"))
            if path == PREFIX and handler.command == "GET":
                self.lists += 1
                items = copy_wire(list(self.objects.values()))
                return 200, {"metadata": {"resourceVersion": self.version}, "items": items}
            if handler.command == "POST":
                return self.post(content)
            name = path.removeprefix(PREFIX).strip("/")
            wire = self.objects.get(name)
            if wire is None:
                return 404, build_error(404, "NotFound", f"{name} not found", {"name": name})
            if handler.command == "PATCH":
                return self.patch(wire, handler.headers["Content-Type"], content)
            if handler.command == "DELETE":
                wanted = (content or {}).get("preconditions", {})
                if any(wire["metadata"][key] != value for key, value in wanted.items()):
                    return 409, build_error(409, "Conflict", "precondition failed")
                self.note("DELETED", self.objects.pop(name))
            return 200, copy_wire(wire)

    def give_token(self, token: str, pod: str, namespace: str = NAMESPACE, audience: str = "oet-timeline") -> None:
        """Make a token that is bound to a Pod."""
        user = {
            "username": f"system:serviceaccount:{namespace}:oet-runner",
            "extra": {"authentication.kubernetes.io/pod-name": [pod]},
        }
        self.tokens[token] = {"authenticated": True, "user": user, "audiences": [audience]}

    def review(self, spec: Wire) -> Wire:
        self.reviews.append(spec["token"])
        status = copy_wire(self.tokens.get(spec["token"], {"authenticated": False, "error": "no such token"}))
        audiences = [one for one in status.get("audiences", []) if one in spec["audiences"]]
        if status["authenticated"] and not audiences:
            status = {"authenticated": False, "error": "invalid audience"}
        return {"kind": "TokenReview", "status": {**status, "audiences": audiences}}

    def post(self, content: Wire) -> tuple[int, Wire]:
        name = content["metadata"]["name"]
        if name in self.objects:
            return 409, build_error(409, "AlreadyExists", f"{name} exists")
        wire = copy_wire(self.store(content, None, {}))
        if self.has_operator:
            self.born(name)
        return 201, wire

    def patch(self, wire: Wire, content_type: str, content: Any) -> tuple[int, Wire]:
        changed = copy_wire(wire)
        if content_type == "application/merge-patch+json":
            merge(changed, content)
        else:
            for operation in content:
                *parents, last = operation["path"].split("/")[1:]
                target = changed
                for part in parents:
                    target = target[part]
                if operation["op"] == "replace" and last not in target:
                    return 422, build_error(422, "Invalid", "replace operation does not apply: doc is missing key")
                target[last] = operation["value"]
        if changed["metadata"]["uid"] != wire["metadata"]["uid"]:
            cause = {"field": "metadata.uid", "message": "field is immutable"}
            return 422, build_error(422, "Invalid", "is invalid", {"causes": [cause]})
        if changed["metadata"]["resourceVersion"] != wire["metadata"]["resourceVersion"]:
            return 409, build_error(409, "Conflict", "the object has been modified")
        if wire["spec"].get("desiredState") == "Stopped" != changed["spec"].get("desiredState"):
            cause = {"field": "spec", "message": "Invalid value: desiredState Stopped is final"}
            return 422, build_error(422, "Invalid", "is invalid", {"causes": [cause]})
        wire.update(changed)
        wire["metadata"]["generation"] += 1
        self.note("MODIFIED", wire)
        return 200, copy_wire(wire)

    def send_log(self, handler: BaseHTTPRequestHandler, pod: str, query: Wire) -> None:
        self.log_requests.append((pod, query))
        if pod not in self.logs:
            self.reply(handler, b"", 404, build_error(404, "NotFound", f"pods {pod} not found"))
            return
        since = query.get("sinceTime", "").removesuffix("Z")
        with self.lock:
            lines = self.logs[pod].splitlines(keepends=True)
            done = len(self.logs[pod])
        send = self.begin(handler)
        if text := b"".join(line for line in lines if line[:19].decode() >= since):
            send(text)
        while "follow" in query and pod not in self.ended and self.is_open(handler):
            with self.lock:
                self.lock.wait_for(lambda seen=done: len(self.logs[pod]) > seen or pod in self.ended, 0.1)
                text, done = self.logs[pod][done:], len(self.logs[pod])
            if text:
                send(text)
        send(b"")
