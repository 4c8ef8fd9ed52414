"""Building executions and snapshots in a few words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from oet_crds.execution import (
    Grant,
    HistoryEntry,
    InlineScript,
    Metadata,
    RunnerExit,
    RunnerStatus,
    ScriptExecution,
    ScriptExecutionSpec,
    ScriptExecutionStatus,
    ScriptSource,
)
from oet_crds.reasons import Outcome, Reason
from oet_crds.states import DesiredState, State
from oet_operator.core.actions import Plan
from oet_operator.core.decide import decide
from oet_operator.core.locks import build_lock_table
from oet_operator.core.snapshot import Presence, RunnerObservation, Snapshot

NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
PATH = [State.IDLE, State.LOADING, State.IDLE, State.INITIALISING, State.READY, State.RUNNING, State.READY]
SOURCE = ScriptSource(inline=InlineScript(source="def main(): pass"))


class Builder:
    """Makes executions as they are in the middle of their life."""

    now = NOW

    def execution(self, reached: State = State.CREATING, number: int = 1, **fields: Any) -> ScriptExecution:
        """Build an execution whose runner has reported every state up to the first `reached`; fields of spec and status."""
        own = ScriptExecutionStatus.model_fields.keys() - ScriptExecutionSpec.model_fields.keys()
        status = {key: fields.pop(key) for key in list(fields) if key in own}
        age_seconds = fields.pop("age_seconds", 10)
        deleted = fields.pop("deleted", False)
        fields.setdefault("desired_state", DesiredState.READY)
        created = NOW - timedelta(seconds=age_seconds)
        states = [] if reached is State.CREATING else PATH[: PATH.index(reached) + 1]
        history = [HistoryEntry(seq=1, state=State.CREATING, time=created)]
        history += [HistoryEntry(seq=at + 2, state=state, time=created) for at, state in enumerate(states)]
        transitions = [HistoryEntry(seq=at + 1, state=state, time=created) for at, state in enumerate(states)]
        if states:
            status.setdefault("pod_name", f"procedure-{number}")
            status.setdefault("runner", RunnerStatus(transitions=transitions))
        state = status.pop("state", states[-1] if states else State.CREATING)
        if state is not history[-1].state:
            history.append(HistoryEntry(seq=len(history) + 1, state=state, time=created))
        metadata = Metadata(
            name=f"procedure-{number}",
            uid=f"uid-{number}",
            creation_timestamp=created,
            deletion_timestamp=NOW if deleted else None,
        )
        return ScriptExecution(
            metadata=metadata,
            spec=ScriptExecutionSpec(script=SOURCE, **fields),
            status=ScriptExecutionStatus(procedure_id=number, state=state, history=history, **status),
        )

    def exit(self, outcome: Outcome, reason: Reason = Reason.COMPLETED, **fields: Any) -> RunnerExit:
        """Build the report of an end."""
        return RunnerExit(outcome=outcome, reason=reason, message="as the runner says", time=NOW, **fields)

    def grant(self, subarray: int | None = 1) -> Grant:
        """Build a grant."""
        return Grant(time=NOW, subarray=subarray)

    def decide(
        self,
        execution: ScriptExecution,
        presence: Presence = Presence.ALIVE,
        others: tuple[ScriptExecution, ...] = (),
        **fields: Any,
    ) -> Plan:
        """Decide, and check that deciding again on what came out changes nothing."""
        now = fields.pop("now", NOW)
        rest = {"ready_limit_seconds": fields.pop("ready_limit_seconds", 0.0)}
        runner = RunnerObservation(presence, **fields)
        plan = decide(Snapshot(execution, runner, build_lock_table([execution, *others]), now, **rest))
        after = execution.model_copy(update={"status": plan.status})
        again = decide(Snapshot(after, runner, build_lock_table([after, *others]), now, **rest))
        assert again.status is plan.status
        return plan


@pytest.fixture
def make() -> Builder:
    """Makes executions and decisions."""
    return Builder()
