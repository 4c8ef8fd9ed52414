"""Procedures that the engine has removed, and what a listener can ask for."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import falcon.testing
import pytest

from oet_api.app import build_application
from oet_api.resources.procedures import ListQuery, select_archived
from oet_api.resources.stream import find_resumption
from oet_api.services import build_services
from oet_crds.errors import UnavailableError
from oet_crds.execution import InlineScript, ScriptExecution, ScriptExecutionSpec, ScriptSource
from oet_crds.settings import ServerSettings
from oet_crds.states import State

BASE = "/ska-oso-oet/oet/api/v7"
SPEC = ScriptExecutionSpec(script=ScriptSource(inline=InlineScript(source="x")))


class FakeArchive:
    """Executions in a list; or away."""

    def __init__(self, executions: Sequence[ScriptExecution]) -> None:
        self.executions = list(executions)
        self.is_away = False

    def find(self, procedure_id: int) -> ScriptExecution | None:
        return next((one for one in self.executions if one.procedure_id == procedure_id), None)

    def read_archive(self, after: int, limit: int, *, is_backwards: bool = False) -> Sequence[ScriptExecution]:
        if self.is_away:
            raise UnavailableError("away")
        found = [one for one in self.executions if (one.procedure_id or 0) > after]
        return found[::-1][:limit] if is_backwards else found[:limit]


@pytest.fixture
def executions(store: Any) -> list[ScriptExecution]:
    """Six executions, the last two of which the engine still has; on subarrays 0 and 1 in turn."""
    made = [store.create(SPEC.model_copy(update={"subarray": number % 2})) for number in range(6)]
    found = [store.get(one.procedure_id) for one in made]
    for number in range(1, 5):
        del store._executions[number]
    return found


def _list(live: Any, executions: Sequence[ScriptExecution], **query: Any) -> list[int | None]:
    chosen = select_archived(live, FakeArchive(executions), ListQuery(**query))
    return [one.procedure_id for one in chosen]


@pytest.mark.parametrize("page", [1, 2, 4, 200])
def test_removed_procedures_are_listed_among_the_others(
    store: Any, executions: list[ScriptExecution], monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr("oet_api.resources.procedures.ARCHIVE_PAGE", page)
    for stored in (executions, executions[:4], executions[:5]):
        assert _list(store.list(), stored) == [1, 2, 3, 4, 5, 6]
        assert _list(store.list(), stored, limit=3) == [1, 2, 3]
        assert _list(store.list(), stored, limit=3, after=3) == [4, 5, 6]
        assert _list(store.list(), stored, limit=3, after=6) == []
        assert _list(store.list(), stored, limit=5, subarray=1) == [2, 4, 6]
        assert _list(store.list(), stored, state=State.READY, limit=1, after=4) == [5]


def test_without_a_limit_the_newest_are_listed(
    store: Any, executions: list[ScriptExecution], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oet_api.resources.procedures.ARCHIVE_LIMIT", 3)
    assert _list(store.list(), executions[:4]) == [2, 3, 4, 5, 6]


def test_list_without_the_database_has_what_the_engine_has_and_says_so(
    store: Any, timeline: Any, settings: ServerSettings, executions: list[ScriptExecution]
) -> None:
    archive = FakeArchive(executions)
    services = replace(build_services(store, timeline, settings), archive=archive)
    client = falcon.testing.TestClient(build_application(services), headers={"Host": "localhost"})
    answer = client.simulate_get(f"{BASE}/procedures/")
    assert len(answer.json) == 6
    assert "warning" not in answer.headers
    archive.is_away = True
    answer = client.simulate_get(f"{BASE}/procedures/?limit=10")
    assert (answer.status_code, len(answer.json)) == (200, 2)
    assert "cannot be read now" in answer.headers["warning"]
    services.broadcast.stop()


def test_id_that_another_server_gave_is_waited_for(timeline: Any) -> None:
    timeline.put_message(1, msg="a")
    threading.Timer(0.05, timeline.put_message, (1,)).start()
    assert find_resumption("2", timeline) == 2
    assert find_resumption("1", timeline) == 1
    assert find_resumption(None, timeline) is None


def test_stream_of_a_subarray_has_the_events_of_its_procedures(
    store: Any, timeline: Any, services: Any, app: Any, executions: list[ScriptExecution]
) -> None:
    client = falcon.testing.TestClient(app, headers={"Host": "localhost"})
    after = timeline.last_id()
    for number in (5, 6, 1, 6):
        timeline.put_message(number, msg=str(number))
    threading.Timer(0.3, services.broadcast.stop).start()
    answer = client.simulate_get(f"{BASE}/stream?subarray=1&last_event_id={after}")
    told = [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data:")]
    assert [event["msg"] for event in told] == ["6", "6"]


def test_stream_ends_in_order_when_the_timeline_cannot_be_read(
    timeline: Any, services: Any, app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = falcon.testing.TestClient(app, headers={"Host": "localhost"})
    for _ in range(3):
        timeline.put_message(1, msg="a")
    services.broadcast.start()

    def refuse(*args: Any, **words: Any) -> None:
        raise UnavailableError("away")

    monkeypatch.setattr(timeline, "read", refuse)
    answer = client.simulate_get(f"{BASE}/stream?last_event_id=1")
    assert answer.status_code == 200
    assert "data:" not in answer.text
    assert services.slots.taken == 0
