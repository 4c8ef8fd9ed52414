"""/internal/executions/{uid}/entries: where runners post what happened to their scripts. Not part of the users' API."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import falcon

from oet_api.ingest import Ingest, parse_entries
from oet_api.openapi import read_body
from oet_crds.errors import OverloadedError
from oet_crds.execution import ScriptExecution

__all__ = ["EntriesResource"]

MAX_AT_ONCE = 16
"""Requests of runners that may hold a thread: however slow the store is, users' requests have the others."""

MAX_TOKEN_CHARS = 8000


class EntriesResource:
    """Takes entries of a runner for the execution of its own Pod, and for no other."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._lock = threading.Lock()
        self._taken = 0
        self._busy: set[str] = set()

    def on_post(self, req: falcon.Request, resp: falcon.Response, uid: str) -> None:
        """Store entries, and answer with the number of the newest that is stored: `{"seq": 12}`."""
        with self._holding_place():
            execution = self._authorize(req, uid)
            body = read_body(req)
            assert execution.procedure_id is not None
            entries = parse_entries(body, execution.procedure_id)
            with self._holding_execution(uid):
                seq = self._ingest.sink.ingest(execution, entries)
        resp.media = {"seq": seq}

    def _authorize(self, req: falcon.Request, uid: str) -> ScriptExecution:
        scheme, _, token = (req.get_header("Authorization") or "").partition(" ")
        token = token.strip()
        is_plausible = scheme.lower() == "bearer" and 0 < len(token) <= MAX_TOKEN_CHARS and token.isascii()
        pod = self._ingest.tokens.observe_pod(token) if is_plausible else None
        if pod is None:
            raise falcon.HTTPUnauthorized(
                description="The token is not one that a runner's Pod has for this", challenges=["Bearer"]
            )
        execution = self._ingest.find(uid)
        is_own = (
            execution is not None
            and execution.procedure_id is not None
            and execution.status.pod_name == pod.name
            and execution.metadata.namespace == pod.namespace
        )
        if execution is None or not is_own:
            # The same words whether there is such an execution: who may not post need not know.
            raise falcon.HTTPForbidden(description="A runner posts for the execution of its own Pod, and for no other")
        return execution

    @contextmanager
    def _holding_place(self) -> Iterator[None]:
        with self._lock:
            if self._taken >= MAX_AT_ONCE:
                raise OverloadedError("Too many runners post at once; try again", 1)
            self._taken += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken -= 1

    @contextmanager
    def _holding_execution(self, uid: str) -> Iterator[None]:
        """Keep a script, which can read its runner's token, from taking all places."""
        with self._lock:
            if uid in self._busy:
                raise OverloadedError("Entries of this execution are being stored; try again", 1)
            self._busy.add(uid)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(uid)
