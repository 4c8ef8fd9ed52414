"""The mailbox of a runner in a Pod: what is desired comes from its ScriptExecution, what it saw goes into `status.runner`.

Before any line of the script runs, the runner claims the execution: it writes its own random name there, on the condition that
nobody has written since it looked. So at most one runner ever runs an execution, and one without a claim was never run.
Messages and printed lines go to the container's log (`oet_crds.container_log`). Where a timeline is, all goes there as well.
"""

from __future__ import annotations

import json
import os
import time

from oet_crds.container_log import LogWriter
from oet_crds.mailbox import CUT_OFF_EXIT_CODE, DELIVERY_SECONDS, UNCONFINED_DELIVERY_SECONDS, MailKind
from oet_crds.names import RUNNER_MANAGER
from oet_crds.states import State
from oet_crds.topics import EntryKind
from oet_runner.kube_client import JSON_PATCH, MERGE_PATCH
from oet_runner.kube_report import (
    CLAIM_REVISION,
    Course,
    Execution,
    RunnerReport,
    build_claim,
    build_update,
    decide_course,
)
from oet_runner.kube_threads import Inbox, Patcher, Request, Watcher, Word, start_thread
from oet_runner.mailbox import Desired, Outbox
from oet_runner.poster import Poster

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from oet_runner.kube_client import Answer, ApiServer
    from oet_runner.polling import Poller
    from oet_runner.poster import TimelineServer

__all__ = ["KubeMailbox"]

HOLD_SECONDS = 0.01
"""How long a state that is soon followed by another waits for that one: a report costs the API server as much."""

LAST_READY_HOLD_SECONDS = 0.05
"""The same for the READY after `main`: nobody waits for it, and the exit most often comes within milliseconds."""

LOG_PATIENCE_SECONDS = 5.0
"""When the log has not taken a byte for so long, the exit is reported before it: who reads logs may be down for an hour."""

NOTES_LIMIT_BYTES = 1024 * 1024
"""Our own words are dropped while more than this waits for the log."""

STDOUT_FD = 1

_MANAGED = f"?fieldManager={RUNNER_MANAGER}"
"""Whose the fields are that a patch sets."""
DENIED_SECONDS = 30.0
"""When its token has been refused for so long, the ServiceAccount was deleted, perhaps made anew: a new Pod gets a new token,
this one does not. An API server that is just starting may refuse a good one for some seconds."""

SILENCE_SECONDS = 120.0
"""An abort script that is held and has reached no API server for so long is no use, and ends for another to take its place; a
user's script waits on."""

LEAVING_GRACE_SECONDS = 1.5
"""A script whose main has not begun gets so long to end when its runner leaves."""

_PASSING_STATES = (State.IDLE, State.LOADING, State.INITIALISING)
_NOT_FOUND = 404
_TOO_LARGE_STATUS = 413
_LOOK_AGAIN = (400, 409, 413, 422)
_TOO_LARGE = ("too large", "too long", "larger than")
"""How API server and etcd say that an object has grown too large; the status differs."""


class KubeMailbox:
    """A mailbox in the API server. Two threads do the waiting; all decisions are made in the supervisor's loop."""

    sends_states_apart = True

    def __init__(self, server: ApiServer, log_fd: int = STDOUT_FD, timeline: TimelineServer | None = None) -> None:
        self.desired = Desired()
        self._name = os.urandom(16).hex()
        self._path = server.path
        self._inbox = Inbox()
        self._patcher = Patcher(server, self._inbox)
        self._watcher = Watcher(server, self._inbox)
        self._poster = Poster(timeline, self._inbox) if timeline is not None else None
        self._delivery_ends: float | None = None
        self._outbox = Outbox(log_fd)
        self._log = LogWriter()
        self._outbox_moved = time.monotonic()
        self._report = RunnerReport(self._name)
        self._acknowledged = 0
        self._known: dict[str, Any] | None = None
        self._execution: Execution | None = None
        self._due = 0.0
        self._handed: Request | None = None
        self._has_claim = False
        self._is_up = False
        self._must_look = False
        self._is_gone = False
        self._is_denied = False
        self._is_leaving = False
        self._others: set[str] = set()
        self._handlers: dict[Word, Callable[[Any, float], None]] = {
            Word.LISTED: self._accept_list,
            Word.CHANGED: self._accept_change,
            Word.DELETED: self._accept_deletion,
            Word.ANSWERED: self._accept_answer,
            Word.FAILED: self._accept_failure,
            Word.NOTED: self._accept_note,
            Word.POSTED: lambda _value, _now: None,  # That the loop has turned is all.
        }

    def start(self) -> None:
        """Begin to look for the execution. The process must not fork afterwards."""
        start_thread(self._watcher.run, "watcher")
        start_thread(self._patcher.run, "patcher")

    # ---- the port ------------------------------------------------------------------------------------------------

    def watch(self, poller: Poller) -> None:
        """Register what this mailbox waits for now."""
        poller.set(self._inbox.fd, readable=True)
        poller.set(self._outbox.fd, writable=len(self._outbox) > 0)

    def receive(self, now: float) -> None:
        """Take in all that has come."""
        words = self._inbox.take()
        for word, value in words:
            try:
                self._handlers[word](value, now)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                self._note(f"what came from the API server is ignored: {error!r}")
        if words:
            self._ask(now)

    def send(self, mail: bytes) -> None:
        """Take one mail of the supervisor: states and exit for the API server, the rest for the log."""
        content = json.loads(mail)
        kind = content["kind"]
        if kind == MailKind.HELLO:
            self._is_up = True
            self._report.is_confined = content["confined"]
        elif kind == MailKind.EXIT:
            self._report.set_exit({**content, "logEntries": self._log.entries})
            if self._poster is not None:
                # The timeline's last word of this runner: it need not wait for more.
                last = {name: content[name] for name in ("n", "t", "outcome")}
                self._poster.add([{"k": EntryKind.STATE, **last}])
            self._due = 0.0
        elif kind == MailKind.REPORT:
            self._accept_entries(content["entries"])
        self._ask(time.monotonic())

    def _accept_entries(self, entries: list[dict[str, Any]]) -> None:
        if self._poster is not None:
            self._poster.add(entries)
        lines = []
        for entry in entries:
            if entry["k"] == EntryKind.STATE:
                self._report.add_state(entry)
                self._due = self._compute_due(time.monotonic())
            else:
                lines.append(self._log.build(entry, time.monotonic()))
        if lines:
            self._write("".join(lines))

    def flush(self) -> None:
        """Write to the log what can be written."""
        self._write("")

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "replace")
        before = len(self._outbox)
        # A log that nobody reads any more is no reason to end a script: the outbox forgets what it holds, that is all.
        self._outbox.write(data)
        if before == 0 or len(self._outbox) < before + len(data):
            self._outbox_moved = time.monotonic()

    def has_unsent(self) -> bool:
        """Tell whether something waits for the log, or the exit for the API server's word that it has it."""
        return len(self._outbox) > 0 or (self._report.has_exit and self._has_listener() and not self._is_acknowledged())

    def is_stuck(self, now: float) -> bool:
        """Tell whether the log has not taken a byte for so long that the exit must not wait for it."""
        return len(self._outbox) > 0 and now - self._outbox_moved > LOG_PATIENCE_SECONDS

    def is_full(self) -> bool:
        """Tell whether so much waits for the timeline that the script's next message must wait too."""
        return self._poster is not None and self._poster.is_full

    def is_delivering(self, now: float) -> bool:
        """Tell whether the timeline still lacks something, within the time that the rest may take."""
        if self._poster is None or not self._has_claim or self._is_gone or self._poster.is_empty:
            return False
        if self._delivery_ends is None:
            seconds = DELIVERY_SECONDS if self._report.is_confined else UNCONFINED_DELIVERY_SECONDS
            self._delivery_ends = now + seconds
        return now < self._delivery_ends

    def _has_listener(self) -> bool:
        """Tell whether there is an execution in which something can be reported."""
        return self._execution is not None and not (self._is_gone or self._is_denied or self._is_leaving)

    def find_exit_code(self) -> int:
        """Return the supervisor's exit code: whether it was cut off from the API server before it could report the end."""
        is_cut_off = self._is_leaving or (self._is_denied and not self._is_acknowledged())
        return CUT_OFF_EXIT_CODE if is_cut_off else 0

    def _is_acknowledged(self) -> bool:
        return self._acknowledged == self._report.revision

    def _note(self, text: str) -> None:
        if len(self._outbox) < NOTES_LIMIT_BYTES:
            line = f"oet_runner: {text}".replace("\n", " ")
            entry = {"k": EntryKind.LOG, "stream": "stderr", "line": line}
            self._write(self._log.build(entry, time.monotonic()))

    # ---- what comes ----------------------------------------------------------------------------------------------

    def _accept_note(self, text: str, now: float) -> None:
        self._note(text)

    def _accept_failure(self, seconds: tuple[float, float], now: float) -> None:
        """Leave, if the API server is out of reach for good and `main` has not begun: a new Pod can take this one's place."""
        denied, silent = seconds
        was_denied, self._is_denied = self._is_denied, denied >= DENIED_SECONDS
        is_useless = self._execution is not None and self._execution.is_armed and silent >= SILENCE_SECONDS
        if self._is_denied and not was_denied:
            self._note(
                f"the API server has refused the token for {denied:.0f} s: its ServiceAccount was deleted, or made anew"
            )
        if (self._is_denied or is_useless) and self.desired.grant is None and not self._is_leaving:
            self._is_leaving = True
            self._note(
                f"nothing was heard from the API server for {silent:.0f} s, and main has not begun: this runner ends"
            )
            self.desired.ask_stop(LEAVING_GRACE_SECONDS, now)

    def _accept_list(self, wires: list[dict[str, Any]], now: float) -> None:
        self._is_denied = False
        known = self._execution
        if known is not None and known.uid not in [wire["metadata"]["uid"] for wire in wires]:
            self._accept_end(now)
        for wire in wires:
            self._accept_change(wire, now)

    def _accept_deletion(self, wire: dict[str, Any], now: float) -> None:
        if self._execution is None or wire["metadata"]["uid"] == self._execution.uid:
            self._execution = self._execution or Execution(wire)
            self._accept_end(now)

    def _accept_change(self, wire: dict[str, Any], now: float) -> None:
        execution = Execution(wire)
        if self._is_gone:
            return
        if self._execution is not None and execution.uid != self._execution.uid:
            if execution.uid not in self._others:
                self._others.add(execution.uid)
                self._note(f"execution {execution.name} names this Pod too, and is not served: it has one already")
            return
        self._execution = execution
        self._follow(execution, now)

    def _follow(self, execution: Execution, now: float) -> None:
        """Do what the execution, as it was seen now, asks for."""
        course = decide_course(execution, self._name, has_claim=self._has_claim)
        if course is Course.LEAVE:
            if not self._is_gone and not self.desired.is_abandoned:
                why = "its state is final" if execution.claim is None else "another runner serves it"
                self._note(f"execution {execution.name} is not run here: {why}")
            self.desired.is_abandoned = True
            return
        if course is Course.SERVE and not self._has_claim:
            self._has_claim = True
            if self._poster is not None:
                self._poster.begin(execution.uid)
            self._known = execution.runner
            self._acknowledged = max(self._acknowledged, CLAIM_REVISION)
        # Our claim in an execution that is over for everybody else: the node was cut off, and its subarray given away.
        if execution.must_stop or execution.is_final:
            self.desired.ask_stop(execution.grace_seconds, now)
        if self._has_claim and self.desired.stop_deadline is None:
            self.desired.accept({"kind": MailKind.ASSIGN, **execution.assignment}, now)
            if execution.grant is not None:
                self.desired.accept({"kind": MailKind.GRANT, "main": execution.grant}, now)

    def _accept_end(self, now: float) -> None:
        """The execution was deleted: end the script within its grace period; nobody is left to be told."""
        if self._execution is None or self._is_gone:
            return
        self._is_gone = True
        self._note(f"execution {self._execution.name} was deleted: its script is stopped")
        self.desired.ask_stop(self._execution.grace_seconds, now)

    # ---- what is asked -------------------------------------------------------------------------------------------

    def _accept_answer(self, exchange: tuple[Request, Answer | None], now: float) -> None:
        request, answer = exchange
        if request is self._handed:
            self._handed = None
        if self._execution is None:
            return
        if answer is None:
            self._must_look = True  # It may have been carried out.
            return
        if answer.status < 300:
            self._accept_success(request, json.loads(answer.body), now)
        elif _is_missing(answer, self._execution.name):
            self._accept_end(now)
        elif request.verb == "PATCH":
            self._accept_refusal(answer)

    def _accept_success(self, request: Request, wire: dict[str, Any], now: float) -> None:
        assert self._execution is not None
        if wire["metadata"]["uid"] != self._execution.uid:
            self._accept_end(now)  # Another one of the same name.
            return
        self._must_look = False
        self._accept_change(wire, now)
        if request.verb == "PATCH":
            self._acknowledged = max(self._acknowledged, request.revision)
        elif self._execution.runner == self._report.build():
            self._acknowledged = self._report.revision
        # Only answers, which come in the order of the requests: what a watch tells may be older.
        self._known = self._execution.runner

    def _accept_refusal(self, answer: Answer) -> None:
        # Somebody has written meanwhile, or it is another execution of the same name by now, or it was carried out and the
        # API server does not know: a look will tell.
        self._must_look = answer.status in _LOOK_AGAIN or answer.status >= 500
        text = answer.body[:4096].decode("utf-8", "replace").lower()
        if (answer.status == _TOO_LARGE_STATUS or any(words in text for words in _TOO_LARGE)) and self._report.cut():
            self._note("the API server finds the report too large; the stack trace is cut")

    def _ask(self, now: float) -> None:
        """Hand the next request over, if there is one to make; what waits to be sent still is replaced by it."""
        if self._execution is None or self._is_gone or self._is_leaving or self.desired.is_abandoned:
            return
        if self._handed is not None and not self._patcher.take_back():
            return  # What is to be written now depends on the answer.
        self._handed = self._build_request(self._execution)
        if self._handed is not None:
            self._patcher.hand_over(self._handed, self._due)

    def _build_request(self, execution: Execution) -> Request | None:
        path = f"{self._path}/{execution.name}"
        revision = self._report.revision
        if self._must_look:
            return Request("GET", path)
        if self._has_claim:
            if self._is_acknowledged():
                return None
            body = build_update(execution, self._report, self._known)
            return Request("PATCH", f"{path}/status{_MANAGED}", body, JSON_PATCH, revision)
        # The claim says whether the script is confined, and what a script could say itself is worth nothing later.
        if not self._is_up and not self._report.has_exit:
            return None
        # A runner that is being stopped has nothing to claim for, until it can say how it ended.
        if self.desired.stop_deadline is not None and not self._report.has_exit:
            return None
        return Request("PATCH", f"{path}/status{_MANAGED}", build_claim(execution, self._report), MERGE_PATCH, revision)

    def _compute_due(self, now: float) -> float:
        """Return when (monotonic seconds) a new state is to be reported; 0 for at once."""
        if self._report.last_state in _PASSING_STATES:
            return now + HOLD_SECONDS
        return now + LAST_READY_HOLD_SECONDS if self._report.has_run and self._report.last_state is State.READY else 0.0


def _is_missing(answer: Answer, name: str) -> bool:
    """Tell whether the API server says that this very object does not exist. Pure.

    A 404 alone says less: an API server that is just starting does not know the whole kind for a moment.
    """
    if answer.status != _NOT_FOUND:
        return False
    try:
        status = json.loads(answer.body)
        return bool(status["reason"] == "NotFound" and status["details"]["name"] == name)
    except (ValueError, KeyError, TypeError):
        return False
