"""What every timeline of the REST server on Kubernetes promises, wherever it keeps what happened."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from oet_support import wait_until
from oet_support_postgres import Postgres, running_postgres
from oet_support_timeline import build_execution

from oet_api.kube.lasting import LastingTimeline
from oet_api.kube.timeline import KubeTimeline
from oet_api.timeline.store import TimelineStore
from oet_crds.errors import NotFoundError
from oet_crds.settings import TimelineSettings
from oet_crds.states import State
from oet_crds.topics import EntryKind, Topic

AnyTimeline = KubeTimeline | LastingTimeline
SECONDS = 20.0
ENDED = (State.CREATING, State.FAILED)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def kube_timeline(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyTimeline]:
    """A timeline at work, in which nothing has happened."""
    timeline: AnyTimeline
    if request.param == "memory":
        timeline = KubeTimeline()
        timeline.end_initial()
    else:
        is_file = request.param == "sqlite"
        url = f"sqlite:///{tmp_path}/timeline.db" if is_file else request.getfixturevalue("postgres").make_database()
        timeline = LastingTimeline(TimelineStore(TimelineSettings(database=url), "test"), 1024 * 1024)
    timeline.start()
    yield timeline
    timeline.stop()


def _begin(timeline: AnyTimeline, number: int, *states: State) -> None:
    timeline.on_execution(build_execution(str(uuid.uuid4()), number, *(states or (State.CREATING,))))


def _tell(timeline: AnyTimeline, number: int, text: str) -> int:
    return timeline.append(number, Topic.REQUEST_START, {"msg_src": text, "text": text}).id


def test_appended_action_can_be_read_at_once(kube_timeline: AnyTimeline) -> None:
    _begin(kube_timeline, 1)
    entry = kube_timeline.append(1, Topic.REQUEST_START, {"cmd": {"a": [1, None, "ä\0\ud800"]}})
    assert kube_timeline.last_id() >= entry.id
    assert kube_timeline.read(entry.id - 1, limit=1) == [entry]
    assert kube_timeline.read(0, limit=9, procedure_id=1, kinds=[EntryKind.ACTION]) == [entry]
    assert (entry.kind, entry.procedure_id, entry.seq) == (EntryKind.ACTION, 1, None)


def test_entries_come_in_the_order_of_their_ids_and_in_pages(kube_timeline: AnyTimeline) -> None:
    _begin(kube_timeline, 1)
    ids = [_tell(kube_timeline, 1, str(number)) for number in range(10)]
    assert ids == sorted(set(ids))
    found, after = [], ids[0] - 1
    while page := kube_timeline.read(after, limit=3, kinds=[EntryKind.ACTION]):
        found += [entry.payload["text"] for entry in page]
        after = page[-1].id
    assert found == [str(number) for number in range(10)]


def test_entries_of_one_procedure_and_kind_are_found_among_others(kube_timeline: AnyTimeline) -> None:
    for number in (1, 2):
        _begin(kube_timeline, number)
        _tell(kube_timeline, number, "x")
    entries = kube_timeline.read(0, limit=9, procedure_id=2)
    assert [entry.kind for entry in entries] == [EntryKind.STATE, EntryKind.ACTION]
    assert {entry.procedure_id for entry in entries} == {2}
    assert [entry.procedure_id for entry in kube_timeline.read(0, limit=9, kinds=[EntryKind.STATE])] == [1, 2]
    assert kube_timeline.read(0, limit=9, procedure_id=3) == []


def test_state_that_is_seen_again_is_told_once(kube_timeline: AnyTimeline) -> None:
    execution = build_execution("a", 1, *ENDED, stacktrace="Traceback")
    for _ in range(3):
        kube_timeline.on_execution(execution)

    def read() -> list[str]:
        entries = kube_timeline.read(0, limit=9, procedure_id=1)
        return [str(entry.payload.get("new_state", entry.topic)) for entry in entries]

    wait_until(lambda: read()[-1:] == ["FAILED"], SECONDS, "the end is not told")
    assert read() == ["CREATING", Topic.STACKTRACE, "FAILED"]


def test_action_on_what_is_gone_is_refused(kube_timeline: AnyTimeline) -> None:
    with pytest.raises(NotFoundError):
        _tell(kube_timeline, 7, "x")
    _begin(kube_timeline, 1, *ENDED)
    kube_timeline.on_removed(1)
    with pytest.raises(NotFoundError):
        _tell(kube_timeline, 1, "x")


def test_listener_is_woken_by_what_is_new_and_by_nothing_else(kube_timeline: AnyTimeline) -> None:
    _begin(kube_timeline, 1)
    after = _tell(kube_timeline, 1, "x")
    after = max(after, kube_timeline.last_id())
    assert not kube_timeline.wait(after, 0.01)
    woken: list[bool] = []
    thread = threading.Thread(target=lambda: woken.append(kube_timeline.wait(after, SECONDS)))
    thread.start()
    _tell(kube_timeline, 1, "y")
    thread.join(SECONDS)
    assert woken == [True]


def test_reader_beside_many_writers_misses_nothing(kube_timeline: AnyTimeline) -> None:
    """No entry appears below an id that was read already."""
    for number in range(1, 5):
        _begin(kube_timeline, number)

    def write(number: int) -> None:
        for text in range(25):
            _tell(kube_timeline, number, str(text))

    threads = [threading.Thread(target=write, args=[number]) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    seen: dict[int, list[str]] = {}
    after, count = 0, 0
    while count < 100:
        assert kube_timeline.wait(after, SECONDS)
        for entry in kube_timeline.read(after, limit=7):
            after = entry.id
            if entry.kind is EntryKind.ACTION:
                seen.setdefault(entry.procedure_id, []).append(entry.payload["text"])
                count += 1
    for thread in threads:
        thread.join()
    assert seen == {number: [str(text) for text in range(25)] for number in range(1, 5)}
