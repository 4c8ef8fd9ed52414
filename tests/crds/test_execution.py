"""The models of the resource: what goes out comes in again, and nobody changes a value in place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from oet_crds import execution
from oet_crds.execution import (
    AbortStatus,
    Condition,
    ConfigMapScript,
    ExecutionArgs,
    FileScript,
    FunctionArgs,
    GitScript,
    Grant,
    HistoryEntry,
    InlineScript,
    Metadata,
    Refusal,
    Resolved,
    RunnerExit,
    RunnerStatus,
    ScriptExecution,
    ScriptExecutionSpec,
    ScriptExecutionStatus,
    ScriptSource,
    StopOptions,
    WhenBusy,
)
from oet_crds.reasons import Outcome, Reason
from oet_crds.states import FINAL_STATES, DesiredState, State

# Required fields are given by their names on the wire: hypothesis reads those off the models' signatures.
TEXT = st.text(min_size=1, max_size=8)
TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
NUMBERS = st.integers(1, 65535)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
CALLS = st.builds(FunctionArgs, args=st.lists(JSON, max_size=3), kwargs=st.dictionaries(TEXT, JSON, max_size=3))
SCRIPTS = st.one_of(
    st.builds(ScriptSource, file=st.builds(FileScript, path=TEXT)),
    st.builds(ScriptSource, git=st.builds(GitScript, repository=TEXT, path=TEXT, branch=st.none() | TEXT)),
    st.builds(ScriptSource, inline=st.builds(InlineScript, source=TEXT)),
    st.builds(ScriptSource, config_map=st.builds(ConfigMapScript, name=TEXT, key=TEXT)),
)
SPECS = st.builds(
    ScriptExecutionSpec,
    script=SCRIPTS,
    args=st.builds(ExecutionArgs, init=st.none() | CALLS, main=st.none() | CALLS),
    subarray=st.none() | NUMBERS,
    desired_state=st.sampled_from(DesiredState),
    when_busy=st.sampled_from(WhenBusy),
    stop=st.builds(StopOptions, grace_period_seconds=st.floats(0, 3600), abort=st.booleans()),
    active_deadline_seconds=st.none() | NUMBERS,
    image=st.none() | TEXT,
    pod_template=st.none() | st.dictionaries(TEXT, JSON, max_size=2),
)
ENTRIES = st.lists(st.builds(HistoryEntry, seq=NUMBERS, state=st.sampled_from(State), time=TIMES), max_size=3)
EXITS = st.builds(
    RunnerExit, outcome=st.sampled_from(Outcome), reason=st.sampled_from(Reason), message=TEXT, time=TIMES
)
STATUSES = st.builds(
    ScriptExecutionStatus,
    state=st.sampled_from(State),
    procedure_id=st.none() | NUMBERS,
    history=ENTRIES,
    grant=st.none() | st.builds(Grant, time=TIMES, subarray=st.none() | NUMBERS),
    refusal=st.none() | st.builds(Refusal, generation=NUMBERS, holder=NUMBERS, message=TEXT, time=TIMES),
    reason=st.none() | st.sampled_from(Reason),
    conditions=st.lists(
        st.builds(Condition, type=TEXT, status=TEXT, reason=TEXT, lastTransitionTime=TIMES), max_size=2
    ),
    resolved=st.none() | st.builds(Resolved, commit=TEXT),
    abort=st.none() | st.builds(AbortStatus, procedureId=NUMBERS),
    runner=st.none() | st.builds(RunnerStatus, transitions=ENTRIES, exit=st.none() | EXITS),
)
EXECUTIONS = st.builds(
    ScriptExecution,
    metadata=st.builds(Metadata, name=TEXT, uid=TEXT, creationTimestamp=TIMES, labels=st.dictionaries(TEXT, TEXT)),
    spec=SPECS,
    status=STATUSES,
)


def _find_models() -> list[type[BaseModel]]:
    found = [getattr(execution, name) for name in execution.__all__]
    return [model for model in found if isinstance(model, type) and issubclass(model, BaseModel)]


def _find_nulls(value: Any, path: str = "") -> Iterator[str]:
    """Return where a wire form has nulls, but for the arguments of the script, where they mean something."""
    if value is None:
        yield path
    elif isinstance(value, dict) and not path.endswith(("kwargs", "podTemplate")):
        for key, part in value.items():
            yield from _find_nulls(part, f"{path}.{key}")
    elif isinstance(value, list) and not path.endswith("args"):
        for part in value:
            yield from _find_nulls(part, f"{path}[]")


@settings(deadline=None, max_examples=100)
@given(EXECUTIONS)
def test_execution_survives_the_way_over_the_wire(before: ScriptExecution) -> None:
    text = json.dumps(before.to_wire())
    assert ScriptExecution.model_validate_json(text) == before


@settings(deadline=None, max_examples=100)
@given(EXECUTIONS)
def test_what_is_absent_is_left_out_of_the_wire_form(before: ScriptExecution) -> None:
    assert list(_find_nulls(before.to_wire())) == []


def test_null_is_an_argument_like_any_other() -> None:
    call = FunctionArgs(args=[None, [None]], kwargs={"a": None})
    assert call.to_wire() == {"args": [None, [None]], "kwargs": {"a": None}}


@pytest.mark.parametrize("model", _find_models(), ids=lambda model: model.__name__)
def test_value_cannot_be_changed_in_place(model: type[BaseModel]) -> None:
    value = model.model_construct()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(value, next(iter(model.model_fields)), None)


@pytest.mark.parametrize("model", _find_models(), ids=lambda model: model.__name__)
def test_every_field_is_described(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        assert field.description, f"{model.__name__}.{name}"
        assert field.description.endswith("."), f"{model.__name__}.{name}"


@pytest.mark.parametrize(
    "model", [one for one in _find_models() if one is not Metadata], ids=lambda model: model.__name__
)
def test_misspelt_field_is_refused(model: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        model.model_validate({"desiredstate": 1})


@pytest.mark.parametrize("state", State)
def test_execution_is_finished_exactly_in_a_final_state(state: State) -> None:
    status = ScriptExecutionStatus(state=state, procedure_id=7)
    one = ScriptExecution(
        metadata=Metadata(name="one", uid="u-1", creation_timestamp=datetime(2026, 1, 1, tzinfo=UTC)),
        spec=ScriptExecutionSpec(script=ScriptSource(file=FileScript(path="a.py"))),
        status=status,
    )
    assert (one.is_finished, one.uid, one.procedure_id) == (state in FINAL_STATES, "u-1", 7)


def test_defaults_are_those_of_a_plain_apply() -> None:
    spec = ScriptExecutionSpec.model_validate({"script": {"file": {"path": "a.py"}}})
    assert (spec.desired_state, spec.when_busy, spec.stop) == (DesiredState.RUNNING, WhenBusy.WAIT, StopOptions())
