"""What is told of an execution that is too large for the API server's store."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from oet_crds.conditions import with_condition
from oet_crds.execution import (
    HistoryEntry,
    InlineScript,
    Metadata,
    RunnerStatus,
    ScriptExecution,
    ScriptExecutionSpec,
    ScriptExecutionStatus,
    ScriptSource,
)
from oet_crds.reasons import Reason
from oet_crds.states import ConditionType, State
from oet_operator.kube.sizes import MAX_OBJECT_BYTES, compute_size, describe_excess, iter_shorter

NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)


def _execution(*, claimed: bool, **status: Any) -> ScriptExecution:
    history = [HistoryEntry(seq=number, state=State.CREATING, time=NOW) for number in range(1, 40)]
    runner = RunnerStatus(claim="me") if claimed else None
    return ScriptExecution(
        metadata=Metadata(name="e", uid="u", creation_timestamp=NOW),
        spec=ScriptExecutionSpec(script=ScriptSource(inline=InlineScript(source="def main(): pass"))),
        status=ScriptExecutionStatus(procedure_id=1, history=history, runner=runner, **status),
    )


def test_size_counts_what_the_api_server_escapes() -> None:
    assert compute_size({"a": "<b>&"}) == len('{"a":"<b>&"}') + 15


@pytest.mark.parametrize(("more", "is_too_large"), [(0, False), (1, True)])
def test_room_for_the_status_ends_at_a_byte(more: int, is_too_large: bool) -> None:
    text = "x" * (MAX_OBJECT_BYTES - len('{"a":""}') + more)
    words = describe_excess({"a": text})
    assert bool(words) is is_too_large
    assert not words or f"{MAX_OBJECT_BYTES + 1:,} bytes" in words


@pytest.mark.parametrize("claimed", [True, False])
@pytest.mark.parametrize("state", [State.CREATING, State.FAILED])
def test_each_next_try_is_shorter_and_what_may_have_run_is_not_said_to_have_failed(state: State, claimed: bool) -> None:
    execution = _execution(claimed=claimed)
    status = execution.status.model_copy(
        update={"state": state, "message": "m" * 5000, "stacktrace": "s" * 5000, "script": "inline"}
    )
    status = with_condition(status, ConditionType.READY, True, "Prepared", NOW)
    tries = list(iter_shorter(execution, status))
    sizes = [len(orjson.dumps(one.to_wire())) for one in tries]
    assert sizes == sorted(sizes, reverse=True)
    assert len(tries) == 3 if state is State.CREATING and not claimed else 2
    begins_anew = state is State.CREATING and not claimed
    assert tries[-1].state is (State.FAILED if begins_anew else state)
    assert not begins_anew or tries[-1].reason is Reason.INVALID_SPEC
    assert tries[-1].procedure_id == 1
    assert tries[-1].message
    assert sizes[-1] < 1000


def test_execution_without_history_is_only_told_in_fewer_words() -> None:
    execution = _execution(claimed=False)
    status = execution.status.model_copy(update={"history": []})
    assert [one.state for one in iter_shorter(execution, status)] == [State.CREATING, State.CREATING]
