"""The thread that brings entries to the timeline on the REST server: at least once, in order, one request at a time.

What piles up while one is under way goes with the next. Whatever the server does or does not do, the script and its stop never
wait for it: the supervisor's loop only adds to a backlog.
"""

from __future__ import annotations

import json
import posixpath
import threading
import time

from oet_crds.names import (
    ENTRIES_PATH,
    TIMELINE_CA_FILE_VARIABLE,
    TIMELINE_TOKEN_FILE,
    TIMELINE_TOKEN_FILE_VARIABLE,
    TIMELINE_URL_VARIABLE,
)
from oet_runner.backlog import BATCH_LIMIT_ENTRIES, Backlog
from oet_runner.kube_client import Connection, RefusedError, read_token
from oet_runner.kube_threads import Backoff, Word, start_thread
from oet_runner.mailbox import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Mapping

    from oet_runner.backlog import Batch
    from oet_runner.kube_client import Answer
    from oet_runner.kube_threads import Inbox

__all__ = ["Poster", "TimelineServer", "observe_timeline_server"]

_NEVER_TAKEN = (400, 413, 422)
"""The server will not take this request, however often it is sent: halves are sent, to find out what is wrong with it."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


class TimelineServer:
    """Where the REST server takes entries, and as whom to talk to it.

    Attributes:
        host: Name or address.
        port: Its port.
        is_secure: Whether it speaks TLS.
        ca_file: File with its certificate authorities; empty: those that this machine trusts.
        path: URL path of the executions' entries, with `{uid}` in it.
    """

    def __init__(self, url: str, token_file: str, ca_file: str = "") -> None:
        """Take the address apart. Raises ValueError: it is not http(s)://HOST[:PORT][/PATH]."""
        scheme, _, rest = url.rstrip("/").partition("://")
        address, slash, path = rest.partition("/")
        host, colon, port = address.rpartition(":")
        if not colon or address.endswith("]"):
            host, port = address, str(_DEFAULT_PORTS.get(scheme, ""))
        if scheme not in _DEFAULT_PORTS or not host or not port.isdigit():
            raise ValueError(f"{url!r} must be like http://HOST:PORT")
        self.host = host.strip("[]")
        self.port = int(port)
        self.is_secure = scheme == "https"
        self.ca_file = ca_file
        self.path = slash + path + ENTRIES_PATH
        self._token_file = token_file

    @property
    def token_folder(self) -> str:
        """Where the token is."""
        return posixpath.dirname(self._token_file)

    def observe_token(self) -> str:
        """Return the token, read again: the kubelet replaces it long before it runs out. Empty where there is none."""
        return read_token(self._token_file)


def observe_timeline_server(environ: Mapping[str, str]) -> TimelineServer | None:
    """Return what the environment of a Pod says of the timeline; None where entries go to the log alone."""
    url = environ.get(TIMELINE_URL_VARIABLE)
    if not url:
        return None
    token_file = environ.get(TIMELINE_TOKEN_FILE_VARIABLE, TIMELINE_TOKEN_FILE)
    try:
        return TimelineServer(url, token_file, environ.get(TIMELINE_CA_FILE_VARIABLE, ""))
    except ValueError as error:
        # No reason not to run a script: its log has everything.
        log(f"entries are not posted to the timeline: {TIMELINE_URL_VARIABLE} {error}")
        return None


class Poster:
    """Takes entries from the supervisor's loop, and sends them for ever."""

    def __init__(self, server: TimelineServer, inbox: Inbox, backlog: Backlog | None = None) -> None:
        self._server = server
        self._connection = Connection(server)
        self._inbox = inbox
        self._backoff = Backoff("bringing entries to the timeline", inbox)
        self._backlog = backlog or Backlog()
        self._condition = threading.Condition()
        self._path = ""
        self._limit_entries = BATCH_LIMIT_ENTRIES
        self._replaced = 0

    # ---- for the supervisor's loop -------------------------------------------------------------------------------

    def begin(self, uid: str) -> None:
        """Begin to send, now that it is known whose entries these are. Once."""
        self._path = self._server.path.replace("{uid}", uid)
        start_thread(self.run, "poster")

    def add(self, entries: list[dict[str, Any]]) -> None:
        """Take entries of the mailbox."""
        with self._condition:
            for entry in entries:
                self._backlog.add(entry)
            self._condition.notify()

    @property
    def is_full(self) -> bool:
        """Whether no more messages should come for now."""
        with self._condition:
            return self._backlog.is_full

    @property
    def is_empty(self) -> bool:
        """Whether the server has stored all."""
        with self._condition:
            return self._backlog.is_empty

    # ---- the thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Be the thread."""
        while True:
            batch = self._wait_for_batch()
            try:
                answer = self._connection.request("POST", self._path, batch.body, "application/json")
                pause_seconds = self._judge(batch, answer)
            except Exception as error:  # noqa: BLE001 - whatever it is: what is not stored is sent again
                self._backoff.note_failure(error)
                pause_seconds = self._backoff.compute_seconds()
            self._inbox.put(Word.POSTED, None)
            time.sleep(pause_seconds)

    def _wait_for_batch(self) -> Batch:
        with self._condition:
            while True:
                batch = self._backlog.build_batch(self._limit_entries)
                if batch is not None:
                    return batch
                self._condition.wait()

    def _judge(self, batch: Batch, answer: Answer) -> float:
        """Return how long to wait before the next request, in seconds. Raises ValueError for an answer that makes no sense."""
        if answer.status in _NEVER_TAKEN and batch.last != self._replaced:
            self._narrow(batch, answer)
            return 0.0
        if not 200 <= answer.status < 300:
            self._backoff.note_failure(RefusedError(answer))
            return max(self._backoff.compute_seconds(), answer.retry_after_seconds)
        seq = _parse_seq(answer)
        if seq < batch.first:
            raise ValueError(f"the server stored nothing of what begins with {batch.first}")
        with self._condition:
            self._backlog.acknowledge(min(seq, batch.last))
        self._limit_entries = min(BATCH_LIMIT_ENTRIES, 2 * self._limit_entries)
        self._backoff.note_success()
        return 0.0

    def _narrow(self, batch: Batch, answer: Answer) -> None:
        """Send less next time; or give up the one entry that the server never takes, lest it keep back all others."""
        count = batch.last - batch.first + 1
        if count > 1:
            self._limit_entries = count // 2
            return
        # Should that be refused too, it is the server that is at fault, and all else can wait.
        self._replaced = batch.first
        words = f"an entry is in the container's log alone: {RefusedError(answer)}"[:500]
        with self._condition:
            self._backlog.replace_first(words)
        self._inbox.put(Word.NOTED, f"entry {batch.first}: {words}")


def _parse_seq(answer: Answer) -> int:
    found = json.loads(answer.body)
    seq = found.get("seq") if isinstance(found, dict) else None
    if not isinstance(seq, int) or isinstance(seq, bool):
        raise ValueError("the server did not say what it has stored")
    return seq
