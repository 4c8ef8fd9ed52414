"""What the reconciler makes of answers that a test cluster gives seldom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from oet_crds.execution import ScriptExecution, ScriptExecutionStatus
from oet_crds.names import EXECUTION_NAME_ANNOTATION, EXECUTION_UID_LABEL
from oet_crds.reasons import Reason
from oet_crds.settings import Settings
from oet_crds.states import State
from oet_operator.kube.client import KubeClient
from oet_operator.kube.errors import ApiMissingError, build_error, is_hopeless, is_refusal
from oet_operator.kube.paths import Paths
from oet_operator.kube.pod_builder import Templates, has_own_scripts, has_tango
from oet_operator.kube.reconciler import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, LEFTOVER_LOOK_SECONDS, Reconciler

NOW = datetime.now(UTC)


class _Observer:
    def on_look(self, seconds: float, failure: str = "") -> None: ...
    def on_write(self, since: float) -> None: ...
    def on_change(self, execution: ScriptExecution, before: ScriptExecutionStatus) -> None: ...


class _Cluster(KubeClient):
    """One execution, and Pods that are refused."""

    def __init__(self, *refusals: tuple[int, str]) -> None:
        self.refusals = list(refusals)
        self.objects: dict[str, Any] = {}
        self.deleted: list[str] = []
        self.version = 10

    async def get(self, path: str) -> dict[str, Any]:
        name = path.rsplit("/", 1)[1]
        if name == "oet-procedure-ids":
            return {"metadata": {}, "data": {"next": "1"}}
        if name not in self.objects:
            raise ApiMissingError(404, "NotFound", f"{name} not found")
        return dict(self.objects[name])

    async def put(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return body

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert path.partition("?")[0].endswith("/pods")
        if self.refusals:
            status, message = self.refusals.pop(0)
            raise build_error(status, {"message": message})
        self.version += 1
        metadata = {**body["metadata"], "uid": "pod", "resourceVersion": str(self.version)}
        return {**body, "metadata": metadata}

    async def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        wire = self.objects["one"]
        status = {**wire.get("status", {}), **body["status"]}
        status = {key: value for key, value in status.items() if value is not None}
        wire = {**wire, "metadata": {**wire["metadata"], "resourceVersion": str(self.version)}, "status": status}
        self.objects["one"] = wire
        return wire

    async def delete(self, path: str, body: dict[str, Any]) -> None:
        self.deleted.append(path.rsplit("/", 1)[1])


def _wire(**spec: Any) -> dict[str, Any]:
    metadata = {"name": "one", "uid": "u1", "resourceVersion": "1", "generation": 1}
    metadata["creationTimestamp"] = NOW.isoformat()
    spec = {"script": {"inline": {"source": "def main(): pass"}}, "desiredState": "Running", **spec}
    return {"apiVersion": "oet.skao.int/v1alpha1", "kind": "ScriptExecution", "metadata": metadata, "spec": spec}


def _pod(*, is_deleted: bool) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "p", "uid": "pu", "resourceVersion": "7", "labels": {EXECUTION_UID_LABEL: "u9"}}
    metadata["annotations"] = {EXECUTION_NAME_ANNOTATION: "gone"}
    if is_deleted:
        metadata["deletionTimestamp"] = (datetime.now(UTC) + timedelta(seconds=10)).isoformat()
    return {"metadata": metadata, "status": {"phase": "Running"}}


def _play(cluster: _Cluster, scenario: Callable[[Reconciler], Any]) -> None:
    async def run() -> None:
        await scenario(Reconciler(cluster, Paths("n"), Settings(), Templates({}, {}), _Observer()))

    asyncio.run(run())


# ---- Pods that are refused -----------------------------------------------------------------------------------------------

WEBHOOK = 'Internal error occurred: failed calling webhook "w.example.com": connection refused'
POLICY = "pods \"p\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no"
DENIED = 'admission webhook "w.example.com" denied the request: no'
INVALID = 'Pod "p" is invalid: spec.containers[0].image: Required value'


@pytest.mark.parametrize(
    ("status", "message", "refuses", "hopeless"),
    [
        (403, 'pods "p" is forbidden: exceeded quota: q, requested: pods=1', True, False),
        (403, DENIED, True, False),
        (422, DENIED, True, False),
        (400, DENIED, True, False),
        (422, POLICY, True, False),
        (401, POLICY, True, False),
        (401, "Unauthorized", False, False),
        (413, POLICY, True, False),
        (500, WEBHOOK, True, False),
        (404, 'namespaces "n" not found', True, False),
        (422, INVALID, True, True),
        (400, 'Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal', True, True),
        (413, "Request entity too large: limit is 3145728", True, True),
        (500, "etcdserver: request is too large", True, True),
        (429, "too many requests", False, False),
        (503, "apiserver is shutting down", False, False),
        (0, "no answer", False, False),
    ],
)
def test_only_what_is_wrong_by_itself_is_hopeless(status: int, message: str, refuses: bool, hopeless: bool) -> None:
    error = build_error(status, {"message": message})
    assert (is_refusal(error), is_hopeless(error)) == (refuses, hopeless)


def test_refused_pod_is_told_and_tried_again_after_growing_pauses() -> None:
    cluster = _Cluster(*[(500, WEBHOOK)] * 6)
    cluster.objects["one"] = _wire()

    async def scenario(reconciler: Reconciler) -> None:
        reconciler.on_execution(None, cluster.objects["one"])
        pauses = []
        for _ in range(6):
            await reconciler.reconcile("u1")
            sighting = reconciler.cache.get_sighting("u1")
            pauses.append(round(sighting.retry_at - time.monotonic(), 1))
            left = len(cluster.refusals)
            await reconciler.reconcile("u1")  # Told, and not asked again before its time.
            assert len(cluster.refusals) == left
            status = cluster.objects["one"]["status"]
            assert (status["state"], status["reason"]) == (State.CREATING, Reason.POD_REJECTED)
            assert status["message"] == WEBHOOK
            reconciler.cache.hasten_refused(1, time.monotonic())
        assert pauses[0] == FIRST_RETRY_SECONDS
        await reconciler.reconcile("u1")
        assert reconciler.cache.has_pod("u1")

    _play(cluster, scenario)


def test_pause_between_two_tries_is_bounded() -> None:
    cluster = _Cluster(*[(403, "exceeded quota")] * 9)
    cluster.objects["one"] = _wire()

    async def scenario(reconciler: Reconciler) -> None:
        reconciler.on_execution(None, cluster.objects["one"])
        pauses = []
        while cluster.refusals:
            await reconciler.reconcile("u1")
            sighting = reconciler.cache.get_sighting("u1")
            pauses.append(round(sighting.retry_at - time.monotonic(), 1))
            reconciler.cache._sightings["u1"] = _with_retry_now(sighting)
        assert pauses == sorted(pauses)
        assert pauses[-1] == LAST_RETRY_SECONDS

    _play(cluster, scenario)


def _with_retry_now(sighting: Any) -> Any:
    from dataclasses import replace

    return replace(sighting, retry_at=0.0)


# ---- Pods whose execution is gone ----------------------------------------------------------------------------------------


def test_pod_of_a_deleted_execution_that_nobody_tells_of_holds_nothing_once_it_is_gone() -> None:
    cluster = _Cluster()

    async def scenario(reconciler: Reconciler) -> None:
        reconciler.on_pod(None, _pod(is_deleted=True))
        cluster.objects["p"] = _pod(is_deleted=True)
        await reconciler.reconcile("u9")
        assert reconciler.cache.build_locks(77).find_holder(77, "u1") is not None
        del cluster.objects["p"]  # While no watch was open: nobody tells.
        deadline = time.monotonic() + 2 * LEFTOVER_LOOK_SECONDS
        while reconciler.cache.leftovers and time.monotonic() < deadline:
            uid, _ = await asyncio.wait_for(reconciler.queue.take(), 2 * LEFTOVER_LOOK_SECONDS)
            await reconciler.reconcile(uid)
            reconciler.queue.done(uid)
        assert reconciler.cache.build_locks(77).find_holder(77, "u1") is None

    _play(cluster, scenario)


def test_pod_of_a_deleted_execution_holds_its_subarray_however_long_its_node_says_nothing() -> None:
    cluster = _Cluster()

    async def scenario(reconciler: Reconciler) -> None:
        cluster.objects["p"] = lost = _pod(is_deleted=True)
        lost["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        reconciler.on_pod(None, lost)
        await reconciler.reconcile("u9")
        holder = reconciler.cache.build_locks(77).find_holder(77, "u1")
        assert holder is not None
        assert "--force" in holder.describe(77) or holder.is_guess

    _play(cluster, scenario)


def test_pod_of_a_deleted_execution_is_deleted_and_looked_for_again() -> None:
    cluster = _Cluster()

    async def scenario(reconciler: Reconciler) -> None:
        reconciler.on_pod(None, _pod(is_deleted=False))
        await reconciler.reconcile("u9")
        assert cluster.deleted == ["p"]
        uid, _ = await asyncio.wait_for(reconciler.queue.take(), 2 * LEFTOVER_LOOK_SECONDS)
        assert uid == "u9"

    _play(cluster, scenario)


# ---- abort scripts that cannot work --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "tango", "own"),
    [
        ({}, False, False),
        ({"env": [{"name": "TANGO_HOST", "value": "db:10000"}]}, True, False),
        ({"env": [{"name": "OTHER", "value": "x"}]}, False, False),
        ({"envFrom": [{"configMapRef": {"name": "c"}}]}, True, False),
        ({"volumeMounts": [{"name": "s", "mountPath": "/scripts"}]}, False, True),
        ({"volumeMounts": [{"name": "s", "mountPath": "/scripts/ours"}]}, False, True),
        ({"volumeMounts": [{"name": "s", "mountPath": "/data"}]}, False, False),
    ],
)
def test_template_tells_what_scripts_find(script: dict[str, Any], tango: bool, own: bool) -> None:
    template = {"spec": {"containers": [{"name": "other"}, {"name": "script", **script}]}}
    assert (has_tango(template), has_own_scripts(template)) == (tango, own)


def test_template_without_containers_tells_nothing() -> None:
    assert not has_tango({})
    assert not has_own_scripts({"spec": None})
