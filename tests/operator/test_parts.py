"""The small parts of the core."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oet_crds.conditions import find_condition, with_condition
from oet_crds.errors import InvalidTransitionError
from oet_crds.execution import (
    HISTORY_LIMIT,
    ExecutionArgs,
    FunctionArgs,
    HistoryEntry,
    RunnerStatus,
    ScriptSource,
    StopOptions,
    WhenBusy,
)
from oet_crds.history import count_merged, with_runner_transitions
from oet_crds.ports import SpecChange
from oet_crds.specs import compute_subarray, describe_script, validate_change, validate_subarray
from oet_crds.states import ConditionType, DesiredState, State
from oet_crds.subarrays import parse_subarray
from oet_operator.core.locks import Holder, LockTable, build_lock_table
from oet_operator.core.names import MAX_NAME_LENGTH, build_pod_name


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1),
        (0, 0),
        (2.0, 2),
        ("3", 3),
        (" 4 ", 4),
        (" " * 20 + "1", 1),
        (True, None),
        (1.5, None),
        ("x", None),
        ([1], None),
        ("9" * 10, None),
        ("²", None),
    ],
)
def test_subarray_argument_is_understood_in_every_usual_form(value: Any, number: int | None) -> None:
    assert parse_subarray(value) == number


def _spec(make: Any, spec: int | None, init: Any, main: Any) -> Any:
    calls = {
        name: FunctionArgs(kwargs={"subarray_id": value})
        for name, value in (("init", init), ("main", main))
        if value != "absent"
    }
    return make.execution(subarray=spec, args=ExecutionArgs(**calls)).spec


@pytest.mark.parametrize(
    ("spec", "init", "main", "subarray", "problem"),
    [
        (5, "absent", "absent", 5, None),
        (None, 1, "absent", 1, None),
        (None, "absent", "2", 2, None),
        (None, 1, 1.0, 1, None),
        (None, "absent", "absent", None, None),
        (None, None, "absent", None, None),
        (None, 1, 2, 1, "differs from subarray 1"),
        (5, 1, "absent", 5, "differs from subarray 5"),
        (None, "x", "absent", None, "must be a whole number"),
    ],
)
def test_subarray_of_a_spec(make: Any, spec: Any, init: Any, main: Any, subarray: Any, problem: str | None) -> None:
    found = _spec(make, spec, init, main)
    assert compute_subarray(found) == subarray
    complaint = validate_subarray(found)
    assert (problem is None) == (complaint is None)
    assert problem is None or problem in (complaint or "")


RUN, STOP, HOLD = DesiredState.RUNNING, DesiredState.STOPPED, DesiredState.READY
MAIN, OTHER = FunctionArgs(args=[1]), FunctionArgs(args=[2])


def test_allowed_change_is_made(make: Any) -> None:
    stop = StopOptions(grace_period_seconds=1)
    change = SpecChange(desired_state=RUN, main=MAIN, when_busy=WhenBusy.REJECT, stop=stop)
    spec = validate_change(make.execution(State.READY), change)
    assert (spec.desired_state, spec.args.main, spec.when_busy, spec.stop) == (RUN, MAIN, WhenBusy.REJECT, stop)


def test_empty_change_changes_nothing(make: Any) -> None:
    execution = make.execution(State.READY)
    assert validate_change(execution, SpecChange()) == execution.spec


def test_stop_gets_through_whatever_the_subarray(make: Any) -> None:
    args = ExecutionArgs(init=FunctionArgs(kwargs={"subarray_id": "x"}))
    assert validate_change(make.execution(args=args), SpecChange(desired_state=STOP)).desired_state is STOP


def test_start_can_be_taken_back_while_nothing_is_granted(make: Any) -> None:
    execution = make.execution(State.READY, desired_state=RUN, args=ExecutionArgs(main=MAIN))
    spec = validate_change(execution, SpecChange(desired_state=HOLD))
    again = execution.model_copy(update={"spec": spec})
    assert validate_change(again, SpecChange(desired_state=RUN, main=OTHER)).args.main == OTHER


@pytest.mark.parametrize(
    ("fields", "change", "text"),
    [
        pytest.param({"state": State.COMPLETE}, SpecChange(desired_state=RUN), "COMPLETE", id="finished"),
        pytest.param({"desired_state": STOP}, SpecChange(desired_state=RUN), "a stop is final", id="stopped"),
        pytest.param({"desired_state": STOP}, SpecChange(desired_state=HOLD), "a stop is final", id="stopped_to_ready"),
        pytest.param(
            {"desired_state": RUN, "granted": True}, SpecChange(desired_state=HOLD), "only be stopped", id="granted"
        ),
        pytest.param({"desired_state": RUN}, SpecChange(main=MAIN), "other arguments", id="main_after_start"),
        pytest.param({}, SpecChange(main=FunctionArgs(kwargs={"subarray_id": "x"})), "whole number", id="bad_subarray"),
    ],
)
def test_forbidden_change_is_refused_with_the_rule(make: Any, fields: Any, change: SpecChange, text: str) -> None:
    grant = make.grant() if fields.pop("granted", False) else None
    execution = make.execution(State.READY, grant=grant, **fields)
    with pytest.raises(InvalidTransitionError, match=text) as refused:
        validate_change(execution, change)
    assert refused.value.state is execution.status.state


def test_lock_table_keeps_all_holders_if_ever_there_are_two(make: Any) -> None:
    two = [make.execution(State.RUNNING, number=number, grant=make.grant(), desired_state=RUN) for number in (1, 2)]
    table = build_lock_table(two)
    assert table.find_holder(1, besides="uid-1") == Holder(2, State.RUNNING)
    assert table.find_holder(1, besides="uid-2") == Holder(1, State.RUNNING)
    assert table.find_holder(2, besides="") is None


@pytest.mark.parametrize(
    ("holder", "words"),
    [
        (Holder(7, State.RUNNING), "PID #7 is RUNNING on subarray 1"),
        (Holder(7, State.STOPPED), "PID #7 is STOPPED and its abort is about to run on subarray 1"),
        (Holder(7, State.UNKNOWN), "oet procedure release --pid=7"),
        (Holder(7, None), "PID #7 was deleted, and its Pod may still run on subarray 1"),
        (Holder(0, None), "a procedure was deleted, and its Pod may still run on subarray 1"),
    ],
)
def test_who_holds_a_subarray_is_told_as_it_is(holder: Holder, words: str) -> None:
    assert words in holder.describe(1)


def test_execution_without_subarray_is_in_no_lock_table(make: Any) -> None:
    running = make.execution(State.RUNNING, grant=make.grant(None), desired_state=RUN)
    waiting = make.execution(State.READY, number=2, desired_state=RUN)
    assert build_lock_table([running, waiting]) == LockTable()


def test_queue_is_served_in_order_of_creation(make: Any) -> None:
    waiting = [make.execution(State.READY, number=number, desired_state=RUN, subarray=1) for number in (12, 3, 7)]
    assert build_lock_table(waiting).queues == {1: ("uid-3", "uid-7", "uid-12")}


def test_finished_execution_holds_nothing(make: Any) -> None:
    assert build_lock_table([make.execution(State.RUNNING, state=State.FAILED, grant=make.grant())]) == LockTable()


def _status(make: Any, states: list[State]) -> Any:
    transitions = [HistoryEntry(seq=at + 1, state=state, time=make.now) for at, state in enumerate(states)]
    return make.execution().status.model_copy(update={"runner": RunnerStatus(transitions=transitions)})


@pytest.mark.parametrize(
    ("states", "merged"),
    [
        ([State.IDLE, State.LOADING], 2),
        ([State.LOADING], 0),
        ([State.IDLE, State.RUNNING, State.READY], 1),
        ([State.IDLE, State.STOPPED], 1),
        ([], 0),
    ],
)
def test_history_takes_what_is_allowed_and_trusts_nothing_after(make: Any, states: list[State], merged: int) -> None:
    assert count_merged(with_runner_transitions(_status(make, states))) == merged


def test_history_is_bounded_and_its_numbers_go_on(make: Any) -> None:
    loops = [State.IDLE, *[State.LOADING, State.IDLE] * HISTORY_LIMIT]
    status = with_runner_transitions(_status(make, loops))
    assert len(status.history) == HISTORY_LIMIT
    assert status.history[-1].seq == len(loops) + 1
    assert with_runner_transitions(status) is status


def test_status_without_history_has_merged_nothing(make: Any) -> None:
    assert count_merged(make.execution().status.model_copy(update={"history": []})) == 0


def test_condition_keeps_its_time_while_its_status_stays(make: Any) -> None:
    first = with_condition(make.execution().status, ConditionType.STARTED, False, "a", make.now)
    later = with_condition(first, ConditionType.STARTED, False, "b", make.now.replace(year=2027))
    changed = with_condition(later, ConditionType.STARTED, True, "b", make.now.replace(year=2028))
    times = [
        find_condition(status, ConditionType.STARTED).last_transition_time.year for status in (first, later, changed)
    ]  # type: ignore[union-attr]
    assert times == [2026, 2026, 2028]
    assert with_condition(changed, ConditionType.STARTED, True, "b", make.now) is changed


@pytest.mark.parametrize("name", ["", "a", "A b/c", "x" * 300, "-", "ünï", "\udc80", "9"])
def test_pod_name_is_valid_for_any_name(name: str) -> None:
    made = build_pod_name(name, "uid")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", made)
    assert len(made) <= MAX_NAME_LENGTH


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_pod_names_are_repeatable_and_differ_for_different_executions(
    one: tuple[str, str], two: tuple[str, str]
) -> None:
    assert build_pod_name(*one) == build_pod_name(*one)
    assert (build_pod_name(*one) == build_pod_name(*two)) == (one == two)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ({"file": {"path": "/scripts/a.py"}}, "/scripts/a.py"),
        ({"inline": {"source": "x"}}, "inline"),
        ({"config_map": {"name": "c", "key": "a.py"}}, "configmap/c:a.py"),
        ({"git": {"repository": "https://h/r", "path": "a.py"}}, "https://h/r:a.py"),
        ({"git": {"repository": "https://h/r", "path": "a.py", "branch": "b"}}, "https://h/r@b:a.py"),
        ({"git": {"repository": "https://h/r", "path": "a.py", "branch": "b", "commit": "c"}}, "https://h/r@c:a.py"),
    ],
)
def test_script_of_any_kind_is_told_in_one_line(source: Any, line: str) -> None:
    assert describe_script(ScriptSource.model_validate(source)) == line
