"""What an abort runs, and what one execution has to do with aborts: its own, or those that it is held for. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from oet_crds.aborts import build_abort_source, find_ready_abort, is_armed
from oet_crds.conditions import find_condition
from oet_crds.execution import ExecutionArgs, FunctionArgs, ScriptExecution, ScriptExecutionSpec, WhenBusy
from oet_crds.settings import EngineSettings
from oet_crds.specs import compute_subarray
from oet_crds.states import ConditionType, DesiredState, Mode, Purpose, State
from oet_crds.subarrays import SUBARRAY_KEY

__all__ = [
    "LINGER_SECONDS",
    "REARM_SECONDS",
    "AbortEnd",
    "AbortView",
    "build_abort_spec",
    "build_abort_view",
    "is_in_use",
    "is_outcome_open",
]

LINGER_SECONDS = 60.0
"""An abort script is held so long after the last script on its subarray: observations follow each other within a minute, and
preparing it costs as much as a script."""

REARM_SECONDS = 60.0
"""One that failed is kept so long, and no other prepared meanwhile: what failed now most often fails again at once."""


@dataclass(frozen=True, slots=True)
class AbortEnd:
    """How an abort script ended.

    Attributes:
        state: Its final state; None: its execution was removed before that was known.
        message: In words; may be empty.
    """

    state: State | None
    message: str


@dataclass(frozen=True, slots=True)
class AbortView:
    """What matters to one execution of aborts.

    Attributes:
        is_prearmed: Abort scripts are to be held READY.
        serving: Procedure id of the execution that aborts for this one; None: none does so far.
        end: How that ended; None: it has not.
        armed: The execution that is held READY for its subarray; None: none is.
        has_resident: One is held for it, is being prepared, or has failed a short while ago.
        is_needed: Of an abort script that is held: a script uses its subarray, and no other is held for it.
    """

    is_prearmed: bool = False
    serving: int | None = None
    end: AbortEnd | None = None
    armed: ScriptExecution | None = None
    has_resident: bool = False
    is_needed: bool = False


def build_abort_spec(
    settings: EngineSettings, scripts_location: str, subarray: int, abort_of: str | None = None
) -> ScriptExecutionSpec:
    """Build the request that runs the abort script on a subarray, or has it held READY.

    Args:
        settings: Say which script.
        scripts_location: Folder of the shipped scripts, as the runner sees it.
        subarray: What to abort.
        abort_of: Uid of the stopped execution; None: it is held for one.
    """
    return ScriptExecutionSpec(
        script=build_abort_source(settings.abort_script, scripts_location),
        args=ExecutionArgs(init=FunctionArgs(kwargs={SUBARRAY_KEY: subarray})),
        purpose=Purpose.ABORT,
        abort_of=abort_of,
        subarray=subarray,
        desired_state=DesiredState.READY if abort_of is None else DesiredState.RUNNING,
        when_busy=WhenBusy.WAIT,
    )


def is_in_use(execution: ScriptExecution) -> bool:
    """Tell whether a script is prepared on a subarray or runs there, so that an abort may be asked for."""
    spec = execution.spec
    return (
        spec.purpose is Purpose.SCRIPT
        and spec.mode is Mode.OPERATION
        and execution.status.state in (State.READY, State.RUNNING)
        and compute_subarray(spec) is not None
    )


def is_outcome_open(execution: ScriptExecution) -> bool:
    """Tell whether an execution has an abort of which it is not recorded yet how it ended."""
    return execution.status.abort is not None and find_condition(execution.status, ConditionType.ABORTED) is None


def build_abort_view(
    execution: ScriptExecution,
    sharing: Collection[ScriptExecution],
    *,
    is_prearmed: bool,
    serving: ScriptExecution | None = None,
) -> AbortView:
    """Build what an execution has to do with aborts.

    Args:
        execution: Whose.
        sharing: The executions that share its subarray, or all; those that are over may be missing, but for armed ones.
        is_prearmed: `[engine] prearm_abort`.
        serving: The execution that aborts for it; None: there is none.
    """
    end = None
    if serving is not None and serving.is_finished:
        end = AbortEnd(serving.status.state, serving.status.message or "")
    elif serving is None and execution.status.abort is not None:
        end = AbortEnd(None, "")
    number = serving.procedure_id if serving else None
    subarray = compute_subarray(execution.spec)
    if subarray is None:
        return AbortView(is_prearmed, number, end)
    # As it is seen: it may have its number already, and be stored without.
    others = [one for one in sharing if one.uid != execution.uid and compute_subarray(one.spec) == subarray]
    here = [execution, *others]
    residents = [one for one in here if is_armed(one)]
    is_used = is_prearmed and any(is_in_use(one) for one in here)
    first = min((one.procedure_id for one in residents if _may_serve(one) and one.procedure_id), default=None)
    return AbortView(
        is_prearmed,
        number,
        end,
        find_ready_abort(here, subarray),
        bool(residents),
        is_used and first == execution.procedure_id,
    )


def _may_serve(execution: ScriptExecution) -> bool:
    """Tell whether an armed execution is not about to end."""
    return (
        not execution.is_finished
        and execution.spec.desired_state is DesiredState.READY
        and find_condition(execution.status, ConditionType.STOPPING) is None
    )
