"""What an abort is, on every engine: which script, what is told of its failure, and abort scripts that are held READY."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from oet_support import wait_until

from oet_crds.aborts import is_armed, is_ready_to_abort
from oet_crds.alarms import find_alarm
from oet_crds.errors import InvalidTransitionError
from oet_crds.execution import InlineScript, ScriptExecution, ScriptExecutionSpec, ScriptSource, StopOptions
from oet_crds.ports import ExecutionStore, SpecChange, Timeline
from oet_crds.reasons import Reason
from oet_crds.settings import EngineSettings
from oet_crds.states import DesiredState, Purpose, State
from oet_crds.topics import EntryKind, Severity, Topic
from oet_operator.local.engine import LocalEngine

LONG = "import time\ndef main(*args, **kwargs):\n    time.sleep(600)"
ABORT = "def init(subarray_id): print('abort', subarray_id)\ndef main(): print('aborted')"
FAILING = "def init(subarray_id): pass\ndef main(): raise RuntimeError('the subarray refused')"
SECONDS = 60.0
STOP_AND_ABORT = SpecChange(desired_state=DesiredState.STOPPED, stop=StopOptions(abort=True, grace_period_seconds=1))


def _start(store: ExecutionStore, subarray: int | None, source: str = LONG) -> int:
    spec = ScriptExecutionSpec(script=ScriptSource(inline=InlineScript(source=source)), subarray=subarray)
    number = store.create(spec).procedure_id
    assert number is not None
    _wait(store, number, State.RUNNING)
    return number


def _wait(store: ExecutionStore, number: int, state: State) -> ScriptExecution:
    execution = store.wait(number, lambda one: one.status.state is state or one.is_finished, SECONDS)
    assert execution.status.state is state, execution.status
    return execution


def _wait_aborted(store: ExecutionStore, number: int) -> ScriptExecution:
    """Wait for the abort of a stopped execution; return its execution."""
    stopped = store.wait(number, lambda one: one.status.abort is not None, SECONDS)
    assert stopped.status.abort is not None, stopped.status
    return store.wait(stopped.status.abort.procedure_id, lambda one: one.is_finished, SECONDS)


def _read_alarms(timeline: Timeline, number: int) -> list[tuple[str, object]]:
    entries = timeline.read(0, limit=1000, procedure_id=number, kinds=[EntryKind.ACTION])
    return [(entry.topic, entry.payload["severity"]) for entry in entries if entry.topic.startswith("abort.")]


def test_abort_says_what_it_is_and_for_whom(store: ExecutionStore, ship: Callable[[str, str], None]) -> None:
    ship("abort.py", ABORT)
    target = _start(store, 7)
    store.change(target, STOP_AND_ABORT)
    aborter = _wait_aborted(store, target)
    assert (aborter.status.state, aborter.spec.purpose) == (State.COMPLETE, Purpose.ABORT)
    assert aborter.spec.abort_of == store.get(target).uid


def test_abort_of_nothing_is_refused_before_anything_is_stopped(store: ExecutionStore) -> None:
    target = _start(store, None)
    with pytest.raises(InvalidTransitionError, match="stop it without abort"):
        store.change(target, STOP_AND_ABORT)
    assert store.get(target).status.state is State.RUNNING


def test_failing_abort_script_is_an_alarm(
    store: ExecutionStore, timeline: Timeline, ship: Callable[[str, str], None]
) -> None:
    ship("abort.py", FAILING)
    target = _start(store, 8)
    store.change(target, STOP_AND_ABORT)
    stopped = store.wait(target, lambda one: find_alarm(one) is not None, SECONDS)
    alarm = find_alarm(stopped)
    assert alarm is not None
    assert (stopped.status.state, alarm.topic, alarm.reason) == (
        State.STOPPED,
        Topic.ABORT_FAILED,
        Reason.ABORT_FAILED,
    )
    assert "the subarray refused" in alarm.message
    assert alarm.message in (stopped.status.message or "")
    wait_until(lambda: _read_alarms(timeline, target), SECONDS, "the alarm is not in the timeline")
    assert _read_alarms(timeline, target) == [(Topic.ABORT_FAILED, Severity.ALARM)]


def test_abort_that_works_is_no_alarm(
    store: ExecutionStore, timeline: Timeline, ship: Callable[[str, str], None]
) -> None:
    ship("abort.py", ABORT)
    target = _start(store, 9)
    store.change(target, STOP_AND_ABORT)
    _wait_aborted(store, target)
    stopped = store.wait(target, lambda one: any(found.type == "Aborted" for found in one.status.conditions), SECONDS)
    assert find_alarm(stopped) is None
    assert _read_alarms(timeline, target) == []


# ---- held READY -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """The folder of the shipped scripts, with an abort script that works."""
    (tmp_path / "abort.py").write_text(ABORT)
    return tmp_path


@pytest.fixture
def prearmed(scripts: Path) -> Iterator[LocalEngine]:
    """An engine that holds abort scripts READY."""
    settings = EngineSettings(
        state_dir=str(scripts / "state"), spares=1, max_active=3, scripts_location=str(scripts), prearm_abort=True
    )
    engine = LocalEngine(settings)
    engine.start()
    yield engine
    engine.stop()


def _find_armed(store: ExecutionStore, subarray: int) -> list[ScriptExecution]:
    return [one for one in store.list() if is_ready_to_abort(one) and one.spec.subarray == subarray]


def _wait_armed(store: ExecutionStore, subarray: int) -> int:
    wait_until(lambda: len(_find_armed(store, subarray)) == 1, SECONDS, "no abort script is held")
    number = _find_armed(store, subarray)[0].procedure_id
    assert number is not None
    return number


def test_abort_script_is_held_for_a_subarray_in_use_and_runs_at_the_abort(prearmed: LocalEngine) -> None:
    target = _start(prearmed, 3)
    armed = _wait_armed(prearmed, 3)
    prearmed.change(target, STOP_AND_ABORT)
    aborter = _wait_aborted(prearmed, target)
    assert (aborter.procedure_id, aborter.status.state) == (armed, State.COMPLETE)
    lines = prearmed.timeline.read(0, limit=100, procedure_id=armed, kinds=[EntryKind.LOG])
    assert [line.payload["line"] for line in lines] == ["abort 3", "aborted"]


def test_used_abort_script_is_replaced_while_others_use_the_subarray(prearmed: LocalEngine) -> None:
    target = _start(prearmed, 3)
    waiter = prearmed.create(
        ScriptExecutionSpec(script=ScriptSource(inline=InlineScript(source=LONG)), subarray=3)
    ).procedure_id
    assert waiter is not None
    first = _wait_armed(prearmed, 3)
    prearmed.change(target, STOP_AND_ABORT)
    assert _wait_aborted(prearmed, target).procedure_id == first
    _wait(prearmed, waiter, State.RUNNING)
    second = _wait_armed(prearmed, 3)
    assert second != first
    prearmed.change(waiter, STOP_AND_ABORT)
    assert _wait_aborted(prearmed, waiter).procedure_id == second


def test_held_abort_script_holds_no_subarray_and_takes_no_place(prearmed: LocalEngine) -> None:
    for _ in range(3):
        number = _start(prearmed, 4)
        _wait_armed(prearmed, 4)
        prearmed.change(number, SpecChange(desired_state=DesiredState.STOPPED))
        _wait(prearmed, number, State.STOPPED)
    numbers = [_start(prearmed, 4), _start(prearmed, 5), _start(prearmed, None)]
    assert len(numbers) == 3  # As many as max_active allows.


def test_held_abort_script_is_not_started_by_hand(prearmed: LocalEngine) -> None:
    _start(prearmed, 3)
    armed = _wait_armed(prearmed, 3)
    with pytest.raises(InvalidTransitionError, match="stop with abort"):
        prearmed.change(armed, SpecChange(desired_state=DesiredState.RUNNING))


def test_abort_script_that_cannot_be_held_is_an_alarm_and_the_abort_goes_the_usual_way(
    prearmed: LocalEngine, scripts: Path
) -> None:
    (scripts / "abort.py").write_text("1 / 0")
    target = _start(prearmed, 3)
    wait_until(lambda: [one for one in prearmed.list() if find_alarm(one)], SECONDS, "there is no alarm")
    (failed,) = [one for one in prearmed.list() if find_alarm(one)]
    assert is_armed(failed)
    assert _read_alarms(prearmed.timeline, failed.procedure_id or 0) == [(Topic.ARMING_FAILED, Severity.WARNING)]
    (scripts / "abort.py").write_text(ABORT)
    prearmed.change(target, STOP_AND_ABORT)
    aborter = _wait_aborted(prearmed, target)
    assert (aborter.uid != failed.uid, aborter.status.state) == (True, State.COMPLETE)
