"""Who holds which subarray, and who is next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from oet_crds.aborts import find_target, is_armed
from oet_crds.conditions import find_condition
from oet_crds.ends import is_holding_unknown
from oet_crds.execution import ScriptExecution, WhenBusy
from oet_crds.reasons import Reason
from oet_crds.specs import compute_subarray
from oet_crds.states import ConditionType, DesiredState, Mode, State, is_final

__all__ = [
    "Holder",
    "Leftover",
    "LockTable",
    "build_lock_table",
    "is_abort_due",
    "is_holding",
    "may_begin",
    "wants_grant",
]


@dataclass(frozen=True, slots=True)
class Leftover:
    """A runner that may still run although its execution was deleted: it goes on to hold the subarray.

    Attributes:
        uid: The execution's.
        procedure_id: The execution's; 0 when it is not known.
        subarray: What it holds.
        is_guess: It is not known which subarrays it may use, so it holds every one.
    """

    uid: str
    procedure_id: int
    subarray: int
    is_guess: bool = False


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a subarray.

    Attributes:
        procedure_id: The execution's; 0 when it is not known.
        state: The execution's; None: it was deleted, and its runner may still run.
        is_guess: It is not known which subarrays that may use.
    """

    procedure_id: int
    state: State | None
    is_guess: bool = False

    def describe(self, subarray: int) -> str:
        """Say why a subarray cannot be had, and what to do where nothing happens by itself."""
        who = f"PID #{self.procedure_id}" if self.procedure_id else "a procedure"
        if self.is_guess:
            return (
                f"{who} was deleted, and its Pod may still run, on which subarray is not known: "
                f"subarray {subarray} is kept until that is gone"
            )
        if self.state is None:
            return (
                f"{who} was deleted, and its Pod may still run on subarray {subarray}, which is kept until that is gone"
                " (when it is certain that it does not run: kubectl delete pod --force)"
            )
        if self.state is State.UNKNOWN:
            return (
                f"{who} is UNKNOWN and may still run on subarray {subarray}: when it is certain that it does not, release it "
                f"(oet procedure release --pid={self.procedure_id} --reason=...)"
            )
        if is_final(self.state):
            return f"{who} is {self.state} and its abort is about to run on subarray {subarray}"
        # The existing OET's words, whatever the holder is doing between its grant and its end.
        return f"{who} is RUNNING on subarray {subarray}"


@dataclass(frozen=True, slots=True)
class LockTable:
    """The subarrays in use.

    Attributes:
        holders: Executions that hold a subarray: subarray -> holder by uid. More than one by a crash or a defect, or where an
            abort runs beside what is UNKNOWN; nobody else gets it until all are done.
        queues: Executions that wait for a subarray, first in line first: subarray -> uids.
    """

    holders: Mapping[int, Mapping[str, Holder]] = field(default_factory=dict)
    queues: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def find_holder(self, subarray: int, besides: str, *, for_abort: bool = False) -> Holder | None:
        """Return a holder other than the execution `besides`, None when there is none.

        Args:
            subarray: Which subarray.
            besides: Uid of who asks.
            for_abort: An abort asks: what is UNKNOWN does not keep it off, for that may be why it is to run.
        """
        others = (one for uid, one in self.holders.get(subarray, {}).items() if uid != besides)
        return next((one for one in others if not (for_abort and one.state is State.UNKNOWN)), None)

    def is_first(self, subarray: int, uid: str) -> bool:
        """Tell whether nobody waits for the subarray before this execution."""
        queue = self.queues.get(subarray, ())
        return not queue or queue[0] == uid


def is_abort_due(execution: ScriptExecution) -> bool:
    """Tell whether an abort was asked for with the stop and its execution does not exist yet.

    Never after a rehearsal: what it did to its simulated telescope is gone with that, and the real one has nothing to abort.
    """
    spec = execution.spec
    is_asked = spec.desired_state is DesiredState.STOPPED and spec.stop.abort and spec.mode is not Mode.REHEARSAL
    aborted = find_condition(execution.status, ConditionType.ABORTED)
    is_impossible = aborted is not None and aborted.reason == Reason.NOTHING_TO_ABORT
    # Of an abort script that was held nothing has begun.
    return is_asked and execution.status.abort is None and not is_impossible and not is_armed(execution)


def may_begin(execution: ScriptExecution) -> bool:
    """Tell whether a runner may begin `main`: a grant is there, and a standing one is made use of."""
    grant = execution.status.grant
    return grant is not None and (not grant.standing or find_target(execution) is not None)


def is_holding(execution: ScriptExecution) -> bool:
    """Tell whether an execution holds the subarray of its grant.

    From the grant to the end, and beyond it until the abort execution has taken over, so that nobody slips in between; or, where
    the end is not known, until it is confirmed or a person releases it. A standing grant counts from its use on.
    """
    is_open = not execution.is_finished or is_abort_due(execution) or is_holding_unknown(execution)
    return may_begin(execution) and is_open


def wants_grant(execution: ScriptExecution) -> bool:
    """Tell whether an execution is prepared and may start as soon as it is granted."""
    spec, status = execution.spec, execution.status
    return (
        status.state is State.READY
        and status.grant is None
        and spec.desired_state is DesiredState.RUNNING
        and not is_refused(execution)
    )


def is_refused(execution: ScriptExecution) -> bool:
    """Tell whether this very start was refused: it does not happen later by itself."""
    refusal = execution.status.refusal
    return (
        execution.spec.when_busy is WhenBusy.REJECT
        and refusal is not None
        and refusal.generation == execution.metadata.generation
    )


def build_lock_table(executions: Iterable[ScriptExecution], leftovers: Iterable[Leftover] = ()) -> LockTable:
    """Build the lock table from all executions that share a subarray, or from all there are. Pure.

    Who waits is served in the order of procedure ids: the order of creation.
    """
    holders: dict[int, dict[str, Holder]] = {}
    for leftover in leftovers:
        holders.setdefault(leftover.subarray, {})[leftover.uid] = Holder(leftover.procedure_id, None, leftover.is_guess)
    waiting: dict[int, list[tuple[int, str]]] = {}
    for execution in executions:
        grant = execution.status.grant
        if grant is not None and grant.subarray is not None and is_holding(execution):
            holder = Holder(execution.procedure_id or 0, execution.status.state)
            holders.setdefault(grant.subarray, {})[execution.uid] = holder
        elif wants_grant(execution) and (subarray := compute_subarray(execution.spec)) is not None:
            waiting.setdefault(subarray, []).append((execution.procedure_id or 0, execution.uid))
    queues = {subarray: tuple(uid for _, uid in sorted(queue)) for subarray, queue in waiting.items()}
    return LockTable(holders, queues)
