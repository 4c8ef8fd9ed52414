"""What an abort runs, and what one execution has to do with aborts: its own, or those that it is held for. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from oet_crds.aborts import build_abort_source, find_ready_abort, is_armed, is_given_up
from oet_crds.conditions import find_condition
from oet_crds.execution import ExecutionArgs, FunctionArgs, ScriptExecution, ScriptExecutionSpec, WhenBusy
from oet_crds.history import has_begun, with_runner_transitions
from oet_crds.reasons import Reason
from oet_crds.settings import EngineSettings
from oet_crds.specs import compute_subarray
from oet_crds.states import ConditionType, DesiredState, Mode, Purpose, State
from oet_crds.subarrays import SUBARRAY_KEY

__all__ = [
    "HANDOVER_SECONDS",
    "LINGER_SECONDS",
    "REARM_SECONDS",
    "AbortEnd",
    "AbortView",
    "Serving",
    "build_abort_spec",
    "build_abort_view",
    "find_arming_problem",
    "is_in_use",
    "is_outcome_open",
]

LINGER_SECONDS = 60.0
"""An abort script is held so long after the last script on its subarray: observations follow each other within a minute, and
preparing it costs as much as a script."""

REARM_SECONDS = 60.0
"""One that failed is kept so long, and no other prepared meanwhile: what failed now most often fails again at once."""


HANDOVER_SECONDS = 3.0
"""An abort script that is held begins within 0.1 s of being told to; on a busy machine within 1 s. One that has not after so long
is taken for deaf: another one is started, which takes 2 s, before `ABORT_BEGIN_SECONDS` are over."""


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
class Serving:
    """The execution that aborts for another one.

    Attributes:
        procedure_id: Its number.
        has_begun: Its `main` was seen to begin.
        is_given_up: It was held and did not begin when it was told to: it is being ended, or has ended.
        handed_at: When it was told to begin, having been held; None: it was started for this.
        words: How it is, for people.
    """

    procedure_id: int
    has_begun: bool = False
    is_given_up: bool = False
    handed_at: datetime | None = None
    words: str = ""


@dataclass(frozen=True, slots=True)
class AbortView:
    """What matters to one execution of aborts.

    Attributes:
        is_prearmed: Abort scripts are to be held READY.
        serving: The execution that aborts for this one; None: none does so far.
        end: How that ended; None: it has not.
        unclaimed_since: Of an abort script that was held: when it was told to begin, while the stopped execution does not count
            on it, or not any more; None: it does, or it was not told.
        armed: The execution that is held READY for its subarray; None: none is.
        has_resident: One is held for it, is being prepared, or has failed a short while ago.
        is_needed: Of an abort script that is held: a script uses its subarray, and no other is held for it.
    """

    is_prearmed: bool = False
    serving: Serving | None = None
    end: AbortEnd | None = None
    unclaimed_since: datetime | None = None
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


def find_arming_problem(settings: EngineSettings, *, is_shipped: bool, has_tango: bool) -> str:
    """Return why the deployment's abort script cannot work, so that none is held READY; empty: it may. Pure.

    Args:
        settings: Say which script.
        is_shipped: Whether the folder of scripts holds those that ship with OET.
        has_tango: Whether scripts are told of a Tango database, as far as can be seen from here.
    """
    if has_tango or settings.abort_script or not is_shipped:
        return ""
    return (
        "prearm_abort has no effect: the abort script that ships with OET needs Tango, and TANGO_HOST is not set for scripts; "
        "set it, or name another script in [engine] abort_script"
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
    aborted = find_condition(execution.status, ConditionType.ABORTED)
    return execution.status.abort is not None and (aborted is None or aborted.reason == Reason.ABORT_NOT_BEGUN)


def build_abort_view(
    execution: ScriptExecution,
    sharing: Collection[ScriptExecution],
    *,
    is_prearmed: bool,
    serving: ScriptExecution | None = None,
    target: ScriptExecution | None = None,
) -> AbortView:
    """Build what an execution has to do with aborts.

    Args:
        execution: Whose.
        sharing: The executions that share its subarray, or all; those that are over may be missing, but for armed ones.
        is_prearmed: `[engine] prearm_abort`.
        serving: The execution that aborts for it; None: there is none.
        target: The stopped execution that it aborts for; None: there is none.
    """
    end = None
    if serving is not None and serving.is_finished:
        end = AbortEnd(serving.status.state, serving.status.message or "")
    elif serving is None and execution.status.abort is not None:
        end = AbortEnd(None, "")
    by = _build_serving(execution, serving) if serving and serving.procedure_id else None
    subarray = compute_subarray(execution.spec)
    if subarray is None:
        return AbortView(is_prearmed, by, end)
    # As it is seen: it may have its number already, and be stored without.
    others = [one for one in sharing if one.uid != execution.uid and compute_subarray(one.spec) == subarray]
    here = [execution, *others]
    residents = [one for one in here if is_armed(one)]
    is_used = is_prearmed and any(is_in_use(one) for one in here)
    first = min((one.procedure_id for one in residents if _may_serve(one) and one.procedure_id), default=None)
    return AbortView(
        is_prearmed,
        by,
        end,
        _find_handover(target, execution) if target is not None and not _is_claimed(target, execution) else None,
        find_ready_abort(here, subarray),
        bool(residents),
        is_used and first == execution.procedure_id,
    )


def _build_serving(stopped: ScriptExecution, serving: ScriptExecution) -> Serving:
    assert serving.procedure_id is not None
    # As its runner reported it, which need not be copied yet.
    status = with_runner_transitions(serving.status)
    why = ": ".join(text for text in (status.reason, status.message) if text)
    words = f"{status.state} ({why})" if why else str(status.state)
    return Serving(
        serving.procedure_id, has_begun(status), is_given_up(serving), _find_handover(stopped, serving), words
    )


def _is_claimed(stopped: ScriptExecution, serving: ScriptExecution) -> bool:
    """Tell whether a stopped execution counts on this one to abort, and not on another."""
    return stopped.status.abort is not None and stopped.status.abort.procedure_id == serving.procedure_id


def _find_handover(stopped: ScriptExecution, serving: ScriptExecution) -> datetime | None:
    """Return when an abort script that was held was told to begin; None when it was not held, or that is not noted yet."""
    grant, history = serving.status.grant, stopped.status.history
    if grant is None or grant.standing is not False or not stopped.is_finished or not history:
        return None
    # It waits for the subarray until the script's end is confirmed.
    return max(grant.time, history[-1].time)


def _may_serve(execution: ScriptExecution) -> bool:
    """Tell whether an armed execution is not about to end."""
    return (
        not execution.is_finished
        and execution.spec.desired_state is DesiredState.READY
        and find_condition(execution.status, ConditionType.STOPPING) is None
    )
