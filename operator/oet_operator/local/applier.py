"""Let the core decide on one execution, and store what it decides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from oet_crds.aborts import find_serving, find_target, is_armed
from oet_crds.activities import find_sb_event
from oet_crds.alarms import find_alarm, find_release
from oet_crds.execution import AbortStatus, Grant, ScriptExecution, ScriptExecutionSpec
from oet_crds.settings import EngineSettings
from oet_crds.specs import compute_subarray
from oet_crds.states import is_final
from oet_crds.topics import EntryKind, Topic
from oet_crds.waits import find_wait
from oet_operator.core.aborts import build_abort_spec, build_abort_view, is_in_use, is_outcome_open
from oet_operator.core.actions import (
    ArmAbort,
    CreateAbort,
    CreatePod,
    DeleteExecution,
    DeletePod,
    StopRunner,
    UseArmed,
)
from oet_operator.core.decide import decide
from oet_operator.core.locks import build_lock_table, is_holding, wants_grant
from oet_operator.core.snapshot import RunnerObservation, Snapshot
from oet_operator.local.records import build_execution
from oet_operator.local.store import At, LocalStore, Transaction

__all__ = ["Effects", "apply_decision", "apply_history_limit", "create_execution"]


@dataclass
class Effects:
    """What is to be done once the transaction is durable, and who is to be looked at next."""

    assign: list[int] = field(default_factory=list)
    """Executions that need a runner."""
    deliver: set[int] = field(default_factory=set)
    """Executions whose runner may have to be told something."""
    stops: dict[int, float] = field(default_factory=dict)
    """Stops that the core decided on by itself: grace period in seconds by execution."""
    kill: list[int] = field(default_factory=list)
    """Executions whose runner did not stop in time."""
    look_at: list[int] = field(default_factory=list)
    """Executions that this decision concerns too."""
    requeue: list[tuple[float, int]] = field(default_factory=list)
    """Executions to look at again: seconds from now, and which."""


def apply_decision(
    store: LocalStore, settings: EngineSettings, transaction: Transaction, effects: Effects, observed: Observed
) -> None:
    """Decide on one execution, and put the new status, its timeline entries and its effects in order.

    Deciding is `oet_operator.core.decide.decide`; this function only stores. Does nothing when the execution is gone.
    """
    execution = transaction.get(observed.procedure_id)
    if execution is None:
        return
    active = list(_iter_active(store, transaction))
    serving = find_serving(_iter_all(store, transaction), execution.uid) if execution.spec.stop.abort else None
    target = _find_target(store, transaction, execution)
    aborts = build_abort_view(execution, active, is_prearmed=settings.prearm_abort, serving=serving, target=target)
    locks = build_lock_table(active)
    plan = decide(Snapshot(execution, observed.runner, locks, observed.now, aborts, settings.ready_limit_seconds))
    if plan.status is not execution.status:
        before = execution
        execution = transaction.put(execution.model_copy(update={"status": plan.status}))
        _append_states(transaction, execution, known=before.status.history[-1].seq if before.status.history else 0)
        if execution.is_finished or (execution.status.grant and not before.status.grant):
            effects.look_at += _find_waiting(store, execution)
        effects.look_at += _find_served(store, transaction, execution)
        if settings.prearm_abort:
            effects.look_at += _find_users(active, before, execution)
        _append_wait(transaction, before, execution)
        _append_news(transaction, before, execution)
    desk = _Desk(store, settings, transaction, effects)
    for action in plan.actions:
        _apply_action(desk, execution, action)
    effects.deliver.add(observed.procedure_id)
    if plan.requeue_after_seconds is not None:
        effects.requeue.append((plan.requeue_after_seconds, observed.procedure_id))


@dataclass(frozen=True, slots=True)
class Observed:
    """What the engine sees of one execution's runner."""

    procedure_id: int
    runner: RunnerObservation
    now: datetime


def _iter_active(store: LocalStore, transaction: Transaction) -> Iterable[ScriptExecution]:
    """Yield the active executions as the transaction leaves them, the new ones too, oldest first."""
    changed = dict(transaction.executions)
    for number, execution in store.list_active().items():
        if number not in transaction.removed:
            yield changed.pop(number, execution)
    yield from (one for number, one in changed.items() if number not in transaction.removed)


def _iter_all(store: LocalStore, transaction: Transaction) -> Iterable[ScriptExecution]:
    """Yield all executions as the transaction leaves them."""
    changed = dict(transaction.executions)
    for execution in store.list():
        if _id(execution) not in transaction.removed:
            yield changed.pop(_id(execution), execution)
    yield from (one for number, one in changed.items() if number not in transaction.removed)


def _find_target(store: LocalStore, transaction: Transaction, aborter: ScriptExecution) -> ScriptExecution | None:
    """Return the stopped execution that an execution aborts for, None when there is none."""
    target = find_target(aborter)
    return next((one for one in _iter_all(store, transaction) if one.uid == target), None) if target else None


def _find_served(store: LocalStore, transaction: Transaction, aborter: ScriptExecution) -> list[int]:
    """Return the other side of an abort: whose abort this is, and who aborts for this, should it be given up."""
    target = _find_target(store, transaction, aborter)
    served = [_id(target)] if target else []
    if not aborter.spec.stop.abort or aborter.status.abort:
        return served
    serving = find_serving(_iter_all(store, transaction), aborter.uid)
    return [*served, _id(serving)] if serving else served


def _find_users(active: Iterable[ScriptExecution], before: ScriptExecution, after: ScriptExecution) -> list[int]:
    """Return the others on a subarray for which an abort script may be needed, or not any more, and the one that is held."""
    if is_in_use(before) == is_in_use(after) and not (is_armed(after) and after.is_finished):
        return []
    subarray = compute_subarray(after.spec)
    others = (one for one in active if one.uid != after.uid and compute_subarray(one.spec) == subarray)
    return [_id(one) for one in others if is_armed(one) or is_in_use(one)]


def _append_wait(transaction: Transaction, before: ScriptExecution, after: ScriptExecution) -> None:
    """Publish what an execution has begun to wait for."""
    wait = find_wait(after)
    if wait is not None and wait != find_wait(before):
        transaction.append(_id(after), EntryKind.ACTION, Topic.WAITING, wait)


def _append_news(transaction: Transaction, before: ScriptExecution, after: ScriptExecution) -> None:
    """Publish an alarm that an execution has begun to raise, and that it let go of what it held although it is UNKNOWN."""
    alarm, release, procedure_id = find_alarm(after), find_release(after), _id(after)
    if alarm is not None and alarm != find_alarm(before):
        transaction.append(procedure_id, EntryKind.ACTION, alarm.topic, alarm.payload, At(alarm.time))
    if release is not None and release != find_release(before):
        topic, payload, when = release
        transaction.append(procedure_id, EntryKind.ACTION, topic, payload, At(when))


def _find_waiting(store: LocalStore, changed: ScriptExecution) -> list[int]:
    """Return the other executions that wait for a start: a subarray just changed hands."""
    active = store.list_active().items()
    return [number for number, execution in active if execution.uid != changed.uid and wants_grant(execution)]


def create_execution(
    transaction: Transaction, spec: ScriptExecutionSpec, grant: Grant | None = None
) -> ScriptExecution:
    """Store a new execution with the first entry of its timeline, and return it.

    Args:
        transaction: Where it is stored.
        spec: What to run.
        grant: The grant it is born with; None for the usual execution, which has to ask for one.
    """
    number = transaction.allocate_procedure_id()
    execution = transaction.put(build_execution(spec, number, datetime.now(UTC), grant=grant))
    _append_states(transaction, execution, known=0)
    return execution


def _append_states(transaction: Transaction, after: ScriptExecution, *, known: int) -> None:
    """Append what became of an execution after its history entry number `known` to its timeline."""
    procedure_id = after.procedure_id
    assert procedure_id is not None
    source = str(procedure_id)
    for entry in after.status.history:
        if entry.seq <= known:
            continue
        if is_final(entry.state) and after.status.stacktrace:
            payload = {"msg_src": source, "stacktrace": after.status.stacktrace}
            transaction.append(procedure_id, EntryKind.STATE, Topic.STACKTRACE, payload, At(entry.time.timestamp()))
        if told := find_sb_event(after, entry.state):
            transaction.append(procedure_id, EntryKind.ACTION, *told, At(entry.time.timestamp()))
        payload = {"msg_src": source, "new_state": str(entry.state)}
        transaction.append(procedure_id, EntryKind.STATE, Topic.STATE_CHANGE, payload, At(entry.time.timestamp()))


@dataclass(frozen=True, slots=True)
class _Desk:
    """What performing an action needs."""

    store: LocalStore
    settings: EngineSettings
    transaction: Transaction
    effects: Effects

    def look_at_users(self, subarray: int | None) -> None:
        """Have the scripts looked at that use a subarray: an abort script may be needed for them."""
        users = (one for one in _iter_active(self.store, self.transaction) if is_in_use(one))
        self.effects.look_at += [_id(one) for one in users if compute_subarray(one.spec) == subarray]


def _id(execution: ScriptExecution) -> int:
    assert execution.procedure_id is not None
    return execution.procedure_id


def _apply_action(desk: _Desk, execution: ScriptExecution, action: object) -> None:
    procedure_id, effects = _id(execution), desk.effects
    match action:
        case CreatePod():
            effects.assign.append(procedure_id)
        case StopRunner():
            effects.stops[procedure_id] = action.grace_period_seconds
        case DeletePod():
            effects.kill.append(procedure_id)
        case DeleteExecution():
            desk.transaction.remove(procedure_id)
            if is_armed(execution):
                desk.look_at_users(execution.spec.subarray)
        case CreateAbort():
            _create_abort(desk, execution, action)
        case UseArmed():
            _use_armed(desk, execution, action)
        case ArmAbort():
            _arm_abort(desk, action)
        case _:
            raise TypeError(f"the local engine has no way to do {action!r}")


def _create_abort(desk: _Desk, stopped: ScriptExecution, action: CreateAbort) -> None:
    """Create the abort execution and hand it the subarray, in the transaction that ends the stopped one's hold on it."""
    grant = Grant(time=datetime.now(UTC), subarray=action.subarray) if action.inherit else None
    spec = build_abort_spec(desk.settings, desk.settings.scripts_location, action.subarray, stopped.uid)
    _record_abort(desk, stopped, create_execution(desk.transaction, spec, grant))


def _use_armed(desk: _Desk, stopped: ScriptExecution, action: UseArmed) -> None:
    """Hand the subarray to the abort script that is held, in the transaction that ends the stopped one's hold on it."""
    grant = Grant(time=datetime.now(UTC), subarray=action.subarray, standing=False, abort_of=stopped.uid)
    status = action.armed.status.model_copy(update={"grant": grant})
    _record_abort(desk, stopped, desk.transaction.put(action.armed.model_copy(update={"status": status})))
    desk.look_at_users(action.subarray)


def _record_abort(desk: _Desk, stopped: ScriptExecution, abort: ScriptExecution) -> None:
    status = stopped.status.model_copy(update={"abort": AbortStatus(procedure_id=_id(abort))})
    desk.transaction.put(stopped.model_copy(update={"status": status}))
    desk.effects.look_at.append(_id(abort))


def _arm_abort(desk: _Desk, action: ArmAbort) -> None:
    """Have an abort script prepared, unless one is there: another script on the subarray may have asked for it just now."""
    if any(
        is_armed(one) and one.spec.subarray == action.subarray for one in _iter_active(desk.store, desk.transaction)
    ):
        return
    spec = build_abort_spec(desk.settings, desk.settings.scripts_location, action.subarray)
    desk.effects.look_at.append(_id(create_execution(desk.transaction, spec)))


def apply_history_limit(store: LocalStore, transaction: Transaction, limit: int) -> None:
    """Remove finished executions beyond the limit, oldest first; active ones, or of which the abort is, are never removed."""
    changed = transaction.executions
    present = [changed.get(execution.procedure_id or 0, execution) for execution in store.list()]
    finished = [
        one for one in present if one.is_finished and not (is_armed(one) or is_outcome_open(one) or is_holding(one))
    ]
    for execution in finished[: max(0, len(finished) - limit)]:
        assert execution.procedure_id is not None
        transaction.remove(execution.procedure_id)
