"""Every rule of the decision, by its factors."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from oet_crds.alarms import find_alarm, find_release
from oet_crds.conditions import find_condition
from oet_crds.execution import (
    AbortStatus,
    ExecutionArgs,
    FunctionArgs,
    HistoryEntry,
    Resolved,
    RunnerStatus,
    StopOptions,
    WhenBusy,
)
from oet_crds.names import RELEASE_ANNOTATION
from oet_crds.ports import SpecChange
from oet_crds.reasons import Outcome, Reason
from oet_crds.specs import validate_change
from oet_crds.states import ConditionType, DesiredState, Mode, Purpose, State
from oet_crds.topics import Severity, Topic
from oet_operator.core.actions import CreateAbort, CreatePod, DeleteExecution, DeletePod, StopRunner
from oet_operator.core.decide import BACKSTOP_SECONDS, LEAVE_SECONDS, decide
from oet_operator.core.locks import Leftover, build_lock_table
from oet_operator.core.snapshot import Presence, RunnerObservation, Snapshot

RUN, STOP = DesiredState.RUNNING, DesiredState.STOPPED
THERE = [Presence.STARTING, Presence.ALIVE]
REMOVABLE = [*THERE, Presence.PENDING, Presence.STUCK]
FINAL = [State.COMPLETE, State.STOPPED, State.FAILED, State.UNKNOWN]


def _with_exit(make: Any, reached: State, end: Any, **fields: Any) -> Any:
    changes = {"exit": end, "confined": fields.pop("confined", True)}
    execution = make.execution(reached, **fields)
    runner = (execution.status.runner or RunnerStatus()).model_copy(update=changes)
    return execution.model_copy(update={"status": execution.status.model_copy(update={"runner": runner})})


# ---- the runner --------------------------------------------------------------------------------------------------------


def test_new_execution_gets_a_runner_under_a_name_of_its_own(make: Any) -> None:
    plan = make.decide(make.execution(), Presence.NONE)
    assert plan.actions == (CreatePod(),)
    assert plan.status.pod_name.startswith("procedure-1-")
    assert plan.status.observed_generation == 1


def test_named_runner_that_is_not_seen_is_created_again_under_its_name(make: Any) -> None:
    plan = make.decide(make.execution(pod_name="kept"), Presence.NONE)
    assert (plan.actions, plan.status.pod_name) == ((CreatePod(),), "kept")


@pytest.mark.parametrize("presence", THERE)
def test_runner_that_is_there_is_not_created_again(make: Any, presence: Presence) -> None:
    assert make.decide(make.execution(pod_name="x"), presence).actions == ()


def test_nothing_new_returns_the_very_same_status(make: Any) -> None:
    execution = make.execution(State.LOADING, observed_generation=1)
    assert make.decide(execution).status is execution.status


def test_reported_states_become_the_history_with_the_runners_times(make: Any) -> None:
    execution = make.execution()
    times = [make.now + timedelta(seconds=number) for number in range(3)]
    states = [State.IDLE, State.LOADING, State.IDLE]
    transitions = [HistoryEntry(seq=at + 1, state=state, time=times[at]) for at, state in enumerate(states)]
    status = execution.status.model_copy(update={"runner": RunnerStatus(transitions=transitions), "pod_name": "x"})
    plan = make.decide(execution.model_copy(update={"status": status}))
    assert [entry.state for entry in plan.status.history] == [State.CREATING, *states]
    assert [entry.seq for entry in plan.status.history] == [1, 2, 3, 4]
    assert [entry.time for entry in plan.status.history[1:]] == times


# ---- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "reached", "desired", "state"),
    [
        pytest.param(Outcome.COMPLETE, State.READY, RUN, State.COMPLETE, id="complete"),
        pytest.param(Outcome.FAILED, State.LOADING, RUN, State.FAILED, id="failed"),
        pytest.param(Outcome.STOPPED, State.RUNNING, STOP, State.STOPPED, id="stopped"),
        pytest.param(Outcome.STOPPED, State.RUNNING, RUN, State.FAILED, id="stopped_by_somebody_else"),
        pytest.param(Outcome.COMPLETE, State.RUNNING, RUN, State.UNKNOWN, id="complete_without_a_return"),
        pytest.param(Outcome.FAILED, State.RUNNING, STOP, State.FAILED, id="failed_before_the_stop"),
    ],
)
@pytest.mark.parametrize(
    ("confined", "presence", "reason"),
    [
        pytest.param(True, Presence.ALIVE, None, id="nobody_else_can_report"),
        pytest.param(None, Presence.GONE, Reason.RUNNER_LOST, id="the_runner_is_gone"),
        pytest.param(None, Presence.GONE, None, id="the_runner_is_gone_as_it_should"),
    ],
)
def test_reported_end_becomes_the_final_state(
    make: Any,
    outcome: Outcome,
    reached: State,
    desired: DesiredState,
    state: State,
    confined: bool | None,
    presence: Presence,
    reason: Reason | None,
) -> None:
    end = make.exit(outcome, Reason.STOP_REQUESTED)
    execution = _with_exit(make, reached, end, desired_state=desired, confined=confined)
    plan = make.decide(execution, presence, reason=reason)
    assert plan.status.state is plan.status.history[-1].state is state
    assert plan.status.message
    condition = find_condition(plan.status, ConditionType.COMPLETE)
    assert condition is not None
    assert (condition.status == "True") == (state is State.COMPLETE)
    assert plan.actions == ((DeletePod(10.0),) if presence is Presence.ALIVE else ())


@pytest.mark.parametrize("presence", [Presence.STARTING, Presence.ALIVE])
@pytest.mark.parametrize("desired", [RUN, STOP])
def test_reported_end_is_no_end_while_the_runner_that_anybody_may_be_is_there(
    make: Any, presence: Presence, desired: DesiredState
) -> None:
    end = make.exit(Outcome.COMPLETE)
    execution = _with_exit(make, State.READY, end, desired_state=desired, confined=None, grant=make.grant())
    plan = make.decide(execution, presence)
    assert (plan.status.state, plan.actions, plan.requeue_after_seconds) == (State.READY, (), LEAVE_SECONDS)
    waiting = make.execution(State.READY, number=2, desired_state=RUN, subarray=1)
    assert make.decide(waiting, others=(execution,)).status.grant is None


@pytest.mark.parametrize("reported", [timedelta(0), timedelta(hours=-1), timedelta(days=365_000)])
def test_runner_that_stays_after_the_end_that_it_reported_is_removed_and_not_believed(
    make: Any, reported: timedelta
) -> None:
    """Its time counts from when the report was seen: it may have come late, and say any time."""
    end = make.exit(Outcome.COMPLETE).model_copy(update={"time": make.now + reported})
    execution = _with_exit(make, State.RUNNING, end, desired_state=RUN, confined=None)
    seen = make.decide(execution)
    assert (seen.actions, seen.requeue_after_seconds) == ((), LEAVE_SECONDS)
    leaving = execution.model_copy(update={"status": seen.status})
    assert find_alarm(leaving) is None
    late = make.decide(leaving, now=make.now + timedelta(seconds=LEAVE_SECONDS))
    assert late.actions == (DeletePod(0.0),)
    stayed = execution.model_copy(update={"status": late.status})
    alarm = find_alarm(stayed)
    assert alarm is not None
    assert (alarm.topic, late.status.state) == (Topic.END_UNCONFIRMED, State.RUNNING)
    ended = make.decide(stayed, Presence.GONE, reason=Reason.RUNNER_LOST).status
    assert (ended.state, ended.reason) == (State.FAILED, Reason.END_UNCONFIRMED)


def test_runner_that_leaves_in_time_is_believed(make: Any) -> None:
    execution = _with_exit(make, State.READY, make.exit(Outcome.COMPLETE), desired_state=RUN, confined=None)
    leaving = execution.model_copy(update={"status": make.decide(execution).status})
    later = make.now + timedelta(seconds=LEAVE_SECONDS + 5)
    assert make.decide(leaving, Presence.GONE, reason=Reason.RUNNER_LOST, now=later).status.state is State.COMPLETE


@pytest.mark.parametrize(
    "observed", [{"reason": Reason.POD_DELETED}, {"reason": Reason.EVICTED}, {"awaits_word": True}], ids=str
)
def test_runner_that_its_node_ends_is_left_to_it(make: Any, observed: dict[str, Any]) -> None:
    execution = _with_exit(make, State.RUNNING, make.exit(Outcome.STOPPED), desired_state=RUN, confined=None)
    plan = make.decide(execution, now=make.now + timedelta(hours=1), **observed)
    assert (plan.actions, plan.status.state) == ((), State.RUNNING)


@pytest.mark.parametrize("reported", [timedelta(days=-365_000), timedelta(days=2_900_000)])
def test_end_is_said_for_a_time_that_can_be(make: Any, reported: timedelta) -> None:
    end = make.exit(Outcome.COMPLETE).model_copy(update={"time": make.now + reported})
    execution = _with_exit(make, State.READY, end, desired_state=RUN, ttl_seconds_after_finished=60)
    ended = make.decide(execution)
    assert ended.status.state is State.COMPLETE
    assert execution.metadata.creation_timestamp <= ended.status.history[-1].time <= make.now
    assert DeleteExecution() not in ended.actions


def test_runner_that_was_seen_to_lie_is_not_believed(make: Any) -> None:
    execution = _with_exit(make, State.READY, make.exit(Outcome.COMPLETE), desired_state=RUN, confined=None)
    ended = make.decide(execution, Presence.GONE, reason=Reason.END_UNCONFIRMED).status
    assert (ended.state, ended.reason) == (State.FAILED, Reason.END_UNCONFIRMED)


# ---- UNKNOWN -------------------------------------------------------------------------------------------------------------


def _lost(make: Any, **fields: Any) -> Any:
    execution = make.execution(State.RUNNING, number=7, grant=make.grant(), desired_state=RUN, **fields)
    status = make.decide(execution, Presence.LOST).status
    assert status.state is State.UNKNOWN
    return execution.model_copy(update={"status": status})


def test_unknown_holds_its_subarray_and_is_an_alarm(make: Any) -> None:
    lost = _lost(make, ttl_seconds_after_finished=0)
    alarm = find_alarm(lost)
    assert alarm is not None
    assert (alarm.topic, alarm.payload["severity"]) == (Topic.END_UNKNOWN, Severity.ALARM)
    assert make.decide(lost, Presence.LOST).actions == ()
    waiting = make.execution(State.READY, desired_state=RUN, subarray=1, when_busy=WhenBusy.REJECT)
    refused = make.decide(waiting, others=(lost,)).status
    assert refused.grant is None
    assert refused.refusal.holder == 7
    assert "PID #7 is UNKNOWN and may still run on subarray 1" in refused.refusal.message


@pytest.mark.parametrize(
    ("presence", "annotations", "reason"),
    [
        pytest.param(Presence.GONE, {}, Reason.END_CONFIRMED, id="seen_to_have_ended"),
        pytest.param(Presence.STUCK, {}, Reason.END_CONFIRMED, id="never_began"),
        pytest.param(Presence.LOST, {RELEASE_ANNOTATION: "dishes parked"}, Reason.RELEASED_BY_HAND, id="by_a_person"),
    ],
)
def test_unknown_lets_go_once_its_end_is_confirmed_or_a_person_releases_it(
    make: Any, presence: Presence, annotations: dict[str, str], reason: Reason
) -> None:
    lost = _lost(make)
    lost = lost.model_copy(update={"metadata": lost.metadata.model_copy(update={"annotations": annotations})})
    status = make.decide(lost, presence).status
    assert status.state is State.UNKNOWN
    released = lost.model_copy(update={"status": status})
    assert find_alarm(released) is None
    topic, payload, _ = find_release(released)  # type: ignore[misc]
    assert (topic, payload["reason"]) == (Topic.RELEASED, reason)
    assert "dishes parked" in payload["message"] or not annotations
    waiting = make.execution(State.READY, desired_state=RUN, subarray=1)
    assert make.decide(waiting, others=(released,)).status.grant is not None
    assert make.decide(released, Presence.LOST).status is status


def test_unknown_that_was_granted_no_subarray_holds_none(make: Any) -> None:
    prepared = make.execution(State.READY, number=7, subarray=1)
    lost = prepared.model_copy(update={"status": make.decide(prepared, Presence.LOST).status})
    assert lost.status.state is State.UNKNOWN
    assert (find_alarm(lost), find_release(lost)) == (None, None)
    waiting = make.execution(State.READY, desired_state=RUN, subarray=1)
    assert make.decide(waiting, others=(lost,)).status.grant is not None


def test_abort_runs_beside_what_is_unknown(make: Any) -> None:
    lost = _lost(make, subarray=1)
    spec = validate_change(lost, SpecChange(desired_state=STOP, stop=StopOptions(abort=True)))
    asked = lost.model_copy(update={"spec": spec})
    plan = make.decide(asked, Presence.LOST, now=make.now + timedelta(hours=1))
    assert plan.actions == (CreateAbort(1, inherit=True),)
    # It is waited for from when it was asked for, not from when the execution became UNKNOWN.
    aborted = find_condition(plan.status, ConditionType.ABORTED)
    assert aborted is None
    late = make.decide(
        asked.model_copy(update={"status": plan.status}), Presence.LOST, now=make.now + timedelta(hours=1, seconds=11)
    )
    alarm = find_alarm(asked.model_copy(update={"status": late.status}), ConditionType.ABORTED)
    assert alarm is not None
    assert alarm.reason is Reason.ABORT_NOT_BEGUN
    abort = make.execution(
        State.READY, number=9, desired_state=RUN, subarray=1, purpose=Purpose.ABORT, abort_of="uid-7"
    )
    assert make.decide(abort, others=(lost,)).status.grant is not None


def test_shutdown_of_the_engine_is_a_stop(make: Any) -> None:
    execution = _with_exit(make, State.RUNNING, make.exit(Outcome.STOPPED, Reason.ENGINE_SHUTDOWN), desired_state=RUN)
    plan = make.decide(execution)
    assert (plan.status.state, plan.status.reason) == (State.STOPPED, Reason.ENGINE_SHUTDOWN)


def test_stack_trace_is_kept(make: Any) -> None:
    end = make.exit(Outcome.FAILED, Reason.MAIN_FAILED, stacktrace="Traceback")
    assert make.decide(_with_exit(make, State.RUNNING, end)).status.stacktrace == "Traceback"


@pytest.mark.parametrize(
    ("presence", "desired", "reason", "state", "expected"),
    [
        pytest.param(Presence.GONE, RUN, None, State.FAILED, Reason.RUNNER_LOST, id="gone"),
        pytest.param(Presence.GONE, RUN, Reason.ENGINE_LOST, State.FAILED, Reason.ENGINE_LOST, id="gone_with_reason"),
        pytest.param(
            Presence.GONE, STOP, Reason.ENGINE_LOST, State.STOPPED, Reason.STOP_REQUESTED, id="gone_when_stopped"
        ),
        pytest.param(
            Presence.STUCK, RUN, Reason.POD_REJECTED, State.FAILED, Reason.POD_REJECTED, id="stuck_with_reason"
        ),
        pytest.param(
            Presence.STUCK, STOP, Reason.POD_REJECTED, State.STOPPED, Reason.STOP_REQUESTED, id="stuck_when_stopped"
        ),
        pytest.param(Presence.LOST, RUN, None, State.UNKNOWN, Reason.NODE_LOST, id="lost"),
        pytest.param(Presence.LOST, STOP, Reason.POD_LOST, State.UNKNOWN, Reason.POD_LOST, id="lost_when_stopped"),
    ],
)
def test_runner_that_is_gone_without_a_report_ends_the_execution(
    make: Any, presence: Presence, desired: DesiredState, reason: Reason | None, state: State, expected: Reason
) -> None:
    plan = make.decide(make.execution(State.RUNNING, desired_state=desired), presence, reason=reason)
    assert (plan.status.state, plan.status.reason) == (state, expected)
    assert plan.status.message
    assert plan.actions == ((DeletePod(10.0),) if presence is Presence.STUCK else ())


@pytest.mark.parametrize("state", FINAL)
@pytest.mark.parametrize("presence", Presence)
def test_final_state_never_changes(make: Any, state: State, presence: Presence) -> None:
    execution = make.execution(State.READY, state=state, desired_state=RUN)
    plan = make.decide(execution, presence)
    assert plan.status is execution.status
    assert plan.actions == ((DeletePod(10.0),) if presence in REMOVABLE else ())


@pytest.mark.parametrize("presence", Presence)
def test_deleted_execution_takes_its_runner_along(make: Any, presence: Presence) -> None:
    execution = make.execution(State.RUNNING, deleted=True)
    plan = make.decide(execution, presence)
    assert plan.status is execution.status
    assert plan.actions == ((DeletePod(10.0),) if presence in REMOVABLE else ())


@pytest.mark.parametrize(
    ("ttl", "age", "actions", "requeue"),
    [
        (None, 100, (), None),
        (60, 10, (), 50.0),
        (60, 60, (DeleteExecution(),), None),
        (0, 1, (DeleteExecution(),), None),
    ],
)
def test_finished_execution_goes_when_its_time_is_over(
    make: Any, ttl: Any, age: int, actions: Any, requeue: Any
) -> None:
    execution = make.execution(State.READY, state=State.COMPLETE, ttl_seconds_after_finished=ttl, age_seconds=age)
    plan = make.decide(execution, Presence.NONE)
    assert (plan.actions, plan.requeue_after_seconds) == (actions, requeue)


# ---- the stop ----------------------------------------------------------------------------------------------------------


def test_stop_before_a_runner_exists_is_done_at_once(make: Any) -> None:
    plan = make.decide(make.execution(desired_state=STOP), Presence.NONE)
    assert (plan.status.state, plan.status.reason) == (State.STOPPED, Reason.STOP_REQUESTED)


def test_stop_of_a_runner_on_its_way_waits_for_it(make: Any) -> None:
    plan = make.decide(make.execution(desired_state=STOP, pod_name="x"), Presence.NONE)
    assert plan.status.state is State.CREATING
    assert CreatePod() in plan.actions


@pytest.mark.parametrize("presence", THERE)
@pytest.mark.parametrize("reached", [State.LOADING, State.INITIALISING, State.READY, State.RUNNING])
def test_stop_is_the_runners_own_business_until_it_takes_too_long(
    make: Any, reached: State, presence: Presence
) -> None:
    execution = make.execution(reached, desired_state=STOP, stop=StopOptions(grace_period_seconds=3))
    plan = make.decide(execution, presence)
    assert (plan.actions, plan.requeue_after_seconds) == ((), 3 + BACKSTOP_SECONDS)
    late = execution.model_copy(update={"status": plan.status})
    plan = make.decide(late, presence, now=make.now + timedelta(seconds=3 + BACKSTOP_SECONDS))
    assert plan.actions == (DeletePod(0.0),)
    assert plan.status.state is reached


DEADLINES = [("active_deadline_seconds", Reason.DEADLINE_EXCEEDED), ("ready_timeout_seconds", Reason.READY_TIMEOUT)]


@pytest.mark.parametrize(("field", "reason"), DEADLINES)
def test_deadline_that_is_over_stops_the_runner_and_fails_the_execution(make: Any, field: str, reason: Reason) -> None:
    execution = make.execution(State.LOADING, **{field: 5, "desired_state": RUN})
    plan = make.decide(execution)
    assert plan.actions == (StopRunner(10.0, reason),)
    stopped = execution.model_copy(update={"status": plan.status})
    runner = stopped.status.runner.model_copy(
        update={"exit": make.exit(Outcome.STOPPED, Reason.STOP_REQUESTED), "confined": True}
    )
    ended = stopped.model_copy(update={"status": stopped.status.model_copy(update={"runner": runner})})
    plan = make.decide(ended)
    assert (plan.status.state, plan.status.reason) == (State.FAILED, reason)
    plan = make.decide(stopped, Presence.GONE)
    assert (plan.status.state, plan.status.reason) == (State.FAILED, reason)


@pytest.mark.parametrize(("field", "reason"), DEADLINES)
def test_deadline_before_a_runner_exists_fails_at_once(make: Any, field: str, reason: Reason) -> None:
    plan = make.decide(make.execution(**{field: 5}), Presence.NONE)
    assert (plan.status.state, plan.status.reason) == (State.FAILED, reason)


@pytest.mark.parametrize(("field", "_reason"), DEADLINES)
def test_deadline_to_come_is_looked_at_when_it_comes(make: Any, field: str, _reason: Reason) -> None:
    assert make.decide(make.execution(State.LOADING, **{field: 30})).requeue_after_seconds == 20


@pytest.mark.parametrize("reached", [State.READY, State.RUNNING])
def test_ready_timeout_is_over_once_it_was_ready(make: Any, reached: State) -> None:
    plan = make.decide(make.execution(reached, ready_timeout_seconds=5))
    assert (plan.actions, plan.requeue_after_seconds) == ((), None)


def test_user_who_stops_what_a_deadline_stops_gets_a_stop(make: Any) -> None:
    execution = make.execution(State.RUNNING, active_deadline_seconds=5, desired_state=RUN)
    status = make.decide(execution).status
    spec = execution.spec.model_copy(update={"desired_state": STOP})
    runner = status.runner.model_copy(
        update={"exit": make.exit(Outcome.STOPPED, Reason.STOP_REQUESTED), "confined": True}
    )
    ended = execution.model_copy(update={"spec": spec, "status": status.model_copy(update={"runner": runner})})
    assert make.decide(ended).status.state is State.STOPPED


# ---- the start ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subarray", [None, 0, 3])
def test_free_subarray_is_granted(make: Any, subarray: int | None) -> None:
    plan = make.decide(make.execution(State.READY, desired_state=RUN, subarray=subarray))
    assert plan.status.grant is not None
    assert (plan.status.grant.subarray, plan.status.grant.time) == (subarray, make.now)


@pytest.mark.parametrize("reached", [State.LOADING, State.INITIALISING])
def test_nothing_is_granted_before_ready(make: Any, reached: State) -> None:
    assert make.decide(make.execution(reached, desired_state=RUN)).status.grant is None


def test_start_without_subarray_is_granted_with_the_runner_and_one_with_subarray_is_not(make: Any) -> None:
    def grant(**spec: Any) -> Any:
        return make.decide(make.execution(**spec), Presence.NONE).status.grant

    assert grant(desired_state=RUN).subarray is None
    assert grant(desired_state=RUN, subarray=1) is None
    assert grant(desired_state=DesiredState.READY) is None
    assert grant(desired_state=RUN, grant=make.grant(None)) == make.grant(None)


def test_runner_whose_execution_was_deleted_holds_the_subarray_on(make: Any) -> None:
    execution = make.execution(State.READY, desired_state=RUN, subarray=1)
    locks = build_lock_table([execution], [Leftover("gone", 5, 1)])
    runner = RunnerObservation(Presence.ALIVE)
    waiting = decide(Snapshot(execution, runner, locks, make.now)).status
    assert (waiting.grant, waiting.reason) == (None, Reason.SUBARRAY_BUSY)
    other = make.execution(State.READY, desired_state=RUN, subarray=2)
    assert decide(Snapshot(other, runner, locks, make.now)).status.grant is not None


def test_nothing_is_granted_that_was_not_asked_for(make: Any) -> None:
    assert make.decide(make.execution(State.READY)).status.grant is None


def test_waiting_start_says_what_it_waits_for_and_forgets_it_when_granted(make: Any) -> None:
    holder = make.execution(State.RUNNING, number=7, grant=make.grant(), desired_state=RUN)
    execution = make.execution(State.READY, desired_state=RUN, subarray=1)
    waiting = make.decide(execution, others=(holder,)).status
    assert (waiting.grant, waiting.reason, waiting.state) == (None, Reason.SUBARRAY_BUSY, State.READY)
    assert "PID #7 is RUNNING on subarray 1" in waiting.message
    granted = make.decide(execution.model_copy(update={"status": waiting})).status
    assert granted.grant is not None
    assert (granted.reason, granted.message) == (None, None)


def test_rejected_start_is_refused_for_its_generation_only(make: Any) -> None:
    holder = make.execution(State.RUNNING, number=7, grant=make.grant(), desired_state=RUN)
    execution = make.execution(State.READY, desired_state=RUN, subarray=1, when_busy=WhenBusy.REJECT)
    refused = make.decide(execution, others=(holder,)).status
    assert (refused.refusal.holder, refused.refusal.generation) == (7, 1)
    assert "Cannot start PID 1: PID #7 is RUNNING on subarray 1" in refused.refusal.message
    assert (refused.reason, refused.message) == (Reason.SUBARRAY_BUSY, refused.refusal.message)
    later = execution.model_copy(update={"status": refused})
    assert make.decide(later).status.grant is None
    metadata = later.metadata.model_copy(update={"generation": 2})
    again = make.decide(later.model_copy(update={"metadata": metadata})).status
    assert again.grant is not None
    assert (again.refusal, again.reason, again.message) == (None, None, None)


def test_start_that_is_taken_back_waits_no_more_and_a_refused_one_still_says_why(make: Any) -> None:
    holder = make.execution(State.RUNNING, number=7, grant=make.grant(), desired_state=RUN)
    for busy, kept in ((WhenBusy.WAIT, None), (WhenBusy.REJECT, Reason.SUBARRAY_BUSY)):
        execution = make.execution(State.READY, desired_state=RUN, subarray=1, when_busy=busy)
        status = make.decide(execution, others=(holder,)).status
        assert status.reason is Reason.SUBARRAY_BUSY
        spec = execution.spec.model_copy(update={"desired_state": DesiredState.READY})
        held = execution.model_copy(update={"spec": spec, "status": status})
        assert make.decide(held, others=(holder,)).status.reason is kept


# ---- READY, and nobody starts it -------------------------------------------------------------------------------------

LIMIT = {"ready_limit_seconds": 60.0}


def _after(make: Any, execution: Any, seconds: float, **fields: Any) -> Any:
    """Decide now, and once more after some seconds; return the second plan."""
    status = make.decide(execution, **fields).status
    later = execution.model_copy(update={"status": status})
    return make.decide(later, now=make.now + timedelta(seconds=seconds), **fields)


def test_script_that_nobody_starts_is_stopped_and_says_by_which_setting(make: Any) -> None:
    execution = make.execution(State.READY)
    assert make.decide(execution, **LIMIT).requeue_after_seconds == 60
    assert _after(make, execution, 59, **LIMIT).actions == ()
    plan = _after(make, execution, 60, **LIMIT)
    assert plan.actions == (StopRunner(10, Reason.NOT_STARTED),)
    stopped = _with_exit(make, State.READY, make.exit(Outcome.STOPPED, Reason.STOP_REQUESTED))
    runner = stopped.status.runner
    status = make.decide(
        execution.model_copy(update={"status": plan.status.model_copy(update={"runner": runner})})
    ).status
    assert (status.state, status.reason) == (State.STOPPED, Reason.NOT_STARTED)
    assert "[engine] ready_limit_seconds" in status.message


@pytest.mark.parametrize(
    ("limit", "reached", "fields"),
    [
        (0.0, State.READY, {}),
        (5.0, State.LOADING, {}),
        (5.0, State.READY, {"desired_state": RUN}),
        (5.0, State.RUNNING, {"desired_state": RUN, "grant": "granted"}),
        (5.0, State.READY, {"purpose": Purpose.ABORT, "subarray": 1}),
    ],
    ids=["no limit", "not ready", "granted at once", "running", "held abort script"],
)
def test_script_that_does_not_wait_for_its_start_has_no_limit(
    make: Any, limit: float, reached: State, fields: dict[str, Any]
) -> None:
    if "grant" in fields:
        fields = {**fields, "grant": make.grant()}
    execution = make.execution(reached, **fields)
    assert StopRunner not in map(type, _after(make, execution, 10, ready_limit_seconds=limit).actions)


def test_start_that_waits_for_its_subarray_is_not_idle_and_begins_anew_when_it_is_taken_back(make: Any) -> None:
    holder = make.execution(State.RUNNING, number=7, grant=make.grant(), desired_state=RUN)
    execution = make.execution(State.READY, desired_state=RUN, subarray=1)
    waiting = make.decide(execution, others=(holder,), **LIMIT)
    assert waiting.requeue_after_seconds is None
    spec = execution.spec.model_copy(update={"desired_state": DesiredState.READY})
    held = execution.model_copy(update={"spec": spec, "status": waiting.status})
    plan = make.decide(held, others=(holder,), now=make.now + timedelta(hours=9), **LIMIT)
    assert (plan.actions, plan.requeue_after_seconds) == ((), 60)
    asked = held.model_copy(update={"spec": execution.spec, "status": plan.status})
    again = make.decide(asked, others=(holder,), now=make.now + timedelta(hours=99), **LIMIT)
    assert again.actions == ()
    idle = find_condition(again.status, ConditionType.IDLE)
    assert idle is not None
    assert idle.status == "False"


def test_refused_start_is_tried_by_somebody_and_so_counts_from_then(make: Any) -> None:
    holder = make.execution(State.RUNNING, number=7, grant=make.grant(), desired_state=RUN)
    held = make.execution(State.READY, subarray=1, when_busy=WhenBusy.REJECT)
    status = make.decide(held, **LIMIT).status
    spec = held.spec.model_copy(update={"desired_state": RUN})
    later = make.now + timedelta(seconds=50)
    asked = held.model_copy(update={"spec": spec, "status": status})
    assert make.decide(asked, others=(holder,), now=later, **LIMIT).requeue_after_seconds == 60


# ---- what it was made of ---------------------------------------------------------------------------------------------


def test_image_is_noted_with_the_next_write_and_costs_none(make: Any) -> None:
    execution = make.execution(State.LOADING, observed_generation=1)
    told = execution.model_copy(
        update={"status": make.decide(execution).status.model_copy(update={"script": "inline"})}
    )
    assert make.decide(told, image="r@sha256:1").status is told.status
    noted = Resolved(image="r@sha256:1")
    for resolved in (None, noted):
        end = make.exit(Outcome.FAILED, Reason.MAIN_FAILED)
        ended = _with_exit(make, State.RUNNING, end, grant=make.grant(), resolved=resolved)
        assert make.decide(ended, image="r@sha256:1").status.resolved == noted


@pytest.mark.parametrize("presence", [Presence.GONE, Presence.STUCK, Presence.LOST])
def test_every_end_has_the_condition_finished_with_its_reason(make: Any, presence: Presence) -> None:
    status = make.decide(make.execution(State.LOADING), presence, reason=Reason.EVICTED).status
    finished = find_condition(status, ConditionType.FINISHED)
    assert finished is not None
    assert (finished.status, finished.reason) == ("True", Reason.EVICTED)


def test_who_came_first_is_granted_first(make: Any) -> None:
    first = make.execution(State.READY, number=1, desired_state=RUN, subarray=1)
    second = make.execution(State.READY, number=2, desired_state=RUN, subarray=1)
    assert make.decide(second, others=(first,)).status.grant is None
    assert make.decide(first, others=(second,)).status.grant is not None


# ---- the abort ---------------------------------------------------------------------------------------------------------

ABORT = StopOptions(abort=True)


@pytest.mark.parametrize("is_held", [True, False])
@pytest.mark.parametrize("granted", [True, False])
def test_abort_follows_the_stop_and_takes_the_subarray_over(make: Any, granted: bool, is_held: bool) -> None:
    grant = make.grant() if granted else None
    init = {"init": FunctionArgs(kwargs={"subarray_id": 1})}
    execution = make.execution(
        State.RUNNING, state=State.STOPPED, desired_state=STOP, stop=ABORT, grant=grant, args=init
    )
    others = (make.execution(State.RUNNING, number=2, grant=make.grant(), desired_state=RUN),) if is_held else ()
    plan = make.decide(execution, Presence.NONE, others)
    assert plan.actions == (CreateAbort(1, inherit=not is_held),)


def test_abort_is_created_once(make: Any) -> None:
    done = AbortStatus(procedure_id=2)
    execution = make.execution(
        State.RUNNING, state=State.STOPPED, desired_state=STOP, stop=ABORT, grant=make.grant(), abort=done
    )
    assert make.decide(execution, Presence.NONE).actions == ()


def test_abort_never_follows_a_rehearsal(make: Any) -> None:
    execution = make.execution(
        State.RUNNING,
        state=State.STOPPED,
        desired_state=STOP,
        stop=ABORT,
        grant=make.grant(None),
        mode=Mode.REHEARSAL,
        subarray=1,
    )
    assert make.decide(execution, Presence.NONE).actions == ()


@pytest.mark.parametrize("busy", WhenBusy)
def test_rehearsal_starts_on_a_subarray_that_another_holds_and_does_not_hold_it(make: Any, busy: WhenBusy) -> None:
    holder = make.execution(State.RUNNING, number=1, grant=make.grant(), desired_state=RUN)
    rehearsal = make.execution(
        State.READY, number=2, desired_state=RUN, subarray=1, when_busy=busy, mode=Mode.REHEARSAL
    )
    granted = make.decide(rehearsal, others=(holder,)).status
    assert granted.grant is not None
    assert granted.grant.subarray is None
    rehearsal = rehearsal.model_copy(update={"status": granted})
    waiting = make.execution(State.READY, number=3, desired_state=RUN, subarray=1)
    assert make.decide(waiting, others=(rehearsal,)).status.grant.subarray == 1


def test_rehearsal_with_two_subarrays_is_as_wrong_as_an_operation(make: Any) -> None:
    init = ExecutionArgs(init=FunctionArgs(kwargs={"subarray_id": 2}))
    rehearsal = make.execution(desired_state=RUN, subarray=1, args=init, mode=Mode.REHEARSAL)
    status = make.decide(rehearsal, Presence.NONE).status
    assert (status.state, status.reason) == (State.FAILED, Reason.INVALID_SPEC)


def test_subarray_stays_held_until_the_abort_has_taken_over(make: Any) -> None:
    stopped = make.execution(
        State.RUNNING, state=State.STOPPED, number=7, desired_state=STOP, stop=ABORT, grant=make.grant()
    )
    waiting = make.execution(State.READY, desired_state=RUN, subarray=1)
    assert make.decide(waiting, others=(stopped,)).status.grant is None
    taken = stopped.model_copy(
        update={"status": stopped.status.model_copy(update={"abort": AbortStatus(procedure_id=9)})}
    )
    assert make.decide(waiting, others=(taken,)).status.grant is not None


def test_pod_that_cannot_start_yet_says_why_and_no_longer_than_that(make: Any) -> None:
    waiting = {"reason": Reason.UNSCHEDULABLE, "message": "0/1 nodes are available"}
    status = make.decide(make.execution(pod_name="x"), Presence.PENDING, **waiting).status
    assert (status.state, status.reason, status.message) == (
        State.CREATING,
        Reason.UNSCHEDULABLE,
        "0/1 nodes are available",
    )
    told = make.execution(pod_name="x", observed_generation=1, **waiting)
    assert make.decide(told, Presence.PENDING, **waiting).status is told.status
    status = make.decide(told, Presence.ALIVE).status
    assert (status.reason, status.message) == (None, None)


@pytest.mark.parametrize("fields", [{"desired_state": STOP}, {"active_deadline_seconds": 5}], ids=["user", "deadline"])
def test_stop_removes_a_pod_in_which_nothing_ran_at_once(make: Any, fields: dict[str, Any]) -> None:
    plan = make.decide(make.execution(pod_name="x", **fields), Presence.PENDING)
    assert plan.status.state is State.CREATING
    assert plan.actions[-1] == DeletePod(10.0)


def test_spec_that_names_a_subarray_which_cannot_be_locked_fails_before_anything_runs(make: Any) -> None:
    args = ExecutionArgs(init=FunctionArgs(kwargs={"subarray_id": "one"}))
    plan = make.decide(make.execution(args=args), Presence.NONE)
    assert (plan.status.state, plan.status.reason) == (State.FAILED, Reason.INVALID_SPEC)
    assert plan.actions == ()


def test_start_with_arguments_that_cannot_be_locked_is_not_granted(make: Any) -> None:
    args = ExecutionArgs(main=FunctionArgs(kwargs={"subarray_id": 2}))
    ready = make.execution(State.READY, args=args, subarray=1, desired_state=DesiredState.RUNNING)
    plan = make.decide(ready, Presence.ALIVE)
    assert (plan.status.grant, plan.status.reason) == (None, Reason.INVALID_SPEC)
    assert "differs from subarray 1" in (plan.status.message or "")
    again = make.decide(ready.model_copy(update={"status": plan.status}), Presence.ALIVE)
    assert again.status is plan.status


def test_unasked_stop_is_told_with_the_reason_that_was_observed(make: Any) -> None:
    execution = _with_exit(make, State.RUNNING, make.exit(Outcome.STOPPED, Reason.STOP_REQUESTED), desired_state=RUN)
    observed = {"reason": Reason.POD_DELETED, "message": "somebody deleted the Pod"}
    status = make.decide(execution, Presence.ALIVE, **observed).status
    assert (status.state, status.reason, status.message) == (
        State.FAILED,
        Reason.POD_DELETED,
        "somebody deleted the Pod",
    )


@pytest.mark.parametrize("desired", [DesiredState.READY, RUN])
def test_unasked_stop_whose_reason_may_still_come_is_waited_for(make: Any, desired: DesiredState) -> None:
    end = make.exit(Outcome.STOPPED, Reason.STOP_REQUESTED)
    execution = _with_exit(make, State.READY, end, desired_state=desired, active_deadline_seconds=5)
    plan = make.decide(execution, Presence.ALIVE, awaits_word=True)
    assert (plan.status.state, plan.status.grant, plan.actions) == (State.READY, None, ())


@pytest.mark.parametrize("is_finished", [True, False])
def test_what_goes_on_beside_a_script_that_is_gone_is_removed(make: Any, is_finished: bool) -> None:
    execution = make.execution(State.RUNNING, state=State.COMPLETE if is_finished else State.RUNNING, desired_state=RUN)
    plan = make.decide(execution, Presence.GONE, is_lingering=True)
    assert plan.actions == (DeletePod(10.0),)


@pytest.mark.parametrize(
    ("reached", "seen", "words"),
    [
        pytest.param(
            State.CREATING, "no node takes the Pod", "the script never began: no node takes the Pod", id="wait"
        ),
        pytest.param(State.CREATING, "", "the script never began", id="no word"),
        pytest.param(State.LOADING, "", "the script was stopped while LOADING", id="begun"),
    ],
)
def test_timeout_says_how_far_it_was_and_what_it_waited_for(make: Any, reached: State, seen: str, words: str) -> None:
    execution = make.execution(reached, pod_name="x", ready_timeout_seconds=5)
    presence = Presence.PENDING if reached is State.CREATING else Presence.ALIVE
    stopping = make.decide(execution, presence, message=seen).status
    after = execution.model_copy(update={"status": stopping})
    # The Pod is deleted by now: what it waited for is not seen any more.
    status = make.decide(after, Presence.STUCK, reason=Reason.POD_DELETED, message="deleted").status
    assert (status.state, status.reason) == (State.FAILED, Reason.READY_TIMEOUT)
    assert (status.message or "").endswith(words)


@pytest.mark.parametrize("has_report", [True, False])
def test_end_that_is_certain_is_not_final_before_its_reason_may_have_come(make: Any, has_report: bool) -> None:
    execution = make.execution(State.RUNNING, desired_state=RUN)
    end = make.exit(Outcome.STOPPED, Reason.STOP_REQUESTED) if has_report else None
    runner = execution.status.runner.model_copy(update={"exit": end, "confined": True})
    execution = execution.model_copy(update={"status": execution.status.model_copy(update={"runner": runner})})
    plan = make.decide(execution, Presence.GONE, awaits_word=True)
    assert (plan.status.state, plan.actions) == (State.RUNNING, ())
    status = make.decide(execution, Presence.GONE, reason=Reason.EVICTED, message="the node's words").status
    assert (status.state, status.reason, status.message) == (State.FAILED, Reason.EVICTED, "the node's words")


# ---- a runner that was refused -------------------------------------------------------------------------------------------

REFUSED = {"presence": Presence.REFUSED, "reason": Reason.POD_REJECTED, "message": "exceeded quota"}


def test_refused_runner_is_tried_again_and_told(make: Any) -> None:
    execution = make.execution(pod_name="p", desired_state=DesiredState.RUNNING, subarray=1)
    plan = make.decide(execution, **REFUSED)
    assert plan.actions == (CreatePod(),)
    assert (plan.status.state, plan.status.reason) == (State.CREATING, Reason.POD_REJECTED)
    assert plan.status.message == "exceeded quota"


def test_stop_of_an_execution_whose_runner_was_refused_is_certain_at_once(make: Any) -> None:
    plan = make.decide(make.execution(pod_name="p", desired_state=DesiredState.STOPPED), **REFUSED)
    assert (plan.status.state, plan.status.reason, plan.actions) == (State.STOPPED, Reason.STOP_REQUESTED, ())


@pytest.mark.parametrize(
    ("field", "reason"),
    [("ready_timeout_seconds", Reason.READY_TIMEOUT), ("active_deadline_seconds", Reason.DEADLINE_EXCEEDED)],
)
def test_deadline_of_an_execution_whose_runner_was_refused_names_the_refusal(
    make: Any, field: str, reason: Reason
) -> None:
    execution = make.execution(pod_name="p", desired_state=DesiredState.RUNNING, **{field: 5})
    plan = make.decide(execution, **REFUSED)
    assert (plan.status.state, plan.status.reason, plan.actions) == (State.FAILED, reason, ())
    assert "exceeded quota" in (plan.status.message or "")


def test_start_that_a_pod_of_an_unknown_subarray_keeps_off_is_told_why(make: Any) -> None:
    execution = make.execution(State.READY, desired_state=DesiredState.RUNNING, subarray=1)
    locks = build_lock_table([execution], [Leftover("gone", 5, 1, is_guess=True)])
    plan = decide(Snapshot(execution, RunnerObservation(Presence.ALIVE), locks, make.now))
    assert "PID #5 was deleted, and its Pod may still run, on which subarray is not known" in (
        plan.status.message or ""
    )
