"""What a decision is made from: everything observed, and the time."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from oet_crds.execution import ScriptExecution
from oet_crds.reasons import Reason
from oet_operator.core.aborts import AbortView
from oet_operator.core.locks import LockTable

__all__ = ["Presence", "RunnerObservation", "Snapshot"]


class Presence(Enum):
    """Whether an execution's runner is there."""

    NONE = "none"
    """Never created, or not seen yet."""
    REFUSED = "refused"
    """Its creation was refused, for now: none is there, and it is tried again. Should one come all the same, it begins nothing
    that its execution's status does not allow then."""
    PENDING = "pending"
    """Created; nothing of the script ever ran in it, and nothing will unless this execution's status allows it then."""
    STUCK = "stuck"
    """Refused, or created in vain: nothing of the script ever ran, nor will."""
    STARTING = "starting"
    """Created; it has not reported anything yet."""
    ALIVE = "alive"
    """It runs."""
    GONE = "gone"
    """Every process of the script is known to be gone."""
    LOST = "lost"
    """It cannot be known whether the script's processes run."""


@dataclass(frozen=True, slots=True)
class RunnerObservation:
    """An execution's runner as the shell sees it.

    Attributes:
        presence: Whether it is there.
        reason: Why it is gone, lost, stuck or still pending, or is being ended; None when the shell does not know.
        message: The same in words; may be empty.
        awaits_word: It ended, or says that it was told to; why is yet to be seen.
        is_lingering: What it ran in goes on without it, for what others have put there.
        image: The image that it runs, by its digest; None: not known.
    """

    presence: Presence
    reason: Reason | None = None
    message: str = ""
    awaits_word: bool = False
    is_lingering: bool = False
    image: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One execution and what matters to it, at one moment.

    Attributes:
        execution: The execution as stored; `status.runner` holds what its runner reported.
        runner: Its runner as observed.
        locks: Who holds which subarray, and who waits for it.
        now: The time, aware, UTC.
        aborts: What it has to do with aborts.
        ready_limit_seconds: `[engine] ready_limit_seconds`; 0: none.
    """

    execution: ScriptExecution
    runner: RunnerObservation
    locks: LockTable
    now: datetime
    aborts: AbortView = field(default_factory=AbortView)
    ready_limit_seconds: float = 0.0
