"""What a decision asks a shell to do, as values; the shell performs them in order, after it stored the status."""

from __future__ import annotations

from dataclasses import dataclass

from oet_crds.execution import ScriptExecution, ScriptExecutionStatus
from oet_crds.reasons import Reason

__all__ = [
    "Action",
    "ArmAbort",
    "CreateAbort",
    "CreatePod",
    "DeleteExecution",
    "DeletePod",
    "Plan",
    "StopRunner",
    "UseArmed",
]


@dataclass(frozen=True, slots=True)
class CreatePod:
    """Give the execution a runner under `status.podName`. Repeating it must not give a second one."""


@dataclass(frozen=True, slots=True)
class DeletePod:
    """Remove the runner; what still runs after the grace period is killed."""

    grace_period_seconds: float


@dataclass(frozen=True, slots=True)
class StopRunner:
    """Tell the runner to stop the script, although the user did not ask for it."""

    grace_period_seconds: float
    reason: Reason


@dataclass(frozen=True, slots=True)
class DeleteExecution:
    """Remove the finished execution: its time to live is over."""


@dataclass(frozen=True, slots=True)
class CreateAbort:
    """Create the abort execution and record it in `status.abort`, in one step.

    Attributes:
        subarray: The subarray to abort.
        inherit: Whether the abort execution gets the grant at once: the stopped execution holds the subarray until then.
    """

    subarray: int
    inherit: bool


@dataclass(frozen=True, slots=True)
class UseArmed:
    """Hand the subarray to the abort script that is held READY, which begins by it, and record it in `status.abort`.

    Only if nobody has changed the armed execution since it was seen: else it is decided again.

    Attributes:
        armed: The armed execution as seen.
        subarray: The subarray to abort.
    """

    armed: ScriptExecution
    subarray: int


@dataclass(frozen=True, slots=True)
class ArmAbort:
    """Have an abort script prepared and held READY for a subarray, unless one is there already.

    Attributes:
        subarray: The subarray.
    """

    subarray: int


Action = ArmAbort | CreatePod | DeletePod | StopRunner | DeleteExecution | CreateAbort | UseArmed


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome of a decision.

    Attributes:
        status: The status as it should be; the very object of the snapshot when nothing changes.
        actions: What to do, in order.
        requeue_after_seconds: When to decide again although nothing is observed; None: not needed.
    """

    status: ScriptExecutionStatus
    actions: tuple[Action, ...] = ()
    requeue_after_seconds: float | None = None
