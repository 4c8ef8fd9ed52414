"""Aborts: which script, by whom, what becomes of its end, and the abort scripts that are held READY."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from oet_crds.aborts import (
    ABORT_BEGIN_SECONDS,
    build_abort_source,
    find_serving,
    is_armed,
    is_given_up,
    is_ready_to_abort,
    parse_abort_script,
    was_armed,
)
from oet_crds.alarms import find_alarm
from oet_crds.conditions import find_condition
from oet_crds.execution import AbortStatus, FileScript, GitScript, Grant, ScriptExecution, StopOptions
from oet_crds.reasons import Outcome, Reason
from oet_crds.settings import EngineSettings, SettingsError, parse_settings
from oet_crds.states import ConditionType, DesiredState, Purpose, State
from oet_crds.topics import Topic
from oet_operator.core.aborts import (
    HANDOVER_SECONDS,
    LINGER_SECONDS,
    REARM_SECONDS,
    AbortEnd,
    AbortView,
    Serving,
    build_abort_spec,
    build_abort_view,
    find_arming_problem,
    is_outcome_open,
)
from oet_operator.core.actions import (
    ArmAbort,
    CreateAbort,
    CreatePod,
    DeleteExecution,
    DeletePod,
    Plan,
    StopRunner,
    UseArmed,
)
from oet_operator.core.decide import BACKSTOP_SECONDS, GIVE_UP_GRACE_SECONDS, decide
from oet_operator.core.locks import build_lock_table, is_holding, may_begin
from oet_operator.core.snapshot import Presence, RunnerObservation, Snapshot

STOPPED = {"state": State.STOPPED, "desired_state": DesiredState.STOPPED, "stop": StopOptions(abort=True)}
NEEDED = AbortView(is_prearmed=True, has_resident=True, is_needed=True)
UNUSED = AbortView(is_prearmed=True, has_resident=True)
GIT = "git+https://host/repo.git"
COMMIT = "0123456789" * 4


def _decide(make: Any, execution: ScriptExecution, view: AbortView, presence: Presence = Presence.ALIVE) -> Plan:
    runner = RunnerObservation(presence)
    plan = decide(Snapshot(execution, runner, build_lock_table([execution]), make.now, view))
    after = execution.model_copy(update={"status": plan.status})
    assert decide(Snapshot(after, runner, build_lock_table([after]), make.now, view)).status is plan.status
    return plan


def _armed(make: Any, reached: State = State.READY, number: int = 5, **fields: Any) -> ScriptExecution:
    execution: ScriptExecution = make.execution(reached, number, purpose=Purpose.ABORT, subarray=1, **fields)
    return execution


def _ready(make: Any, **fields: Any) -> ScriptExecution:
    grant = make.grant().model_copy(update={"standing": True})
    return _armed(make, grant=grant, **fields)


# ---- which script ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "script"),
    [
        ("file:///opt/abort.py", FileScript(path="/opt/abort.py")),
        (f"{GIT}@a/b#x/y.py", GitScript(repository="https://host/repo.git", branch="a/b", path="x/y.py")),
        (f"{GIT}@{COMMIT}#y.py", GitScript(repository="https://host/repo.git", commit=COMMIT, path="y.py")),
        (f"{GIT}#y.py", GitScript(repository="https://host/repo.git", path="y.py")),
        (
            "git+ssh://git@host/repo.git@main#y.py",
            GitScript(repository="ssh://git@host/repo.git", branch="main", path="y.py"),
        ),
    ],
)
def test_abort_script_is_named_by_a_file_or_a_place_in_git(uri: str, script: object) -> None:
    source = build_abort_source(uri, "/scripts")
    assert script in (source.file, source.git)


def test_abort_script_that_is_not_named_is_the_shipped_one() -> None:
    assert parse_abort_script("") is None
    assert build_abort_source("", "/scripts").file == FileScript(path="/scripts/abort.py")


@pytest.mark.parametrize(
    "uri", ["abort.py", "file://abort.py", "file:///", GIT, f"{GIT}@..#a.py", "git+https://h/../r#a.py"]
)
def test_wrong_name_of_the_abort_script_is_told_at_the_start(uri: str) -> None:
    with pytest.raises(SettingsError, match="abort_script"):
        parse_settings(f"[engine]\nabort_script = {uri}", "oet.ini", {})


def test_abort_script_from_a_repository_that_is_not_allowed_is_told_at_the_start() -> None:
    with pytest.raises(SettingsError, match=r"oet\.ini:2: \[engine\] abort_script: .*other"):
        parse_settings(f"[engine]\nabort_script = {GIT}#a.py\n[git]\nallowed = other", "oet.ini", {})


# ---- the abort of a stopped execution --------------------------------------------------------------------------------------


def test_abort_without_a_subarray_is_an_alarm_once(make: Any) -> None:
    plan = _decide(make, make.execution(State.RUNNING, **STOPPED), AbortView(), Presence.GONE)
    assert plan.actions == ()
    condition = find_condition(plan.status, ConditionType.ABORTED)
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", Reason.NOTHING_TO_ABORT)
    assert plan.status.message == condition.message


def test_abort_that_somebody_runs_already_is_recorded_and_not_run_again(make: Any) -> None:
    stopped = make.execution(State.RUNNING, grant=make.grant(), **STOPPED)
    plan = _decide(make, stopped, AbortView(serving=Serving(9)), Presence.GONE)
    assert (plan.status.abort, plan.actions) == (AbortStatus(procedure_id=9), ())


def test_abort_uses_the_script_that_is_held_if_it_inherits_the_subarray(make: Any) -> None:
    stopped = make.execution(State.RUNNING, grant=make.grant(), **STOPPED)
    armed = _ready(make)
    view = AbortView(armed=armed)
    assert _decide(make, stopped, view, Presence.GONE).actions == (UseArmed(armed, 1),)
    holder = make.execution(State.RUNNING, 8, grant=make.grant())
    locks = build_lock_table([stopped, holder])
    plan = decide(Snapshot(stopped, RunnerObservation(Presence.GONE), locks, make.now, view))
    assert plan.actions == (CreateAbort(1, inherit=False),)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (AbortEnd(State.COMPLETE, ""), None),
        (AbortEnd(State.FAILED, "it refused"), "(procedure 9) ended FAILED (it refused)"),
        (AbortEnd(State.UNKNOWN, ""), "(procedure 9) ended UNKNOWN; "),
        (AbortEnd(None, ""), "(procedure 9) was removed before its end was known"),
    ],
)
def test_end_of_the_abort_is_recorded_and_an_alarm_unless_complete(make: Any, end: AbortEnd, words: str | None) -> None:
    abort = AbortStatus(procedure_id=9)
    stopped = make.execution(State.RUNNING, grant=make.grant(), abort=abort, message="stopped", **STOPPED)
    assert is_outcome_open(stopped)
    after = stopped.model_copy(update={"status": _decide(make, stopped, AbortView(end=end), Presence.GONE).status})
    assert not is_outcome_open(after)
    alarm = find_alarm(after)
    if words is None:
        assert alarm is None
        return
    assert alarm is not None
    assert alarm.topic is Topic.ABORT_FAILED
    assert words in alarm.message
    assert after.status.message == f"stopped; {alarm.message}"


def test_stopped_execution_waits_for_the_end_of_its_abort(make: Any) -> None:
    stopped = make.execution(State.RUNNING, abort=AbortStatus(procedure_id=9), ttl_seconds_after_finished=0, **STOPPED)
    assert _decide(make, stopped, AbortView(serving=Serving(9)), Presence.GONE).actions == ()


# ---- held READY ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reached", "view", "arms"),
    [
        (State.READY, AbortView(is_prearmed=True), True),
        (State.RUNNING, AbortView(is_prearmed=True), True),
        (State.LOADING, AbortView(is_prearmed=True), False),
        (State.READY, AbortView(), False),
        (State.READY, AbortView(is_prearmed=True, has_resident=True), False),
    ],
)
def test_abort_script_is_prepared_for_a_script_that_is_prepared(
    make: Any, reached: State, view: AbortView, arms: bool
) -> None:
    plan = _decide(make, make.execution(reached, subarray=1), view)
    assert (ArmAbort(1) in plan.actions) is arms


def test_abort_script_that_is_ready_and_needed_may_begin_once_it_is_told_for_whom(make: Any) -> None:
    plan = _decide(make, _armed(make), NEEDED)
    armed = _armed(make).model_copy(update={"status": plan.status})
    assert is_ready_to_abort(armed)
    assert not may_begin(armed)
    assert not is_holding(armed)
    spec = armed.spec.model_copy(update={"abort_of": "u", "desired_state": DesiredState.RUNNING})
    begun = armed.model_copy(update={"spec": spec})
    assert may_begin(begun)
    assert is_holding(begun)
    assert _decide(make, begun, UNUSED).actions == ()


@pytest.mark.parametrize(
    ("fields", "view"),
    [({"reached": State.LOADING}, NEEDED), ({}, UNUSED), ({"desired_state": DesiredState.STOPPED}, NEEDED)],
)
def test_abort_script_that_is_not_ready_or_not_needed_may_not_begin(
    make: Any, fields: dict[str, Any], view: AbortView
) -> None:
    assert _decide(make, _armed(make, **fields), view).status.grant is None


def test_abort_script_that_was_held_is_followed_by_no_abort(make: Any) -> None:
    ended = _ready(make, **STOPPED)
    assert not any(isinstance(action, CreateAbort) for action in _decide(make, ended, NEEDED, Presence.GONE).actions)


def test_user_script_never_gets_a_standing_grant(make: Any) -> None:
    assert _decide(make, make.execution(State.READY, subarray=1), NEEDED).status.grant is None


def test_abort_script_that_nobody_needs_is_stopped_after_a_while_and_removed(make: Any) -> None:
    armed = _ready(make)
    idle = armed.model_copy(update={"status": _decide(make, armed, UNUSED).status})
    assert find_condition(idle.status, ConditionType.STOPPING) is None
    later = make.now + timedelta(seconds=LINGER_SECONDS)
    runner = RunnerObservation(Presence.ALIVE)
    plan = decide(Snapshot(idle, runner, build_lock_table([idle]), later, UNUSED))
    assert [type(action) for action in plan.actions] == [StopRunner]
    report = plan.status.runner.model_copy(
        update={"exit": make.exit(Outcome.STOPPED, Reason.STOP_REQUESTED), "confined": True}
    )  # type: ignore[union-attr]
    stopping = idle.model_copy(update={"status": plan.status.model_copy(update={"runner": report})})
    ended = decide(Snapshot(stopping, runner, build_lock_table([stopping]), later, UNUSED))
    assert (ended.status.state, ended.status.reason) == (State.STOPPED, Reason.NOT_NEEDED)
    assert DeleteExecution() in ended.actions
    assert find_alarm(stopping.model_copy(update={"status": ended.status})) is None


def test_abort_script_that_nobody_needs_any_more_before_it_has_a_runner_is_not_run(make: Any) -> None:
    fresh = _armed(make, State.CREATING)
    created = _decide(make, fresh, UNUSED, Presence.NONE)
    assert CreatePod() in created.actions
    status = created.status.model_copy(update={"pod_name": None})
    later = make.now + timedelta(seconds=LINGER_SECONDS)
    idle = fresh.model_copy(update={"status": status})
    plan = decide(Snapshot(idle, RunnerObservation(Presence.NONE), build_lock_table([idle]), later, UNUSED))
    assert (plan.status.state, plan.status.reason) == (State.STOPPED, Reason.NOT_NEEDED)


def test_runner_that_is_gone_while_it_is_not_needed_is_no_failure(make: Any) -> None:
    armed = _ready(make)
    idle = armed.model_copy(update={"status": _decide(make, armed, UNUSED).status})
    later = make.now + timedelta(seconds=LINGER_SECONDS)
    table = build_lock_table([idle])
    stopping = decide(Snapshot(idle, RunnerObservation(Presence.ALIVE), table, later, UNUSED)).status
    gone = idle.model_copy(update={"status": stopping})
    plan = decide(Snapshot(gone, RunnerObservation(Presence.GONE), table, later, UNUSED))
    assert (plan.status.state, plan.status.reason) == (State.STOPPED, Reason.NOT_NEEDED)


@pytest.mark.parametrize(("reason", "alarms"), [(Reason.RUNNER_LOST, True), (Reason.ENGINE_LOST, False)])
def test_abort_script_that_cannot_be_held_is_an_alarm_and_kept_for_a_while(
    make: Any, reason: Reason, alarms: bool
) -> None:
    armed = _armed(make)
    runner = RunnerObservation(Presence.GONE, reason, "gone")
    plan = decide(Snapshot(armed, runner, build_lock_table([armed]), make.now, NEEDED))
    after = armed.model_copy(update={"status": plan.status})
    alarm = find_alarm(after)
    assert (alarm is not None) is alarms
    assert (plan.requeue_after_seconds or 0.0) <= REARM_SECONDS
    assert (DeleteExecution() in plan.actions) is not alarms
    if alarm:
        assert alarm.topic is Topic.ARMING_FAILED
        assert "subarray 1" in alarm.message


# ---- what is seen of aborts ------------------------------------------------------------------------------------------------


def test_first_abort_script_of_a_subarray_in_use_is_the_needed_one(make: Any) -> None:
    script = make.execution(State.RUNNING, 1, subarray=1)
    first, second = _ready(make, number=5), _armed(make, number=6)
    every = [script, second, first]
    assert build_abort_view(first, every, is_prearmed=True).is_needed
    assert not build_abort_view(second, every, is_prearmed=True).is_needed
    assert not build_abort_view(first, every, is_prearmed=False).is_needed
    assert not build_abort_view(first, [first, second], is_prearmed=True).is_needed
    view = build_abort_view(script, every, is_prearmed=True)
    assert (view.armed, view.has_resident) == (first, True)


def test_failed_abort_script_stands_in_the_way_of_the_next_one_and_serves_nobody(make: Any) -> None:
    failed = _armed(make, state=State.FAILED)
    script = make.execution(State.RUNNING, 1, subarray=1)
    view = build_abort_view(script, [script, failed], is_prearmed=True)
    assert (view.armed, view.has_resident) == (None, True)
    assert is_armed(failed)


def test_execution_on_another_subarray_or_none_has_no_abort_script(make: Any) -> None:
    other, without = make.execution(State.RUNNING, 1, subarray=2), make.execution(State.RUNNING, 2)
    for script in (other, without):
        view = build_abort_view(script, [script, _ready(make)], is_prearmed=True)
        assert (view.armed, view.has_resident) == (None, False)


def test_end_of_the_serving_execution_is_seen(make: Any) -> None:
    stopped = make.execution(State.RUNNING, grant=make.grant(), abort=AbortStatus(procedure_id=9), **STOPPED)
    running = make.execution(State.RUNNING, 9, subarray=1)
    ended = make.execution(State.RUNNING, 9, subarray=1, state=State.FAILED, message="no")
    assert build_abort_view(stopped, [], is_prearmed=False, serving=running).end is None
    assert build_abort_view(stopped, [], is_prearmed=False, serving=ended).end == AbortEnd(State.FAILED, "no")
    assert build_abort_view(stopped, [], is_prearmed=False).end == AbortEnd(None, "")


@pytest.mark.parametrize(("abort_of", "desired"), [(None, DesiredState.READY), ("u", DesiredState.RUNNING)])
def test_abort_script_is_held_or_runs_for_somebody(abort_of: str | None, desired: DesiredState) -> None:
    spec = build_abort_spec(EngineSettings(), "/scripts", 3, abort_of)
    assert (spec.purpose, spec.subarray, spec.desired_state, spec.abort_of) == (Purpose.ABORT, 3, desired, abort_of)
    assert spec.args.init is not None
    assert spec.args.init.kwargs == {"subarray_id": 3}


# ---- an abort that does not begin ------------------------------------------------------------------------------------------


def _look(
    execution: ScriptExecution, view: AbortView, now: Any, presence: Presence = Presence.GONE, **runner: Any
) -> tuple[ScriptExecution, Plan]:
    """Decide, check that deciding again changes nothing, and return the execution as it is then."""
    snapshot = Snapshot(
        execution, RunnerObservation(presence, **runner), build_lock_table([execution]), now, aborts=view
    )
    plan = decide(snapshot)
    after = execution.model_copy(update={"status": plan.status})
    return after, plan


def _stopped(make: Any, **fields: Any) -> ScriptExecution:
    """Build an execution that was stopped with abort in this moment."""
    stopped: ScriptExecution = make.execution(
        State.RUNNING, grant=make.grant(), message="stopped", age_seconds=0, **STOPPED, **fields
    )
    return stopped


@pytest.mark.parametrize(
    ("view", "fields"),
    [
        (AbortView(serving=Serving(9, words="CREATING (PodRejected: quota)")), {"abort": AbortStatus(procedure_id=9)}),
        (AbortView(), {}),
    ],
    ids=["created", "not created"],
)
def test_abort_that_has_not_begun_in_time_is_an_alarm_until_it_begins(
    make: Any, view: AbortView, fields: dict[str, Any]
) -> None:
    stopped = _stopped(make, **fields)
    waiting, plan = _look(stopped, view, make.now)
    assert find_alarm(waiting) is None
    assert plan.requeue_after_seconds == ABORT_BEGIN_SECONDS
    late = make.now + timedelta(seconds=ABORT_BEGIN_SECONDS)
    alarmed, plan = _look(waiting, view, late)
    alarm = find_alarm(alarmed)
    assert alarm is not None
    assert (alarm.topic, alarm.reason) == (Topic.ABORT_FAILED, Reason.ABORT_NOT_BEGUN)
    assert "has not begun within 10 s" in alarm.message
    assert view.serving is None or "CREATING (PodRejected: quota)" in alarm.message
    assert alarmed.status.message == f"stopped; {alarm.message}"
    assert _look(alarmed, view, late)[1].status is alarmed.status
    begun = AbortView(serving=Serving(9, has_begun=True))
    calm, _ = _look(alarmed, begun, late)
    assert find_alarm(calm) is None
    assert calm.status.message == "stopped"
    assert is_outcome_open(calm)


@pytest.mark.parametrize("end", [State.COMPLETE, State.FAILED])
def test_alarm_of_an_abort_that_did_not_begin_ends_with_its_end(make: Any, end: State) -> None:
    late = make.now + timedelta(seconds=ABORT_BEGIN_SECONDS)
    alarmed, _ = _look(_stopped(make, abort=AbortStatus(procedure_id=9)), AbortView(serving=Serving(9)), late)
    ended, _ = _look(alarmed, AbortView(serving=Serving(9), end=AbortEnd(end, "")), late)
    assert not is_outcome_open(ended)
    condition = find_condition(ended.status, ConditionType.ABORTED)
    assert condition is not None
    assert condition.reason == (Reason.COMPLETED if end is State.COMPLETE else Reason.ABORT_FAILED)
    assert "has not begun" not in (ended.status.message or "")


def test_alarm_without_other_words_leaves_none_when_it_ends(make: Any) -> None:
    late = make.now + timedelta(seconds=ABORT_BEGIN_SECONDS)
    stopped = _stopped(make, abort=AbortStatus(procedure_id=9))
    bare = stopped.model_copy(update={"status": stopped.status.model_copy(update={"message": None})})
    alarmed, _ = _look(bare, AbortView(serving=Serving(9)), late)
    assert alarmed.status.message
    calm, _ = _look(alarmed, AbortView(serving=Serving(9, has_begun=True)), late)
    assert calm.status.message is None


# ---- one that was held and does not hear -----------------------------------------------------------------------------------


def _handed(make: Any, stopped: ScriptExecution, reached: State = State.READY, **fields: Any) -> ScriptExecution:
    grant = make.grant().model_copy(update={"standing": False, "abort_of": stopped.uid})
    return _armed(make, reached, grant=grant, **fields)


def _view(execution: ScriptExecution, **others: Any) -> AbortView:
    return build_abort_view(execution, [], is_prearmed=True, **others)


def test_held_abort_script_that_does_not_begin_is_given_up_and_another_one_takes_its_place(make: Any) -> None:
    handed_at, late = make.now, make.now + timedelta(seconds=HANDOVER_SECONDS)
    stopped = _stopped(make, abort=AbortStatus(procedure_id=5))
    armed = _handed(make, stopped)
    # In time the stopped execution waits, and the other one is left to begin.
    same, plan = _look(stopped, _view(stopped, serving=armed), handed_at)
    assert (same.status.abort, plan.requeue_after_seconds) == (AbortStatus(procedure_id=5), HANDOVER_SECONDS)
    assert _look(armed, _view(armed, target=stopped), late, Presence.ALIVE)[1].actions == ()
    # Too late: it is taken back, and holds the subarray for whoever comes next.
    taken_back, _ = _look(stopped, _view(stopped, serving=armed), late)
    assert taken_back.status.abort is None
    assert is_holding(taken_back)
    # Nothing else begins while it may.
    assert _look(taken_back, _view(taken_back, serving=armed), late)[1].actions == ()
    ending, plan = _look(armed, _view(armed, target=taken_back), late, Presence.ALIVE)
    assert any(isinstance(action, DeletePod) for action in plan.actions)
    assert is_given_up(ending)
    assert _look(taken_back, _view(taken_back, serving=ending), late)[1].actions == ()
    # What does not end is ended by force.
    later = late + timedelta(seconds=GIVE_UP_GRACE_SECONDS + BACKSTOP_SECONDS)
    plan = _look(ending, _view(ending, target=taken_back), later, Presence.ALIVE)[1]
    assert DeletePod(0.0) in plan.actions
    ended, _ = _look(ending, _view(ending, target=taken_back), late, Presence.GONE)
    assert (ended.status.state, ended.status.reason) == (State.FAILED, Reason.ABORT_NOT_BEGUN)
    assert CreateAbort(1, inherit=True) in _look(taken_back, _view(taken_back, serving=ended), late)[1].actions


@pytest.mark.parametrize("after_seconds", [0.0, HANDOVER_SECONDS, 60.0])
def test_held_abort_script_that_is_told_late_has_as_long_to_begin(make: Any, after_seconds: float) -> None:
    """The REST server tells it so in its spec, when it is told of the script's end: no time is left behind."""
    told_at = make.now + timedelta(seconds=after_seconds)
    stopped = _stopped(make, abort=AbortStatus(procedure_id=5))
    told = _ready(make, abort_of=stopped.uid, desired_state=DesiredState.RUNNING)
    # Also before that is noted nobody takes it for deaf.
    assert _look(stopped, _view(stopped, serving=told), told_at)[0].status.abort == AbortStatus(procedure_id=5)
    noted, plan = _look(told, _view(told, target=stopped), told_at, Presence.ALIVE)
    assert plan.actions == ()
    assert noted.status.grant == Grant(time=told_at, subarray=1, standing=False, abort_of=stopped.uid)
    for seconds, is_lost in ((HANDOVER_SECONDS - 0.1, False), (HANDOVER_SECONDS, True)):
        now = told_at + timedelta(seconds=seconds)
        waiting, _ = _look(stopped, _view(stopped, serving=noted), now)
        assert (waiting.status.abort is None) is is_lost
        ending, _ = _look(noted, _view(noted, target=waiting), now, Presence.ALIVE)
        assert is_given_up(ending) is is_lost


@pytest.mark.parametrize(("claimed", "is_ended"), [(5, False), (9, True), (None, True)])
def test_deaf_abort_script_is_ended_unless_the_stopped_execution_counts_on_it(
    make: Any, claimed: int | None, is_ended: bool
) -> None:
    """Another one may have been created while this one was told: it would wait for this one's subarray for ever."""
    late = make.now + timedelta(seconds=HANDOVER_SECONDS)
    stopped = _stopped(make, abort=AbortStatus(procedure_id=claimed) if claimed else None)
    deaf = _handed(make, stopped)
    ending, _ = _look(deaf, _view(deaf, target=stopped), late, Presence.ALIVE)
    assert is_given_up(ending) is is_ended


def test_held_abort_script_that_is_told_for_whom_and_not_to_begin_does_not(make: Any) -> None:
    named = _ready(make, abort_of="somebody")
    assert _look(named, _view(named), make.now, Presence.ALIVE)[0].status.grant == named.status.grant


def test_held_abort_script_that_begins_late_is_counted_on_again(make: Any) -> None:
    late = make.now + timedelta(seconds=HANDOVER_SECONDS)
    stopped = _stopped(make)
    begun = _handed(make, stopped, State.RUNNING)
    assert _look(stopped, _view(stopped, serving=begun), late)[0].status.abort == AbortStatus(procedure_id=5)
    assert _look(begun, _view(begun, target=stopped), late, Presence.ALIVE)[1].actions == ()


def test_held_abort_script_that_was_complete_before_it_was_ended_has_aborted(make: Any) -> None:
    late = make.now + timedelta(seconds=HANDOVER_SECONDS)
    stopped = _stopped(make)
    view = AbortView(serving=Serving(5, is_given_up=True), end=AbortEnd(State.COMPLETE, ""))
    assert _look(stopped, view, late)[0].status.abort == AbortStatus(procedure_id=5)


def test_execution_with_a_given_up_abort_is_served_by_the_other_one(make: Any) -> None:
    stopped = _stopped(make)
    ending, _ = _look(
        _handed(make, stopped),
        _view(_handed(make, stopped), target=stopped),
        make.now + timedelta(seconds=HANDOVER_SECONDS),
        Presence.ALIVE,
    )
    fresh = make.execution(
        State.READY, 6, purpose=Purpose.ABORT, abort_of=stopped.uid, subarray=1, desired_state=DesiredState.RUNNING
    )
    assert find_serving([ending, fresh], stopped.uid) is fresh
    assert find_serving([ending], stopped.uid) is ending
    assert find_serving([], stopped.uid) is None
    assert not was_armed(fresh)
    assert _view(stopped, serving=fresh).serving == Serving(6, words="READY")


@pytest.mark.parametrize(
    ("fields", "is_shipped", "has_tango", "works"),
    [
        ({}, True, False, False),
        ({}, True, True, True),
        ({}, False, False, True),
        ({"abort_script": f"{GIT}#y.py"}, True, False, True),
    ],
)
def test_abort_script_that_needs_tango_is_not_held_without(
    fields: dict[str, Any], is_shipped: bool, has_tango: bool, works: bool
) -> None:
    problem = find_arming_problem(EngineSettings(**fields), is_shipped=is_shipped, has_tango=has_tango)
    assert (not problem) is works


@pytest.mark.parametrize(
    ("state", "begun", "is_given_up_"),
    [
        (State.FAILED, False, True),
        (State.UNKNOWN, False, True),
        (State.STOPPED, False, False),
        (State.FAILED, True, False),
        (State.READY, False, False),
    ],
)
def test_held_abort_script_that_ends_before_it_began_is_given_up(
    make: Any, state: State, begun: bool, is_given_up_: bool
) -> None:
    reached = State.RUNNING if begun else State.READY
    grant = make.grant().model_copy(update={"standing": False, "abort_of": "uid-1"})
    assert is_given_up(_armed(make, reached, grant=grant, state=state)) == is_given_up_


def test_held_abort_script_that_ended_before_it_began_is_replaced(make: Any) -> None:
    stopped = make.execution(
        State.RUNNING, subarray=1, grant=make.grant(), abort=AbortStatus(procedure_id=5), **STOPPED
    )
    view = AbortView(serving=Serving(5, is_given_up=True), end=AbortEnd(State.FAILED, "cut off"))
    dropped = decide(Snapshot(stopped, RunnerObservation(Presence.GONE), build_lock_table([stopped]), make.now, view))
    assert dropped.status.abort is None
    again = stopped.model_copy(update={"status": dropped.status})
    plan = decide(Snapshot(again, RunnerObservation(Presence.GONE), build_lock_table([again]), make.now, view))
    assert plan.actions == (CreateAbort(1, inherit=True),)


def test_held_abort_script_that_was_given_up_and_aborted_all_the_same_has_aborted(make: Any) -> None:
    stopped = make.execution(
        State.RUNNING, subarray=1, grant=make.grant(), abort=AbortStatus(procedure_id=5), **STOPPED
    )
    view = AbortView(serving=Serving(5, is_given_up=True), end=AbortEnd(State.COMPLETE, ""))
    aborted = find_condition(_decide(make, stopped, view, Presence.GONE).status, ConditionType.ABORTED)
    assert aborted is not None
    assert aborted.status == "True"
