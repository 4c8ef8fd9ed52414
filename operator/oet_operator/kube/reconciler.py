"""Observe, let the core decide, apply: one execution at a time, again and again until nothing is left to do."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from oet_crds.execution import (
    AbortStatus,
    Grant,
    HistoryEntry,
    ScriptExecution,
    ScriptExecutionStatus,
)
from oet_crds.names import KIND
from oet_crds.settings import Settings
from oet_crds.specs import compute_subarray
from oet_crds.states import State
from oet_operator.core.aborts import build_abort_spec
from oet_operator.core.actions import Action, CreateAbort, CreatePod, DeleteExecution, DeletePod, StopRunner
from oet_operator.core.decide import BACKSTOP_SECONDS, decide
from oet_operator.core.locks import build_lock_table, wants_grant
from oet_operator.core.snapshot import Snapshot
from oet_operator.kube.cache import Cache
from oet_operator.kube.client import KubeClient
from oet_operator.kube.errors import ApiConflictError, ApiMissingError, ApiRefusedError
from oet_operator.kube.ids import ProcedureIds
from oet_operator.kube.paths import API_VERSION, Paths
from oet_operator.kube.pod_builder import build_pod
from oet_operator.kube.verdicts import observe_runner
from oet_operator.kube.work_queue import WorkQueue

__all__ = ["Reconciler", "build_status_patch"]

_log = logging.getLogger(__name__)

DELETED = "DELETED"
"""Kubernetes' word for the event of an object that is gone."""

MIN_WAIT_SECONDS = 0.05
"""A moment that has come by the clock of the API server may not have come by ours: no busy loop until it has."""

QUOTA_RETRY_SECONDS = 5.0
"""A Pod that a quota refuses is tried again this often: what frees the quota is not watched."""


def build_status_patch(before: ScriptExecutionStatus, after: ScriptExecutionStatus) -> dict[str, Any]:
    """Return the merge patch from one status to another, without what the runner writes. Pure."""
    old, new = before.to_wire(), after.to_wire()
    names = (old.keys() | new.keys()) - {"runner"}
    return {name: new.get(name) for name in sorted(names) if old.get(name) != new.get(name)}


class Reconciler:
    """Brings executions on their way. For one event loop."""

    def __init__(self, client: KubeClient, paths: Paths, settings: Settings, template: Mapping[str, Any]) -> None:
        self.cache = Cache()
        self.queue = WorkQueue[str]()
        self._client = client
        self._paths = paths
        self._settings = settings
        self._template = template
        self._ids = ProcedureIds(client, paths)
        self._locks: dict[int, asyncio.Lock] = {}

    # ---- what is seen --------------------------------------------------------------------------------------------

    def on_execution(self, kind: str | None, wire: Mapping[str, Any]) -> None:
        """Take in an event of an execution."""
        if kind == DELETED:
            self.on_execution_gone(wire["metadata"]["uid"])
        elif uid := self.cache.put_execution(wire):
            self.queue.add(uid)

    def on_execution_gone(self, uid: str) -> None:
        """Forget an execution that does not exist any more."""
        self.cache.drop_execution(uid)
        self.queue.drop(uid)
        self._wake_waiting()

    def on_pod(self, kind: str | None, wire: Mapping[str, Any]) -> None:
        """Take in an event of a script Pod."""
        if uid := self.cache.put_pod(wire, is_gone=kind == DELETED):
            self.queue.add(uid)

    def on_pod_gone(self, uid: str) -> None:
        """Note that the Pod of an execution does not exist any more."""
        self.cache.mark_pod_gone(uid)
        self.queue.add(uid)

    def _wake_waiting(self) -> None:
        for uid, execution in self.cache.executions.items():
            if wants_grant(execution):
                self.queue.add(uid)

    async def run_worker(self) -> None:
        """Work on the queue for ever."""
        while True:
            uid, _ = await self.queue.take()
            try:
                await self.reconcile(uid)
                self.queue.forget(uid)
            except ApiConflictError:
                self.queue.add_failed(uid)
            except Exception as error:  # noqa: BLE001 - one execution's trouble must not stop the others
                _log.warning("execution %s is tried again: %r", uid, error)
                self.queue.add_failed(uid)
            finally:
                self.queue.done(uid)

    # ---- one execution -------------------------------------------------------------------------------------------

    async def reconcile(self, uid: str) -> None:
        """Look at one execution and do what is due. Raises ApiError; trying again is always safe."""
        execution = self.cache.executions.get(uid)
        if execution is None:
            return
        subarray = compute_subarray(execution.spec)
        if subarray is None:
            await self._decide(uid)
            return
        # The lock table must hold what is being granted right now.
        async with self._locks.setdefault(subarray, asyncio.Lock()):
            await self._decide(uid)

    async def _decide(self, uid: str) -> None:
        stored = self.cache.executions.get(uid)
        if stored is None:
            return
        now = datetime.now(UTC)
        execution = await self._with_birth(stored, now)
        observation, again = observe_runner(execution, self.cache.get_sighting(uid), self._settings.kubernetes, now)
        locks = build_lock_table(self.cache.executions.values())
        plan = decide(Snapshot(execution, observation, locks, now))
        after = await self._write_status(stored, plan.status)
        for action in plan.actions:
            await self._apply(after, action)
        for seconds in (plan.requeue_after_seconds, None if after.is_finished else again):
            if seconds is not None:
                self.queue.add_after(uid, max(MIN_WAIT_SECONDS, seconds))

    async def _with_birth(self, execution: ScriptExecution, now: datetime) -> ScriptExecution:
        """Return the execution with its procedure id and the first entry of its history."""
        if execution.procedure_id is not None:
            return execution
        number = await self._ids.take(self.cache.highest_id)
        history = [HistoryEntry(seq=1, state=State.CREATING, time=now)]
        status = execution.status.model_copy(update={"procedure_id": number, "history": history})
        return execution.model_copy(update={"status": status})

    async def _write_status(self, stored: ScriptExecution, after: ScriptExecutionStatus) -> ScriptExecution:
        """Write what changed, on the condition that nobody wrote meanwhile; return the execution as stored then."""
        changes = build_status_patch(stored.status, after)
        if not changes:
            return stored
        metadata = {"resourceVersion": stored.metadata.resource_version}
        path = self._paths.status(stored.metadata.name)
        try:
            wire = await self._client.patch(path, {"metadata": metadata, "status": changes})
        except ApiConflictError:
            self.on_execution(None, await self._client.get(self._paths.execution(stored.metadata.name)))
            raise
        except ApiMissingError:
            return stored  # It is being removed: the watch will tell.
        self.cache.put_execution(wire)
        execution = self.cache.executions[stored.uid]
        if execution.is_finished or "grant" in changes:
            self._wake_waiting()
        return execution

    # ---- what is done --------------------------------------------------------------------------------------------

    async def _apply(self, execution: ScriptExecution, action: Action) -> None:
        match action:
            case CreatePod():
                await self._create_pod(execution)
            case DeletePod():
                await self._delete_pod(execution, action.grace_period_seconds)
            case StopRunner():
                return  # The runner sees the condition Stopping.
            case DeleteExecution():
                await self._delete(self._paths.execution(execution.metadata.name), {"uid": execution.uid})
            case CreateAbort():
                await self._create_abort(execution, action)

    async def _create_pod(self, execution: ScriptExecution) -> None:
        try:
            pod = build_pod(execution, self._settings.kubernetes, self._template)
            wire = await self._client.post(self._paths.pods, pod)
        except ApiConflictError:
            wire = await self._client.get(self._paths.pod(execution.status.pod_name or ""))
        except ApiRefusedError as error:
            is_quota = "exceeded quota" in str(error)
            self.cache.put_refusal(execution.uid, str(error), is_final=not is_quota)
            self.queue.add_after(execution.uid, QUOTA_RETRY_SECONDS if is_quota else 0.0)
            return
        except (TypeError, ValueError, KeyError, AttributeError, StopIteration) as error:
            self.cache.put_refusal(execution.uid, f"podTemplate is not part of a Pod: {error!r}", is_final=True)
            self.queue.add_after(execution.uid, 0.0)
            return
        if uid := self.cache.put_pod(wire):
            self.queue.add(uid)

    async def _delete_pod(self, execution: ScriptExecution, grace_seconds: float) -> None:
        pod = self.cache.get_sighting(execution.uid).pod
        end = execution.status.runner.exit if execution.status.runner else None
        if end is not None and (left := BACKSTOP_SECONDS - (datetime.now(UTC) - end.time).total_seconds()) > 0:
            # It ends by itself, and is kept for its log.
            self.queue.add_after(execution.uid, left)
            return
        if pod is None or (pod.deleted is not None and grace_seconds > 0):
            return
        # Never 0: that would remove the object while the processes may still run.
        await self._delete(self._paths.pod(pod.name), {"uid": pod.uid}, max(1, math.ceil(grace_seconds)))

    async def _delete(self, path: str, preconditions: dict[str, str], grace_seconds: int | None = None) -> None:
        options: dict[str, Any] = {"preconditions": preconditions, "propagationPolicy": "Background"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            await self._client.delete(path, options)
        except (ApiMissingError, ApiConflictError):
            return  # It is gone, or another of the same name is there.

    async def _create_abort(self, stopped: ScriptExecution, action: CreateAbort) -> None:
        """Create the abort execution, hand it the subarray, and only then let go of it. Each step can be repeated."""
        name = f"abort-{hashlib.sha256(stopped.uid.encode()).hexdigest()[:16]}"
        spec = build_abort_spec(self._settings.engine.scripts_location, action.subarray)
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec.to_wire()}
        try:
            wire = await self._client.post(self._paths.executions, body)
        except ApiConflictError:
            wire = await self._client.get(self._paths.execution(name))
        self.cache.put_execution(wire)
        abort = self.cache.executions[wire["metadata"]["uid"]]
        now = datetime.now(UTC)
        born = await self._with_birth(abort, now)
        if action.inherit and abort.status.grant is None:
            grant = Grant(time=now, subarray=action.subarray)
            born = born.model_copy(update={"status": born.status.model_copy(update={"grant": grant})})
        abort = await self._write_status(abort, born.status)
        assert abort.procedure_id is not None
        status = stopped.status.model_copy(update={"abort": AbortStatus(procedure_id=abort.procedure_id)})
        await self._write_status(stopped, status)
        self.queue.add(abort.uid)
