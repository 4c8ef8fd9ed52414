"""What the operator says of itself over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from oet_crds.execution import InlineScript, Metadata, ScriptExecution, ScriptExecutionSpec, ScriptSource
from oet_crds.names import EXECUTION_UID_LABEL
from oet_crds.settings import Settings
from oet_crds.states import State
from oet_operator.kube.client import KubeClient
from oet_operator.kube.errors import ApiUnavailableError
from oet_operator.kube.events import EventRecorder
from oet_operator.kube.health import MAX_QUEUE_AGE_SECONDS, Vitals, running_web
from oet_operator.kube.lease import Elector
from oet_operator.kube.metrics import Metrics
from oet_operator.kube.paths import Paths
from oet_operator.kube.pod_builder import Templates
from oet_operator.kube.reconciler import Reconciler
from oet_operator.kube.watch_guard import WatchGuard
from oet_operator.kube.watching import resync


class _Observer:
    def __init__(self, metrics: Metrics) -> None:
        self.on_look, self.on_write = metrics.on_look, metrics.on_write
        self.on_change = EventRecorder(KubeClient(lambda: None), Paths("n")).record  # type: ignore[arg-type, return-value]


def _vitals(**fields: Any) -> tuple[Vitals, Metrics]:
    client = KubeClient(lambda: None)  # type: ignore[arg-type, return-value]
    client.counts["GET", 200] += 3
    client.writes["POST", "pods"] += 1
    vitals = Vitals(client, Elector(client, Paths("n"), "me", 10), **fields)
    metrics = Metrics(vitals)
    vitals.reconciler = Reconciler(client, Paths("n"), Settings(), Templates({}, {}), _Observer(metrics))
    return vitals, metrics


def _wire(uid: str, version: int) -> dict[str, Any]:
    return {"metadata": {"uid": uid, "resourceVersion": str(version)}}


def _list(guard: WatchGuard, *uids: str, version: int = 5, is_news: bool = True, is_broken_off: bool = False) -> None:
    guard.begin_round()
    for uid in uids:
        guard.note_listed(_wire(uid, version), is_news=is_news)
    if not is_broken_off:
        guard.end_round()


def test_watch_that_tells_late_is_not_dead_and_one_that_tells_nothing_is() -> None:
    guard = WatchGuard()
    _list(guard, "told", "told an older one", "gone", "never told")
    assert guard.overdue == 0
    guard.note_watched(_wire("told", 6))
    guard.note_watched(_wire("told an older one", 4))
    _list(guard, "told", "told an older one", "never told", is_news=False)
    assert guard.overdue == 2
    for uid in ("told an older one", "never told"):
        guard.note_watched(_wire(uid, 5))
    assert guard.overdue == 0


def test_watch_of_what_changes_all_the_time_is_dead_too() -> None:
    guard = WatchGuard()
    _list(guard, "u", version=1)
    _list(guard, "u", version=2)
    assert guard.overdue == 1


def test_list_that_was_broken_off_proves_nothing() -> None:
    guard = WatchGuard()
    _list(guard, "u", "v")
    for _ in range(3):
        _list(guard, "u", is_news=False, is_broken_off=True)
    assert guard.overdue == 0
    _list(guard, "u", "v", is_news=False)
    assert guard.overdue == 2


EXECUTION = ScriptExecution(
    metadata=Metadata(name="e", namespace="n", uid="u", creation_timestamp=datetime(2026, 11, 24, tzinfo=UTC)),
    spec=ScriptExecutionSpec(script=ScriptSource(inline=InlineScript(source="x"))),
)


class _Cluster(KubeClient):
    """Lists one execution and its Pod, in the versions given."""

    def __init__(self) -> None:
        self.versions = {"executions": "1", "pods": "1"}
        self.is_away = False

    async def iter_list(self, path: str, **query: str) -> AsyncIterator[tuple[dict[str, Any], int]]:
        if path == Paths("n").pods:
            metadata = {"uid": "p", "name": "p", "labels": {EXECUTION_UID_LABEL: "u"}}
            yield {"metadata": {**metadata, "resourceVersion": self.versions["pods"]}}, 1
            return
        if self.is_away:
            raise ApiUnavailableError(0, "", "away")
        wire = EXECUTION.to_wire()
        wire["metadata"]["resourceVersion"] = self.versions["executions"]
        yield wire, 1


@pytest.mark.parametrize("silent", ["executions", "pods"])
def test_changes_that_only_lists_tell_make_the_operator_unhealthy(silent: str) -> None:
    async def scenario() -> list[bool]:
        vitals, _ = _vitals()
        cluster = _Cluster()
        told = {"uid": "p" if silent == "executions" else "u", "resourceVersion": "1"}
        found = []
        for _ in range(2):
            await resync(cluster, Paths("n"), vitals)
            vitals.guard.note_watched({"metadata": told})
            found.append(vitals.find_problem() is None)
        vitals.guard.note_watched({"metadata": {"uid": "u" if silent == "executions" else "p", "resourceVersion": "1"}})
        await resync(cluster, Paths("n"), vitals)
        found.append(vitals.find_problem() is None)
        return found

    assert asyncio.run(scenario()) == [True, False, True]


def test_api_server_that_is_away_does_not_make_the_operator_unhealthy() -> None:
    async def scenario() -> None:
        vitals, _ = _vitals()
        cluster = _Cluster()
        await resync(cluster, Paths("n"), vitals)
        cluster.is_away = True
        for _ in range(3):
            with pytest.raises(ApiUnavailableError):
                await resync(cluster, Paths("n"), vitals)
            assert vitals.find_problem() is None

    asyncio.run(scenario())


def test_health_tells_a_dead_watch_and_stuck_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    vitals, _ = _vitals()
    assert vitals.find_problem() is None
    assert vitals.reconciler is not None
    vitals.reconciler.queue.add("u")
    later = time.monotonic() + MAX_QUEUE_AGE_SECONDS + 1
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: later)
        assert "stuck" in (vitals.find_problem() or "")
    _list(vitals.guard, "u")
    _list(vitals.guard, "u")
    assert "watch is dead" in (vitals.find_problem() or "")


@pytest.mark.parametrize(
    ("holder", "is_leader", "resynced_at", "is_ready", "word"),
    [
        (None, False, None, False, "starting"),
        ("other", False, None, True, "standby: other"),
        ("", False, None, True, "standby: nobody"),
        ("", True, None, False, "reading"),
        ("me", True, 1.0, True, "leader"),
    ],
)
def test_readiness_says_which_part_the_operator_has(
    holder: str | None, is_leader: bool, resynced_at: float | None, is_ready: bool, word: str
) -> None:
    vitals, _ = _vitals(is_leader=is_leader, resynced_at=resynced_at)
    vitals.elector.holder = holder
    found, text = vitals.describe_readiness()
    assert (found, word in text) == (is_ready, True)


def _read_all(vitals: Vitals, metrics: Metrics) -> dict[str, tuple[int, str]]:
    async def read() -> dict[str, tuple[int, str]]:
        runner = await running_web(vitals, metrics.render, 0)
        host, port = ("[::1]" if ":" in runner.addresses[0][0] else "127.0.0.1"), runner.addresses[0][1]
        answers = {}
        async with aiohttp.ClientSession(trust_env=False) as session:
            for path in ("healthz", "readyz", "metrics", "nothing"):
                async with session.get(f"http://{host}:{port}/{path}") as response:
                    answers[path] = (response.status, await response.text())
        await runner.cleanup()
        return answers

    return asyncio.run(read())


def test_web_answers_with_health_readiness_and_metrics() -> None:
    vitals, metrics = _vitals(is_leader=True)
    metrics.events["Pod"] += 2
    metrics.on_look(0.01)
    metrics.on_look(0.01, "ApiConflictError")
    metrics.on_write(time.monotonic())
    vitals.client.on_answered("PATCH", 0.004)
    answers = _read_all(vitals, metrics)
    assert answers["healthz"] == (200, "ok\n")
    assert answers["readyz"][0] == 503
    assert answers["nothing"][0] == 404
    lines = answers["metrics"][1].splitlines()
    for line in (
        'oet_operator_requests_total{status="200",verb="GET"} 3.0',
        'oet_operator_writes_total{resource="pods",verb="POST"} 1.0',
        'oet_operator_watch_events_total{kind="Pod"} 2.0',
        f'oet_operator_executions{{state="{State.RUNNING}"}} 0.0',
        'oet_operator_failures_total{error="ApiConflictError"} 1.0',
        "oet_operator_look_seconds_count 2.0",
        "oet_operator_reaction_seconds_count 1.0",
        'oet_operator_request_seconds_bucket{le="0.005",verb="PATCH"} 1.0',
        "oet_operator_leader 1.0",
    ):
        assert line in lines
    _list(vitals.guard, "u")
    _list(vitals.guard, "u")
    assert _read_all(vitals, metrics)["healthz"][0] == 503
