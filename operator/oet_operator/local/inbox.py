"""What runners report becomes stored facts: states and ends in the execution, messages and printed lines in the timeline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from oet_crds.execution import ScriptExecution
from oet_crds.reasons import Outcome, Reason
from oet_crds.states import DesiredState
from oet_crds.topics import MAX_MESSAGE_DEPTH, EntryKind, Topic, is_deeper, is_topic
from oet_operator.local.records import build_runner_exit, with_runner_exit, with_runner_state
from oet_operator.local.runner import RunnerProtocolError
from oet_operator.local.store import At, Transaction

__all__ = ["Inbox"]

MAX_NUMBER = 2**63 - 1
"""The largest number that SQLite stores."""


class Inbox:
    """The reports of one execution's runner. For the engine's thread only."""

    def __init__(self, procedure_id: int, log_limit_bytes: int) -> None:
        self._procedure_id = procedure_id
        self._source = str(procedure_id)  # Upstream's msg_src of all that a script causes.
        self._left_bytes = log_limit_bytes
        self._dropped_lines = 0

    def on_report(self, transaction: Transaction, entries: object, decide_now: Callable[[], None]) -> None:
        """Take in a batch of entries, in order.

        Args:
            transaction: Where it is stored.
            entries: The batch as it came.
            decide_now: Called between a state and what the script said in it, so that the timeline has them in order.

        Raises:
            RunnerProtocolError: It is not a batch of entries.
        """
        if not isinstance(entries, list):
            raise RunnerProtocolError("a report without entries")
        undecided = False
        for entry in entries:
            if not isinstance(entry, dict):
                raise RunnerProtocolError("an entry that is no object")
            if entry.get("k") == EntryKind.STATE:
                if execution := transaction.get(self._procedure_id):
                    transaction.stage(with_runner_state(execution, entry))
                    undecided = True
                continue
            if undecided:
                decide_now()
                undecided = False
            self._append(transaction, entry)

    def _append(self, transaction: Transaction, entry: Mapping[str, Any]) -> None:
        try:
            when, seq = float(entry["t"]), int(entry["n"])
            dropped = int(entry.get("dropped", 0))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RunnerProtocolError(f"an entry without a good time, number or count: {error!r}") from error
        # What cannot be stored would take with it all that is stored in the same pass, of every execution.
        if not math.isfinite(when) or not 0 < seq <= MAX_NUMBER or not 0 <= dropped <= MAX_NUMBER:
            raise RunnerProtocolError("an entry with an impossible time, number or count")
        if entry.get("k") == EntryKind.MESSAGE:
            data, topic = entry.get("data"), str(entry.get("topic"))
            if not is_topic(topic) or is_deeper(data, MAX_MESSAGE_DEPTH):
                raise RunnerProtocolError("a message on a topic that is none, or nested too deeply")
            payload = {"msg_src": self._source, **(data if isinstance(data, dict) else {})}
            kind = EntryKind.MESSAGE
            transaction.append(self._procedure_id, kind, topic, payload, At(when, seq))
        elif dropped:
            self._dropped_lines += dropped
            self.append_dropped(transaction)
        elif entry.get("k") == EntryKind.LOG:
            self._append_line(transaction, entry, seq, when)

    def _append_line(self, transaction: Transaction, entry: Mapping[str, Any], seq: int, when: float) -> None:
        line = str(entry.get("line"))
        self._left_bytes -= len(line) + 1
        if self._left_bytes < 0:
            # Nothing more from here on, also when a shorter line would fit: no reader expects a gap in the middle.
            self._left_bytes = -1
            self._dropped_lines += 1
            return
        payload = {"msg_src": self._source, "stream": str(entry.get("stream")), "line": line}
        transaction.append(self._procedure_id, EntryKind.LOG, Topic.LOG, payload, At(when, seq))

    def append_dropped(self, transaction: Transaction) -> None:
        """Say in the timeline how many printed lines were dropped since this was last said, if any."""
        if self._dropped_lines:
            payload = {"msg_src": self._source, "dropped": self._dropped_lines}
            transaction.append(self._procedure_id, EntryKind.LOG, Topic.LOG_DROPPED, payload)
            self._dropped_lines = 0

    def on_exit(self, transaction: Transaction, mail: Mapping[str, Any], *, shutting_down: bool) -> None:
        """Take in the end of the script. Raises RunnerProtocolError."""
        end = build_runner_exit(mail)
        self.append_dropped(transaction)
        execution = transaction.get(self._procedure_id)
        if execution is None:
            return
        if shutting_down and end.outcome is Outcome.STOPPED and not _is_stop_wanted(execution):
            message = "OET was shut down and stopped the script first"
            end = end.model_copy(update={"reason": Reason.ENGINE_SHUTDOWN, "message": message})
        transaction.stage(with_runner_exit(execution, end, mail))


def _is_stop_wanted(execution: ScriptExecution) -> bool:
    return execution.spec.desired_state is DesiredState.STOPPED
