"""What a request to start or stop means for an execution as it is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from oet_api.decisions import (
    Join,
    compute_subarrays,
    decide_abort,
    decide_start,
    describe_end,
    is_start_settled,
    parse_lockable_subarray,
)
from oet_crds.errors import InvalidTransitionError
from oet_crds.execution import (
    ExecutionArgs,
    FunctionArgs,
    Grant,
    InlineScript,
    Metadata,
    Refusal,
    ScriptExecution,
    ScriptExecutionSpec,
    ScriptExecutionStatus,
    ScriptSource,
    WhenBusy,
)
from oet_crds.states import ACTIVE_STATES, FINAL_STATES, DesiredState, State

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GRANT = Grant(time=NOW, subarray=3)


def _execution(
    state: State, desired: DesiredState, status: dict[str, Any] | None = None, **spec: Any
) -> ScriptExecution:
    spec.setdefault("when_busy", WhenBusy.REJECT)
    return ScriptExecution(
        metadata=Metadata(name="a", uid="u", generation=4, creation_timestamp=NOW),
        spec=ScriptExecutionSpec(
            script=ScriptSource(inline=InlineScript(source="pass")), desired_state=desired, **spec
        ),
        status=ScriptExecutionStatus(state=state, procedure_id=7, **(status or {})),
    )


def _args(init: dict[str, Any] | None = None, main: dict[str, Any] | None = None) -> ExecutionArgs:
    calls = [None if kwargs is None else FunctionArgs(kwargs=kwargs) for kwargs in (init, main)]
    return ExecutionArgs(init=calls[0], main=calls[1])


READY, RUNNING, STOPPED = DesiredState.READY, DesiredState.RUNNING, DesiredState.STOPPED


@pytest.mark.parametrize(
    ("execution", "join"),
    [
        pytest.param(_execution(State.READY, READY), Join.ASKED, id="ready"),
        pytest.param(_execution(State.READY, RUNNING), Join.JOINED, id="asked-by-another"),
        pytest.param(_execution(State.READY, RUNNING, {"grant": GRANT}), Join.NONE, id="granted"),
        pytest.param(_execution(State.RUNNING, RUNNING, {"grant": GRANT}), Join.NONE, id="running"),
        pytest.param(_execution(State.READY, RUNNING, when_busy=WhenBusy.WAIT), Join.NONE, id="waits-by-wish"),
        pytest.param(_execution(State.LOADING, RUNNING), Join.NONE, id="runs-when-loaded"),
    ],
)
def test_start_is_asked_or_joined(execution: ScriptExecution, join: Join) -> None:
    assert decide_start(execution, None) is join


@pytest.mark.parametrize("state", sorted(ACTIVE_STATES - {State.READY}))
def test_start_before_ready_is_refused_with_the_way_out(state: State) -> None:
    with pytest.raises(InvalidTransitionError, match=f"Procedure 7 is {state}; start it when it is READY"):
        decide_start(_execution(state, READY), None)


@pytest.mark.parametrize("desired", DesiredState)
@pytest.mark.parametrize("state", sorted(FINAL_STATES))
def test_start_of_a_finished_procedure_is_refused(state: State, desired: DesiredState) -> None:
    with pytest.raises(InvalidTransitionError, match=f"it is {state}"):
        decide_start(_execution(state, desired), None)


def test_start_of_a_procedure_being_stopped_is_refused() -> None:
    with pytest.raises(InvalidTransitionError, match="being stopped"):
        decide_start(_execution(State.READY, STOPPED), None)


@pytest.mark.parametrize(
    ("recorded", "given", "is_same"),
    [
        pytest.param(None, None, True, id="none-none"),
        pytest.param(None, {}, True, id="none-empty"),
        pytest.param({"a": 1}, None, True, id="some-none"),
        pytest.param({"a": 1}, {"a": 1}, True, id="same"),
        pytest.param({"a": 1}, {"a": 2}, False, id="other"),
        pytest.param(None, {"a": 2}, False, id="none-some"),
    ],
)
def test_second_start_with_other_arguments_is_refused(
    recorded: dict[str, Any] | None, given: dict[str, Any] | None, is_same: bool
) -> None:
    execution = _execution(State.RUNNING, RUNNING, {"grant": GRANT}, args=_args(main=recorded))
    main = None if given is None else FunctionArgs(kwargs=given)
    if is_same:
        assert decide_start(execution, main) is Join.NONE
    else:
        with pytest.raises(InvalidTransitionError, match="other arguments"):
            decide_start(execution, main)


def _refusal(generation: int) -> dict[str, Any]:
    return {"refusal": Refusal(generation=generation, holder=9, message="busy", time=NOW)}


@pytest.mark.parametrize(
    ("execution", "is_settled"),
    [
        pytest.param(_execution(State.READY, RUNNING), False, id="open"),
        pytest.param(_execution(State.READY, RUNNING, {"grant": GRANT}), True, id="granted"),
        pytest.param(_execution(State.READY, RUNNING, _refusal(4)), True, id="refused"),
        pytest.param(_execution(State.READY, RUNNING, _refusal(3)), False, id="earlier-start-refused"),
        pytest.param(_execution(State.FAILED, RUNNING), True, id="ended"),
        pytest.param(_execution(State.READY, STOPPED), True, id="being-stopped"),
    ],
)
def test_start_is_settled_by_a_word_of_the_engine(execution: ScriptExecution, is_settled: bool) -> None:
    assert is_start_settled(4)(execution) is is_settled


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1), (0, 0), (65535, 65535), (1.0, 1), ("1", 1), (" 2 ", 2),
        (65536, None), (-1, None), (1.5, None), ("one", None), ("", None), ("9" * 50, None), (True, None),
        (None, None), ([1], None), ({}, None), (float("nan"), None), (float("inf"), None), ("\u0663", None), (10**400, None),
    ],
)  # fmt: skip
def test_subarray_is_a_small_number_or_none(value: object, number: int | None) -> None:
    assert parse_lockable_subarray(value) == number


@pytest.mark.parametrize(
    ("execution", "subarrays"),
    [
        pytest.param(
            _execution(State.RUNNING, RUNNING, {"grant": GRANT}, args=_args({"subarray_id": 1})), [3], id="held"
        ),
        pytest.param(_execution(State.READY, READY, subarray=2, args=_args({"subarray_id": 1})), [2], id="spec"),
        pytest.param(
            _execution(State.READY, READY, args=_args({"subarray_id": 1}, {"subarray_id": "1"})), [1], id="same"
        ),
        pytest.param(
            _execution(State.READY, READY, args=_args({"subarray_id": 5}, {"subarray_id": 1})), [5, 1], id="two"
        ),
        pytest.param(_execution(State.READY, READY), [], id="none"),
    ],
)
def test_subarrays_of_an_execution_are_known(execution: ScriptExecution, subarrays: list[int]) -> None:
    assert compute_subarrays(execution) == subarrays
    if len(subarrays) == 1:
        assert decide_abort(execution) == subarrays[0]
    else:
        with pytest.raises(InvalidTransitionError, match="stop it without abort"):
            decide_abort(execution)


def test_end_is_described_with_its_message() -> None:
    assert describe_end(_execution(State.FAILED, READY, {"message": "no file"})) == "FAILED: no file"
    assert describe_end(_execution(State.COMPLETE, READY)) == "COMPLETE"
