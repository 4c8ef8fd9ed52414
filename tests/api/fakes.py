"""An engine in memory: the ports of `oet_crds.ports`, and a hand on what the engine does and when."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from oet_crds.conditions import with_condition
from oet_crds.ends import is_holding_unknown
from oet_crds.errors import ConflictError, InvalidTransitionError, NotFoundError, OverloadedError
from oet_crds.execution import (
    AbortStatus,
    ExecutionArgs,
    FileScript,
    Grant,
    HistoryEntry,
    Metadata,
    Refusal,
    RunnerExit,
    RunnerStatus,
    ScriptExecution,
    ScriptExecutionSpec,
    ScriptExecutionStatus,
    ScriptSource,
    WhenBusy,
)
from oet_crds.names import RELEASE_ANNOTATION
from oet_crds.ports import Health, Record, SpecChange, TimelineEntry
from oet_crds.reasons import Outcome, Reason
from oet_crds.specs import validate_release
from oet_crds.states import ConditionType, DesiredState, Purpose, State
from oet_crds.topics import EntryKind, Topic

PREPARED = (State.CREATING, State.IDLE, State.LOADING, State.IDLE, State.READY)


class FakeTimeline:
    """A timeline in a list."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self.entries: list[TimelineEntry] = []
        self.gaps: list[str] = []
        self.reads = 0

    def append(self, procedure_id: int, topic: str, payload: Mapping[str, Any]) -> TimelineEntry:
        return self.put(procedure_id, EntryKind.ACTION, topic, payload)

    def put(self, procedure_id: int, kind: EntryKind, topic: str, payload: Mapping[str, Any]) -> TimelineEntry:
        with self._news:
            entry = TimelineEntry(len(self.entries) + 1, procedure_id, None, time.time(), kind, topic, payload)
            self.entries.append(entry)
            self._news.notify_all()
            return entry

    def put_line(self, procedure_id: int, line: str, stream: str = "stdout") -> TimelineEntry:
        payload = {"msg_src": str(procedure_id), "stream": stream, "line": line}
        return self.put(procedure_id, EntryKind.LOG, Topic.LOG, payload)

    def put_message(self, procedure_id: int, **payload: Any) -> TimelineEntry:
        return self.put(procedure_id, EntryKind.MESSAGE, Topic.ANNOUNCE, {"msg_src": str(procedure_id), **payload})

    def read(
        self,
        after: int,
        *,
        limit: int,
        procedure_id: int | None = None,
        kinds: Collection[EntryKind] | None = None,
    ) -> Sequence[TimelineEntry]:
        self.reads += 1
        with self._news:
            later = self.entries[after:]
        chosen = [
            entry
            for entry in later
            if (procedure_id is None or entry.procedure_id == procedure_id) and (kinds is None or entry.kind in kinds)
        ]
        return chosen[:limit]

    def describe_gap(self, procedure_id: int) -> str:
        return self.gaps.pop(0) if self.gaps else ""

    def last_id(self) -> int:
        return len(self.entries)

    def wait(self, after: int, timeout_seconds: float) -> bool:
        with self._news:
            return self._news.wait_for(lambda: len(self.entries) > after, timeout_seconds)


class FakeStore:
    """Executions in a dictionary, and an engine that does at once what the knobs below let it do.

    Attributes:
        prepares: Whether new executions become READY; else they stay CREATING.
        grants: Whether starts are granted or refused; else nothing is said.
        ends: State that a stop leads to; None: it never ends.
        abort_ends: State that an abort script ends in; None: it never ends.
        creates_abort: Whether an abort script is created after a stop that wants it.
        reports_ends: Whether runners report the end of a stopped script.
        releases: Whether a release lets go of the subarray.
        max_active: Active executions from which on a creation is refused.
        failure: Raised by every method, if set.
    """

    def __init__(self, timeline: FakeTimeline) -> None:
        self.timeline = timeline
        self.prepares = True
        self.grants = True
        self.ends: State | None = State.STOPPED
        self.abort_ends: State | None = State.COMPLETE
        self.creates_abort = True
        self.reports_ends = False
        self.releases = True
        self.max_active = 1000
        self.failure: Exception | None = None
        self.health = Health(True, "fake engine")
        self.changes: list[tuple[int, SpecChange]] = []
        self.before_change: Callable[[int], None] = lambda _: None
        self._changed = threading.Condition(threading.RLock())
        self._executions: dict[int, ScriptExecution] = {}

    # ---- the port ------------------------------------------------------------------------------------------------

    def create(self, spec: ScriptExecutionSpec, record: Record | None = None) -> ScriptExecution:
        self._fail()
        with self._changed:
            if sum(not one.is_finished for one in self._executions.values()) >= self.max_active:
                raise OverloadedError(f"{self.max_active} executions are active", 7)
            number = len(self._executions) + 1
            now = datetime.now(UTC)
            metadata = Metadata(name=f"procedure-{number}", uid=uuid.uuid4().hex, creation_timestamp=now)
            history = [HistoryEntry(seq=1, state=State.CREATING, time=now)]
            status = ScriptExecutionStatus(procedure_id=number, history=history)
            created = ScriptExecution(metadata=metadata, spec=spec, status=status)
            self._executions[number] = created
        self._announce(number, State.CREATING)
        for topic, payload in record(created) if record else ():
            self.timeline.put(number, EntryKind.ACTION, topic, payload)
        if self.prepares:
            self.enter(number, *PREPARED[1:])
        return created

    def get(self, procedure_id: int) -> ScriptExecution:
        self._fail()
        with self._changed:
            if procedure_id not in self._executions:
                raise NotFoundError(f"No information available for PID={procedure_id}")
            return self._executions[procedure_id]

    def list(self) -> Sequence[ScriptExecution]:
        self._fail()
        with self._changed:
            return tuple(self._executions.values())

    def change(
        self, procedure_id: int, change: SpecChange, *, if_resource_version: str | None = None
    ) -> ScriptExecution:
        self._fail()
        self.before_change(procedure_id)
        with self._changed:
            execution = self.get(procedure_id)
            if if_resource_version not in (None, execution.metadata.resource_version):
                raise ConflictError("changed meanwhile")
            spec = _change(execution, change)
            if spec != execution.spec:
                self.changes.append((procedure_id, change))
                generation = execution.metadata.generation + 1
                metadata = execution.metadata.model_copy(update={"generation": generation})
                self._put(execution.model_copy(update={"spec": spec, "metadata": metadata}))
                self._act(procedure_id)
            # As a real engine does: what follows from the change is not in the answer.
            return execution.model_copy(update={"spec": spec, "metadata": self.get(procedure_id).metadata})

    def release(self, procedure_id: int, reason: str) -> ScriptExecution:
        self._fail()
        with self._changed:
            execution = self.get(procedure_id)
            if validate_release(execution):
                annotations = {RELEASE_ANNOTATION: reason}
                metadata = execution.metadata.model_copy(update={"annotations": annotations})
                self._put(execution.model_copy(update={"metadata": metadata}))
            if self.releases:
                now = datetime.now(UTC)
                status = with_condition(
                    execution.status, ConditionType.RELEASED, True, Reason.RELEASED_BY_HAND, now, reason
                )
                self.set_status(procedure_id, conditions=status.conditions)
            return self.get(procedure_id)

    def wait(
        self, procedure_id: int, until: Callable[[ScriptExecution], bool], timeout_seconds: float
    ) -> ScriptExecution:
        self._fail()
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while not until(execution := self.get(procedure_id)):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return execution

    def observe_health(self) -> Health:
        return self.health

    # ---- the engine ----------------------------------------------------------------------------------------------

    def enter(self, procedure_id: int, *states: State, **fields: Any) -> None:
        """Make an execution reach states, one after the other, with fields of the status for all of them."""
        for state in states:
            with self._changed:
                execution = self.get(procedure_id)
                history = execution.status.history
                entry = HistoryEntry(seq=len(history) + 1, state=state, time=datetime.now(UTC))
                update = {"state": state, "history": [*history, entry], **fields}
                self._put(execution.model_copy(update={"status": execution.status.model_copy(update=update)}))
            self._announce(procedure_id, state)

    def arm(self, subarray: int) -> int:
        """Have an abort script held READY; return its procedure id."""
        spec = ScriptExecutionSpec(
            script=ScriptSource(file=FileScript(path="/scripts/abort.py")),
            purpose=Purpose.ABORT,
            desired_state=DesiredState.READY,
            subarray=subarray,
        )
        number = self.create(spec).procedure_id
        assert number is not None
        self.set_status(number, grant=Grant(time=datetime.now(UTC), subarray=subarray, standing=True))
        return number

    def set_stop(self, procedure_id: int, **fields: Any) -> None:
        """Change how an execution is stopped, as kubectl could."""
        with self._changed:
            execution = self.get(procedure_id)
            stop = execution.spec.stop.model_copy(update=fields)
            self._put(execution.model_copy(update={"spec": execution.spec.model_copy(update={"stop": stop})}))

    def set_status(self, procedure_id: int, **fields: Any) -> None:
        """Change fields of a status."""
        with self._changed:
            execution = self.get(procedure_id)
            self._put(execution.model_copy(update={"status": execution.status.model_copy(update=fields)}))

    def remove(self, procedure_id: int) -> None:
        """Forget an execution."""
        with self._changed:
            del self._executions[procedure_id]
            self._changed.notify_all()

    def act(self, procedure_id: int) -> None:
        """Let the engine do what the knobs allow now."""
        with self._changed:
            self._act(procedure_id)

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _announce(self, procedure_id: int, state: State) -> None:
        payload = {"msg_src": str(procedure_id), "new_state": str(state)}
        self.timeline.put(procedure_id, EntryKind.STATE, Topic.STATE_CHANGE, payload)

    def _put(self, execution: ScriptExecution) -> None:
        version = str(int(execution.metadata.resource_version) + 1)
        metadata = execution.metadata.model_copy(update={"resource_version": version})
        assert execution.procedure_id is not None
        self._executions[execution.procedure_id] = execution.model_copy(update={"metadata": metadata})
        self._changed.notify_all()

    def _act(self, procedure_id: int) -> None:
        execution = self.get(procedure_id)
        desired = execution.spec.desired_state
        if desired is DesiredState.STOPPED and self.ends is not None and not execution.is_finished:
            self._stop(execution)
        elif desired is DesiredState.STOPPED and is_holding_unknown(execution):
            self._abort(execution)
        elif execution.spec.abort_of is not None:
            self.enter(procedure_id, State.RUNNING, *([] if self.abort_ends is None else [self.abort_ends]))
        elif desired is DesiredState.RUNNING and self.grants and execution.status.grant is None:
            self._start(execution)

    def _stop(self, execution: ScriptExecution) -> None:
        assert execution.procedure_id is not None
        assert self.ends is not None
        end = RunnerExit(
            outcome=Outcome.STOPPED, reason=Reason.STOP_REQUESTED, message="stopped", time=datetime.now(UTC)
        )
        runner = {"runner": RunnerStatus(exit=end)} if self.reports_ends else {}
        self.enter(execution.procedure_id, self.ends, reason=Reason.STOP_REQUESTED, **runner)
        self._abort(execution)

    def _abort(self, execution: ScriptExecution) -> None:
        if execution.spec.stop.abort and self.creates_abort:
            assert execution.procedure_id is not None
            spec = ScriptExecutionSpec(script=ScriptSource(file=FileScript(path="/scripts/abort.py")))
            aborter = self.create(spec)
            assert aborter.procedure_id is not None
            self.set_status(execution.procedure_id, abort=AbortStatus(procedure_id=aborter.procedure_id))
            if self.abort_ends is not None:
                self.enter(aborter.procedure_id, self.abort_ends)

    def _start(self, execution: ScriptExecution) -> None:
        assert execution.procedure_id is not None
        subarray = _subarray(execution)
        holder = next(
            (one for one in self._executions.values() if subarray is not None and _holds(one, subarray)), None
        )
        now = datetime.now(UTC)
        if holder is None:
            self.enter(execution.procedure_id, State.RUNNING, grant=Grant(time=now, subarray=subarray))
        elif execution.spec.when_busy is WhenBusy.REJECT:
            assert holder.procedure_id is not None
            generation = execution.metadata.generation
            words = f"Cannot start PID {execution.procedure_id}: PID #{holder.procedure_id} is RUNNING on subarray {subarray}"
            refusal = Refusal(generation=generation, holder=holder.procedure_id, message=words, time=now)
            self.set_status(execution.procedure_id, refusal=refusal)


def _holds(execution: ScriptExecution, subarray: int) -> bool:
    grant = execution.status.grant
    return grant is not None and grant.subarray == subarray and not execution.is_finished


def _subarray(execution: ScriptExecution) -> int | None:
    spec = execution.spec
    named = [args.kwargs.get("subarray_id") for args in (spec.args.init, spec.args.main) if args]
    return next((int(value) for value in [spec.subarray, *named] if value is not None), None)


def _change(execution: ScriptExecution, change: SpecChange) -> ScriptExecutionSpec:
    spec, state = execution.spec, execution.status.state
    desired = change.desired_state or spec.desired_state
    if execution.is_finished and not is_holding_unknown(execution):
        raise InvalidTransitionError(f"finished: {state}", state)
    if spec.desired_state is DesiredState.STOPPED and desired is not DesiredState.STOPPED:
        raise InvalidTransitionError("a stop is final", state)
    if change.main is not None and spec.desired_state is not DesiredState.READY and change.main != spec.args.main:
        raise InvalidTransitionError("started with other arguments", state)
    args = spec.args if change.main is None else ExecutionArgs(init=spec.args.init, main=change.main)
    update = {
        "desired_state": desired,
        "args": args,
        "when_busy": change.when_busy or spec.when_busy,
        "stop": change.stop or spec.stop,
        "abort_of": change.abort_of or spec.abort_of,
    }
    return spec.model_copy(update=update)
