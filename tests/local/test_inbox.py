"""What a runner reports, and what a broken or malicious one cannot do."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from oet_crds.execution import ScriptExecution
from oet_crds.mailbox import MAX_STACKTRACE_CHARS
from oet_crds.reasons import Outcome, Reason
from oet_crds.states import State
from oet_crds.topics import EntryKind, Topic
from oet_operator.local.inbox import Inbox
from oet_operator.local.runner import RunnerProtocolError
from oet_operator.local.store import LocalStore

Add = Callable[[], ScriptExecution]


def _report(store: LocalStore, inbox: Inbox, entries: object) -> list[str]:
    """Give entries to an inbox; return the order of decisions and timeline entries."""
    happened: list[str] = []
    with store.transaction(durable=False) as transaction:
        inbox.on_report(transaction, entries, lambda: happened.append(f"decide after {len(transaction.entries)}"))
        return happened + [entry.topic for entry in transaction.entries]


def _line(number: int, text: str) -> dict[str, Any]:
    return {"k": EntryKind.LOG, "n": number, "t": 1.0, "stream": "stdout", "line": text}


def _state(number: int, state: object) -> dict[str, Any]:
    return {"k": EntryKind.STATE, "n": number, "t": 1.0, "state": state}


def test_state_is_decided_on_before_what_was_said_in_it(store: LocalStore, add: Add) -> None:
    add()
    message = {"k": EntryKind.MESSAGE, "n": 2, "t": 1.0, "topic": "a.b", "data": {"msg": "x"}}
    entries = [_state(1, State.IDLE), message, _state(3, State.LOADING)]
    assert _report(store, Inbox(1, 1000), entries) == ["decide after 0", "a.b"]
    runner = store.get(1).status.runner
    assert runner is not None
    assert [(one.seq, one.state) for one in runner.transitions] == [(1, State.IDLE), (2, State.LOADING)]


def test_script_may_name_its_own_source(store: LocalStore, add: Add) -> None:
    add()
    message = {"k": EntryKind.MESSAGE, "n": 1, "t": 1.0, "topic": "a", "data": {"msg_src": "me"}}
    _report(store, Inbox(1, 1000), [message])
    assert store.read_entries(0, 1)[0].payload == {"msg_src": "me"}


def test_printed_text_beyond_the_limit_is_counted_and_said_at_the_end(store: LocalStore, add: Add) -> None:
    add()
    inbox = Inbox(1, 100)
    assert _report(store, inbox, [_line(n, "x" * 40) for n in range(1, 6)]) == [Topic.LOG, Topic.LOG]
    assert _report(store, inbox, [_line(6, "short")]) == []
    with store.transaction(durable=False) as transaction:
        inbox.append_dropped(transaction)
        inbox.append_dropped(transaction)
    dropped = store.read_entries(0, 10, kinds=[EntryKind.LOG])[-1]
    assert (dropped.topic, dropped.payload["dropped"]) == (Topic.LOG_DROPPED, 4)
    assert store.last_id() == 3


def test_lines_that_the_runner_dropped_are_said_in_their_place(store: LocalStore, add: Add) -> None:
    add()
    dropped = {"k": EntryKind.LOG, "n": 2, "t": 1.0, "stream": "stdout", "dropped": 17}
    topics = _report(store, Inbox(1, 1000), [_line(1, "a"), dropped, _line(3, "b")])
    assert topics == [Topic.LOG, Topic.LOG_DROPPED, Topic.LOG]


MESSAGE: dict[str, Any] = {"k": EntryKind.MESSAGE, "n": 1, "t": 1.0, "topic": "a.b", "data": {}}


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param(None, id="none"),
        pytest.param({}, id="object"),
        pytest.param([1], id="number"),
        pytest.param([_state(1, "NO_STATE")], id="unknown_state"),
        pytest.param([_state(1, ["READY"])], id="state_of_wrong_type"),
        pytest.param([{**_state(1, State.IDLE), "t": 1e300}], id="impossible_time"),
        pytest.param([{**_line(1, "a"), "t": "noon"}], id="time_in_words"),
        pytest.param([{**_line(1, "a"), "n": None}], id="no_number"),
        pytest.param([_state(n, State.READY) for n in range(1, 1000)], id="states_without_end"),
        pytest.param([_line(10**300, "a")], id="number_that_sqlite_cannot_store"),
        pytest.param([{**_line(1, "a"), "t": math.inf}], id="time_without_end"),
        pytest.param([{**MESSAGE, "topic": "\ud800"}], id="topic_that_is_no_unicode"),
        pytest.param([{**MESSAGE, "data": json.loads('{"a":' * 900 + "1" + "}" * 900)}], id="deep_message"),
        pytest.param([{**_line(1, "a"), "dropped": "many"}], id="count_in_words"),
        pytest.param([{**_line(1, "a"), "dropped": 10**4299}], id="count_that_cannot_be_written"),
    ],
)
def test_report_that_no_runner_sends_is_refused(store: LocalStore, add: Add, entries: object) -> None:
    add()
    with pytest.raises(RunnerProtocolError):
        _report(store, Inbox(1, 1000), entries)


EXIT = {"t": 1.0, "outcome": Outcome.STOPPED, "reason": Reason.STOP_REQUESTED, "message": "stopped"}


@pytest.mark.parametrize(
    ("shutting_down", "outcome", "reason"),
    [
        (False, Outcome.STOPPED, Reason.STOP_REQUESTED),
        (True, Outcome.STOPPED, Reason.ENGINE_SHUTDOWN),
        (True, Outcome.COMPLETE, Reason.STOP_REQUESTED),
    ],
)
def test_end_says_who_asked_for_it(
    store: LocalStore, add: Add, shutting_down: bool, outcome: Outcome, reason: Reason
) -> None:
    add()
    mail = {**EXIT, "outcome": outcome, "stacktrace": "x" * (MAX_STACKTRACE_CHARS + 5) + "end"}
    with store.transaction(durable=False) as transaction:
        Inbox(1, 1000).on_exit(transaction, mail, shutting_down=shutting_down)
    runner = store.get(1).status.runner
    assert runner is not None
    assert runner.exit is not None
    assert runner.exit.reason is reason
    assert runner.exit.stacktrace is not None
    assert len(runner.exit.stacktrace) == MAX_STACKTRACE_CHARS
    assert runner.exit.stacktrace.endswith("end")


@pytest.mark.parametrize("change", [{"outcome": "Great"}, {"reason": None}, {"t": None}, {"exitCode": "x"}])
def test_end_that_no_runner_sends_is_refused(store: LocalStore, add: Add, change: dict[str, object]) -> None:
    add()
    with pytest.raises(RunnerProtocolError), store.transaction(durable=False) as transaction:
        Inbox(1, 1000).on_exit(transaction, {**EXIT, **change}, shutting_down=False)


def test_end_with_text_that_is_no_unicode_is_stored(store: LocalStore, add: Add) -> None:
    """What cannot be stored takes with it what other executions' runners reported in the same pass."""
    add()
    with store.transaction(durable=False) as transaction:
        mail = {**EXIT, "message": "half \ud800", "stacktrace": "\udfff"}
        Inbox(1, 1000).on_exit(transaction, mail, shutting_down=False)
    runner = store.get(1).status.runner
    assert runner is not None
    assert runner.exit is not None
    assert (runner.exit.message, runner.exit.stacktrace) == ("half ?", "?")
