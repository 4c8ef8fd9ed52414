"""The store: what is durable, what is visible, and what happens when the disk takes nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oet_crds.errors import NotFoundError, UnavailableError
from oet_crds.execution import ScriptExecution
from oet_crds.states import State
from oet_crds.topics import EntryKind, Topic
from oet_operator.local import store as store_module
from oet_operator.local import unsaved as unsaved_module
from oet_operator.local.database import Database
from oet_operator.local.store import At, LocalStore

Add = Callable[[], ScriptExecution]


def _with_state(execution: ScriptExecution, state: State) -> ScriptExecution:
    return execution.model_copy(update={"status": execution.status.model_copy(update={"state": state})})


def _fill_disk(database: Database) -> None:
    """Make the file as large as it may get: SQLite then says what it says on a full disk."""
    pages = database._writer.execute("PRAGMA page_count").fetchone()[0]
    database._writer.execute(f"PRAGMA max_page_count = {pages}")


def _free_disk(database: Database) -> None:
    database._writer.execute("PRAGMA max_page_count = 1000000")


def _say(store: LocalStore, procedure_id: int, text: str, kind: EntryKind = EntryKind.MESSAGE) -> int:
    with store.transaction(durable=False) as transaction:
        return transaction.append(procedure_id, kind, "topic", {"text": text}).id


def _overfill_disk(store: LocalStore, database: Database) -> list[int]:
    """Fill the disk, and speak until it takes nothing more. Return the numbers of what was said."""
    _fill_disk(database)
    sent = []
    while store.write_error is None:
        sent.append(_say(store, 1, "x" * 4000))
    return sent


def test_stored_execution_is_there_after_reopening(store: LocalStore, add: Add, database: Database) -> None:
    execution = add()
    assert LocalStore(database).list() == (execution,)


def test_change_that_raises_leaves_nothing(store: LocalStore, add: Add) -> None:
    execution = add()

    def fail() -> None:
        with store.transaction(durable=True) as transaction:
            transaction.put(_with_state(execution, State.READY))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.get(1) == execution


def test_each_put_is_a_new_resource_version(store: LocalStore, add: Add) -> None:
    execution = add()
    with store.transaction(durable=True) as transaction:
        changed = transaction.put(_with_state(execution, State.IDLE))
    assert int(changed.metadata.resource_version) > int(execution.metadata.resource_version)


def test_unknown_execution_is_not_found(store: LocalStore) -> None:
    with pytest.raises(NotFoundError, match="No information available for PID=7"):
        store.get(7)


def test_waiter_sees_the_change_it_waits_for(store: LocalStore, add: Add) -> None:
    execution = add()
    seen = []
    thread = threading.Thread(
        target=lambda: seen.append(store.wait(1, lambda one: one.status.state is State.READY, 10).status.state)
    )
    thread.start()
    for state in (State.IDLE, State.READY):
        with store.transaction(durable=True) as transaction:
            execution = transaction.put(_with_state(execution, state))
    thread.join(10)
    assert seen == [State.READY]


def test_waiter_of_a_removed_execution_is_told(store: LocalStore, add: Add) -> None:
    add()
    errors = []

    def wait() -> None:
        try:
            store.wait(1, lambda _: False, 10)
        except NotFoundError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    with store.transaction(durable=True) as transaction:
        transaction.remove(1)
    thread.join(10)
    assert len(errors) == 1


def test_wait_that_is_over_returns_the_truth(store: LocalStore, add: Add) -> None:
    add()
    assert store.wait(1, lambda _: False, 0.01).status.state is State.CREATING


def test_procedure_ids_are_never_reused(store: LocalStore, add: Add, database: Database) -> None:
    add()
    with store.transaction(durable=True) as transaction:
        transaction.remove(1)
    with LocalStore(database).transaction(durable=True) as transaction:
        assert transaction.allocate_procedure_id() == 2


def test_entry_ids_are_never_reused(store: LocalStore, add: Add, database: Database) -> None:
    add()
    last = _say(store, 1, "a")
    with store.transaction(durable=True) as transaction:
        transaction.remove(1)
    while store.prune_entries():
        pass
    assert LocalStore(database).last_id() == last
    assert database.read_entries(0, 10, None, None) == []


def test_entries_read_from_memory_and_from_the_file_are_the_same(
    store: LocalStore, database: Database, add: Add
) -> None:
    add()
    for number in range(10):
        _say(store, 1 + number % 2, str(number), [EntryKind.MESSAGE, EntryKind.LOG][number % 2])
    reopened = LocalStore(database)
    for after in range(11):
        for procedure in (None, 1, 2):
            for kinds in (None, [EntryKind.LOG]):
                for limit in (1, 3, 100):
                    wanted = store.read_entries(after, limit, procedure, kinds)
                    assert reopened.read_entries(after, limit, procedure, kinds) == wanted


def test_old_entries_leave_memory_and_are_read_from_the_file(
    store: LocalStore, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "RECENT_BYTES", 5000)
    add()
    for number in range(50):
        _say(store, 1, str(number))
    assert store._recent[0].id > 1
    assert [entry.payload["text"] for entry in store.read_entries(0, 100)] == [str(number) for number in range(50)]


def test_entry_that_a_runner_sends_twice_is_stored_once(store: LocalStore, add: Add, database: Database) -> None:
    add()
    for _ in range(2):
        with store.transaction(durable=True) as transaction:
            transaction.append(1, EntryKind.LOG, "topic", {}, At(1.0, 17))
    assert len(database.read_entries(0, 10, None, None)) == 1


def test_listener_waits_for_news_only(store: LocalStore, add: Add) -> None:
    add()
    last = _say(store, 1, "old")
    assert store.wait_entries(last - 1, 0.0)
    assert not store.wait_entries(last, 0.01)
    thread = threading.Timer(0.0, lambda: _say(store, 1, "new"))
    thread.start()
    assert store.wait_entries(last, 10)
    thread.join()


def test_full_disk_refuses_new_work(store: LocalStore, add: Add, database: Database) -> None:
    add()
    _fill_disk(database)
    with pytest.raises(UnavailableError, match="Free the disk"):
        [add() for _ in range(10_000)]
    known = store.list()
    _free_disk(database)
    assert LocalStore(database).list() == known


def test_full_disk_keeps_the_truth_and_writes_it_when_it_can(store: LocalStore, add: Add, database: Database) -> None:
    execution = add()
    sent = _overfill_disk(store, database)
    with store.transaction(durable=False) as transaction:
        transaction.put(_with_state(execution, State.STOPPED))
    assert store.get(1).status.state is State.STOPPED
    _free_disk(database)
    store.retry_unsaved()
    assert store.write_error is None
    reopened = LocalStore(database)
    assert reopened.get(1).status.state is State.STOPPED
    assert [entry.id for entry in reopened.read_entries(0, 10_000)] == sent


def _print(store: LocalStore, procedure_id: int, line: str) -> None:
    with store.transaction(durable=False) as transaction:
        transaction.append(procedure_id, EntryKind.LOG, Topic.LOG, {"line": line}, At(seq=store.last_id() + 1))


def test_full_disk_hides_nothing_that_waits_for_it(
    store: LocalStore, add: Add, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory for streams is short; what is older and not written is read all the same, page by page."""
    monkeypatch.setattr(store_module, "RECENT_BYTES", 1)
    for _ in range(2):
        add()
    _print(store, 1, "before")
    _overfill_disk(store, database)
    for number in range(100):
        _print(store, 1 + number % 2, str(number))
    wanted = ["before", *map(str, range(0, 100, 2))]
    for limit in (1, 7, 1000):
        after, lines = 0, []
        while page := store.read_entries(after, limit, 1, [EntryKind.LOG]):
            assert len(page) <= limit
            after = page[-1].id
            lines += [entry.payload["line"] for entry in page]
        assert lines == wanted
    everything = [entry.id for entry in store.read_entries(0, 100_000)]
    assert everything == list(range(1, store.last_id() + 1))
    _free_disk(database)
    store.retry_unsaved()
    assert [entry.id for entry in database.read_entries(0, 100_000, None, None)] == everything


def test_full_disk_for_long_gives_up_printed_lines_says_how_many_and_loses_no_message(
    store: LocalStore, add: Add, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsaved_module, "UNSAVED_LIMIT", 30)
    for _ in range(2):
        add()
    _overfill_disk(store, database)
    for number in range(100):
        _print(store, 1 + number % 2, str(number))
        _say(store, 1, str(number))
    _free_disk(database)
    store.retry_unsaved()
    for procedure_id in (1, 2):
        lines = [one.payload for one in database.read_entries(0, 1000, procedure_id, [EntryKind.LOG])]
        assert sum(payload.get("dropped", 1) for payload in lines) == 50
        assert len(lines) < 20
    messages = database.read_entries(0, 1000, 1, [EntryKind.MESSAGE])
    assert [one.payload["text"] for one in messages if len(one.payload["text"]) < 100] == list(map(str, range(100)))


def test_newer_file_is_refused(tmp_path: Path) -> None:
    database = Database(tmp_path / "a")
    database._writer.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(RuntimeError, match="newer OET"):
        Database(tmp_path / "a")


def test_waiting_costs_no_time_when_it_holds_already(store: LocalStore, add: Add) -> None:
    add()
    begun = time.monotonic()
    store.wait(1, lambda _: True, 60)
    assert time.monotonic() - begun < 30
