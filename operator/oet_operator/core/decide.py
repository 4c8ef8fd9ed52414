"""The decision: a snapshot in, a plan out. Pure; `oet_operator.local` and `oet_operator.kube` perform the plans.

Guards in order of authority: being deleted, finished, ended, gone, stop, deadlines, progress. Each returns a plan or passes on.
Deciding again after a plan's status was stored gives nothing new but actions that are safe to repeat.
"""

from __future__ import annotations

from datetime import timedelta

from oet_crds.conditions import find_condition, with_condition
from oet_crds.ends import describe_deadline, find_deadline, with_final, with_reported_end
from oet_crds.execution import Grant, Refusal, ScriptExecution, ScriptExecutionStatus, WhenBusy
from oet_crds.history import with_runner_transitions
from oet_crds.reasons import Reason
from oet_crds.specs import compute_subarray, validate_subarray
from oet_crds.states import ConditionType, DesiredState, State
from oet_operator.core.actions import Action, CreateAbort, CreatePod, DeleteExecution, DeletePod, Plan, StopRunner
from oet_operator.core.deadlines import Deadline, compute_deadlines
from oet_operator.core.locks import is_abort_due, wants_grant
from oet_operator.core.names import build_pod_name
from oet_operator.core.snapshot import Presence, RunnerObservation, Snapshot

__all__ = ["BACKSTOP_SECONDS", "decide"]

BACKSTOP_SECONDS = 5.0
"""A runner that has not reported the end this long after the grace period is removed by force: it needs 30 ms for it."""

_REMOVABLE = (Presence.PENDING, Presence.STUCK, Presence.STARTING, Presence.ALIVE)


def decide(snapshot: Snapshot) -> Plan:
    """Decide what becomes of one execution. Pure.

    Returns:
        The status as it should be (the same object when nothing changes), what to do, and when to look again.
    """
    execution = snapshot.execution
    if execution.metadata.deletion_timestamp is not None:
        return _plan_deletion(snapshot)
    if execution.is_finished:
        return _plan_finished(snapshot, execution.status)
    status = with_runner_transitions(execution.status)
    status = _with_generation(status, execution.metadata.generation)
    ended = _with_end(snapshot, status)
    if ended is not None:
        return _plan_finished(snapshot, ended)
    deadlines = compute_deadlines(execution, status)
    passed = next((deadline.reason for deadline in deadlines if deadline.at <= snapshot.now), None)
    if execution.spec.desired_state is DesiredState.STOPPED:
        return _plan_stop(snapshot, status, Reason.STOP_REQUESTED)
    # What OET began to stop for a deadline it stops for that one, whatever passes next.
    if reason := find_deadline(status) or passed:
        return _plan_stop(snapshot, status, reason)
    return _plan_progress(snapshot, status, deadlines)


# ---- the end -----------------------------------------------------------------------------------------------------------


def _plan_deletion(snapshot: Snapshot) -> Plan:
    """Somebody deletes the resource: its runner goes with it."""
    return Plan(snapshot.execution.status, _remove_runner(snapshot))


def _remove_runner(snapshot: Snapshot) -> tuple[Action, ...]:
    if snapshot.runner.presence in _REMOVABLE:
        return (DeletePod(snapshot.execution.spec.stop.grace_period_seconds),)
    return ()


def _plan_finished(snapshot: Snapshot, status: ScriptExecutionStatus) -> Plan:
    """Clean up after a final state: the runner, the abort that was asked for, the time to live."""
    execution = snapshot.execution.model_copy(update={"status": status})
    actions = _remove_runner(snapshot)
    subarray = _find_subarray(execution)
    if is_abort_due(execution) and subarray is not None:
        inherit = snapshot.locks.find_holder(subarray, execution.uid) is None
        return Plan(status, (*actions, CreateAbort(subarray, inherit)))
    ttl = execution.spec.ttl_seconds_after_finished
    if ttl is None or not status.history:
        return Plan(status, actions)
    left = (status.history[-1].time + timedelta(seconds=ttl) - snapshot.now).total_seconds()
    if left <= 0:
        return Plan(status, (*actions, DeleteExecution()))
    return Plan(status, actions, left)


def _find_subarray(execution: ScriptExecution) -> int | None:
    grant = execution.status.grant
    return grant.subarray if grant and grant.subarray is not None else compute_subarray(execution.spec)


def _with_end(snapshot: Snapshot, status: ScriptExecutionStatus) -> ScriptExecutionStatus | None:
    """Return the status in its final state, None while the execution is not over."""
    end = status.runner.exit if status.runner else None
    if end is not None:
        unasked = (snapshot.runner.reason, snapshot.runner.message) if snapshot.runner.reason else None
        return with_reported_end(status, snapshot.execution.spec.desired_state, unasked)
    runner, wants_stop = snapshot.runner, snapshot.execution.spec.desired_state is DesiredState.STOPPED
    if runner.presence is Presence.LOST:
        message = runner.message or "the runner cannot be reached; what the script does is not known"
        return with_final(status, State.UNKNOWN, runner.reason or Reason.NODE_LOST, message, snapshot.now)
    is_gone = runner.presence in (Presence.GONE, Presence.STUCK)
    if is_gone or (runner.presence is Presence.NONE and wants_stop and not status.pod_name):
        if wants_stop:
            return with_final(status, State.STOPPED, Reason.STOP_REQUESTED, "stopped on request", snapshot.now)
        if stopping := find_deadline(status):
            return with_final(status, State.FAILED, stopping, describe_deadline(stopping), snapshot.now)
        message = runner.message or "the runner ended without a report"
        return with_final(status, State.FAILED, runner.reason or Reason.RUNNER_LOST, message, snapshot.now)
    return None


def _with_generation(status: ScriptExecutionStatus, generation: int) -> ScriptExecutionStatus:
    if status.observed_generation == generation:
        return status
    return status.model_copy(update={"observed_generation": generation})


# ---- the stop ----------------------------------------------------------------------------------------------------------


def _plan_stop(snapshot: Snapshot, status: ScriptExecutionStatus, reason: Reason) -> Plan:
    """Stop the script: the runner sees a user's stop by itself; a deadline's it must be told."""
    grace = snapshot.execution.spec.stop.grace_period_seconds
    by_user = reason is Reason.STOP_REQUESTED
    if not by_user and snapshot.runner.presence is Presence.NONE and not status.pod_name:
        ended = with_final(status, State.FAILED, reason, describe_deadline(reason), snapshot.now)
        return Plan(ended)
    status = with_condition(status, ConditionType.STOPPING, True, reason, snapshot.now)
    condition = find_condition(status, ConditionType.STOPPING)
    assert condition is not None
    force_at = condition.last_transition_time + timedelta(seconds=grace + BACKSTOP_SECONDS)
    left = (force_at - snapshot.now).total_seconds()
    actions: tuple[Action, ...] = () if by_user else (StopRunner(grace, reason),)
    if snapshot.runner.presence is Presence.NONE:
        # Its runner may be on its way: once it is seen it is stopped like any other.
        return Plan(status, (CreatePod(), *actions), max(left, BACKSTOP_SECONDS))
    if snapshot.runner.presence is Presence.PENDING:
        return Plan(status, (*actions, DeletePod(grace)), max(left, BACKSTOP_SECONDS))
    if left <= 0:
        return Plan(status, (*actions, DeletePod(0.0)), BACKSTOP_SECONDS)
    return Plan(status, actions, left)


# ---- progress ----------------------------------------------------------------------------------------------------------


def _plan_progress(snapshot: Snapshot, status: ScriptExecutionStatus, deadlines: list[Deadline]) -> Plan:
    """Give the execution its runner, and its grant when the subarray is free."""
    execution = snapshot.execution
    actions: tuple[Action, ...] = ()
    if snapshot.runner.presence is Presence.NONE:
        if status.pod_name is None:
            if problem := validate_subarray(execution.spec):
                return Plan(with_final(status, State.FAILED, Reason.INVALID_SPEC, problem, snapshot.now))
            name = build_pod_name(execution.metadata.name, execution.uid)
            status = status.model_copy(update={"pod_name": name})
        actions = (CreatePod(),)
    status = _with_wait_for_runner(status, snapshot.runner)
    if wants_grant(execution.model_copy(update={"status": status})):
        status = _with_grant_or_wait(snapshot, status)
    if status.state is State.READY:
        status = with_condition(status, ConditionType.READY, True, "Prepared", snapshot.now)
    next_at = min((deadline.at for deadline in deadlines), default=None)
    return Plan(status, actions, None if next_at is None else (next_at - snapshot.now).total_seconds())


def _with_wait_for_runner(status: ScriptExecutionStatus, runner: RunnerObservation) -> ScriptExecutionStatus:
    """Say what keeps the runner from starting, and no longer than it does."""
    if status.reason in (Reason.SUBARRAY_BUSY, Reason.INVALID_SPEC):
        return status  # What a start waits for.
    is_waiting = status.state is State.CREATING and runner.reason is not None
    wanted = (runner.reason, runner.message) if is_waiting else (None, None)
    if (status.reason, status.message) == wanted:
        return status
    return status.model_copy(update={"reason": wanted[0], "message": wanted[1]})


def _with_grant_or_wait(snapshot: Snapshot, status: ScriptExecutionStatus) -> ScriptExecutionStatus:
    """Grant the start if the subarray is free and nobody waits before; else wait, or refuse."""
    execution, now = snapshot.execution, snapshot.now
    if problem := validate_subarray(execution.spec):
        # Arguments of main came with the start: what they name would not be locked.
        if (status.reason, status.message) != (Reason.INVALID_SPEC, problem):
            status = status.model_copy(update={"reason": Reason.INVALID_SPEC, "message": problem})
        return with_condition(status, ConditionType.STARTED, False, Reason.INVALID_SPEC, now)
    subarray = compute_subarray(execution.spec)
    if subarray is not None:
        holder = snapshot.locks.find_holder(subarray, execution.uid)
        if holder is not None:
            return _with_busy(snapshot, status, subarray, holder)
        if not snapshot.locks.is_first(subarray, execution.uid):
            return status  # Who is first is granted in this moment, and this one is decided on again after.
    grant = Grant.model_construct(time=now, subarray=subarray)
    status = status.model_copy(update={"grant": grant, "refusal": None, "reason": None, "message": None})
    return with_condition(status, ConditionType.STARTED, True, "Granted", now)


def _with_busy(snapshot: Snapshot, status: ScriptExecutionStatus, subarray: int, holder: int) -> ScriptExecutionStatus:
    execution, now = snapshot.execution, snapshot.now
    if execution.spec.when_busy is WhenBusy.REJECT:
        message = f"Cannot start PID {execution.procedure_id}: PID #{holder} is RUNNING on subarray {subarray}"
        generation = execution.metadata.generation
        refusal = Refusal.model_construct(generation=generation, holder=holder, message=message, time=now)
        status = status.model_copy(update={"refusal": refusal})
    else:
        message = f"waits for subarray {subarray}, which procedure {holder} holds"
        if (status.reason, status.message) != (Reason.SUBARRAY_BUSY, message):
            status = status.model_copy(update={"reason": Reason.SUBARRAY_BUSY, "message": message})
    return with_condition(status, ConditionType.STARTED, False, Reason.SUBARRAY_BUSY, now)
