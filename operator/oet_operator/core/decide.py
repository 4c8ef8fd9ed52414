"""The decision: a snapshot in, a plan out. Pure; `oet_operator.local` and `oet_operator.kube` perform the plans.

Guards in order of authority: being deleted, finished, ended, gone, stop, deadlines, progress. Each returns a plan or passes on.
Deciding again after a plan's status was stored gives nothing new but actions that are safe to repeat.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from oet_crds.execution import Grant, Refusal, ScriptExecution, ScriptExecutionStatus, WhenBusy
from oet_crds.mailbox import MAX_STACKTRACE_CHARS
from oet_crds.reasons import Outcome, Reason
from oet_crds.states import DesiredState, State
from oet_operator.core.actions import Action, CreateAbort, CreatePod, DeleteExecution, DeletePod, Plan, StopRunner
from oet_operator.core.conditions import ConditionType, find_condition, with_condition
from oet_operator.core.deadlines import Deadline, compute_deadlines
from oet_operator.core.history import with_runner_transitions, with_state
from oet_operator.core.locks import is_abort_due, wants_grant
from oet_operator.core.names import build_pod_name
from oet_operator.core.snapshot import Presence, Snapshot
from oet_operator.core.specs import compute_subarray

__all__ = ["BACKSTOP_SECONDS", "decide"]

BACKSTOP_SECONDS = 5.0
"""A runner that has not reported the end this long after the grace period is removed by force: it needs 30 ms for it."""

_FINAL_STATE = {Outcome.COMPLETE: State.COMPLETE, Outcome.STOPPED: State.STOPPED, Outcome.FAILED: State.FAILED}


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
        return _plan_finished(snapshot, _with_final_conditions(ended, snapshot.now))
    deadlines = compute_deadlines(execution, status)
    passed = next((deadline.reason for deadline in deadlines if deadline.at <= snapshot.now), None)
    if execution.spec.desired_state is DesiredState.STOPPED:
        return _plan_stop(snapshot, status, Reason.STOP_REQUESTED)
    # What OET began to stop for a deadline it stops for that one, whatever passes next.
    if reason := _find_stop_reason(status) or passed:
        return _plan_stop(snapshot, status, reason)
    return _plan_progress(snapshot, status, deadlines)


# ---- the end -----------------------------------------------------------------------------------------------------------


def _plan_deletion(snapshot: Snapshot) -> Plan:
    """Somebody deletes the resource: its runner goes with it."""
    return Plan(snapshot.execution.status, _remove_runner(snapshot))


def _remove_runner(snapshot: Snapshot) -> tuple[Action, ...]:
    if snapshot.runner.presence in (Presence.STARTING, Presence.ALIVE):
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
        return _with_reported_end(snapshot, status)
    runner, wants_stop = snapshot.runner, snapshot.execution.spec.desired_state is DesiredState.STOPPED
    if runner.presence is Presence.LOST:
        message = runner.message or "the runner cannot be reached; what the script does is not known"
        return _with_final(status, State.UNKNOWN, runner.reason or Reason.NODE_LOST, message, snapshot.now)
    if runner.presence is Presence.GONE or (runner.presence is Presence.NONE and wants_stop and not status.pod_name):
        if wants_stop:
            return _with_final(status, State.STOPPED, Reason.STOP_REQUESTED, "stopped on request", snapshot.now)
        if stopping := _find_stop_reason(status):
            return _with_final(status, State.FAILED, stopping, _describe(stopping), snapshot.now)
        message = runner.message or "the runner ended without a report"
        return _with_final(status, State.FAILED, runner.reason or Reason.RUNNER_LOST, message, snapshot.now)
    return None


def _with_reported_end(snapshot: Snapshot, status: ScriptExecutionStatus) -> ScriptExecutionStatus:
    """Return the status in the final state that the runner's report of the end means."""
    assert status.runner is not None
    end = status.runner.exit
    assert end is not None
    state, reason, message = _FINAL_STATE[end.outcome], end.reason, end.message
    stopping = _find_stop_reason(status)
    is_unasked = snapshot.execution.spec.desired_state is not DesiredState.STOPPED
    if state is State.STOPPED and is_unasked and stopping:
        state, reason, message = State.FAILED, stopping, _describe(stopping)
    elif state is State.STOPPED and is_unasked and reason is not Reason.ENGINE_SHUTDOWN:
        # A signal to the supervisor, from the script itself or from somebody at a shell.
        state, reason = State.FAILED, Reason.RUNNER_LOST
        message = "the script's supervisor was told to stop by a signal that OET did not send; the script was stopped"
    elif state is State.COMPLETE and status.state is not State.READY:
        # `main` returned, says the runner, yet it never reported that: what happened between is not known.
        state, message = State.UNKNOWN, f"the runner reports the end of main, but was last seen {status.state}"
    if end.stacktrace:
        status = status.model_copy(update={"stacktrace": end.stacktrace[-MAX_STACKTRACE_CHARS:]})
    return _with_final(status, state, reason, message, end.time)


def _with_final(
    status: ScriptExecutionStatus, state: State, reason: Reason, message: str, when: datetime
) -> ScriptExecutionStatus:
    return with_state(status, state, when).model_copy(update={"reason": reason, "message": message})


def _with_final_conditions(status: ScriptExecutionStatus, now: datetime) -> ScriptExecutionStatus:
    is_complete = status.state is State.COMPLETE
    return with_condition(status, ConditionType.COMPLETE, is_complete, status.reason or status.state, now)


def _with_generation(status: ScriptExecutionStatus, generation: int) -> ScriptExecutionStatus:
    if status.observed_generation == generation:
        return status
    return status.model_copy(update={"observed_generation": generation})


# ---- the stop ----------------------------------------------------------------------------------------------------------


def _find_stop_reason(status: ScriptExecutionStatus) -> Reason | None:
    """Return the deadline for which OET stops the script, None when it does not."""
    condition = find_condition(status, ConditionType.STOPPING)
    if condition is None or condition.reason == Reason.STOP_REQUESTED:
        return None
    return Reason(condition.reason)


def _describe(reason: Reason) -> str:
    if reason is Reason.READY_TIMEOUT:
        return "not READY within readyTimeoutSeconds; the script was stopped"
    return "still active after activeDeadlineSeconds; the script was stopped"


def _plan_stop(snapshot: Snapshot, status: ScriptExecutionStatus, reason: Reason) -> Plan:
    """Stop the script: the runner sees a user's stop by itself; a deadline's it must be told."""
    grace = snapshot.execution.spec.stop.grace_period_seconds
    by_user = reason is Reason.STOP_REQUESTED
    if not by_user and snapshot.runner.presence is Presence.NONE and not status.pod_name:
        ended = _with_final(status, State.FAILED, reason, _describe(reason), snapshot.now)
        return Plan(_with_final_conditions(ended, snapshot.now))
    status = with_condition(status, ConditionType.STOPPING, True, reason, snapshot.now)
    condition = find_condition(status, ConditionType.STOPPING)
    assert condition is not None
    force_at = condition.last_transition_time + timedelta(seconds=grace + BACKSTOP_SECONDS)
    left = (force_at - snapshot.now).total_seconds()
    actions: tuple[Action, ...] = () if by_user else (StopRunner(grace, reason),)
    if snapshot.runner.presence is Presence.NONE:
        # Its runner may be on its way: once it is seen it is stopped like any other.
        return Plan(status, (CreatePod(), *actions), max(left, BACKSTOP_SECONDS))
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
            name = build_pod_name(execution.metadata.name, execution.uid)
            status = status.model_copy(update={"pod_name": name})
        actions = (CreatePod(),)
    if wants_grant(execution.model_copy(update={"status": status})):
        status = _with_grant_or_wait(snapshot, status)
    if status.state is State.READY:
        status = with_condition(status, ConditionType.READY, True, "Prepared", snapshot.now)
    next_at = min((deadline.at for deadline in deadlines), default=None)
    return Plan(status, actions, None if next_at is None else (next_at - snapshot.now).total_seconds())


def _with_grant_or_wait(snapshot: Snapshot, status: ScriptExecutionStatus) -> ScriptExecutionStatus:
    """Grant the start if the subarray is free and nobody waits before; else wait, or refuse."""
    execution, now = snapshot.execution, snapshot.now
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
