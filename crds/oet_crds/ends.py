"""What the end that a runner reports means for an execution's status. Pure."""

from __future__ import annotations

from datetime import datetime

from oet_crds.aborts import find_target
from oet_crds.conditions import find_condition, with_condition
from oet_crds.execution import Resolved, RunnerExit, ScriptExecution, ScriptExecutionStatus
from oet_crds.history import with_runner_transitions, with_state
from oet_crds.mailbox import MAX_STACKTRACE_CHARS
from oet_crds.reasons import Outcome, Reason
from oet_crds.states import ConditionType, DesiredState, State

__all__ = [
    "describe_deadline",
    "find_deadline",
    "find_deadline_state",
    "has_credible_end",
    "is_holding_unknown",
    "is_unexplained",
    "with_final",
    "with_reported_end",
    "with_resolved",
    "with_runner_news",
]

_FINAL_STATE = {Outcome.COMPLETE: State.COMPLETE, Outcome.STOPPED: State.STOPPED, Outcome.FAILED: State.FAILED}

_SIGNALLED = "the script's supervisor was told to stop by a signal that OET did not send; the script was stopped"


def has_credible_end(status: ScriptExecutionStatus) -> bool:
    """Tell whether the end that a runner reported counts although its process has not been seen to end.

    It does where the script could not take the runner's identity, so that only the runner, which reaps every process of the
    script before it reports, can have written it.
    """
    runner = status.runner
    return runner is not None and runner.exit is not None and runner.confined is True


def is_holding_unknown(execution: ScriptExecution) -> bool:
    """Tell whether an execution is UNKNOWN and holds its subarray, for the script may still run there.

    Until its end is confirmed or a person releases it. Only one whose `main` may have begun holds anything.
    """
    status, grant = execution.status, execution.status.grant
    if status.state is not State.UNKNOWN or grant is None or grant.subarray is None:
        return False
    has_begun = not grant.standing or find_target(execution) is not None
    released = find_condition(status, ConditionType.RELEASED)
    return has_begun and (released is None or released.status != "True")


def find_deadline(status: ScriptExecutionStatus) -> Reason | None:
    """Return the deadline for which OET stops the script, None when it does not."""
    condition = find_condition(status, ConditionType.STOPPING)
    if condition is None or condition.reason == Reason.STOP_REQUESTED:
        return None
    return Reason(condition.reason)


def describe_deadline(reason: Reason, status: ScriptExecutionStatus) -> str:
    """Return the message of an execution that was stopped for a deadline: how far it was, and what it waited for."""
    if reason is Reason.NOT_NEEDED:
        return "nothing uses the subarray any more for which this abort script was held READY; it was not run"
    if reason is Reason.ABORT_NOT_BEGUN:
        return "this abort script was held READY and did not begin when it was told to; another one takes its place"
    if reason is Reason.NOT_STARTED:
        return "READY, and nobody started it within [engine] ready_limit_seconds; it was stopped, and main never ran"
    limit = "not READY within readyTimeoutSeconds"
    if reason is Reason.DEADLINE_EXCEEDED:
        limit = "still active after activeDeadlineSeconds"
    if status.runner is not None:
        return f"{limit}; the script was stopped while {status.state}"
    stopping = find_condition(status, ConditionType.STOPPING)
    waited_for = (stopping.message if stopping else "") or status.message or ""
    return f"{limit}; the script never began{': ' if waited_for else ''}{waited_for}"


def find_deadline_state(reason: Reason) -> State:
    """Return the final state of an execution that was stopped for a deadline."""
    return State.STOPPED if reason in (Reason.NOT_NEEDED, Reason.NOT_STARTED) else State.FAILED


def with_final(
    status: ScriptExecutionStatus, state: State, reason: Reason, message: str, when: datetime
) -> ScriptExecutionStatus:
    """Return the status in a final state, with the reason in a word and in words, and the condition that tells it."""
    status = with_state(status, state, when).model_copy(update={"reason": reason, "message": message})
    status = with_condition(status, ConditionType.COMPLETE, state is State.COMPLETE, reason, when)
    return with_condition(status, ConditionType.FINISHED, True, reason, when)


def with_reported_end(
    status: ScriptExecutionStatus, desired: DesiredState, unasked: tuple[Reason, str] | None = None
) -> ScriptExecutionStatus:
    """Return the status in the final state that the runner's report of the end means.

    Args:
        status: With the runner's transitions in its history, and its report of the end.
        desired: What the user wants.
        unasked: Why the runner was told to stop when neither a user nor OET asked for it; None: by a signal.
    """
    assert status.runner is not None
    end = status.runner.exit
    assert end is not None
    state, reason, message = _FINAL_STATE[end.outcome], end.reason, end.message
    deadline = find_deadline(status)
    is_unasked = desired is not DesiredState.STOPPED
    if state is State.STOPPED and is_unasked and deadline:
        state, reason, message = find_deadline_state(deadline), deadline, describe_deadline(deadline, status)
    elif state is State.STOPPED and is_unasked and reason is not Reason.ENGINE_SHUTDOWN:
        # A signal to the supervisor: from the script itself, from somebody at a shell, or from a Pod's deletion.
        state = State.FAILED
        reason, message = unasked or (Reason.RUNNER_LOST, _SIGNALLED)
    elif state is State.COMPLETE and status.state is not State.READY:
        # `main` returned, says the runner, yet it never reported that: what happened between is not known.
        state, message = State.UNKNOWN, f"the runner reports the end of main, but was last seen {status.state}"
    if end.stacktrace:
        status = status.model_copy(update={"stacktrace": end.stacktrace[-MAX_STACKTRACE_CHARS:]})
    return with_final(status, state, reason, message, end.time)


def is_unexplained(execution: ScriptExecution) -> bool:
    """Tell whether neither a user nor OET asked for the end of a script, and its runner cannot say who did.

    It reports a signal, or nothing: from the script itself, from a person at a shell, or from its node, which says why a moment
    later.
    """
    if execution.spec.desired_state is DesiredState.STOPPED or find_deadline(execution.status) is not None:
        return False
    end = execution.status.runner.exit if execution.status.runner else None
    return end is None or (end.outcome is Outcome.STOPPED and end.reason is not Reason.ENGINE_SHUTDOWN)


def with_runner_news(execution: ScriptExecution) -> ScriptExecution:
    """Return the execution as what its runner reported makes it, before the operator has copied that; the same if nothing does.

    What the runner saw is true from the moment it is stored. So readers know of a READY, a RUNNING or a STOPPED without waiting
    for the operator, and also while there is none. An end for which the reason is the operator's to find is left to it, and so is
    one that somebody else than the runner could have reported.
    """
    if execution.is_finished or execution.status.runner is None or not execution.status.history:
        return execution
    status = with_resolved(with_runner_transitions(execution.status))
    end = execution.status.runner.exit
    if end is not None and has_credible_end(status) and _is_plain(end, execution):
        status = with_reported_end(status, execution.spec.desired_state)
    return execution if status is execution.status else execution.model_copy(update={"status": status})


def with_resolved(status: ScriptExecutionStatus) -> ScriptExecutionStatus:
    """Return the status with the commit that the runner found; the same object when there is nothing new. Pure."""
    commit = status.runner.resolved_commit if status.runner else None
    resolved = status.resolved or Resolved()
    if commit is None or commit == resolved.commit:
        return status
    return status.model_copy(update={"resolved": resolved.model_copy(update={"commit": commit})})


def _is_plain(end: RunnerExit, execution: ScriptExecution) -> bool:
    return end.outcome is not Outcome.STOPPED or execution.spec.desired_state is DesiredState.STOPPED
