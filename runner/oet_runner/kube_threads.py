"""The two threads that wait for the API server, so that the supervisor's loop never does.

They carry no decision: what comes goes into the inbox, what is to be written is what was handed over last.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from enum import Enum

from oet_runner.kube_client import Answer, Connection, RefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from oet_runner.kube_client import ApiServer

__all__ = ["Backoff", "Inbox", "Patcher", "Request", "Watcher", "Word", "compute_pause", "start_thread"]

WATCH_SECONDS = 30
"""How long the API server is asked to keep a watch open. It looks at a token when a watch is begun and never again: one that is
good for nothing any more is noticed within this time, at the cost of one request."""

IDLE_SECONDS = 75.0
"""Silence after which a watch is begun anew. The API server sends a bookmark every 60 s: what is silent for longer may be a load
balancer that has lost the server and answers the kernel's keep-alive all the same, and a stop must not wait for it."""

SHORTEST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
"""Between two attempts; each pause is cut by up to half at random, so that the runners of a cluster do not come all at once."""

NOTED_FAILURES = 3
"""So many failures in a row are worth a word in the log: one or two happen whenever somebody else was quicker."""

STEADY_SECONDS = 5.0
"""A watch that lived so long was a good one: the next one may be begun soon."""

UNAUTHORIZED = 401
CONFLICT = 409
TEST_FAILED = 422
GONE = 410


class Word(Enum):
    """What the threads tell the supervisor's loop."""

    LISTED = "listed"
    """All executions that name this Pod."""
    CHANGED = "changed"
    """An execution as it is now."""
    DELETED = "deleted"
    """An execution as it was last."""
    ANSWERED = "answered"
    """A request and its answer; None for no answer."""
    FAILED = "failed"
    """For how many seconds the token has been refused, and for how many nothing of the execution was heard."""
    NOTED = "noted"
    """Words for the log."""
    POSTED = "posted"
    """The timeline has taken something."""


class Inbox:
    """Words from the threads to the supervisor's loop, and a file descriptor that is readable when there are some.

    Attributes:
        fd: That file descriptor.
    """

    def __init__(self) -> None:
        self._words: deque[tuple[Word, Any]] = deque()
        self.fd, self._wakeup_fd = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._wakeup_fd, False)

    def put(self, word: Word, value: object) -> None:
        """Add a word; called by the threads."""
        self._words.append((word, value))
        try:
            os.write(self._wakeup_fd, b"\0")
        except BlockingIOError:
            return  # It is full: the loop will wake up.

    def take(self) -> list[tuple[Word, Any]]:
        """Remove and return what has come; called by the supervisor's loop."""
        try:
            os.read(self.fd, 64 * 1024)  # First: what is put from here on makes it readable again.
        except BlockingIOError:
            return []
        words = []
        while self._words:
            words.append(self._words.popleft())
        return words


def start_thread(run: Callable[[], None], name: str) -> None:
    """Start a thread that does not keep the process alive."""
    threading.Thread(target=run, name=name, daemon=True).start()


def _compute_jitter(seconds: float) -> float:
    """Return between half and all of it. (Importing `random` would cost 2 ms.)."""
    return seconds * (0.5 + os.urandom(1)[0] / 510)


def compute_pause(failures: int) -> float:
    """Return the pause, without jitter, before the next attempt after so many failures in a row. Pure."""
    return min(LONGEST_PAUSE_SECONDS, SHORTEST_PAUSE_SECONDS * 2 ** min(failures - 1, 10)) if failures else 0.0


class Backoff:
    """How many attempts failed in a row; says once when they begin to, and once when they succeed again."""

    def __init__(self, what: str, inbox: Inbox) -> None:
        self._what = what
        self._inbox = inbox
        self._since = 0.0
        self.failures = 0

    def note_success(self) -> None:
        """Begin anew."""
        if self.failures >= NOTED_FAILURES:
            seconds = time.monotonic() - self._since
            self._inbox.put(Word.NOTED, f"{self._what} works again after {seconds:.1f} s")
        self.failures = 0

    def note_failure(self, why: object) -> None:
        """Count one more."""
        self.failures += 1
        if self.failures == 1:
            self._since = time.monotonic()
        if self.failures == NOTED_FAILURES:
            self._inbox.put(Word.NOTED, f"{self._what} does not work and is tried on: {why}")

    def compute_age(self) -> float:
        """Return for how many seconds no attempt has succeeded; 0 when the last one did."""
        return time.monotonic() - self._since if self.failures else 0.0

    def compute_seconds(self) -> float:
        """Return how long to wait before the next attempt."""
        return _compute_jitter(compute_pause(self.failures))


class _ListAgainError(Exception):
    """The watch cannot go on from where it was."""


class Watcher:
    """Lists and watches the executions whose status names this Pod, for ever."""

    def __init__(self, server: ApiServer, inbox: Inbox, idle_seconds: float = IDLE_SECONDS) -> None:
        self._connection = Connection(server)
        self._path = f"{server.path}?fieldSelector=status.podName%3D{server.pod}"
        self._inbox = inbox
        self._idle_seconds = idle_seconds
        self._backoff = Backoff("watching the execution", inbox)
        self._empty_watches = 0
        self._denied_since: float | None = None
        self._version = ""

    def run(self) -> None:
        """Be the thread."""
        while True:
            try:
                self._list_if_needed()
                self._watch()
                pause_seconds = _compute_jitter(compute_pause(self._empty_watches))
            except _ListAgainError:
                pause_seconds = _compute_jitter(compute_pause(self._empty_watches))
                self._version = ""
            except Exception as error:  # noqa: BLE001 - whatever it is: a stop comes this way, and no other
                self._backoff.note_failure(error)
                self._inbox.put(Word.FAILED, (self._compute_denial(error), self._backoff.compute_age()))
                pause_seconds = max(self._backoff.compute_seconds(), _get_wished_pause(error))
                # After a cut the watch goes on where it was; whatever else happened, a new list is right.
                if not isinstance(error, ConnectionError):
                    self._version = ""
            time.sleep(pause_seconds)

    def _compute_denial(self, error: Exception) -> float:
        """Return for how many seconds every attempt was answered that the token is no good; 0 when this one was not."""
        if not isinstance(error, RefusedError) or error.answer.status != UNAUTHORIZED:
            self._denied_since = None
            return 0.0
        if self._denied_since is None or self._backoff.failures == 1:
            self._denied_since = time.monotonic()
        return time.monotonic() - self._denied_since

    def _list_if_needed(self) -> None:
        if self._version:
            return
        answer = self._connection.request("GET", self._path)
        if answer.status != 200:
            raise RefusedError(answer)
        listed = json.loads(answer.body)
        version = str(listed["metadata"]["resourceVersion"])
        self._inbox.put(Word.LISTED, listed["items"])
        self._version = version

    def _watch(self) -> None:
        """Watch until the stream ends in order. A server that ends each at once is left in peace for longer and longer."""
        began = time.monotonic()
        has_news = False
        query = f"&watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={self._version}"
        self._empty_watches += 1
        lines = self._connection.iter_lines(self._path + query, self._idle_seconds)
        try:
            for line in lines:
                has_news = self._accept(json.loads(line)) or has_news
                self._backoff.note_success()
        except RefusedError as error:
            if error.answer.status == GONE:
                raise _ListAgainError from error
            raise
        finally:
            lines.close()
            if has_news or time.monotonic() - began > STEADY_SECONDS:
                self._empty_watches = 1
        self._backoff.note_success()

    def _accept(self, event: dict[str, Any]) -> bool:
        """Take in one event; tell whether it brought something new."""
        kind, wire = event["type"], event["object"]
        if kind == "ERROR":
            if wire.get("code") == GONE:
                raise _ListAgainError
            raise RefusedError(Answer(int(wire.get("code", 500)), json.dumps(wire).encode()))
        version = str(wire["metadata"]["resourceVersion"])
        if kind != "BOOKMARK":
            self._inbox.put(Word.DELETED if kind == "DELETED" else Word.CHANGED, wire)
        self._version = version
        return bool(kind != "BOOKMARK")


def _get_wished_pause(error: Exception) -> float:
    return error.answer.retry_after_seconds if isinstance(error, RefusedError) else 0.0


class Request:
    """One thing to ask of the API server.

    Attributes:
        verb: GET or PATCH.
        path: URL path.
        body: The patch; empty for GET.
        content_type: What sort of patch.
        revision: Of the report in it.
    """

    __slots__ = ("body", "content_type", "path", "revision", "verb")

    def __init__(self, verb: str, path: str, body: bytes = b"", content_type: str = "", revision: int = 0) -> None:
        self.verb = verb
        self.path = path
        self.body = body
        self.content_type = content_type
        self.revision = revision


class Patcher:
    """Sends what is handed over, one request at a time: what piles up meanwhile goes in the next one."""

    def __init__(self, server: ApiServer, inbox: Inbox) -> None:
        self._connection = Connection(server)
        self._inbox = inbox
        self._backoff = Backoff("reporting to the API server", inbox)
        self._condition = threading.Condition()
        self._request: Request | None = None
        self._due = 0.0

    def hand_over(self, request: Request, due: float = 0.0) -> None:
        """Have a request sent. Only one at a time: the last one was answered, or taken back.

        Args:
            request: What to send.
            due: Not before then, in monotonic seconds: something to add may come.
        """
        with self._condition:
            self._request = request
            self._due = due
            self._condition.notify()

    def take_back(self) -> bool:
        """Take back what was handed over last; False if it is under way already and will be answered."""
        with self._condition:
            has_request = self._request is not None
            self._request = None
            return has_request

    def run(self) -> None:
        """Be the thread."""
        self._open_ahead()
        while True:
            request = self._take()
            pause_seconds = 0.0
            answer = None
            try:
                answer = self._connection.request(request.verb, request.path, request.body, request.content_type)
                pause_seconds = self._judge(request, answer)
            except Exception as error:  # noqa: BLE001 - whatever it is: the exit must be reported some day
                self._backoff.note_failure(error)
                pause_seconds = self._backoff.compute_seconds()
            self._inbox.put(Word.ANSWERED, (request, answer))
            # Before the next one is taken: what comes meanwhile goes with it.
            time.sleep(pause_seconds)

    def _open_ahead(self) -> None:
        """Connect before there is something to say: the claim need not wait for it."""
        try:
            self._connection.open()
        except Exception:  # noqa: BLE001
            return  # The first request will see the same, and say so.

    def _judge(self, request: Request, answer: Answer) -> float:
        """Return how long to wait before the next request, in seconds."""
        if answer.status < 300:
            if request.verb == "PATCH":
                self._backoff.note_success()
            return 0.0
        self._backoff.note_failure(RefusedError(answer))
        if answer.status in (CONFLICT, TEST_FAILED) and self._backoff.failures == 1:
            return 0.0  # Somebody was quicker, as happens: look and try again at once.
        return max(self._backoff.compute_seconds(), answer.retry_after_seconds)

    def _take(self) -> Request:
        with self._condition:
            while True:
                seconds = self._due - time.monotonic()
                if self._request is not None and seconds <= 0:
                    request, self._request = self._request, None
                    return request
                self._condition.wait(None if self._request is None else seconds)
