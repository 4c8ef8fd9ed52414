"""Let the core decide on one execution, and store what it decides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from oet_crds.execution import AbortStatus, Grant, ScriptExecution, ScriptExecutionSpec
from oet_crds.settings import EngineSettings
from oet_crds.states import is_final
from oet_crds.topics import EntryKind, Topic
from oet_operator.core.aborts import build_abort_spec
from oet_operator.core.actions import CreateAbort, CreatePod, DeleteExecution, DeletePod, StopRunner
from oet_operator.core.decide import decide
from oet_operator.core.locks import build_lock_table, wants_grant
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
    locks = build_lock_table(_iter_active(store, transaction))
    plan = decide(Snapshot(execution=execution, runner=observed.runner, locks=locks, now=observed.now))
    if plan.status is not execution.status:
        before = execution
        execution = transaction.put(execution.model_copy(update={"status": plan.status}))
        _append_states(transaction, execution, known=before.status.history[-1].seq if before.status.history else 0)
        if execution.is_finished or (execution.status.grant and not before.status.grant):
            effects.look_at += _find_waiting(store, execution)
    for action in plan.actions:
        _apply_action(transaction, effects, execution, action, settings)
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
        yield changed.pop(number, execution)
    yield from changed.values()


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
        payload = {"msg_src": source, "new_state": str(entry.state)}
        transaction.append(procedure_id, EntryKind.STATE, Topic.STATE_CHANGE, payload, At(entry.time.timestamp()))


def _apply_action(
    transaction: Transaction, effects: Effects, execution: ScriptExecution, action: object, settings: EngineSettings
) -> None:
    procedure_id = execution.procedure_id
    assert procedure_id is not None
    match action:
        case CreatePod():
            effects.assign.append(procedure_id)
        case StopRunner():
            effects.stops[procedure_id] = action.grace_period_seconds
        case DeletePod():
            effects.kill.append(procedure_id)
        case DeleteExecution():
            transaction.remove(procedure_id)
        case CreateAbort():
            _create_abort(transaction, effects, execution, action, settings)
        case _:
            raise TypeError(f"the local engine has no way to do {action!r}")


def _create_abort(
    transaction: Transaction,
    effects: Effects,
    stopped: ScriptExecution,
    action: CreateAbort,
    settings: EngineSettings,
) -> None:
    """Create the abort execution and hand it the subarray, in the transaction that ends the stopped one's hold on it."""
    grant = Grant(time=datetime.now(UTC), subarray=action.subarray) if action.inherit else None
    abort = create_execution(transaction, build_abort_spec(settings.scripts_location, action.subarray), grant)
    assert abort.procedure_id is not None
    status = stopped.status.model_copy(update={"abort": AbortStatus(procedure_id=abort.procedure_id)})
    transaction.put(stopped.model_copy(update={"status": status}))
    effects.look_at.append(abort.procedure_id)


def apply_history_limit(store: LocalStore, transaction: Transaction, limit: int) -> None:
    """Remove finished executions beyond the limit, oldest first; active ones are never removed."""
    changed = transaction.executions
    present = [changed.get(execution.procedure_id or 0, execution) for execution in store.list()]
    finished = [execution for execution in present if execution.is_finished]
    for execution in finished[: max(0, len(finished) - limit)]:
        assert execution.procedure_id is not None
        transaction.remove(execution.procedure_id)
