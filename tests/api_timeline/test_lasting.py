"""What is told once stays, in order and once, whoever tells it and whatever happens to servers and database."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from oet_support import wait_until
from oet_support_postgres import Postgres, running_postgres
from oet_support_timeline import Start, build_execution, line, message, state
from sqlalchemy import create_engine, text

from oet_api.kube import lasting
from oet_api.kube.entries import Draft
from oet_api.kube.lasting import LastingTimeline
from oet_api.timeline.database import build_url
from oet_crds.errors import UnavailableError
from oet_crds.execution import ScriptExecution
from oet_crds.states import State
from oet_crds.topics import EntryKind, Topic

SECONDS = 30.0
READY_PATH = (State.CREATING, State.IDLE, State.LOADING, State.IDLE, State.READY)
WHOLE_PATH = (*READY_PATH, State.RUNNING, State.READY, State.COMPLETE)
STORY = [
    *(state(seq, one) for seq, one in enumerate(READY_PATH[1:], 1)),
    message(5, "prepared"),
    state(6, State.RUNNING),
    message(7, "begun"),
    line(8, "printed"),
    state(9, State.READY),
    state(10, State.COMPLETE),
]
TOLD = ["CREATING", "IDLE", "LOADING", "IDLE", "READY", "prepared", "RUNNING", "begun", "printed", "READY", "COMPLETE"]


def read(timeline: LastingTimeline, number: int = 1) -> list[str]:
    entries = timeline.read(0, limit=10_000, procedure_id=number)
    assert [entry.id for entry in entries] == sorted({entry.id for entry in entries})
    return [_describe(entry.payload) for entry in entries]


def _describe(payload: object) -> str:
    assert isinstance(payload, dict)
    return str(
        next(payload[name] for name in ("new_state", "msg", "line", "dropped", "stacktrace", "cmd") if name in payload)
    )


def wait_for(timeline: LastingTimeline, expected: Sequence[str], number: int = 1) -> None:
    seen: list[list[str]] = [[]]

    def is_there() -> bool:
        seen[0] = read(timeline, number)
        return seen[0] == list(expected)

    try:
        wait_until(is_there, SECONDS, "")
    except TimeoutError:
        assert seen[0] == list(expected)


def show(timeline: LastingTimeline, *states: State, **fields: object) -> ScriptExecution:
    execution = build_execution("a", 1, *states, has_runner=len(states) > 1, **fields)  # type: ignore[arg-type]
    timeline.on_execution(execution)
    return execution


# ---- one story ---------------------------------------------------------------------------------------------------


def test_states_come_where_the_runner_tells_them(url: str, start: Start) -> None:
    timeline = start(url)
    execution = show(timeline, *WHOLE_PATH)
    for first in range(0, len(STORY), 3):
        timeline.ingest(execution, STORY[first : first + 3])
    wait_for(timeline, TOLD)
    entries = timeline.read(0, limit=99, procedure_id=1)
    assert [entry.seq for entry in entries] == [None, *range(1, 10), None]
    assert entries[5].payload == {"msg_src": "1", "msg": "prepared"}


def test_entries_that_come_again_are_stored_once(url: str, start: Start) -> None:
    timeline = start(url)
    execution = show(timeline, *READY_PATH)
    assert timeline.ingest(execution, STORY[:3]) == 3
    assert timeline.ingest(execution, STORY[:3]) == 3
    assert timeline.ingest(execution, STORY[1:7]) == 7
    assert timeline.ingest(execution, []) == 7
    show(timeline, *WHOLE_PATH)
    assert timeline.ingest(execution, STORY) == 10
    wait_for(timeline, TOLD)


def test_two_servers_see_the_same_and_tell_it_once(postgres_url: str, start: Start) -> None:
    one, other = start(postgres_url), start(postgres_url)
    for number in range(2, len(WHOLE_PATH) + 1):
        for timeline in (one, other):
            execution = show(timeline, *WHOLE_PATH[:number])
    for index, entry in enumerate(STORY):
        (one, other)[index % 2].ingest(execution, [entry])
    for timeline in (one, other):
        wait_for(timeline, TOLD)
    wait_until(lambda: one.last_id() == other.last_id(), SECONDS, "they do not know the same")
    assert one.read(0, limit=99) == other.read(0, limit=99)


def test_timeline_is_the_same_after_a_restart(url: str, start: Start) -> None:
    first = start(url)
    execution = show(first, *WHOLE_PATH)
    first.ingest(execution, STORY)
    wait_for(first, TOLD)
    before, newest = first.read(0, limit=99), first.last_id()
    first.stop()
    second = start(url)
    show(second, *WHOLE_PATH)
    second.end_initial(100)
    assert second.append(1, Topic.REQUEST_STOP, {"cmd": "x"}).id > newest
    assert second.read(0, limit=99)[: len(before)] == before
    wait_for(second, [*TOLD, "x"])


# ---- who does not speak ------------------------------------------------------------------------------------------


def test_end_waits_for_the_rest_and_not_for_ever(url: str, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasting, "END_PATIENCE_SECONDS", 0.5)
    timeline = start(url)
    execution = show(timeline, *READY_PATH)
    timeline.ingest(execution, STORY[:5])
    show(timeline, *READY_PATH, State.FAILED, stacktrace="killed")
    timeline.ingest(execution, [line(6, "last words")])
    told = [*TOLD[:6], "last words", "killed", "FAILED"]
    wait_for(timeline, told)
    timeline.ingest(execution, [message(7, "late"), state(8, State.RUNNING)])
    wait_for(timeline, [*told, "late"])


def test_end_of_a_runner_that_says_no_last_word_is_told_when_it_is_quiet(
    url: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lasting, "END_PATIENCE_SECONDS", 3600.0)
    monkeypatch.setattr(lasting, "SETTLED_SECONDS", 0.0)
    timeline = start(url)
    execution = show(timeline, *WHOLE_PATH)
    timeline.ingest(execution, STORY[:8])
    time.sleep(1.5)
    assert read(timeline) == TOLD[:9], "it has not told yet that main returned"
    timeline.ingest(execution, STORY[8:9])
    wait_for(timeline, TOLD)


def test_state_that_the_runner_does_not_tell_is_told(url: str, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasting, "STATE_PATIENCE_SECONDS", 0.5)
    timeline = start(url)
    execution = show(timeline, *READY_PATH)
    timeline.ingest(execution, STORY[:2])
    wait_for(timeline, TOLD[:5])
    timeline.ingest(execution, STORY[:5])
    wait_for(timeline, TOLD[:6])


@pytest.mark.serial
def test_end_without_a_runner_is_told_at_once(url: str, start: Start) -> None:
    timeline = start(url)
    began = time.monotonic()
    timeline.on_execution(build_execution("a", 1, State.CREATING, State.STOPPED))
    wait_for(timeline, ["CREATING", "STOPPED"])
    assert time.monotonic() - began < 2


def test_end_that_turned_out_otherwise_is_told(url: str, start: Start) -> None:
    timeline = start(url)
    timeline.on_execution(build_execution("a", 1, State.CREATING, State.STOPPED, version=2))
    wait_for(timeline, ["CREATING", "STOPPED"])
    timeline.on_execution(build_execution("a", 1, State.CREATING, State.UNKNOWN, version=3))
    wait_for(timeline, ["CREATING", "STOPPED", "UNKNOWN"])


def test_runner_that_never_speaks_is_read_from_its_log(url: str, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasting, "DECISION_SECONDS", 0.2)
    one = start(url)
    wanted = threading.Event()
    one.on_log_wanted = lambda execution: wanted.set()
    execution = show(one, *WHOLE_PATH)
    assert wanted.wait(SECONDS)
    when = execution.status.history[4].time.timestamp() + 0.5
    drafts = [Draft(when, EntryKind.LOG, Topic.LOG, {"msg_src": "1", "line": text}) for text in ("a", "b")]
    for _ in range(2):
        one.offer_lines(1, drafts[:1])
        one._tracks[1].lines = 0  # as after a restart, when the log is read from its beginning
    one.offer_lines(1, drafts)
    one.settle(1)
    told = [*READY_PATH, "a", "b", *WHOLE_PATH[5:]]
    wait_for(one, [str(text) for text in told])
    assert one.ingest(execution, STORY) == 10
    wait_for(one, [str(text) for text in told])


def test_output_beyond_the_limit_is_counted_and_messages_are_not(url: str, start: Start) -> None:
    timeline = start(url, log_limit_bytes=10)
    execution = show(timeline, *WHOLE_PATH)
    lines = [line(seq, "abcd") for seq in range(5, 10)]
    story = [*STORY[:4], *lines, message(10, "heard"), state(11, State.RUNNING), state(12, State.READY)]
    timeline.ingest(execution, [*story, state(13, State.COMPLETE)])
    wait_for(timeline, [*TOLD[:5], "abcd", "abcd", "heard", "RUNNING", "READY", "3", "COMPLETE"])


# ---- what is gone ------------------------------------------------------------------------------------------------


def test_what_is_gone_stays_readable(url: str, start: Start) -> None:
    timeline = start(url)
    execution = show(timeline, *WHOLE_PATH)
    timeline.ingest(execution, STORY)
    timeline.on_removed(1)
    wait_for(timeline, TOLD)
    found = timeline.find(1)
    assert found is not None
    assert found.status.state is State.COMPLETE
    timeline.stop()
    again = start(url)
    assert read(again) == TOLD
    assert again.find(1) == found
    assert again.find(2) is None
    assert list(again.read_archive(0, 9)) == [found]


def test_removal_before_the_end_was_seen_is_unknown(url: str, start: Start) -> None:
    timeline = start(url)
    execution = show(timeline, *READY_PATH)
    timeline.ingest(execution, STORY[:5])
    timeline.on_removed(1)
    wait_for(timeline, [*TOLD[:6], "UNKNOWN"])
    found = timeline.find(1)
    assert found is not None
    assert found.status.state is State.UNKNOWN
    assert "removed" in str(found.status.message)


def test_removal_that_nobody_saw_is_found_out(url: str, start: Start) -> None:
    first = start(url)
    show(first, *READY_PATH)
    first.on_execution(build_execution("new", 2, State.CREATING, version=50))
    first.flush()
    first.stop()
    second = start(url)
    second.end_initial(40)
    wait_for(second, [*(str(one) for one in READY_PATH), "UNKNOWN"])
    found = second.find(2)
    assert found is not None
    assert found.status.state is State.CREATING, "it was made after the list: nothing is known of its end"


def test_what_ended_long_ago_is_removed_in_pieces_by_one_server(postgres_url: str, start: Start) -> None:
    one, other = start(postgres_url, retention_days=1e-6), start(postgres_url, retention_days=1e-6)
    execution = show(one, *WHOLE_PATH)
    one.ingest(execution, [*STORY[:4], *(line(seq, "x") for seq in range(5, 3005)), state(3005, State.COMPLETE)])
    one.on_execution(build_execution("b", 2, State.CREATING, State.FAILED))
    wait_for(one, ["CREATING", "FAILED"], 2)
    one.on_removed(1)
    one.flush()
    time.sleep(0.1)  # what ended now is not older than a tenth of a second
    newest = one.last_id()
    results: list[int] = []
    threads = [threading.Thread(target=lambda one=one: results.append(one._store.remove_old())) for one in (one, other)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one.find(1) is None
    assert one._store._database.read_entries(0, 9, "a") == []
    assert read(one, 2) == ["CREATING", "FAILED"], "Kubernetes still has it"
    assert one.append(2, Topic.REQUEST_STOP, {"cmd": "x"}).id > newest


# ---- the database is away ----------------------------------------------------------------------------------------


@pytest.fixture
def own_postgres() -> object:
    with running_postgres() as server:
        yield server


@pytest.mark.serial
def test_database_that_dies_and_comes_back_has_everything(own_postgres: Postgres, start: Start) -> None:
    timeline = start(own_postgres.make_database())
    execution = show(timeline, *READY_PATH)
    timeline.ingest(execution, STORY[:5])
    wait_for(timeline, TOLD[:6])
    newest = timeline.last_id()
    own_postgres.kill()
    show(timeline, *READY_PATH, State.RUNNING)
    with pytest.raises(UnavailableError, match="does not answer"):
        timeline.append(1, Topic.REQUEST_STOP, {"cmd": "kept"})
    began = time.monotonic()
    with pytest.raises(UnavailableError):
        timeline.ingest(execution, STORY[5:7])
    with pytest.raises(UnavailableError):
        timeline.append(1, Topic.REQUEST_STOP, {"cmd": "kept as well"})
    assert time.monotonic() - began < 3, "who asks is not kept waiting once it is known"
    assert "does not answer" in timeline.observe_problem()
    assert timeline.last_id() == newest
    assert not timeline.wait(newest, 0.01)
    own_postgres.start()
    wait_until(lambda: not timeline.observe_problem(), SECONDS, "the database is not used again")
    timeline.ingest(execution, STORY[5:])
    show(timeline, *WHOLE_PATH)
    wait_for(timeline, [*TOLD[:6], "kept", "kept as well", *TOLD[6:]])


def test_database_that_takes_no_changes_for_a_while_gets_them_later(postgres_url: str, start: Start) -> None:
    """As a standby does that is about to take over, and one whose rights are being changed."""
    timeline = start(postgres_url)
    show(timeline, State.CREATING)
    wait_for(timeline, ["CREATING"])
    engine = create_engine(build_url(postgres_url))
    name = engine.url.database
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for value in ("on", "off"):
            connection.execute(text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {value}'))
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name AND pid <> pg_backend_pid()"
            connection.execute(text(others), {"name": name})
            if value == "on":
                with pytest.raises(UnavailableError):
                    timeline.append(1, Topic.REQUEST_STOP, {"cmd": "kept"})
                wait_until(lambda: "read-only" in timeline.observe_problem(), SECONDS, "it takes changes")
                assert read(timeline) == ["CREATING"]
                connection.execute(text("SET default_transaction_read_only = off"))
    engine.dispose()
    wait_for(timeline, ["CREATING", "kept"])


def test_server_starts_without_its_database_and_uses_it_when_it_comes(
    own_postgres: Postgres, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oet_api.timeline.store.START_SECONDS", 0.2)
    url = own_postgres.make_database()
    own_postgres.kill()
    timeline = start(url)
    show(timeline, State.CREATING)
    for ask in (timeline.last_id, lambda: timeline.read(0, limit=1), lambda: timeline.find(1)):
        with pytest.raises(UnavailableError):
            ask()
    own_postgres.start()
    wait_until(lambda: not timeline.observe_problem(), SECONDS, "the database is not used")
    wait_for(timeline, ["CREATING"])


def test_entry_that_cannot_be_written_keeps_no_other_from_it(url: str, start: Start) -> None:
    timeline = start(url)
    show(timeline, State.CREATING)
    broken = timeline._store.submit(lambda transaction: 1 / 0)
    timeline.append(1, Topic.REQUEST_STOP, {"cmd": "x"})
    assert isinstance(broken.error, ZeroDivisionError)
    wait_for(timeline, ["CREATING", "x"])


def test_password_is_in_no_message(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: object
) -> None:
    monkeypatch.setattr("oet_api.timeline.store.START_SECONDS", 1.0)
    timeline = start("postgresql://oet:geheim@127.0.0.1:1/none")
    problem = timeline.observe_problem()
    assert problem
    assert "geheim" not in problem
    assert "geheim" not in caplog.text  # type: ignore[attr-defined]
