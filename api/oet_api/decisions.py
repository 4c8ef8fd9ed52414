"""Pure decisions about starts and stops: an execution as seen, and what was asked, in; what to do out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto

from oet_crds.aborts import find_ready_abort, find_serving, is_armed
from oet_crds.errors import InvalidTransitionError
from oet_crds.execution import FunctionArgs, Refusal, ScriptExecution, WhenBusy
from oet_crds.states import DesiredState, Purpose, State
from oet_crds.subarrays import MAX_SUBARRAY, SUBARRAY_KEY, parse_subarray

__all__ = [
    "Join",
    "complete_main",
    "compute_subarrays",
    "decide_abort",
    "decide_armed",
    "decide_start",
    "describe_end",
    "find_refusal",
    "has_stale_refusal",
    "is_abort_safe",
    "is_start_settled",
    "parse_lockable_subarray",
]


class Join(Enum):
    """How a request to start relates to what was asked before."""

    ASKED = auto()
    """Nobody asked yet: this request does, and waits for the outcome."""
    JOINED = auto()
    """Somebody asked, the engine has not spoken: wait for the same outcome."""
    NONE = auto()
    """Granted already, or waiting by somebody's wish: answer what is."""


def decide_start(execution: ScriptExecution, main: FunctionArgs | None) -> Join:
    """Return what a request to start has to do.

    Args:
        execution: As seen now.
        main: Arguments that come with the request; None: none come.

    Raises:
        InvalidTransitionError: The execution cannot be started as it is.
    """
    number, state = execution.procedure_id, execution.status.state
    desired = execution.spec.desired_state
    if execution.spec.purpose is Purpose.ABORT:
        raise InvalidTransitionError(f"Cannot start PID {number}: it is an abort script, which a stop starts", state)
    if execution.is_finished:
        raise InvalidTransitionError(f"Cannot start PID {number}: it is {state}", state)
    if desired is DesiredState.STOPPED:
        raise InvalidTransitionError(f"Cannot start PID {number}: it is being stopped", state)
    if desired is DesiredState.RUNNING:
        _check_same_args(execution, main)
        is_open = execution.status.grant is None and execution.spec.when_busy is WhenBusy.REJECT
        return Join.JOINED if is_open and state is State.READY else Join.NONE
    if state is not State.READY:
        raise InvalidTransitionError(f"Procedure {number} is {state}; start it when it is READY", state)
    return Join.ASKED


def _check_same_args(execution: ScriptExecution, main: FunctionArgs | None) -> None:
    recorded = execution.spec.args.main or FunctionArgs()
    if main is not None and main != recorded:
        raise InvalidTransitionError(
            f"Cannot start PID {execution.procedure_id}: it is started already, with other arguments of main",
            execution.status.state,
        )


def find_refusal(execution: ScriptExecution, generation: int) -> Refusal | None:
    """Return the refusal of the start that was asked with a generation, or with a later one; None if there is none."""
    refusal = execution.status.refusal
    return refusal if refusal is not None and refusal.generation >= generation else None


def has_stale_refusal(execution: ScriptExecution) -> bool:
    """Tell whether a start was refused and still stands, with nobody left to withdraw it: an activity's own, for example."""
    is_asked = execution.spec.desired_state is DesiredState.RUNNING and execution.status.grant is None
    return is_asked and find_refusal(execution, execution.metadata.generation) is not None


def complete_main(execution: ScriptExecution, main: FunctionArgs | None) -> FunctionArgs | None:
    """Return the arguments of a start, with what the script of an activity needs to find its scheduling block.

    An activity keeps its arguments of main when a start brings none; what a start brings replaces them, but for those two.

    Args:
        execution: What is started.
        main: What comes with the request; None: nothing does.
    """
    activity = execution.spec.activity
    if activity is None or main is None:
        return main
    if main == FunctionArgs():
        return None
    kwargs = {**main.kwargs, "sb_json": activity.sb_path, "sbi_id": activity.sbi_id}
    return FunctionArgs(args=main.args, kwargs=kwargs)


def is_start_settled(generation: int) -> Callable[[ScriptExecution], bool]:
    """Return a test for `ExecutionStore.wait`: whether the start asked with a generation was granted, refused or is moot."""

    def is_settled(execution: ScriptExecution) -> bool:
        return (
            execution.status.grant is not None
            or find_refusal(execution, generation) is not None
            or execution.is_finished
            or execution.spec.desired_state is DesiredState.STOPPED
        )

    return is_settled


def parse_lockable_subarray(value: object) -> int | None:
    """Return the subarray that a `subarray_id` argument names, None when it names none that can be asked for."""
    number = parse_subarray(value)
    return number if number is not None and 0 <= number <= MAX_SUBARRAY else None


def compute_subarrays(execution: ScriptExecution) -> list[int]:
    """Return the different subarrays that an execution holds, or names; the one that a start locks first."""
    grant, spec = execution.status.grant, execution.spec
    if grant is not None and grant.subarray is not None:
        return [grant.subarray]
    if spec.subarray is not None:
        return [spec.subarray]
    named = [
        parse_lockable_subarray(args.kwargs.get(SUBARRAY_KEY))
        for args in (spec.args.init, spec.args.main)
        if args is not None
    ]
    return list(dict.fromkeys(number for number in named if number is not None))


def decide_abort(execution: ScriptExecution) -> int:
    """Return the subarray to abort after a stop. Raises InvalidTransitionError, before anything is stopped."""
    if is_armed(execution):
        raise InvalidTransitionError(
            f"Procedure {execution.procedure_id} is an abort script that is held. Nothing was stopped: stop it without abort",
            execution.status.state,
        )
    subarrays = compute_subarrays(execution)
    if len(subarrays) == 1:
        return subarrays[0]
    found = "Multiple subarray IDs found" if subarrays else "Subarray ID not specified"
    raise InvalidTransitionError(
        f"Cannot stop and abort procedure {execution.procedure_id}: {found}, so it is not clear what to abort. "
        "Nothing was stopped: stop it without abort",
        execution.status.state,
    )


def is_abort_safe(execution: ScriptExecution) -> bool:
    """Tell whether an execution, stopped with abort as it is seen now, holds its subarray until the abort has taken over.

    It was granted the subarray and has not ended; so from this change on nobody else gets it.
    """
    status = execution.status
    return (
        status.grant is not None
        and status.grant.subarray is not None
        and not execution.is_finished
        and (status.runner is None or status.runner.exit is None)
        and execution.spec.desired_state is not DesiredState.STOPPED
    )


def decide_armed(stopped: ScriptExecution, executions: Sequence[ScriptExecution]) -> ScriptExecution | None:
    """Return the execution that aborts for a stopped one, or is held and can; None: that is for the engine to see to.

    Args:
        stopped: An execution that was stopped with abort while it held its subarray (`is_abort_safe`).
        executions: All there are, as seen.
    """
    status = stopped.status
    is_certain = stopped.is_finished and status.runner is not None and status.runner.exit is not None
    if not is_certain or status.abort is not None or status.grant is None or status.grant.subarray is None:
        return None
    return find_serving(executions, stopped.uid) or find_ready_abort(executions, status.grant.subarray)


def describe_end(execution: ScriptExecution) -> str:
    """Return the state of an execution with its message, for people."""
    status = execution.status
    return f"{status.state}: {status.message}" if status.message else str(status.state)
