"""The decision: a snapshot in, a plan out. Pure; `oet_operator.local` and `oet_operator.kube` perform the plans.

Guards in order of authority: being deleted, finished, ended, gone, stop, deadlines, progress. Each returns a plan or passes on.
Deciding again after a plan's status was stored gives nothing new but actions that are safe to repeat.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from oet_crds.aborts import ABORT_BEGIN_SECONDS, is_armed
from oet_crds.conditions import find_condition, with_condition
from oet_crds.ends import (
    describe_deadline,
    find_deadline,
    find_deadline_state,
    has_credible_end,
    is_holding_unknown,
    with_final,
    with_reported_end,
    with_resolved,
)
from oet_crds.execution import (
    AbortStatus,
    Grant,
    Refusal,
    Resolved,
    RunnerExit,
    ScriptExecution,
    ScriptExecutionStatus,
    WhenBusy,
)
from oet_crds.history import has_begun, with_runner_transitions
from oet_crds.names import RELEASE_ANNOTATION
from oet_crds.reasons import Reason
from oet_crds.specs import compute_subarray, describe_script, validate_subarray
from oet_crds.states import ConditionType, DesiredState, Purpose, State
from oet_operator.core.aborts import (
    HANDOVER_SECONDS,
    REARM_SECONDS,
    AbortEnd,
    Serving,
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
from oet_operator.core.deadlines import compute_deadlines, is_idle
from oet_operator.core.locks import Holder, is_abort_due, wants_grant
from oet_operator.core.names import build_pod_name
from oet_operator.core.snapshot import Presence, RunnerObservation, Snapshot

__all__ = ["BACKSTOP_SECONDS", "LEAVE_SECONDS", "decide"]

BACKSTOP_SECONDS = 5.0
"""A runner that has not reported the end this long after the grace period is removed by force: it needs 30 ms for it."""

LEAVE_SECONDS = 10.0
"""A runner that reported the end has this long to be gone: it has nothing to do but to deliver what is left, for which it has
some seconds, and a node that starts twenty Pods at once takes up to 3 s to say that a container has ended."""

GIVE_UP_GRACE_SECONDS = 1.0
"""An abort script that does not begin when it is told to has nothing to tidy up, and another one waits for its end."""

_HARMLESS_ENDS = (Reason.NOT_NEEDED, Reason.ENGINE_LOST, Reason.ENGINE_SHUTDOWN, Reason.RUNNER_CUT_OFF)
"""Ends of an abort script that was held, after which another one can be prepared at once."""

_REMOVABLE = (Presence.PENDING, Presence.STUCK, Presence.STARTING, Presence.ALIVE)


def decide(snapshot: Snapshot) -> Plan:
    """Decide what becomes of one execution. Pure.

    Returns:
        The status as it should be (the same object when nothing changes), what to do, and when to look again.
    """
    plan = _decide(snapshot)
    image = snapshot.runner.image
    if image is None or plan.status is snapshot.execution.status:
        return plan  # Which image it is costs no write of its own.
    resolved = plan.status.resolved or Resolved()
    if resolved.image == image:
        return plan
    resolved = resolved.model_copy(update={"image": image})
    return replace(plan, status=plan.status.model_copy(update={"resolved": resolved}))


def _decide(snapshot: Snapshot) -> Plan:
    execution = snapshot.execution
    if execution.metadata.deletion_timestamp is not None:
        return _plan_deletion(snapshot)
    if execution.is_finished:
        return _plan_finished(snapshot, execution.status)
    status = with_runner_transitions(execution.status)
    status = _with_need(snapshot, with_resolved(_with_summary(status, execution)))
    ended = _with_end(snapshot, status)
    if ended is not None:
        return _plan_finished(snapshot, _with_failed_arming(snapshot, ended))
    end = status.runner.exit if status.runner else None
    if snapshot.runner.awaits_word and (end is None or has_credible_end(status)):
        return Plan(status)
    if end is not None:
        return _plan_leaving(snapshot, status, end)
    status = _with_idleness(snapshot, status)
    deadlines = compute_deadlines(execution, status, snapshot.ready_limit_seconds)
    passed = next((deadline.reason for deadline in deadlines if deadline.at <= snapshot.now), None)
    if execution.spec.desired_state is DesiredState.STOPPED:
        return _plan_stop(snapshot, status, Reason.STOP_REQUESTED)
    # What OET began to stop for a deadline it stops for that one, whatever passes next.
    if reason := find_deadline(status) or passed or _find_deafness(snapshot, status):
        return _plan_stop(snapshot, status, reason)
    return _plan_progress(snapshot, status)


# ---- the end -----------------------------------------------------------------------------------------------------------


def _plan_deletion(snapshot: Snapshot) -> Plan:
    """Somebody deletes the resource: its runner goes with it."""
    return Plan(snapshot.execution.status, _remove_runner(snapshot))


def _remove_runner(snapshot: Snapshot) -> tuple[Action, ...]:
    if snapshot.runner.presence in _REMOVABLE or snapshot.runner.is_lingering:
        return (DeletePod(snapshot.execution.spec.stop.grace_period_seconds),)
    return ()


def _plan_finished(snapshot: Snapshot, status: ScriptExecutionStatus) -> Plan:
    """Clean up after a final state: the runner, the abort that was asked for, the time to live."""
    status = _with_release(snapshot, status)
    execution = snapshot.execution.model_copy(update={"status": status})
    actions = _remove_runner(snapshot)
    if is_abort_due(execution):
        return _plan_abort(snapshot, execution, actions)
    if is_outcome_open(execution):
        serving, end = snapshot.aborts.serving, snapshot.aborts.end
        is_replaced = (
            serving is not None and serving.is_given_up and end is not None and end.state is not State.COMPLETE
        )
        if end is None or is_replaced:
            return _plan_wait_for_abort(snapshot, execution, actions)
        status = _with_outcome(execution, end, snapshot.now)
    ttl = _compute_ttl(execution)
    if ttl is None or not status.history or is_holding_unknown(execution):
        return Plan(status, actions)
    left = (status.history[-1].time + timedelta(seconds=ttl) - snapshot.now).total_seconds()
    if left <= 0:
        return Plan(status, (*actions, DeleteExecution()))
    return Plan(status, actions, left)


def _plan_abort(snapshot: Snapshot, execution: ScriptExecution, actions: tuple[Action, ...]) -> Plan:
    """Have the subarray aborted after a stop: by who does so already, by the script that is held for it, or by a new one."""
    status, subarray, view = execution.status, _find_subarray(execution), snapshot.aborts
    if subarray is None:
        text = "the abort was not run: no subarray is known to abort"
        return Plan(_with_alarm(status, Reason.NOTHING_TO_ABORT, text, snapshot.now), actions)
    if status.state is State.UNKNOWN:
        status = with_condition(status, ConditionType.ABORT_ASKED, True, Reason.STOP_REQUESTED, snapshot.now)
        execution = execution.model_copy(update={"status": status})
    status, left = _with_late_abort(snapshot, execution)
    serving, end = view.serving, view.end
    if serving is not None and (not _is_lost(serving, snapshot.now) or (end and end.state is State.COMPLETE)):
        abort = AbortStatus(procedure_id=serving.procedure_id)
        return Plan(status.model_copy(update={"abort": abort}), actions, left)
    if serving is not None and end is None:
        return Plan(status, actions, left)  # Another one may begin once this one cannot any more.
    inherit = snapshot.locks.find_holder(subarray, execution.uid, for_abort=True) is None
    if inherit and view.armed is not None:
        return Plan(status, (*actions, UseArmed(view.armed, subarray)), left)
    return Plan(status, (*actions, CreateAbort(subarray, inherit)), left)


def _plan_wait_for_abort(snapshot: Snapshot, execution: ScriptExecution, actions: tuple[Action, ...]) -> Plan:
    """Wait for an abort, for one that was held no longer than it may take to begin; tell when it does not begin."""
    serving = snapshot.aborts.serving
    if serving is not None and _is_lost(serving, snapshot.now):
        # Holds the subarray itself from here on, as before.
        return Plan(execution.status.model_copy(update={"abort": None}), actions, 0.0)
    status, left = _with_late_abort(snapshot, execution)
    if serving is not None and serving.handed_at is not None and not serving.has_begun:
        until = serving.handed_at + timedelta(seconds=HANDOVER_SECONDS)
        left = min(left or HANDOVER_SECONDS, (until - snapshot.now).total_seconds())
    return Plan(status, actions, left)


def _is_lost(serving: Serving, now: datetime) -> bool:
    """Tell whether an abort script that was held does not hear that it is to begin."""
    if serving.is_given_up:
        return True
    return not serving.has_begun and _is_past(serving.handed_at, HANDOVER_SECONDS, now)


def _is_past(since: datetime | None, seconds: float, now: datetime) -> bool:
    return since is not None and since + timedelta(seconds=seconds) <= now


def _find_deafness(snapshot: Snapshot, status: ScriptExecutionStatus) -> Reason | None:
    """Return why an abort script that was held is ended: it has not begun, and the stopped execution does not count on it."""
    is_deaf = not has_begun(status) and _is_past(snapshot.aborts.unclaimed_since, HANDOVER_SECONDS, snapshot.now)
    return Reason.ABORT_NOT_BEGUN if is_deaf else None


def _with_late_abort(snapshot: Snapshot, execution: ScriptExecution) -> tuple[ScriptExecutionStatus, float | None]:
    """Raise the alarm while an abort does not begin, and end it when it has; also return in how many seconds that is due."""
    status, serving = execution.status, snapshot.aborts.serving
    if serving is not None and serving.has_begun and not serving.is_given_up:
        return _without_alarm(status), None
    if not status.history or find_condition(status, ConditionType.ABORTED) is not None:
        return status, None
    asked, since = find_condition(status, ConditionType.ABORT_ASKED), status.history[-1].time
    since = since if asked is None else max(since, asked.last_transition_time)
    left = (since + timedelta(seconds=ABORT_BEGIN_SECONDS) - snapshot.now).total_seconds()
    if left > 0:
        return status, left
    which = f"the abort script (procedure {serving.procedure_id})" if serving else "the abort script"
    how = serving.words if serving else "its execution could not be created yet"
    text = f"{which} has not begun within {ABORT_BEGIN_SECONDS:g} s, and is waited for: {how}"
    return _with_alarm(status, Reason.ABORT_NOT_BEGUN, text, snapshot.now), None


def _without_alarm(status: ScriptExecutionStatus) -> ScriptExecutionStatus:
    """Return the status without the alarm of an abort that has not begun; the same object when there is none."""
    alarm = find_condition(status, ConditionType.ABORTED)
    if alarm is None or alarm.reason != Reason.ABORT_NOT_BEGUN:
        return status
    message = (status.message or "").removesuffix(alarm.message).removesuffix("; ")
    others = [condition for condition in status.conditions if condition is not alarm]
    return status.model_copy(update={"conditions": others, "message": message or None})


def _with_outcome(execution: ScriptExecution, end: AbortEnd, now: datetime) -> ScriptExecutionStatus:
    """Record how the abort ended: an alarm unless it is COMPLETE."""
    status = _without_alarm(execution.status)
    assert status.abort is not None
    if end.state is State.COMPLETE:
        return with_condition(status, ConditionType.ABORTED, True, Reason.COMPLETED, now)
    how = f"ended {end.state}" if end.state else "was removed before its end was known"
    why = f" ({end.message})" if end.message else ""
    text = f"the abort script (procedure {status.abort.procedure_id}) {how}{why}"
    return _with_alarm(status, Reason.ABORT_FAILED, text, now)


def _with_alarm(status: ScriptExecutionStatus, reason: Reason, text: str, now: datetime) -> ScriptExecutionStatus:
    text = f"ALARM: {text}; what the subarray does is not known"
    status = with_condition(status, ConditionType.ABORTED, False, reason, now, text)
    return status.model_copy(update={"message": f"{status.message}; {text}" if status.message else text})


def _with_release(snapshot: Snapshot, status: ScriptExecutionStatus) -> ScriptExecutionStatus:
    """Let an UNKNOWN execution hold its subarray, which is an alarm, until its end is confirmed or a person releases it."""
    execution = snapshot.execution.model_copy(update={"status": status})
    if not is_holding_unknown(execution):
        return status
    assert status.grant is not None
    words = execution.metadata.annotations.get(RELEASE_ANNOTATION)
    if snapshot.runner.presence in (Presence.GONE, Presence.STUCK):
        text = "its end was confirmed: nothing of its script is left"
        return with_condition(status, ConditionType.RELEASED, True, Reason.END_CONFIRMED, snapshot.now, text)
    if words is not None:
        text = f"released by a person: {words}"
        return with_condition(status, ConditionType.RELEASED, True, Reason.RELEASED_BY_HAND, snapshot.now, text)
    text = (
        f"ALARM: whether the script still runs on subarray {status.grant.subarray} is not known ({status.message}); the "
        "subarray is held until the end is confirmed, or released by a person who is certain that it does not run"
    )
    return with_condition(status, ConditionType.RELEASED, False, status.reason or Reason.NODE_LOST, snapshot.now, text)


def _with_failed_arming(snapshot: Snapshot, status: ScriptExecutionStatus) -> ScriptExecutionStatus:
    """Raise the alarm when an abort script that was to be held is over, but for the ends that were wanted."""
    is_wanted = status.state is State.STOPPED or status.reason in _HARMLESS_ENDS
    if not is_armed(snapshot.execution) or is_wanted:
        return status
    text = (
        f"no abort script is held READY for subarray {compute_subarray(snapshot.execution.spec)}, so that an abort takes as long "
        f"as a start: it is {status.state} ({status.message})"
    )
    return with_condition(status, ConditionType.ARMED, False, Reason.ARMING_FAILED, snapshot.now, text)


def _compute_ttl(execution: ScriptExecution) -> float | None:
    """Return for how many seconds a finished execution is kept; None: as long as the history has room."""
    if not is_armed(execution):
        return execution.spec.ttl_seconds_after_finished
    # It never ran: nothing of it belongs into the history. What ended with its engine says nothing of the next one.
    return 0.0 if execution.status.reason in _HARMLESS_ENDS else REARM_SECONDS


def _find_subarray(execution: ScriptExecution) -> int | None:
    grant = execution.status.grant
    return grant.subarray if grant and grant.subarray is not None else compute_subarray(execution.spec)


def _with_end(snapshot: Snapshot, status: ScriptExecutionStatus) -> ScriptExecutionStatus | None:
    """Return the status in its final state, None while the execution is not over."""
    if snapshot.runner.awaits_word:
        return None
    runner, wants_stop = snapshot.runner, snapshot.execution.spec.desired_state is DesiredState.STOPPED
    is_gone = runner.presence in (Presence.GONE, Presence.STUCK)
    if status.runner is not None and status.runner.exit is not None and (is_gone or has_credible_end(status)):
        if _has_stayed(snapshot, status):
            text = (
                f"the runner reported the end of the script ({status.runner.exit.outcome}) and stayed, so that it was removed; "
                "what it reported is not believed, and nothing of the script is left"
            )
            return with_final(status, State.FAILED, Reason.END_UNCONFIRMED, text, snapshot.now)
        # That it ended without a report is what is seen of it before its report has come.
        unasked = None if runner.reason in (None, Reason.RUNNER_LOST) else (runner.reason, runner.message)
        return with_reported_end(_with_plausible_end(snapshot, status), snapshot.execution.spec.desired_state, unasked)
    if runner.presence is Presence.LOST:
        message = runner.message or "the runner cannot be reached; what the script does is not known"
        return with_final(status, State.UNKNOWN, runner.reason or Reason.NODE_LOST, message, snapshot.now)
    # From a final state on no runner that comes late begins anything.
    if is_gone or (wants_stop and _has_no_runner(snapshot, status)):
        if wants_stop:
            return with_final(status, State.STOPPED, Reason.STOP_REQUESTED, "stopped on request", snapshot.now)
        if stopping := find_deadline(status):
            state = find_deadline_state(stopping)
            return with_final(status, state, stopping, describe_deadline(stopping, status), snapshot.now)
        message = runner.message or "the runner ended without a report"
        return with_final(status, State.FAILED, runner.reason or Reason.RUNNER_LOST, message, snapshot.now)
    return None


def _with_plausible_end(snapshot: Snapshot, status: ScriptExecutionStatus) -> ScriptExecutionStatus:
    """Return the status with the reported end at a time that can be: other times are made from it, and it may say anything."""
    assert status.runner is not None
    end = status.runner.exit
    assert end is not None
    when = max(min(end.time, snapshot.now), snapshot.execution.metadata.creation_timestamp)
    if when == end.time:
        return status
    runner = status.runner.model_copy(update={"exit": end.model_copy(update={"time": when})})
    return status.model_copy(update={"runner": runner})


def _has_stayed(snapshot: Snapshot, status: ScriptExecutionStatus) -> bool:
    """Tell whether the runner went on after it had reported the end, so that who reported it is not known."""
    leaving = find_condition(status, ConditionType.LEAVING)
    is_removed = leaving is not None and leaving.status == "False"
    return not has_credible_end(status) and (is_removed or snapshot.runner.reason is Reason.END_UNCONFIRMED)


def _plan_leaving(snapshot: Snapshot, status: ScriptExecutionStatus, end: RunnerExit) -> Plan:
    """Wait for a runner that reported the end to be gone; remove it when it stays.

    Nothing is final until then: a script that takes its runner's identity can report an end and go on.
    """
    if snapshot.runner.awaits_word or snapshot.runner.reason in (Reason.POD_DELETED, Reason.EVICTED):
        return Plan(status, requeue_after_seconds=LEAVE_SECONDS)  # Its node ends it, within its grace period.
    # From when the report was seen: it may have come late, and its time is whatever was written.
    if find_condition(status, ConditionType.LEAVING) is None:
        status = with_condition(status, ConditionType.LEAVING, True, end.reason, snapshot.now)
    leaving = find_condition(status, ConditionType.LEAVING)
    assert leaving is not None
    left = (leaving.last_transition_time + timedelta(seconds=LEAVE_SECONDS) - snapshot.now).total_seconds()
    if leaving.status == "True" and left > 0:
        return Plan(status, requeue_after_seconds=left)
    text = (
        f"ALARM: the runner reported the end of the script ({end.outcome}) and is still there after {LEAVE_SECONDS:g} s; "
        "it is removed, and the subarray is held until it is gone"
    )
    status = with_condition(status, ConditionType.LEAVING, False, Reason.END_UNCONFIRMED, snapshot.now, text)
    return Plan(status, (DeletePod(0.0),), BACKSTOP_SECONDS)


def _has_no_runner(snapshot: Snapshot, status: ScriptExecutionStatus) -> bool:
    """Tell whether no runner was ever made, as far as is known."""
    presence = snapshot.runner.presence
    return presence is Presence.REFUSED or (presence is Presence.NONE and not status.pod_name)


def _with_summary(status: ScriptExecutionStatus, execution: ScriptExecution) -> ScriptExecutionStatus:
    """Say which spec the status speaks of, and what of it a list shows."""
    if status.observed_generation == execution.metadata.generation:
        return status
    script, subarray = describe_script(execution.spec.script), compute_subarray(execution.spec)
    changes = {"observed_generation": execution.metadata.generation, "script": script, "subarray": subarray}
    return status.model_copy(update=changes)


# ---- the stop ----------------------------------------------------------------------------------------------------------


def _plan_stop(snapshot: Snapshot, status: ScriptExecutionStatus, reason: Reason) -> Plan:
    """Stop the script: the runner sees a user's stop by itself; a deadline's it must be told."""
    grace = snapshot.execution.spec.stop.grace_period_seconds
    by_user = reason is Reason.STOP_REQUESTED
    if not by_user and _has_no_runner(snapshot, status):
        if snapshot.runner.message:
            status = status.model_copy(update={"message": snapshot.runner.message})
        message = describe_deadline(reason, status)
        return Plan(with_final(status, find_deadline_state(reason), reason, message, snapshot.now))
    # What it waits for now is not known any more once its Pod is deleted.
    is_waiting = snapshot.runner.presence is Presence.PENDING and not by_user
    waits_for = snapshot.runner.message if is_waiting else ""
    status = with_condition(status, ConditionType.STOPPING, True, reason, snapshot.now, waits_for)
    condition = find_condition(status, ConditionType.STOPPING)
    assert condition is not None
    if reason is Reason.ABORT_NOT_BEGUN:
        grace = GIVE_UP_GRACE_SECONDS
    force_at = condition.last_transition_time + timedelta(seconds=grace + BACKSTOP_SECONDS)
    left = (force_at - snapshot.now).total_seconds()
    actions: tuple[Action, ...] = () if by_user else (StopRunner(grace, reason),)
    if snapshot.runner.presence is Presence.NONE:
        # Its runner may be on its way: once it is seen it is stopped like any other.
        return Plan(status, (CreatePod(), *actions), max(left, BACKSTOP_SECONDS))
    if snapshot.runner.presence is Presence.PENDING:
        return Plan(status, (*actions, DeletePod(grace)), max(left, BACKSTOP_SECONDS))
    if reason is Reason.ABORT_NOT_BEGUN and left > 0:
        return Plan(status, (*actions, DeletePod(grace)), left)  # It may not hear that either.
    if left <= 0:
        return Plan(status, (*actions, DeletePod(0.0)), BACKSTOP_SECONDS)
    return Plan(status, actions, left)


# ---- progress ----------------------------------------------------------------------------------------------------------


def _plan_progress(snapshot: Snapshot, status: ScriptExecutionStatus) -> Plan:
    """Give the execution its runner, and its grant when the subarray is free."""
    execution = snapshot.execution
    actions: tuple[Action, ...] = ()
    if snapshot.runner.presence in (Presence.NONE, Presence.REFUSED):
        if status.pod_name is None:
            if problem := validate_subarray(execution.spec):
                return Plan(with_final(status, State.FAILED, Reason.INVALID_SPEC, problem, snapshot.now))
            name = build_pod_name(execution.metadata.name, execution.uid)
            status = _with_early_grant(snapshot, status.model_copy(update={"pod_name": name}))
        actions = (CreatePod(),)
    status = _with_wait_for_runner(execution, status, snapshot.runner)
    if wants_grant(execution.model_copy(update={"status": status})):
        status = _with_grant_or_wait(snapshot, status)
    if status.state is State.READY:
        status = with_condition(status, ConditionType.READY, True, "Prepared", snapshot.now)
    status = _with_idleness(snapshot, _with_standing_grant(snapshot, status))
    if _must_arm(snapshot, status):
        subarray = compute_subarray(execution.spec)
        assert subarray is not None
        actions = (*actions, ArmAbort(subarray))
    deadlines = compute_deadlines(execution, status, snapshot.ready_limit_seconds)
    next_at = min((deadline.at for deadline in deadlines), default=None)
    return Plan(status, actions, None if next_at is None else (next_at - snapshot.now).total_seconds())


def _must_arm(snapshot: Snapshot, status: ScriptExecutionStatus) -> bool:
    view = snapshot.aborts
    is_used = is_in_use(snapshot.execution.model_copy(update={"status": status}))
    return view.is_prearmed and is_used and not view.has_resident


def _with_need(snapshot: Snapshot, status: ScriptExecutionStatus) -> ScriptExecutionStatus:
    """Note since when an abort script that is held is needed, or is not."""
    if not is_armed(snapshot.execution):
        return status
    is_needed = snapshot.aborts.is_needed
    return with_condition(status, ConditionType.NEEDED, is_needed, "InUse" if is_needed else "NotInUse", snapshot.now)


def _with_idleness(snapshot: Snapshot, status: ScriptExecutionStatus) -> ScriptExecutionStatus:
    """Note since when a script that is prepared waits for somebody to start it, or that it does not."""
    if is_idle(snapshot.execution, status):
        return with_condition(status, ConditionType.IDLE, True, Reason.NOT_STARTED, snapshot.now)
    idle = find_condition(status, ConditionType.IDLE)
    if idle is None or idle.status == "False":
        return status
    return with_condition(status, ConditionType.IDLE, False, "StartAsked", snapshot.now)


def _with_standing_grant(snapshot: Snapshot, status: ScriptExecutionStatus) -> ScriptExecutionStatus:
    """Let an abort script that is READY begin as soon as it is told for whom: it is needed, so it is the only one that may.

    Where it was told so, note since when.
    """
    execution = snapshot.execution
    is_told = execution.spec.abort_of is not None and execution.spec.desired_state is DesiredState.RUNNING
    if status.grant is not None and status.grant.standing and is_told:
        # Whoever told it, as the REST server does, left no time behind: it may take as long to begin from here on.
        used = Grant.model_construct(
            time=snapshot.now, subarray=status.grant.subarray, standing=False, abort_of=execution.spec.abort_of
        )
        return status.model_copy(update={"grant": used})
    is_due = status.state is State.READY and status.grant is None and snapshot.aborts.is_needed
    if not is_due or not is_armed(execution) or execution.spec.desired_state is not DesiredState.READY:
        return status
    grant = Grant.model_construct(time=snapshot.now, subarray=compute_subarray(execution.spec), standing=True)
    status = status.model_copy(update={"grant": grant})
    return with_condition(status, ConditionType.ARMED, True, "Armed", snapshot.now)


def _with_early_grant(snapshot: Snapshot, status: ScriptExecutionStatus) -> ScriptExecutionStatus:
    """Grant the start before the preparation where no subarray is locked by it: the runner need not ask when it is READY.

    A subarray is locked for who is READY only: one that may never get there must not keep others off.
    """
    spec = snapshot.execution.spec
    if spec.desired_state is not DesiredState.RUNNING or compute_subarray(spec) is not None or status.grant is not None:
        return status
    return _with_grant(status, None, snapshot.now)


def _with_grant(status: ScriptExecutionStatus, subarray: int | None, now: datetime) -> ScriptExecutionStatus:
    grant = Grant.model_construct(time=now, subarray=subarray)
    status = status.model_copy(update={"grant": grant, "refusal": None, "reason": None, "message": None})
    return with_condition(status, ConditionType.STARTED, True, "Granted", now)


def _with_wait_for_runner(
    execution: ScriptExecution, status: ScriptExecutionStatus, runner: RunnerObservation
) -> ScriptExecutionStatus:
    """Say what keeps the runner from starting, and no longer than it does."""
    is_asked = execution.spec.desired_state is DesiredState.RUNNING
    is_refusal = status.refusal is not None and status.refusal.message == status.message
    if status.reason in (Reason.SUBARRAY_BUSY, Reason.INVALID_SPEC) and (is_asked or is_refusal):
        return status  # What a start waits for, or what became of the last one.
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
        is_abort = execution.spec.purpose is Purpose.ABORT
        holder = snapshot.locks.find_holder(subarray, execution.uid, for_abort=is_abort)
        if holder is not None:
            return _with_busy(snapshot, status, subarray, holder)
        if not snapshot.locks.is_first(subarray, execution.uid):
            return status  # Who is first is granted in this moment, and this one is decided on again after.
    return _with_grant(status, subarray, now)


def _with_busy(
    snapshot: Snapshot, status: ScriptExecutionStatus, subarray: int, holder: Holder
) -> ScriptExecutionStatus:
    execution, now, number = snapshot.execution, snapshot.now, holder.procedure_id
    if execution.spec.when_busy is WhenBusy.REJECT:
        message = f"Cannot start PID {execution.procedure_id}: {holder.describe(subarray)}"
        generation = execution.metadata.generation
        refusal = Refusal.model_construct(generation=generation, holder=number, message=message, time=now)
        status = status.model_copy(update={"refusal": refusal, "reason": Reason.SUBARRAY_BUSY, "message": message})
    else:
        message = f"waits for subarray {subarray}: {holder.describe(subarray)}"
        if (status.reason, status.message) != (Reason.SUBARRAY_BUSY, message):
            status = status.model_copy(update={"reason": Reason.SUBARRAY_BUSY, "message": message})
    return with_condition(status, ConditionType.STARTED, False, Reason.SUBARRAY_BUSY, now)
