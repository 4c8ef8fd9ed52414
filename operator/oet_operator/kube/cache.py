"""What the operator knows: executions and the Pods they run in, the newest of each that was ever seen."""

from __future__ import annotations

import heapq
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pydantic import ValidationError

from oet_crds.aborts import find_target, is_armed, is_given_up
from oet_crds.execution import ScriptExecution, parse_execution
from oet_crds.names import NO_SUBARRAY
from oet_crds.reasons import Reason
from oet_crds.specs import compute_subarray
from oet_crds.states import State
from oet_operator.core.aborts import is_outcome_open
from oet_operator.core.locks import Leftover, LockTable, build_lock_table, is_abort_due, is_holding
from oet_operator.kube.pod_facts import PodFacts, parse_pod
from oet_operator.kube.sizes import describe_excess
from oet_operator.kube.verdicts import Sighting

__all__ = ["Cache", "Hold", "Settled"]

_log = logging.getLogger(__name__)


class Settled(NamedTuple):
    """All that is kept of an execution that is over and with which nothing is to be done any more: thousands are there."""

    name: str
    uid: str
    version: int
    procedure_id: int
    state: State


@dataclass(frozen=True, slots=True)
class Hold:
    """What the Pod of a deleted execution may still use.

    Attributes:
        procedure_id: The execution's; 0: not known.
        subarrays: One, or none; None: it is not known which.
    """

    procedure_id: int
    subarrays: frozenset[int] | None


def _build_hold(execution: ScriptExecution) -> Hold:
    grant = execution.status.grant if is_holding(execution) else None
    held = frozenset({grant.subarray} if grant and grant.subarray is not None else ())
    return Hold(execution.procedure_id or 0, held)


def _guess_hold(pod: PodFacts) -> Hold:
    """Return what a Pod may hold whose execution was gone before it was ever seen."""
    if pod.subarray.isdecimal():
        return Hold(pod.procedure_id, frozenset({int(pod.subarray)}))
    return Hold(pod.procedure_id, frozenset() if pod.subarray == NO_SUBARRAY else None)


def _parse(wire: Mapping[str, Any]) -> ScriptExecution:
    """Read an execution; where what its runner reported cannot be understood, without that. Raises pydantic.ValidationError."""
    try:
        return parse_execution(wire)
    except ValidationError as error:
        status = dict(wire.get("status") or {})
        runner = status.get("runner") or {}
        # Who holds the runner's token could otherwise keep it from ever being looked at again.
        status["runner"] = {name: runner[name] for name in ("claim", "confined") if name in runner}
        execution = parse_execution({**wire, "status": status})
        _log.error("what the runner of execution %s reported is left out: %s", execution.metadata.name, error)
        return execution


class Cache:
    """Executions and sightings of their Pods, by the execution's uid.

    Attributes:
        executions: Those with which something may be to be done.
        settled: All others.
        leftovers: Pods that may still run although their execution is gone, by its uid.
        serving: Executions that abort for a stopped one, by the uid of that one; over or not.
        refused: Executions whose Pod was refused and is tried again.
        highest_id: The highest procedure id that was ever seen.
    """

    def __init__(self) -> None:
        self.executions: dict[str, ScriptExecution] = {}
        self.settled: dict[str, Settled] = {}
        self.leftovers: dict[str, Hold] = {}
        self.serving: dict[str, ScriptExecution] = {}
        self.refused: set[str] = set()
        self.highest_id = 0
        self._sightings: dict[str, Sighting] = {}
        self._refused: dict[str, int] = {}
        self._sharing: dict[int, set[str]] = defaultdict(set)
        self._shares: dict[str, tuple[int, ...]] = {}

    # ---- executions ----------------------------------------------------------------------------------------------

    def list_uids(self) -> set[str]:
        """Return the uids of all executions there are."""
        return self.executions.keys() | self.settled.keys() | self._refused.keys()

    def count_states(self) -> Counter[str]:
        """Return how many executions there are in each state."""
        states = Counter(str(execution.status.state) for execution in self.executions.values())
        states.update(str(settled.state) for settled in self.settled.values())
        return states

    def put_execution(self, wire: Mapping[str, Any]) -> str | None:
        """Take in an execution as the API server gives it; return its uid if it is news with which something is to be done."""
        metadata = wire["metadata"]
        if self.get_version(metadata["uid"]) >= int(metadata["resourceVersion"]):
            return None
        try:
            execution = _parse(wire)
        except ValidationError as error:
            # The CRD is made from the model: only an object that an older CRD accepted comes here.
            _log.error("execution %s is left alone, it cannot be understood: %s", metadata.get("name"), error)
            self._refused[metadata["uid"]] = int(metadata["resourceVersion"])
            return None
        self._refused.pop(execution.uid, None)
        self._store(execution)
        self.highest_id = max(self.highest_id, execution.procedure_id or 0)
        self.leftovers.pop(execution.uid, None)
        is_new = execution.status.pod_name is None and not execution.is_finished
        if is_new and (problem := describe_excess(wire)):
            self._sightings[execution.uid] = Sighting(None, False, problem, True, Reason.INVALID_SPEC)
        has_use = (
            execution.spec.ttl_seconds_after_finished is not None
            or is_abort_due(execution)
            or is_outcome_open(execution)
            or is_armed(execution)
            or is_holding(execution)
        )
        if execution.is_finished and not has_use and not self.has_rest(execution.uid):
            self.settle(execution.uid)
            return None
        return execution.uid

    def get_version(self, uid: str) -> int:
        """Return the resource version of an execution as it is known; 0: it is not known."""
        if execution := self.executions.get(uid):
            return int(execution.metadata.resource_version)
        return self.settled[uid].version if uid in self.settled else self._refused.get(uid, 0)

    def has_pod(self, uid: str) -> bool:
        """Tell whether an execution has a Pod in which its script may run."""
        sighting = self.get_sighting(uid)
        return sighting.pod is not None and not sighting.pod.is_over and not sighting.is_gone

    def has_rest(self, uid: str) -> bool:
        """Tell whether an execution has a Pod in which anything may run, if not its script."""
        sighting = self.get_sighting(uid)
        return sighting.pod is not None and not sighting.pod.is_finished and not sighting.is_gone

    def _store(self, execution: ScriptExecution) -> None:
        uid = execution.uid
        self._unshare(uid)
        self.settled.pop(uid, None)
        self.executions[uid] = execution
        if target := find_target(execution):
            known = self.serving.get(target)
            if known is None or known.uid == uid or not is_given_up(execution):
                self.serving[target] = execution
        if execution.is_finished and not is_holding(execution) and not is_armed(execution):
            return
        grant = execution.status.grant
        subarrays = {compute_subarray(execution.spec), grant.subarray if grant else None}
        self._shares[uid] = tuple(subarray for subarray in subarrays if subarray is not None)
        for subarray in self._shares[uid]:
            self._sharing[subarray].add(uid)

    def _unshare(self, uid: str) -> None:
        for subarray in self._shares.pop(uid, ()):
            self._sharing[subarray].discard(uid)

    def settle(self, uid: str) -> None:
        """Keep no more than the name of an execution that is over, when nothing is to be done with it any more."""
        if execution := self.executions.pop(uid, None):
            metadata, number = execution.metadata, execution.procedure_id or 0
            version = int(metadata.resource_version)
            self.settled[uid] = Settled(metadata.name, uid, version, number, execution.status.state)
            self._forget_pod(uid)

    def set_aside(self, uid: str) -> None:
        """Leave an execution alone until it is changed: nothing can be told of it, and nothing of it was begun."""
        if execution := self.executions.pop(uid, None):
            self._unshare(uid)
            self._forget_pod(uid)
            self._refused[uid] = int(execution.metadata.resource_version)

    def list_excess(self, limit: int) -> list[Settled]:
        """Return the oldest of the executions that are over, as many as there are beyond the limit."""
        return heapq.nsmallest(len(self.settled) - limit, self.settled.values(), key=lambda one: one.procedure_id)

    def drop_execution(self, uid: str) -> None:
        """Forget an execution that is gone; what its Pod holds is remembered as long as that may run."""
        execution = self.executions.pop(uid, None)
        self.settled.pop(uid, None)
        self._refused.pop(uid, None)
        for target in [target for target, one in self.serving.items() if one.uid == uid]:
            del self.serving[target]
        self._unshare(uid)
        if execution is None or not self.has_rest(uid):
            self.forget_leftover(uid)
        else:
            self.leftovers[uid] = _build_hold(execution)

    def forget_leftover(self, uid: str) -> None:
        """Forget an execution that is gone, and its Pod."""
        if uid not in self.executions and uid not in self.settled:
            self.leftovers.pop(uid, None)
            self._forget_pod(uid)

    def _forget_pod(self, uid: str) -> None:
        self._sightings.pop(uid, None)
        self.refused.discard(uid)

    # ---- subarrays -----------------------------------------------------------------------------------------------

    def build_locks(self, subarray: int | None) -> LockTable:
        """Return who holds a subarray and who waits for it; of others it tells nothing."""
        if subarray is None:
            return LockTable()
        leftovers = (
            Leftover(uid, hold.procedure_id, subarray, is_guess=hold.subarrays is None)
            for uid, hold in self.leftovers.items()
            if self.has_pod(uid) and (hold.subarrays is None or subarray in hold.subarrays)
        )
        return build_lock_table(self.list_sharing((subarray,)), leftovers)

    def list_sharing(self, subarrays: Iterable[int] | None = None) -> list[ScriptExecution]:
        """Return the active executions that use or want one of the subarrays, in no order; None: any of them."""
        wanted = self._sharing if subarrays is None else subarrays
        uids = {uid for subarray in wanted for uid in self._sharing.get(subarray, ())}
        return [self.executions[uid] for uid in uids]

    # ---- Pods ----------------------------------------------------------------------------------------------------

    def get_sighting(self, uid: str) -> Sighting:
        """Return what is known of an execution's Pod."""
        return self._sightings.get(uid, Sighting())

    def get_pod_version(self, uid: str) -> int:
        """Return the resource version of an execution's Pod as it is known; 0: it is not known."""
        pod = self.get_sighting(uid).pod
        return 0 if pod is None else pod.version

    def put_pod(self, wire: Mapping[str, Any], *, is_gone: bool = False) -> str | None:
        """Take in a Pod; return the uid of its execution if it is news."""
        pod = parse_pod(wire)
        uid = pod.execution_uid
        known = self.get_sighting(uid)
        if known.pod is not None:
            is_past = known.is_gone and known.pod.uid == pod.uid
            if is_past or known.pod.version > pod.version:
                return None
        if uid not in self.executions and uid not in self.leftovers:
            if is_gone or pod.is_finished:
                self._note_rest(uid, pod, is_gone=is_gone)
                return None  # As it should be.
            if uid not in self.settled:
                self.leftovers[uid] = _guess_hold(pod)
        self._sightings[uid] = Sighting(pod, is_gone)
        self.refused.discard(uid)
        return uid

    def _note_rest(self, uid: str, pod: PodFacts, *, is_gone: bool) -> None:
        """Remember the end of a Pod whose execution is not known yet: it may be told of next, and say nothing of its end."""
        if is_gone or uid in self.settled:
            self._sightings.pop(uid, None)
        else:
            self._sightings[uid] = Sighting(pod)

    def list_pods(self) -> dict[str, str]:
        """Return the executions whose Pod is there, by the Pod's uid."""
        return {one.pod.uid: uid for uid, one in self._sightings.items() if one.pod is not None and not one.is_gone}

    def mark_pod_gone(self, uid: str) -> None:
        """Note that an execution's Pod is not there any more, with what was seen of it last."""
        if uid not in self.executions and uid not in self.leftovers:
            self._sightings.pop(uid, None)
        elif known := self._sightings.get(uid):
            self._sightings[uid] = replace(known, is_gone=True)

    def put_refusal(self, uid: str, message: str, retry_at: float | None) -> None:
        """Note that the API server refused an execution's Pod, unless that is there: the answer to an earlier request was lost.

        Args:
            uid: The execution's.
            message: Why.
            retry_at: Not before then it is tried again, in monotonic seconds; None: never.
        """
        known = self.get_sighting(uid)
        if known.pod is not None or uid not in self.executions:
            return
        is_final = retry_at is None
        self._sightings[uid] = Sighting(
            refusal=message, is_refusal_final=is_final, refusals=known.refusals + 1, retry_at=retry_at or 0.0
        )
        (self.refused.discard if is_final else self.refused.add)(uid)

    def hasten_refused(self, limit: int, retry_at: float) -> list[str]:
        """Have Pods that were refused tried again by a moment, those of the oldest executions; returns whose.

        Args:
            limit: Of how many.
            retry_at: The moment, in monotonic seconds.
        """
        oldest = heapq.nsmallest(limit, self.refused, key=lambda uid: self.executions[uid].procedure_id or 0)
        for uid in oldest:
            known = self.get_sighting(uid)
            self._sightings[uid] = replace(known, refusals=1, retry_at=min(known.retry_at, retry_at))
        return oldest
