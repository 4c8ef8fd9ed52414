"""Observe, let the core decide, apply: one execution at a time, again and again until nothing is left to do."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from oet_crds.aborts import find_target, is_armed
from oet_crds.conditions import find_condition, with_condition
from oet_crds.execution import (
    AbortStatus,
    Grant,
    HistoryEntry,
    ScriptExecution,
    ScriptExecutionStatus,
    parse_execution,
)
from oet_crds.mailbox import DELIVERY_SECONDS
from oet_crds.names import KIND, SCRIPTS_FOLDER
from oet_crds.reasons import Reason
from oet_crds.settings import Settings
from oet_crds.specs import compute_subarray
from oet_crds.states import ConditionType, DesiredState, Purpose, State, is_final
from oet_operator.core.aborts import (
    REARM_SECONDS,
    AbortView,
    build_abort_spec,
    build_abort_view,
    find_arming_problem,
    is_in_use,
    is_outcome_open,
)
from oet_operator.core.actions import (
    Action,
    ArmAbort,
    CreateAbort,
    CreatePod,
    DeleteExecution,
    DeletePod,
    Plan,
    StopRunner,
    UseArmed,
)
from oet_operator.core.decide import BACKSTOP_SECONDS, decide
from oet_operator.core.locks import is_holding, wants_grant
from oet_operator.core.snapshot import Snapshot
from oet_operator.kube.cache import Cache
from oet_operator.kube.client import KubeClient
from oet_operator.kube.errors import (
    ApiConflictError,
    ApiError,
    ApiMissingError,
    ApiRefusedError,
    ApiTooLargeError,
    is_hopeless,
    is_refusal,
)
from oet_operator.kube.ids import ProcedureIds
from oet_operator.kube.paths import API_VERSION, Paths
from oet_operator.kube.pod_builder import Templates, build_git_environ, build_pod, has_own_scripts, has_tango, merge
from oet_operator.kube.pod_facts import PodFacts, parse_pod
from oet_operator.kube.sizes import iter_shorter
from oet_operator.kube.verdicts import (
    NODE_PATIENCE_SECONDS,
    compute_linger,
    compute_pod_grace,
    has_claim,
    observe_runner,
)
from oet_operator.kube.work_queue import WorkQueue

__all__ = ["COALESCE_SECONDS", "Observer", "Reconciler", "build_status_patch", "is_urgent"]

_log = logging.getLogger(__name__)

DELETED = "DELETED"
"""Kubernetes' word for the event of an object that is gone."""

MIN_WAIT_SECONDS = 0.05
"""A moment that has come by the clock of the API server may not have come by ours: no busy loop until it has."""

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 5.0
"""Pause before a Pod that was refused is tried again; each is twice the one before, up to the last: what frees a quota or removes
a policy is not watched, and is to be noticed within 10 s. A refusal costs the API server 3 ms."""

FREED_SECONDS, FREED_TRIES = 0.5, 5
"""After the end of a Pod so many of those that were refused are tried so soon, the oldest first: Kubernetes' quota controller
needs some 0.1 s to count anew."""

LEFTOVER_LOOK_SECONDS = 1.0
"""How often the Pod of a deleted execution is looked for: of what was deleted while no watch was open nobody tells."""

MISSING_RETRY_SECONDS = 0.1
"""What the API server does not find any more is forgotten when the watch tells of it, some 10 ms later."""

PAST_SECONDS = 1
"""`activeDeadlineSeconds` with which a Pod ends whose script has: the least that Kubernetes takes."""

COALESCE_SECONDS = 0.3
"""What a runner reported is copied into the status this late at most: the states of a preparation follow each other within
50 ms and become one write. Readers over REST do not wait for it (`oet_crds.ends.with_runner_news`)."""

_URGENT_FIELDS = ("procedure_id", "pod_name", "grant", "refusal", "abort")
"""What somebody waits for, or what must be stored before it is acted upon."""


def is_urgent(before: ScriptExecutionStatus, plan: Plan) -> bool:
    """Tell whether a plan cannot wait for `COALESCE_SECONDS`. Pure."""
    changed = any(getattr(before, name) != getattr(plan.status, name) for name in _URGENT_FIELDS)
    return changed or bool(plan.actions) or is_final(plan.status.state)


def build_status_patch(before: ScriptExecutionStatus, after: ScriptExecutionStatus) -> dict[str, Any]:
    """Return the merge patch from one status to another, without what the runner writes. Pure."""
    # Before the first write nothing is stored, not even what a status without content reads as.
    old, new = {} if before.procedure_id is None else before.to_wire(), after.to_wire()
    names = (old.keys() | new.keys()) - {"runner"}
    return {name: new.get(name) for name in sorted(names) if old.get(name) != new.get(name)}


def _build_past_deadline(pod: PodFacts) -> dict[str, Any]:
    """Build the patch with which a Pod has lived long enough: its node ends all its containers, and keeps their logs. Pure."""
    return {"metadata": {"uid": pod.uid}, "spec": {"activeDeadlineSeconds": PAST_SECONDS}}


def _find_arming_problem(settings: Settings, templates: Templates) -> str:
    """Return why no abort script is held READY although that is asked for, and say it once; empty: it is."""
    if not settings.engine.prearm_abort:
        return ""
    is_shipped = settings.engine.scripts_location in ("", SCRIPTS_FOLDER) and not has_own_scripts(templates.every)
    problem = find_arming_problem(settings.engine, is_shipped=is_shipped, has_tango=has_tango(templates.every))
    if problem:
        _log.warning("%s (tangoHost in the chart's values)", problem)
    return problem


class Observer(Protocol):
    """Whoever wants to know what a reconciler does; must not wait, nor fail."""

    def on_look(self, seconds: float, failure: str = "") -> None:
        """A look at an execution took so long; the failure's kind if it failed."""

    def on_write(self, since: float) -> None:
        """What was seen at `since` (monotonic seconds) leads to a write, which is sent now."""

    def on_change(self, execution: ScriptExecution, before: ScriptExecutionStatus) -> None:
        """The status of an execution was written."""

    def on_place(self, execution: ScriptExecution, pod: str, node: str) -> None:
        """The Pod of an execution was given a node."""


class Reconciler:
    """Brings executions on their way. For one event loop."""

    def __init__(
        self, client: KubeClient, paths: Paths, settings: Settings, templates: Templates, observer: Observer
    ) -> None:
        self.cache = Cache()
        self.queue = WorkQueue[str]()
        self._observer = observer
        self._seen_at: dict[str, float] = {}
        self._client = client
        self._paths = paths
        self._settings = settings
        self._templates = templates
        self._ids = ProcedureIds(client, paths)
        self._is_prearmed = settings.engine.prearm_abort and not _find_arming_problem(settings, templates)
        self._locks: dict[int, asyncio.Lock] = {}
        self._deferred: dict[str, float] = {}
        self._removing: set[str] = set()

    # ---- what is seen --------------------------------------------------------------------------------------------

    def on_execution(self, kind: str | None, wire: Mapping[str, Any]) -> None:
        """Take in an event of an execution."""
        if kind == DELETED:
            self.on_execution_gone(wire["metadata"]["uid"])
        elif uid := self.cache.put_execution(wire):
            self.queue.add(uid)
            self._wake_served(uid)

    def _wake_served(self, uid: str) -> None:
        """Have the stopped execution looked at whose abort the REST server has started."""
        target = find_target(self.cache.executions[uid])
        if target is not None and target in self.cache.executions:
            self.queue.add(target)

    def on_execution_gone(self, uid: str) -> None:
        """Forget an execution that does not exist any more; its Pod may still run."""
        gone = self.cache.executions.get(uid)
        self.cache.drop_execution(uid)
        if gone is not None and gone.spec.purpose is Purpose.ABORT:
            self._wake_users(compute_subarray(gone.spec), uid)
            if (target := find_target(gone)) in self.cache.executions:
                self.queue.add(str(target))
        self.queue.drop(uid)
        self._deferred.pop(uid, None)
        self._removing.discard(uid)
        if uid in self.cache.leftovers:
            self.queue.add(uid)
        self._wake_waiting()

    def on_pod(self, kind: str | None, wire: Mapping[str, Any]) -> None:
        """Take in an event of a script Pod."""
        before = self.cache.get_sighting(parse_pod(wire).execution_uid).pod
        uid = self.cache.put_pod(wire, is_gone=kind == DELETED)
        if uid is None:
            return
        self.queue.add(uid)
        self._tell_place(uid, before)
        if not self.cache.has_pod(uid):
            self._hasten_refused()

    def _tell_place(self, uid: str, before: PodFacts | None) -> None:
        """Tell of a Pod that has just got its node. What a new leader finds at work has been told."""
        execution, pod = self.cache.executions.get(uid), self.cache.get_sighting(uid).pod
        if execution is None or pod is None or not pod.node or has_claim(execution):
            return
        if before is None or not before.node:
            self._observer.on_place(execution, pod.name, pod.node)

    def on_pod_gone(self, uid: str) -> None:
        """Note that the Pod of an execution does not exist any more."""
        self.cache.mark_pod_gone(uid)
        self.queue.add(uid)
        self._hasten_refused()

    def _hasten_refused(self) -> None:
        """Have Pods tried again soon that were refused: one has ended, and perhaps its share of a quota is free."""
        for uid in self.cache.hasten_refused(FREED_TRIES, time.monotonic() + FREED_SECONDS):
            self.queue.add_after(uid, FREED_SECONDS)

    def _wake_waiting(self, subarray: int | None = None) -> None:
        """Have those looked at that wait for a subarray, for any when None."""
        for execution in self.cache.list_sharing(None if subarray is None else (subarray,)):
            if wants_grant(execution):
                self.queue.add(execution.uid)

    def _wake_concerned(self, before: ScriptExecution, after: ScriptExecution) -> None:
        """Have those looked at that have to do with the abort which an execution is, or may need."""
        if (serving := self.cache.serving.get(after.uid)) and not after.status.abort:
            self.queue.add(serving.uid)  # It may be given up.
        if (target := find_target(after)) in self.cache.executions:
            self.queue.add(str(target))
        if not self._is_prearmed:
            return
        if is_in_use(before) != is_in_use(after) or is_armed(before) != is_armed(after):
            self._wake_users(compute_subarray(after.spec), besides=after.uid)

    def _wake_users(self, subarray: int | None, besides: str) -> None:
        """Have the scripts looked at that use a subarray, and the abort script that is held for it."""
        for one in self.cache.list_sharing(() if subarray is None else (subarray,)):
            if one.uid != besides and (is_armed(one) or is_in_use(one)):
                self.queue.add(one.uid)

    async def run_worker(self) -> None:
        """Work on the queue for ever."""
        while True:
            uid, self._seen_at[uid] = await self.queue.take()
            begun, failure = time.monotonic(), ""
            try:
                await self.reconcile(uid)
                self.queue.forget(uid)
            except ApiConflictError as error:
                failure = type(error).__name__
                self.queue.add_failed(uid)
            except Exception as error:  # noqa: BLE001 - one execution's trouble must not stop the others
                _log.warning("execution %s is tried again: %r", uid, error)
                failure = type(error).__name__
                self.queue.add_failed(uid)
            finally:
                self._seen_at.pop(uid, None)
                self.queue.done(uid)
            self._observer.on_look(time.monotonic() - begun, failure)

    def _note_write(self, uid: str) -> None:
        """Have the first write measured that a look leads to; how long the API server takes for it is measured apart."""
        if (since := self._seen_at.pop(uid, None)) is not None:
            self._observer.on_write(since)

    async def close(self) -> None:
        """Give back what is reserved. Call once, when nobody works any more; never fails."""
        await self._ids.give_back()

    # ---- one execution -------------------------------------------------------------------------------------------

    async def reconcile(self, uid: str) -> None:
        """Look at one execution and do what is due. Raises ApiError; trying again is always safe."""
        if uid in self.cache.settled and self.cache.has_rest(uid):
            await self._revive(uid)
        execution = self.cache.executions.get(uid)
        if execution is None:
            await self._end_leftover(uid)
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
        if has_claim(execution) and not execution.is_finished and self.cache.get_sighting(uid).pod is None:
            # Before it is said to have vanished: a Pod may be there of which nothing was heard.
            with contextlib.suppress(ApiMissingError):
                self.cache.put_pod(await self._client.get(self._paths.pod(execution.status.pod_name or "")))
        observation, again = observe_runner(execution, self.cache.get_sighting(uid), self._settings.kubernetes, now)
        locks = self.cache.build_locks(compute_subarray(execution.spec))
        limit = self._settings.engine.ready_limit_seconds
        plan = decide(Snapshot(execution, observation, locks, now, self._build_aborts(execution), limit))
        wait = self._compute_deferral(stored, plan)
        if wait > 0:
            self.queue.add_after(uid, wait)
        else:
            stored = await self._write_status(stored, plan.status)
            if uid not in self.cache.executions:
                return  # It was set aside, or is gone.
            for action in plan.actions:
                await self._apply(stored, action)
        for seconds in (plan.requeue_after_seconds, None if stored.is_finished else again):
            if seconds is not None:
                self.queue.add_after(uid, max(MIN_WAIT_SECONDS, seconds))
        is_done = stored.is_finished and not plan.actions and plan.requeue_after_seconds is None
        latest = self.cache.executions.get(uid) or stored
        if is_done and not (is_outcome_open(latest) or is_holding(latest)):
            self.cache.settle(uid)
            await self._apply_history_limit()

    def _build_aborts(self, execution: ScriptExecution) -> AbortView:
        subarray = compute_subarray(execution.spec)
        sharing = [] if subarray is None else self.cache.list_sharing((subarray,))
        serving = self.cache.serving.get(execution.uid)
        target = self.cache.executions.get(find_target(execution) or "")
        return build_abort_view(execution, sharing, is_prearmed=self._is_prearmed, serving=serving, target=target)

    def _compute_deferral(self, stored: ScriptExecution, plan: Plan) -> float:
        """Return for how many seconds more the write of a plan's status can wait for what comes next."""
        if plan.status is stored.status or is_urgent(stored.status, plan):
            self._deferred.pop(stored.uid, None)
            return 0.0
        now = asyncio.get_running_loop().time()
        left = self._deferred.setdefault(stored.uid, now + COALESCE_SECONDS) - now
        if left <= 0:
            del self._deferred[stored.uid]
        return left

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
        self._note_write(stored.uid)
        try:
            wire = await self._client.patch(path, {"metadata": metadata, "status": changes})
        except ApiConflictError:
            self.on_execution(None, await self._client.get(self._paths.execution(stored.metadata.name)))
            raise
        except ApiMissingError:
            return stored  # It is being removed: the watch will tell.
        except ApiTooLargeError as error:
            shorter = await self._write_less(stored, after, path)
            if shorter is None:
                return await self._set_aside(stored, after, error)
            wire = shorter
        self.cache.put_execution(wire)
        execution = self.cache.executions.get(stored.uid) or parse_execution(wire)
        self._observer.on_change(execution, stored.status)
        self._wake_concerned(stored, execution)
        if execution.is_finished or "grant" in changes:  # Also when it lets go of what it held although it is finished.
            self._wake_waiting(compute_subarray(execution.spec))
        return execution

    async def _write_less(
        self, stored: ScriptExecution, after: ScriptExecutionStatus, path: str
    ) -> dict[str, Any] | None:
        """Write as much of a status as fits; return the object as it is then, None if nothing does. Raises ApiError."""
        metadata = {"resourceVersion": stored.metadata.resource_version}
        for shorter in iter_shorter(stored, after):
            try:
                body = {"metadata": metadata, "status": build_status_patch(stored.status, shorter)}
                return await self._client.patch(path, body)
            except ApiTooLargeError:
                continue
        return None

    async def _set_aside(
        self, stored: ScriptExecution, after: ScriptExecutionStatus, error: ApiTooLargeError
    ) -> ScriptExecution:
        """Tell in an Event alone that an execution was not begun; once its stop is asked for it goes.

        Raises:
            ApiTooLargeError: A runner has taken it: what it says next may fit.
        """
        if has_claim(stored):
            raise error
        ended = next(iter_shorter(stored, after))
        self._observer.on_change(stored.model_copy(update={"status": ended}), stored.status)
        _log.error("execution %s is set aside, its status cannot be written: %s", stored.metadata.name, error)
        if (pod := self.cache.get_sighting(stored.uid).pod) is not None:
            await self._delete(self._paths.pod(pod.name), {"uid": pod.uid})
        self.cache.set_aside(stored.uid)
        if stored.spec.desired_state is DesiredState.STOPPED:
            # Nothing else can tell that it has ended.
            await self._delete(self._paths.execution(stored.metadata.name), {"uid": stored.uid})
        return stored

    async def _apply_history_limit(self) -> None:
        """Delete the oldest executions that are over, beyond the limit. Raises ApiError."""
        for old in self.cache.list_excess(self._settings.engine.history_limit):
            if old.uid in self._removing:
                continue
            self._removing.add(old.uid)
            try:
                await self._delete(self._paths.execution(old.name), {"uid": old.uid})
            except ApiError:
                self._removing.discard(old.uid)
                raise

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
            case UseArmed():
                await self._use_armed(execution, action)
            case ArmAbort():
                await self._arm_abort(execution, action)

    async def _create_pod(self, execution: ScriptExecution) -> None:
        left = self.cache.get_sighting(execution.uid).retry_at - time.monotonic()
        if left > 0:
            self.queue.add_after(execution.uid, left)
            return
        try:
            pod = self._build_pod(execution)
            self._note_write(execution.uid)
            # Strict: a field that the API server does not know is an error, not left out.
            wire = await self._client.post(f"{self._paths.pods}?fieldValidation=Strict", pod)
        except ApiConflictError:
            wire = await self._client.get(self._paths.pod(execution.status.pod_name or ""))
        except ApiError as error:
            if not is_refusal(error):
                raise
            self._note_refusal(execution.uid, str(error), is_final=is_hopeless(error))
            return
        except (TypeError, ValueError, KeyError, AttributeError, StopIteration) as error:
            self._note_refusal(execution.uid, f"podTemplate is not part of a Pod: {error!r}", is_final=True)
            return
        if uid := self.cache.put_pod(wire):
            self.queue.add(uid)

    def _note_refusal(self, uid: str, message: str, *, is_final: bool) -> None:
        """Have it told why a Pod was refused, and unless that is final have it tried again."""
        pause = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(self.cache.get_sighting(uid).refusals, 20))
        self.cache.put_refusal(uid, message, None if is_final else time.monotonic() + pause)
        self.queue.add(uid)

    def _build_pod(self, execution: ScriptExecution) -> dict[str, Any]:
        """Build the Pod of an execution; one from git gets the cache, and what it needs to fetch."""
        if execution.spec.script.git is None:
            return build_pod(execution, self._settings.kubernetes, self._templates.every)
        template = merge(dict(self._templates.every), self._templates.git)
        environ = build_git_environ(self._settings.git)
        return build_pod(execution, self._settings.kubernetes, template, environ)

    async def _delete_pod(self, execution: ScriptExecution, grace_seconds: float) -> None:
        pod = self.cache.get_sighting(execution.uid).pod
        if pod is not None and pod.is_lingering:
            await self._end_rest(execution, pod)
            return
        end = execution.status.runner.exit if execution.status.runner else None
        # It ends by itself, when the timeline has all or after a time, and is kept for its log.
        own_seconds = BACKSTOP_SECONDS + (DELIVERY_SECONDS if self._settings.kubernetes.timeline_url else 0.0)
        left = 0.0 if end is None else own_seconds - (datetime.now(UTC) - end.time).total_seconds()
        # But for one that stayed after an end that it may not have reported itself.
        if left > 0 and grace_seconds > 0:
            self.queue.add_after(execution.uid, left)
            return
        if pod is None or (pod.deleted is not None and grace_seconds > 0):
            return
        # Never 0: that would remove the object while the processes may still run.
        await self._delete(self._paths.pod(pod.name), {"uid": pod.uid}, max(1, math.ceil(grace_seconds)))

    async def _end_rest(self, execution: ScriptExecution, pod: PodFacts) -> None:
        """Have the node end what others have put beside a script that has ended; the Pod stays for its log."""
        if pod.deleted is not None:
            return  # Its node is at it.
        now = datetime.now(UTC)
        if (left := compute_linger(pod, now)) > 0:
            self.queue.add_after(execution.uid, left)
            return
        patience = compute_pod_grace(execution) + NODE_PATIENCE_SECONDS
        if left > -patience and pod.active_deadline_seconds != PAST_SECONDS:
            try:
                await self._client.patch(self._paths.pod(pod.name), _build_past_deadline(pod))
            except (ApiMissingError, ApiConflictError):
                return  # It is gone, or has changed, of which the watch tells.
            except ApiRefusedError as error:
                _log.warning("Pod %s is deleted with its log, since it cannot be ended: %s", pod.name, error)
            else:
                self.queue.add_after(execution.uid, patience)
                return
        elif left > -patience:
            self.queue.add_after(execution.uid, patience + left)
            return
        await self._delete(self._paths.pod(pod.name), {"uid": pod.uid})

    async def _delete(self, path: str, preconditions: dict[str, str], grace_seconds: int | None = None) -> None:
        options: dict[str, Any] = {"preconditions": preconditions, "propagationPolicy": "Background"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            await self._client.delete(path, options)
        except (ApiMissingError, ApiConflictError):
            return  # It is gone, or another of the same name is there.

    async def _revive(self, uid: str) -> None:
        """Read an execution again that is over, because a Pod of it turned up."""
        name = self.cache.settled.pop(uid).name
        try:
            self.cache.put_execution(await self._client.get(self._paths.execution(name)))
        except ApiMissingError:
            return  # The watch will tell, or has.

    async def _end_leftover(self, uid: str) -> None:
        """See to it that the Pod of a deleted execution ends, and that its subarray is held until it has."""
        if uid not in self.cache.leftovers:
            return
        sighting = self.cache.get_sighting(uid)
        assert sighting.pod is not None
        deleted = sighting.pod.deleted
        if sighting.pod.is_over:
            self._wake_waiting()
        # However long its node says nothing: what it may do there is not known. Who is certain removes the Pod by force.
        if sighting.is_gone or sighting.pod.is_finished:
            self.cache.forget_leftover(uid)
            self._wake_waiting()
        elif deleted is not None:
            await self._look_for_pod(uid, sighting.pod)
        elif not await self._is_still_there(sighting.pod):
            # The garbage collector does it later, and never if its owner was deleted with --cascade=orphan.
            await self._delete(self._paths.pod(sighting.pod.name), {"uid": sighting.pod.uid})
            self.queue.add_after(uid, LEFTOVER_LOOK_SECONDS)

    async def _look_for_pod(self, uid: str, pod: PodFacts) -> None:
        """Read a Pod again whose end is waited for, and be back soon. Raises ApiError."""
        try:
            wire = await self._client.get(self._paths.pod(pod.name))
        except ApiMissingError:
            wire = None
        if wire is None or wire["metadata"]["uid"] != pod.uid:
            self.on_pod_gone(uid)
        else:
            self.on_pod(None, wire)
        self.queue.add_after(uid, LEFTOVER_LOOK_SECONDS)

    async def _is_still_there(self, pod: PodFacts) -> bool:
        """Tell whether a Pod's execution exists although it is not known here; take it in if it does."""
        if not pod.execution_name:
            return False
        try:
            wire = await self._client.get(self._paths.execution(pod.execution_name))
        except ApiMissingError:
            return False
        self.on_execution(None, wire)
        return bool(wire["metadata"]["uid"] == pod.execution_uid)

    async def _create_abort(self, stopped: ScriptExecution, action: CreateAbort) -> None:
        """Create the abort execution, hand it the subarray, and only then let go of it. Each step can be repeated."""
        name = f"abort-{hashlib.sha256(stopped.uid.encode()).hexdigest()[:16]}"
        try:
            wire = await self._client.post(
                self._paths.executions, self._build_abort(name, action.subarray, stopped.uid)
            )
        except ApiConflictError:
            wire = await self._client.get(self._paths.execution(name))
        except ApiRefusedError as error:
            await self._tell_refused_abort(stopped, str(error))
            raise
        self.cache.put_execution(wire)
        abort = parse_execution(wire)
        now = datetime.now(UTC)
        born = await self._with_birth(abort, now)
        if action.inherit and abort.status.grant is None:
            grant = Grant(time=now, subarray=action.subarray)
            born = born.model_copy(update={"status": born.status.model_copy(update={"grant": grant})})
        await self._record_abort(stopped, await self._write_status(abort, born.status))

    def _build_abort(self, name: str, subarray: int, abort_of: str | None = None) -> dict[str, Any]:
        """Build the execution of an abort script; one that ends with a dash is given a name by the API server."""
        folder = self._settings.engine.scripts_location or SCRIPTS_FOLDER
        spec = build_abort_spec(self._settings.engine, folder, subarray, abort_of)
        metadata = {"generateName": name} if name.endswith("-") else {"name": name}
        return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec.to_wire()}

    async def _record_abort(self, stopped: ScriptExecution, abort: ScriptExecution) -> None:
        """Let go of the subarray, which the abort execution holds now."""
        assert abort.procedure_id is not None
        status = stopped.status.model_copy(update={"abort": AbortStatus(procedure_id=abort.procedure_id)})
        await self._write_status(stopped, status)
        self.queue.add(abort.uid)
        self.queue.add(stopped.uid)

    async def _tell_refused_abort(self, stopped: ScriptExecution, problem: str) -> None:
        """Raise the alarm; creating it is tried on."""
        text = f"ALARM: the abort script cannot be created, which is tried on: {problem}"
        now = datetime.now(UTC)
        status = with_condition(stopped.status, ConditionType.ABORTED, False, Reason.ABORT_NOT_BEGUN, now, text)
        if status is not stopped.status:
            words = f"{status.message}; {text}" if status.message else text
            await self._write_status(stopped, status.model_copy(update={"message": words}))

    async def _use_armed(self, stopped: ScriptExecution, action: UseArmed) -> None:
        """Hand the subarray to the abort script that is held, unless somebody was quicker, and only then let go of it."""
        now = datetime.now(UTC)
        grant = Grant(time=now, subarray=action.subarray, standing=False, abort_of=stopped.uid)
        status = action.armed.status.model_copy(update={"grant": grant})
        armed = await self._write_status(action.armed, status)
        if find_target(armed) != stopped.uid:
            # It was removed a moment ago, of which the watch has not told yet.
            self.queue.add_after(stopped.uid, MISSING_RETRY_SECONDS)
            return
        await self._record_abort(stopped, armed)
        self._wake_users(action.subarray, armed.uid)

    async def _arm_abort(self, user: ScriptExecution, action: ArmAbort) -> None:
        """Have an abort script prepared. A second one, made when an answer was lost, is seen and removed."""
        text, was_refused = "", find_condition(user.status, ConditionType.ARMED) is not None
        try:
            wire = await self._client.post(self._paths.executions, self._build_abort("abort-", action.subarray))
            self.on_execution(None, wire)
        except ApiRefusedError as error:
            text = f"no abort script can be held READY for subarray {action.subarray}, which is tried on: {error}"
            self.queue.add_after(user.uid, REARM_SECONDS)
        if text or was_refused:
            reason = Reason.ARMING_FAILED if text else "Armed"
            now = datetime.now(UTC)
            await self._write_status(
                user, with_condition(user.status, ConditionType.ARMED, not text, reason, now, text)
            )
