"""Random histories of a small world: whatever users, runners and time do, some things always hold."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from oet_api.decisions import decide_armed, is_abort_safe
from oet_crds.aborts import find_serving, find_target
from oet_crds.ends import is_holding_unknown, with_runner_news
from oet_crds.errors import InvalidTransitionError
from oet_crds.execution import (
    AbortStatus,
    ExecutionArgs,
    FunctionArgs,
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
    StopOptions,
    WhenBusy,
)
from oet_crds.names import RELEASE_ANNOTATION
from oet_crds.ports import SpecChange
from oet_crds.reasons import Outcome, Reason
from oet_crds.settings import EngineSettings
from oet_crds.specs import compute_subarray, validate_change
from oet_crds.states import DesiredState, Mode, Purpose, State, is_allowed, is_final
from oet_operator.core.aborts import build_abort_spec, build_abort_view
from oet_operator.core.actions import (
    ArmAbort,
    CreateAbort,
    CreatePod,
    DeleteExecution,
    DeletePod,
    StopRunner,
    UseArmed,
)
from oet_operator.core.decide import decide
from oet_operator.core.locks import build_lock_table, may_begin
from oet_operator.core.snapshot import Presence, RunnerObservation, Snapshot

SOURCE = ScriptSource(inline=InlineScript(source="def main(): pass"))
PREPARATION = [State.IDLE, State.LOADING, State.IDLE, State.READY]


class Runner:
    """A runner that keeps its contract until it dies, unless its script takes its identity and lies."""

    def __init__(self, *, is_confined: bool) -> None:
        self.states: list[State] = []
        self.exit: RunnerExit | None = None
        self.presence = Presence.STARTING
        self.told_to_stop = False
        self.is_confined = is_confined
        self.has_lied = False
        self.is_released = False

    @property
    def lives(self) -> bool:
        """Whether any process of the script is left."""
        is_there = self.presence in (Presence.STARTING, Presence.ALIVE, Presence.LOST)
        return is_there and (self.exit is None or self.has_lied)

    @property
    def is_in_main(self) -> bool:
        return self.lives and self.states[-1:] == [State.RUNNING]


class World(RuleBasedStateMachine):
    """Some executions on two subarrays, their runners, and a clock."""

    executions = Bundle("executions")

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.stored: dict[int, ScriptExecution] = {}
        self.runners: dict[int, Runner] = {}
        self.finals: dict[int, tuple[State, Any]] = {}
        self.count = 0
        self.has_operator = True
        self.safe: dict[int, str] = {}
        """Uids of those that the REST server stopped with abort while they held their subarray."""
        self.served: dict[str, Runner] = {}
        """Who aborts last, by the uid of the stopped one."""

    # ---- users -------------------------------------------------------------------------------------------------------

    def _store(self, spec: ScriptExecutionSpec, **status: Any) -> int:
        self.count += 1
        number = self.count
        history = [HistoryEntry(seq=1, state=State.CREATING, time=self.now)]
        self.stored[number] = ScriptExecution(
            metadata=Metadata(name=f"p{number}", uid=f"u{number}", creation_timestamp=self.now),
            spec=spec,
            status=ScriptExecutionStatus(procedure_id=number, history=history, **status),
        )
        return number

    @rule(
        target=executions,
        subarray=st.sampled_from([None, 1, 1, 2]),
        desired=st.sampled_from([DesiredState.READY, DesiredState.RUNNING]),
        busy=st.sampled_from(WhenBusy),
        mode=st.sampled_from([Mode.OPERATION, Mode.OPERATION, Mode.REHEARSAL]),
        deadline=st.sampled_from([None, None, 30]),
        ready=st.sampled_from([None, None, 20]),
    )
    def create(self, subarray: Any, desired: Any, busy: Any, mode: Any, deadline: Any, ready: Any) -> Any:
        if len(self.stored) >= 9:
            return multiple()
        return self._store(
            ScriptExecutionSpec(
                script=SOURCE,
                args=ExecutionArgs(init=FunctionArgs(kwargs={} if subarray is None else {"subarray_id": subarray})),
                desired_state=desired,
                when_busy=busy,
                mode=mode,
                active_deadline_seconds=deadline,
                ready_timeout_seconds=ready,
            )
        )

    @rule(
        number=executions,
        desired=st.sampled_from(DesiredState),
        busy=st.sampled_from(WhenBusy),
        abort=st.booleans(),
    )
    def change(self, number: int, desired: DesiredState, busy: WhenBusy, abort: bool) -> None:
        stop = StopOptions(abort=abort) if desired is DesiredState.STOPPED else None
        self._change(number, SpecChange(desired_state=desired, when_busy=busy, stop=stop))

    def _change(self, number: int, change: SpecChange) -> None:
        execution = self.stored.get(number)
        try:
            spec = validate_change(execution, change) if execution else None
        except InvalidTransitionError:
            return
        if execution is None or spec is None:
            return
        if spec != execution.spec:
            metadata = execution.metadata.model_copy(update={"generation": execution.metadata.generation + 1})
            self.stored[number] = execution.model_copy(update={"spec": spec, "metadata": metadata})

    # ---- the REST server ---------------------------------------------------------------------------------------------

    def _see(self) -> list[ScriptExecution]:
        return [with_runner_news(one) for one in self.stored.values()]

    @rule(number=executions)
    def stop_with_abort(self, number: int) -> None:
        execution = self.stored.get(number)
        if execution is None or with_runner_news(execution).is_finished:
            return
        if is_abort_safe(execution) and execution.spec.mode is Mode.OPERATION:
            self.safe[number] = execution.uid
        self._change(number, SpecChange(desired_state=DesiredState.STOPPED, stop=StopOptions(abort=True)))

    @rule()
    def server_starts_armed(self) -> None:
        for number in self.safe:
            seen = self._see()
            stopped = next((one for one in seen if one.procedure_id == number), None)
            choice = decide_armed(stopped, seen) if stopped else None
            if stopped and choice and find_target(choice) is None:
                change = SpecChange(desired_state=DesiredState.RUNNING, abort_of=stopped.uid)
                self._change(choice.procedure_id or 0, change)
                assert find_target(self.stored[choice.procedure_id or 0]) == stopped.uid

    @rule(is_there=st.booleans())
    def operator_comes_or_goes(self, is_there: bool) -> None:
        self.has_operator = is_there

    @rule(seconds=st.sampled_from([1, 7, 25, 70]))
    def pass_time(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    # ---- runners -----------------------------------------------------------------------------------------------------

    @rule(number=executions)
    def runner_goes_on(self, number: int) -> None:
        runner = self.runners.get(number)
        if runner is None or not runner.lives or runner.presence is Presence.LOST or runner.has_lied:
            return
        runner.presence = Presence.ALIVE
        execution = self.stored.get(number)
        if execution is None:
            runner.presence = Presence.GONE
            return
        if runner.told_to_stop or execution.spec.desired_state is DesiredState.STOPPED:
            self._end(runner, Outcome.STOPPED, Reason.STOP_REQUESTED)
        elif len(runner.states) < len(PREPARATION):
            runner.states.append(PREPARATION[len(runner.states)])
        elif runner.states[-1] is State.RUNNING:
            runner.states.append(State.READY)
            self._end(runner, Outcome.COMPLETE, Reason.COMPLETED)
        elif self._may_begin(execution):
            self._begin(execution, runner)

    def _may_begin(self, execution: ScriptExecution) -> bool:
        """Tell what a runner finds when it looks for its grant (`oet_runner.kube_report`)."""
        grant = execution.status.grant
        return grant is not None and (not grant.standing or execution.spec.desired_state is DesiredState.RUNNING)

    def _begin(self, execution: ScriptExecution, runner: Runner) -> None:
        runner.states.append(State.RUNNING)
        grant, target = execution.status.grant, find_target(execution)
        if target is not None:
            before = self.served.get(target)
            assert before is None or not before.lives, "the abort script runs twice at once"
            self.served[target] = runner
        for number, uid in self.safe.items():
            owed = self.stored.get(number)
            is_over = number in self.runners and not self.runners[number].lives
            has_ended = any(find_target(one) == uid and one.is_finished for one in self.stored.values())
            if owed and owed.status.grant and grant and is_over and uid not in self.served and not has_ended:
                assert grant.subarray is None or grant.subarray != owed.status.grant.subarray, "somebody slipped in"

    def _end(self, runner: Runner, outcome: Outcome, reason: Reason) -> None:
        runner.exit = RunnerExit(outcome=outcome, reason=reason, message="", time=self.now)

    @rule(number=executions, how=st.sampled_from(["fails", "dies", "is_lost"]))
    def runner_ends_badly(self, number: int, how: str) -> None:
        runner = self.runners.get(number)
        if runner is None or not runner.lives or runner.presence is Presence.LOST:
            return
        if how == "fails" and not runner.has_lied:
            self._end(runner, Outcome.FAILED, Reason.MAIN_FAILED)
        elif how != "fails":
            runner.presence = Presence.GONE if how == "dies" else Presence.LOST

    @rule(number=executions, outcome=st.sampled_from(Outcome))
    def script_lies_about_its_end(self, number: int, outcome: Outcome) -> None:
        """It reports an end as its runner would, and goes on."""
        runner = self.runners.get(number)
        if runner is None or runner.is_confined or not runner.states or not runner.lives or runner.has_lied:
            return
        self._end(runner, outcome, Reason.COMPLETED)
        runner.has_lied = True

    @rule(number=executions, rounds=st.sampled_from([3, 5, 9]))
    def all_goes_well_for_a_while(self, number: int, rounds: int) -> None:
        """Without it few histories would ever come to `main`."""
        for _ in range(rounds):
            self.runner_goes_on(number)
            self.report_arrives(number, late=False)
            self.reconcile(number)

    @rule(number=executions)
    def runner_leaves(self, number: int) -> None:
        runner = self.runners.get(number)
        if runner and runner.exit and not runner.has_lied and runner.presence is not Presence.LOST:
            runner.presence = Presence.GONE

    @rule(number=executions)
    def node_comes_back(self, number: int) -> None:
        """What was lost is seen to have ended."""
        runner = self.runners.get(number)
        if runner and runner.presence is Presence.LOST:
            runner.presence = Presence.GONE

    @rule(number=executions)
    def person_releases(self, number: int) -> None:
        execution = self.stored.get(number)
        if execution is None or not is_holding_unknown(execution):
            return
        annotations = {RELEASE_ANNOTATION: "seen to be parked"}
        metadata = execution.metadata.model_copy(update={"annotations": annotations})
        self.stored[number] = execution.model_copy(update={"metadata": metadata})
        if number in self.runners:
            self.runners[number].is_released = True

    @rule(number=executions, late=st.booleans())
    def report_arrives(self, number: int, late: bool) -> None:
        """What the runner saw arrives, perhaps not yet all of it; reports may come again."""
        runner = self.runners.get(number)
        if runner is None:
            return
        states = runner.states[: len(runner.states) - int(late)]
        execution = self.stored.get(number)
        if execution is None:
            return
        known = execution.status.runner.transitions if execution.status.runner else []
        if len(states) < len(known) or (execution.status.runner and execution.status.runner.exit):
            return
        transitions = [
            *known,
            *(HistoryEntry(seq=at + 1, state=states[at], time=self.now) for at in range(len(known), len(states))),
        ]
        end = None if late else runner.exit
        status = RunnerStatus(transitions=transitions, exit=end, confined=runner.is_confined or None)
        self._set_status(number, execution.status.model_copy(update={"runner": status}))

    # ---- the engine --------------------------------------------------------------------------------------------------

    def _set_status(self, number: int, status: ScriptExecutionStatus) -> None:
        self.stored[number] = self.stored[number].model_copy(update={"status": status})

    def _snapshot(self, number: int) -> Snapshot:
        runner = self.runners.get(number)
        presence = runner.presence if runner else Presence.NONE
        known = self.stored[number].status.runner
        if runner and presence is Presence.GONE and runner.exit is not None and not (known and known.exit):
            presence = Presence.ALIVE  # Its last report is still on its way.
        return self._build_snapshot(self.stored[number], RunnerObservation(presence))

    def _build_snapshot(self, execution: ScriptExecution, runner: RunnerObservation) -> Snapshot:
        every = list(self.stored.values())
        serving = find_serving(every, execution.uid)
        target = next((one for one in every if one.uid == find_target(execution)), None)
        aborts = build_abort_view(execution, every, is_prearmed=True, serving=serving, target=target)
        return Snapshot(execution, runner, build_lock_table(every), self.now, aborts)

    @rule(number=executions)
    def reconcile(self, number: int) -> None:
        if number not in self.stored or not self.has_operator:
            return
        seen = self._snapshot(number)
        plan = decide(seen)
        self._set_status(number, plan.status)
        stored = self.stored[number]
        again = decide(self._build_snapshot(stored, seen.runner))
        assert again.status is stored.status
        for action in plan.actions:
            self._apply(number, action)
        # A runner that was removed is another observation, from which more may follow.
        if number in self.stored and not any(isinstance(action, DeletePod) for action in plan.actions):
            left = decide(self._snapshot(number)).actions
            assert not any(isinstance(action, CreateAbort | UseArmed | ArmAbort) for action in left)
        # Those that only the engine has made are looked at as well.
        for other in list(self.stored):
            if self.stored[other].spec.purpose is Purpose.ABORT and other != number and number in self.stored:
                self._look(other)

    def _look(self, number: int) -> None:
        plan = decide(self._snapshot(number))
        self._set_status(number, plan.status)
        for action in plan.actions:
            self._apply(number, action)

    def _apply(self, number: int, action: object) -> None:
        if isinstance(action, CreatePod):
            self.runners.setdefault(number, Runner(is_confined=number % 2 == 0))
        elif isinstance(action, StopRunner):
            self.runners[number].told_to_stop = True
        elif isinstance(action, DeletePod) and self.runners[number].presence is not Presence.LOST:
            self.runners[number].presence = Presence.GONE
        elif isinstance(action, CreateAbort):
            assert self.stored[number].spec.mode is Mode.OPERATION
            grant = Grant(time=self.now, subarray=action.subarray) if action.inherit else None
            spec = build_abort_spec(EngineSettings(), "/scripts", action.subarray, self.stored[number].uid)
            self._record_abort(number, self._store(spec, grant=grant))
        elif isinstance(action, UseArmed):
            armed = action.armed.procedure_id or 0
            assert self.stored[armed] is action.armed
            grant = Grant(time=self.now, subarray=action.subarray, standing=False, abort_of=self.stored[number].uid)
            self._set_status(armed, self.stored[armed].status.model_copy(update={"grant": grant}))
            self._record_abort(number, armed)
        elif isinstance(action, ArmAbort):
            self._store(build_abort_spec(EngineSettings(), "/scripts", action.subarray))
        elif isinstance(action, DeleteExecution):
            del self.stored[number]

    def _record_abort(self, number: int, aborter: int) -> None:
        abort = AbortStatus(procedure_id=aborter)
        self._set_status(number, self.stored[number].status.model_copy(update={"abort": abort}))

    # ---- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def one_per_subarray(self) -> None:
        for subarray in (1, 2):
            granted = [
                one
                for one in self._see()
                if may_begin(one) and one.status.grant and one.status.grant.subarray == subarray
            ]
            assert sum(not one.is_finished for one in granted) <= 1
            in_main = self._list_in_main(subarray, is_abort=False)
            aborts = self._list_in_main(subarray, is_abort=True)
            assert len(in_main) <= 1, "two scripts run on one subarray"
            # An abort runs beside what is lost, for which it may be meant, and beside nothing else.
            assert sum(not is_lost for is_lost in in_main + aborts) <= 1

    def _list_in_main(self, subarray: int, *, is_abort: bool) -> list[bool]:
        """Tell of each script in `main` on a subarray whether it is lost; what a person has released is that person's."""
        found = ((runner, self.stored.get(number)) for number, runner in self.runners.items())
        return [
            runner.presence is Presence.LOST
            for runner, execution in found
            if execution is not None
            and runner.is_in_main
            and not runner.is_released
            and compute_subarray(execution.spec) == subarray
            and (execution.spec.purpose is Purpose.ABORT) == is_abort
        ]

    @invariant()
    def rehearsals_hold_nothing_and_wait_for_nobody(self) -> None:
        for execution in self.stored.values():
            status = execution.status
            if execution.spec.mode is Mode.REHEARSAL:
                assert status.grant is None or status.grant.subarray is None
                assert status.refusal is None
                assert status.reason is not Reason.SUBARRAY_BUSY

    @invariant()
    def final_states_stay(self) -> None:
        for number, execution in self.stored.items():
            if execution.is_finished:
                found = (execution.status.state, execution.status.reason)
                assert self.finals.setdefault(number, found) == found

    @invariant()
    def ends_are_true(self) -> None:
        for number, execution in self.stored.items():
            if execution.status.state in (State.STOPPED, State.COMPLETE):
                runner = self.runners.get(number)
                assert runner is None or not runner.lives

    @invariant()
    def histories_have_no_gaps_and_only_allowed_steps(self) -> None:
        for execution in self.stored.values():
            history = execution.status.history
            assert [entry.seq for entry in history] == list(range(1, len(history) + 1))
            assert all(is_allowed(one.state, two.state) for one, two in pairwise(history))
            assert history[-1].state is execution.status.state

    def teardown(self) -> None:
        """Once the world is left alone, everything ends or waits for a reason that can be read."""
        self.has_operator = True
        for _ in range(60):
            self.server_starts_armed()
            for number in list(self.stored):
                self.runner_goes_on(number)
                self.report_arrives(number, late=False)
                self.runner_leaves(number)
                self.person_releases(number)
                self.now += timedelta(seconds=1)
                self.reconcile(number)
                self.one_per_subarray()
        for execution in self.stored.values():
            status, spec = execution.status, execution.spec
            is_held = status.state is State.READY and spec.desired_state is DesiredState.READY
            is_refused = (
                status.state is State.READY and status.refusal is not None and spec.when_busy is WhenBusy.REJECT
            )
            assert is_final(status.state) or is_held or is_refused, status


TestWorld = World.TestCase
TestWorld.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


ACTS = ("live", "live", "lie", "lose", "die", "come_back", "reconcile", "wait", "stop")


@given(steps=st.lists(st.tuples(st.sampled_from((1, 2, 3)), st.sampled_from(ACTS)), min_size=3, max_size=14))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_no_two_scripts_live_on_a_subarray_whatever_they_say_of_their_end(steps: list[tuple[int, str]]) -> None:
    world = World()
    for _ in range(3):
        world.create(1, DesiredState.RUNNING, WhenBusy.WAIT, Mode.OPERATION, None, None)
    acts: dict[str, Callable[[int], None]] = {
        "live": lambda number: world.all_goes_well_for_a_while(number, 5),
        "lie": lambda number: world.script_lies_about_its_end(number, Outcome.COMPLETE),
        "lose": lambda number: world.runner_ends_badly(number, "is_lost"),
        "die": lambda number: world.runner_ends_badly(number, "dies"),
        "come_back": world.node_comes_back,
        "reconcile": lambda number: world.report_arrives(number, late=False) or world.reconcile(number),
        "wait": lambda _: world.pass_time(7),
        "stop": world.stop_with_abort,
    }
    for number, act in steps:
        acts[act](number)
        world.one_per_subarray()
        world.final_states_stay()
        world.ends_are_true()
