"""What takes runners' entries: each adapter of the port under the same tests."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from oet_support_postgres import running_postgres
from oet_support_sink import MemorySink

from oet_api.kube.lasting import LastingTimeline
from oet_api.timeline.store import TimelineStore
from oet_crds.execution import Metadata, ScriptExecution, ScriptExecutionSpec, ScriptExecutionStatus, ScriptSource
from oet_crds.ports import EntrySink, RunnerEntry
from oet_crds.settings import TimelineSettings
from oet_crds.topics import EntryKind, Topic

NOW = datetime(2026, 11, 23, tzinfo=UTC)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def sink(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EntrySink]:
    """A sink without entries."""
    if request.param == "memory":
        yield MemorySink()
        return
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{tmp_path}/timeline.db"
        if request.param == "postgresql":
            url = stack.enter_context(running_postgres()).make_database()
        timeline = LastingTimeline(TimelineStore(TimelineSettings(database=url), "n"), 1024 * 1024)
        timeline.start()
        stack.callback(timeline.stop)
        yield timeline


def build_execution(procedure_id: int = 1) -> ScriptExecution:
    source = ScriptSource.model_validate({"inline": {"source": "def main(): pass"}})
    return ScriptExecution(
        metadata=Metadata(name=f"e{procedure_id}", namespace="n", uid=f"uid-{procedure_id}", creation_timestamp=NOW),
        spec=ScriptExecutionSpec(script=source),
        status=ScriptExecutionStatus(pod_name="p", procedure_id=procedure_id),
    )


def build_entries(first: int, last: int, text: str = "x") -> list[RunnerEntry]:
    payload = {"msg_src": "1", "stream": "stdout", "line": text}
    return [RunnerEntry(seq, 1.0 * seq, EntryKind.LOG, Topic.LOG, payload) for seq in range(first, last + 1)]


def test_answer_is_the_highest_number_that_is_stored(sink: EntrySink) -> None:
    execution = build_execution()
    assert sink.ingest(execution, build_entries(1, 3)) == 3
    assert sink.ingest(execution, build_entries(4, 4)) == 4


def test_entries_that_come_again_are_stored_already(sink: EntrySink) -> None:
    execution = build_execution()
    sink.ingest(execution, build_entries(1, 5))
    assert sink.ingest(execution, build_entries(1, 3, "another")) == 5
    assert sink.ingest(execution, build_entries(4, 7, "another")) == 7


def test_executions_have_numbers_of_their_own(sink: EntrySink) -> None:
    assert sink.ingest(build_execution(1), build_entries(1, 9)) == 9
    assert sink.ingest(build_execution(2), build_entries(1, 2)) == 2


def test_same_entries_from_many_threads_are_stored_once(sink: EntrySink) -> None:
    execution = build_execution()
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(sink.ingest(execution, build_entries(1, 50)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [50] * 8
