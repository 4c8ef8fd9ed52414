"""Keeps the cache of executions true: LIST, then WATCH from there, for ever."""

from __future__ import annotations

import json
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus

from oet_api.kube.cache import ExecutionCache
from oet_api.kube.client import KubeClient, Stream, Wire
from oet_api.kube.errors import NO_ANSWER, ApiError

__all__ = ["Backoff", "Informer", "Patience", "iter_lines"]

_log = logging.getLogger(__name__)

PAGE_SIZE = 500
"""Objects in one answer: a list of 5,000 executions would be 20 MB at once."""

SHORTEST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0

MAX_LINE_BYTES = 16 * 1024 * 1024
"""An event has at most the 1.5 MiB of an object, and what JSON adds: a longer line is no event."""

STEADY_SECONDS = 5.0
"""A watch that lived so long was a good one: the next one may be begun at once."""

RELIST_AFTER_FAILURES = 5
"""So many refused watches in a row, and it is begun anew with a list."""

NOTED_FAILURES = 3
"""So many failures in a row are worth a word in the log."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a watch is asked for, and how long it may be silent.

    The API server ends each watch in order, with a bookmark a moment before, so that every quarter of a minute proves that it
    and all between it and us live; a load balancer that answers the kernel's keep-alive cannot pass for it.
    """

    watch_seconds: int = 15
    silence_seconds: float = 20.0


class Backoff:
    """Pauses between attempts that fail in a row: longer and longer, with jitter so that not all come at once."""

    def __init__(self) -> None:
        self.failures = 0

    def note_success(self) -> None:
        """Begin anew."""
        self.failures = 0

    def compute_seconds(self) -> float:
        """Count one more failure and return how long to wait after it."""
        self.failures += 1
        pause: float = min(LONGEST_PAUSE_SECONDS, SHORTEST_PAUSE_SECONDS * 2 ** min(self.failures - 1, 10))
        return float(max(SHORTEST_PAUSE_SECONDS, pause * random.uniform(0.5, 1.0)))


class _ExpiredError(Exception):
    """The API server does not remember the version that the watch is at."""


def iter_lines(stream: Stream) -> Iterator[bytes]:
    """Yield the whole lines of a stream. Raises ApiError when it breaks."""
    parts: list[bytes] = []
    size = 0
    for piece in stream.iter_pieces():
        *lines, rest = piece.split(b"\n")
        for line in lines:
            yield b"".join([*parts, line])
            parts, size = [], 0
        parts.append(rest)
        size += len(rest)
        if size > MAX_LINE_BYTES:
            raise ApiError(NO_ANSWER, "the stream holds a line without an end")


class Informer:
    """One thread that brings all that happens to the executions of a namespace into the cache."""

    def __init__(self, client: KubeClient, path: str, cache: ExecutionCache, patience: Patience | None = None) -> None:
        self._client = client
        self._path = path
        self._cache = cache
        self._patience = patience or Patience()
        self._backoff = Backoff()
        self._version = ""
        self._stream: Stream | None = None
        self._stopping = threading.Event()
        self._synced = threading.Event()
        self._proved_at = -math.inf
        self._thread = threading.Thread(target=self._run, name="oet-informer", daemon=True)
        self.problem = "the API server has not answered yet"
        self.on_synced: Callable[[], None] = lambda: None

    # ---- outside -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopping.set()
        while self._thread.is_alive():
            if (stream := self._stream) is not None:
                stream.cut()
            self._thread.join(0.1)

    @property
    def is_synced(self) -> bool:
        """Tell whether the cache held all there was, at some time."""
        return self._synced.is_set()

    @property
    def version(self) -> int:
        """Version of all that is known; for `on_synced`, that of the list."""
        return int(self._version or 0)

    @property
    def is_watching(self) -> bool:
        """Tell whether a watch is open: what happens is known at once."""
        return self._stream is not None

    def wait_synced(self, timeout_seconds: float) -> bool:
        """Wait until the cache holds all there is. Returns whether it does."""
        return self._synced.wait(timeout_seconds)

    def observe_age(self) -> float:
        """Return for how many seconds the API server has given no sign of life; infinity when it never has."""
        return time.monotonic() - self._proved_at

    def list_all(self) -> None:
        """Take in all executions there are, and drop those that are not. For any thread. Raises ApiError."""
        self._list()

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
                continue
            except _ExpiredError as error:
                self._version = ""
                self.problem = str(error)
                pause_seconds = self._backoff.compute_seconds()
            except ApiError as error:
                pause_seconds = self._note_failure(error)
            except Exception as error:  # noqa: BLE001 - everybody waits for this thread
                self._version = ""
                _log.exception("watching the executions begins anew")
                pause_seconds = self._note_failure(error)
            self._stopping.wait(pause_seconds)

    def _turn(self) -> None:
        if not self._version:
            self._version = self._list()
            self._synced.set()
            self.on_synced()
        began = time.monotonic()
        if self._watch() or time.monotonic() - began >= STEADY_SECONDS:
            if self._backoff.failures >= NOTED_FAILURES:
                _log.warning("watching the executions works again")
            self._backoff.note_success()
        else:
            # A server that ends each watch at once is left in peace for longer and longer.
            self._stopping.wait(self._backoff.compute_seconds())

    def _note_failure(self, error: Exception) -> float:
        """Return how long to wait, in seconds."""
        pause_seconds = self._backoff.compute_seconds()
        self.problem = str(error)
        if self._backoff.failures == NOTED_FAILURES and not self._stopping.is_set():
            _log.warning("watching the executions does not work and is tried on: %s", error)
        is_refused = isinstance(error, ApiError) and error.status != NO_ANSWER
        if is_refused and self._backoff.failures % RELIST_AFTER_FAILURES == 0:
            self._version = ""
        return pause_seconds

    def _prove(self) -> None:
        self._proved_at = time.monotonic()
        self.problem = ""

    def _list(self) -> str:
        """Take in all there is, drop what is not; return the version of the list."""
        known = self._cache.list_versions()
        token, version = "", ""
        while token or not version:
            query = {"limit": str(PAGE_SIZE), **({"continue": token} if token else {})}
            try:
                answer = self._client.request("GET", self._path, query=query)
            except ApiError as error:
                if error.status == HTTPStatus.GONE:
                    raise _ExpiredError("a long list has changed too often meanwhile") from error
                raise
            self._prove()
            version = str(answer["metadata"]["resourceVersion"])
            for wire in answer.get("items") or []:
                known.pop(wire["metadata"]["uid"], None)
                self._cache.put(wire)
            token = answer["metadata"].get("continue") or ""
        for uid, seen in known.items():
            # What is newer than the list was made after it.
            if seen <= int(version):
                self._cache.drop(uid)
        return version

    def _watch(self) -> bool:
        """Watch until the stream ends in order. Returns whether anything came."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(self._patience.watch_seconds),
            "resourceVersion": self._version,
        }
        try:
            stream = self._client.open_stream(self._path, query, self._patience.silence_seconds)
        except ApiError as error:
            if error.status == HTTPStatus.GONE:
                raise _ExpiredError(str(error)) from error
            raise
        has_news = False
        self._stream = stream
        self._prove()
        try:
            for line in iter_lines(stream):
                self._accept(json.loads(line))
                self._prove()
                has_news = True
                self._backoff.note_success()
        except ValueError as error:
            raise ApiError(NO_ANSWER, f"an event that is not JSON: {error}") from error
        finally:
            self._stream = None
            stream.close()
        return has_news

    def _accept(self, event: Wire) -> None:
        kind, wire = event["type"], event["object"]
        if kind == "ERROR":
            code = int(wire.get("code") or 500)
            if code == HTTPStatus.GONE:
                raise _ExpiredError(str(wire.get("message")))
            raise ApiError(code, str(wire.get("message")), str(wire.get("reason") or ""))
        if kind == "DELETED":
            self._cache.drop(wire["metadata"]["uid"])
        elif kind != "BOOKMARK":
            self._cache.put(wire)
        self._version = str(wire["metadata"]["resourceVersion"])
