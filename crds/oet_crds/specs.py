"""What a spec means, and which changes of it are allowed."""

from __future__ import annotations

from typing import Any

from oet_crds.conditions import find_condition
from oet_crds.ends import is_holding_unknown
from oet_crds.errors import InvalidTransitionError
from oet_crds.execution import ExecutionArgs, ScriptExecution, ScriptExecutionSpec, ScriptSource
from oet_crds.git import mask_credentials
from oet_crds.names import RELEASE_ANNOTATION
from oet_crds.ports import SpecChange
from oet_crds.states import ConditionType, DesiredState, Mode, Purpose, State
from oet_crds.subarrays import SUBARRAY_KEY, parse_subarray

__all__ = ["compute_subarray", "describe_script", "validate_change", "validate_release", "validate_subarray"]


_RUN_AGAIN = "to run the script again, create another one"


def _list_arguments(spec: ScriptExecutionSpec) -> list[Any]:
    calls = [call for call in (spec.args.init, spec.args.main) if call]
    return [call.kwargs[SUBARRAY_KEY] for call in calls if call.kwargs.get(SUBARRAY_KEY) is not None]


def describe_script(source: ScriptSource) -> str:
    """Say in one line where a script is. Pure."""
    if source.file:
        return source.file.path
    if source.config_map:
        return f"configmap/{source.config_map.name}:{source.config_map.key}"
    if source.git:
        at = source.git.commit or source.git.branch
        return f"{mask_credentials(source.git.repository)}{f'@{at}' if at else ''}:{source.git.path}"
    return "inline"


def compute_subarray(spec: ScriptExecutionSpec) -> int | None:
    """Return the subarray that an execution must hold while it runs, None when it needs none: a rehearsal never does.

    `spec.subarray`, else `subarray_id` of `init`'s keyword arguments, else of `main`'s.
    """
    return None if spec.mode is Mode.REHEARSAL else _find_named(spec)


def _find_named(spec: ScriptExecutionSpec) -> int | None:
    if spec.subarray is not None:
        return spec.subarray
    return next((parse_subarray(value) for value in _list_arguments(spec)), None)


def validate_subarray(spec: ScriptExecutionSpec) -> str | None:
    """Say what is wrong with the subarray that a spec names; None when nothing is.

    A subarray that is named but cannot be locked, or two different ones, are dangerous: the lock would not hold what the
    script uses.
    """
    for value in _list_arguments(spec):
        number = parse_subarray(value)
        if number is None:
            return f"{SUBARRAY_KEY} must be a whole number, not {value!r}"
        named = _find_named(spec)
        if number != named:
            return f"{SUBARRAY_KEY} {number} differs from subarray {named}, which the execution names as well"
    return None


def validate_change(execution: ScriptExecution, change: SpecChange) -> ScriptExecutionSpec:
    """Return the spec as the change makes it; the rules are those of the CRD's validation.

    Raises:
        InvalidTransitionError: A rule forbids it; the text says which.
    """
    spec, state = execution.spec, execution.status.state
    desired = spec.desired_state if change.desired_state is None else change.desired_state
    name = f"Procedure {execution.procedure_id}"
    # What may still run can be stopped, and its subarray be aborted.
    is_over = execution.is_finished and not (is_holding_unknown(execution) and desired is DesiredState.STOPPED)
    if is_over and desired is not spec.desired_state:
        raise InvalidTransitionError(f"{name} is {state}: a finished procedure takes no change; {_RUN_AGAIN}", state)
    if spec.desired_state is DesiredState.STOPPED and desired is not DesiredState.STOPPED:
        raise InvalidTransitionError(f"{name} is being stopped, and a stop is final; {_RUN_AGAIN}", state)
    if desired is DesiredState.READY and execution.status.grant:
        raise InvalidTransitionError(f"{name} was started; it can only be stopped", state)
    if spec.purpose is Purpose.ABORT and desired is DesiredState.RUNNING and not (spec.abort_of or change.abort_of):
        raise InvalidTransitionError(f"{name} is an abort script: a stop with abort starts it, nothing else", state)
    if change.abort_of is not None and (
        spec.purpose is not Purpose.ABORT or spec.abort_of not in (None, change.abort_of)
    ):
        raise InvalidTransitionError(f"{name} cannot abort for {change.abort_of}: it is for something else", state)
    _check_abort(execution, change)
    args = spec.args
    if change.main is not None and change.main != args.main:
        if spec.desired_state is not DesiredState.READY:
            raise InvalidTransitionError(f"{name} was started with other arguments of main; {_RUN_AGAIN}", state)
        args = ExecutionArgs.model_construct(init=args.init, main=change.main)
    changed = spec.model_copy(
        update={
            "desired_state": desired,
            "args": args,
            "when_busy": change.when_busy or spec.when_busy,
            "stop": change.stop or spec.stop,
            "abort_of": change.abort_of or spec.abort_of,
        }
    )
    # Only what the change brings: a stop must get through whatever was stored before.
    if change.main is not None and (problem := validate_subarray(changed)):
        raise InvalidTransitionError(f"{name}: {problem}", state)
    return changed


def validate_release(execution: ScriptExecution) -> bool:
    """Tell whether an execution still is to be released by a person; False: it was released already.

    Raises:
        InvalidTransitionError: It cannot be released; the text says why.
    """
    status, name = execution.status, f"Procedure {execution.procedure_id}"
    if status.state is not State.UNKNOWN:
        raise InvalidTransitionError(
            f"{name} is {status.state}: only one that is {State.UNKNOWN} is released; stop one that runs", status.state
        )
    if is_holding_unknown(execution):
        return RELEASE_ANNOTATION not in execution.metadata.annotations
    if find_condition(status, ConditionType.RELEASED) is None:
        raise InvalidTransitionError(f"{name} holds no subarray, so there is nothing to release", status.state)
    return False


def _check_abort(execution: ScriptExecution, change: SpecChange) -> None:
    """Raise InvalidTransitionError for a stop with abort when nothing says which subarray to abort, and for one taken back."""
    spec = execution.spec
    is_asked = spec.desired_state is DesiredState.STOPPED and spec.stop.abort
    if is_asked and change.stop is not None and not change.stop.abort:
        name, state = f"Procedure {execution.procedure_id}", execution.status.state
        raise InvalidTransitionError(f"{name} was stopped with an abort, which cannot be taken back", state)
    is_new = change.desired_state is DesiredState.STOPPED and spec.desired_state is not DesiredState.STOPPED
    is_named = _find_named(spec) is not None
    if is_new and (change.stop or spec.stop).abort and spec.mode is not Mode.REHEARSAL and not is_named:
        raise InvalidTransitionError(
            f"Procedure {execution.procedure_id} names no subarray, so it is not clear what to abort. "
            "Nothing was stopped: stop it without abort",
            execution.status.state,
        )
