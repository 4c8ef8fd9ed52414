"""What creating, starting and stopping a procedure mean, over the ports alone: no HTTP here.

A start answers when the engine has granted or refused it, a stop when it is certain. What is answered is what is so; when
the time is over before it is known, that is what is answered.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from oet_api.decisions import (
    Join,
    compute_subarrays,
    decide_abort,
    decide_start,
    describe_end,
    find_refusal,
    is_start_settled,
)
from oet_api.errors import NotCertainYetError
from oet_crds.errors import (
    ConflictError,
    InvalidTransitionError,
    OetError,
    OverloadedError,
    SubarrayBusyError,
)
from oet_crds.execution import FunctionArgs, ScriptExecution, ScriptExecutionSpec, WhenBusy
from oet_crds.ports import ExecutionStore, SpecChange, Timeline
from oet_crds.settings import ServerSettings
from oet_crds.states import DesiredState, State
from oet_crds.topics import Topic

__all__ = ["Procedures", "Rendering", "Waits"]

_log = logging.getLogger(__name__)

REQUEST_SOURCE = "FastAPIWorker"
"""`msg_src` of requests, upstream's word."""

RESULT_SOURCE = "SESWorker"
"""`msg_src` of results, upstream's word."""

RESERVED_THREADS = 16
"""Request threads that neither streams nor waits may take: reads and the requests to stop must always find one."""


Rendering = Callable[[ScriptExecution], Mapping[str, Any]]
"""How an execution is shown in the timeline: as clients see it."""

Wait = Callable[[int, Callable[[ScriptExecution], bool], float], ScriptExecution]
"""`ExecutionStore.wait`, or one that does not wait."""


class Waits:
    """Bounds the requests that wait for an outcome, so that a thread is left for everything else."""

    def __init__(self, limit: int) -> None:
        """Allow `limit` waiting requests at once."""
        self._slots = threading.BoundedSemaphore(limit)

    @contextmanager
    def slot(self) -> Iterator[bool]:
        """Take a place for the time of a wait. Yields whether there was one."""
        taken = self._slots.acquire(blocking=False)
        try:
            yield taken
        finally:
            if taken:
                self._slots.release()


@dataclass(frozen=True, slots=True)
class _Cause:
    """Why a timeline gets an entry: which request of which procedure."""

    procedure_id: int
    request_id: int


class Procedures:
    """Creates, starts and stops procedures."""

    def __init__(self, store: ExecutionStore, timeline: Timeline, settings: ServerSettings, render: Rendering) -> None:
        self._store = store
        self._timeline = timeline
        self._settings = settings
        self._render = render
        self._waits = Waits(max(1, settings.threads - min(settings.max_streams, settings.threads) - RESERVED_THREADS))

    # ---- create --------------------------------------------------------------------------------------------------

    def create(self, spec: ScriptExecutionSpec, script: Mapping[str, Any]) -> ScriptExecution:
        """Create a procedure and return it, in state CREATING.

        Args:
            spec: What to run.
            script: The script as clients see it, for the timeline.
        """
        command = {"script": script, "init_args": (spec.args.init or FunctionArgs()).to_wire()}
        request_id = time.time_ns()

        def record(execution: ScriptExecution) -> list[tuple[str, Mapping[str, Any]]]:
            asked = {"msg_src": REQUEST_SOURCE, "request_id": request_id, "cmd": command}
            done = {"msg_src": RESULT_SOURCE, "request_id": request_id, "result": self._render(execution)}
            return [(Topic.REQUEST_CREATE, asked), (Topic.CREATED, done)]

        return self._store.create(spec, record)

    # ---- start ---------------------------------------------------------------------------------------------------

    def start(self, procedure_id: int, main: FunctionArgs | None) -> ScriptExecution:
        """Start `main` and return the procedure as soon as the engine has granted it.

        Args:
            procedure_id: Which procedure.
            main: Arguments; None for those given at creation, or none.

        Raises:
            NotFoundError: No such procedure.
            InvalidTransitionError: It cannot be started as it is.
            SubarrayBusyError: Its subarray is held; it stays READY.
            NotCertainYetError: The engine said nothing in time; the start may still happen.
        """
        deadline = time.monotonic() + self._settings.start_timeout_seconds
        with self._waits.slot() as may_wait:
            if not may_wait:
                raise OverloadedError("too many requests wait for an outcome; try again", 1)
            execution, asked = self._ask_start(procedure_id, main, deadline)
            if asked is Join.NONE:
                return execution
            generation = execution.metadata.generation
            execution = self._store.wait(
                procedure_id, is_start_settled(generation), max(0.0, deadline - time.monotonic())
            )
        if asked is Join.ASKED:
            command = {
                "process_uid": procedure_id,
                "fn_name": "main",
                "run_args": (execution.spec.args.main or FunctionArgs()).to_wire(),
                "force_start": False,
            }
            cause = _build_cause(execution)
            self._record(cause, Topic.REQUEST_START, REQUEST_SOURCE, {"cmd": command})
        self._check_started(execution, generation)
        if asked is Join.ASKED:
            self._record(cause, Topic.STARTED, RESULT_SOURCE, {"result": self._render(execution)})
        return execution

    def _ask_start(self, procedure_id: int, main: FunctionArgs | None, deadline: float) -> tuple[ScriptExecution, Join]:
        """Ask the engine for the start unless somebody did; decide again when the execution changes meanwhile."""
        while True:
            execution = self._store.get(procedure_id)
            join = decide_start(execution, main)
            if join is not Join.ASKED:
                return execution, join
            change = SpecChange(desired_state=DesiredState.RUNNING, main=main, when_busy=WhenBusy.REJECT)
            try:
                version = execution.metadata.resource_version
                return self._store.change(procedure_id, change, if_resource_version=version), join
            except ConflictError:
                if time.monotonic() > deadline:
                    raise

    def _check_started(self, execution: ScriptExecution, generation: int) -> None:
        """Return if a start was granted. Raises what `start` raises if not."""
        status, number = execution.status, execution.procedure_id
        if status.grant is not None:
            return
        refusal = find_refusal(execution, generation)
        if refusal is not None:
            self._withdraw_start(execution)
            if not (subarrays := compute_subarrays(execution)):
                raise InvalidTransitionError(f"Cannot start PID {number}: {refusal.message}", status.state)
            raise SubarrayBusyError(
                f"Cannot start PID {number}: PID #{refusal.holder} is RUNNING on subarray {subarrays[0]}",
                subarrays[0],
                refusal.holder,
            )
        if execution.is_finished or execution.spec.desired_state is DesiredState.STOPPED:
            raise InvalidTransitionError(
                f"Cannot start PID {number}: it ended before main began ({describe_end(execution)})", status.state
            )
        raise NotCertainYetError(
            f"Start of procedure {number} was requested but is not granted yet: state {status.state}. "
            "It may still begin; stop it if it must not"
        )

    def _withdraw_start(self, execution: ScriptExecution) -> None:
        """Hold the execution again after a refusal, unless somebody asked anew meanwhile."""
        assert execution.procedure_id is not None
        while True:
            refusal, metadata = execution.status.refusal, execution.metadata
            asked = execution.spec.desired_state is DesiredState.RUNNING
            if not asked or refusal is None or refusal.generation != metadata.generation:
                return
            try:
                change = SpecChange(desired_state=DesiredState.READY)
                self._store.change(execution.procedure_id, change, if_resource_version=metadata.resource_version)
            except ConflictError:
                execution = self._store.get(execution.procedure_id)
            except OetError as error:
                _log.info("procedure %s keeps its refused start: %s", execution.procedure_id, error)
                return
            else:
                return

    # ---- stop ----------------------------------------------------------------------------------------------------

    def stop(self, procedure_id: int, *, abort: bool) -> str:
        """Stop a procedure and return upstream's words when no process of it is left.

        The request to stop is stored first and stays, whatever this answers.

        Args:
            procedure_id: Which procedure.
            abort: Run the abort script on its subarray afterwards, and wait for its end.

        Raises:
            NotFoundError: No such procedure.
            InvalidTransitionError: It is finished already, or ended in another way than by this stop; or no
                single subarray is known to abort.
            NotCertainYetError: The outcome was not known in time, or cannot be known.
        """
        execution = self._ask_stop(procedure_id, abort)
        with self._waits.slot() as may_wait:
            wait = self._build_wait(may_wait)
            timeout = execution.spec.stop.grace_period_seconds + self._settings.stop_timeout_seconds
            execution = wait(procedure_id, lambda one: one.is_finished, timeout)
            self._check_stopped(execution, may_wait)
            cause = _build_cause(execution)
            command = {"process_uid": procedure_id, "run_abort": abort}
            self._record(cause, Topic.REQUEST_STOP, REQUEST_SOURCE, {"cmd": command})
            message = f"Successfully stopped script with ID {procedure_id}"
            if not abort:
                self._record(cause, Topic.STOPPED, RESULT_SOURCE, {"result": []})
                return message
            aborter = self._wait_for_abort(execution, wait)
        self._record(cause, Topic.STOPPED, RESULT_SOURCE, {"result": [self._render(aborter)]})
        return f"{message} and aborted subarray activity"

    def _build_wait(self, may_wait: bool) -> Wait:
        def wait(procedure_id: int, until: Callable[[ScriptExecution], bool], seconds: float) -> ScriptExecution:
            return self._store.wait(procedure_id, until, seconds if may_wait else 0.0)

        return wait

    def _ask_stop(self, procedure_id: int, abort: bool) -> ScriptExecution:
        """Store the request to stop. Raises InvalidTransitionError when there is nothing to stop or to abort."""
        execution = self._store.get(procedure_id)
        if execution.is_finished:
            raise InvalidTransitionError(
                f"Cannot stop script with ID {procedure_id}: Script is not running ({execution.status.state})",
                execution.status.state,
            )
        stop = None
        if abort:
            decide_abort(execution)
            stop = execution.spec.stop.model_copy(update={"abort": True})
        try:
            return self._store.change(procedure_id, SpecChange(desired_state=DesiredState.STOPPED, stop=stop))
        except InvalidTransitionError:
            execution = self._store.get(procedure_id)
            if not execution.is_finished:
                raise
            return execution

    def _check_stopped(self, execution: ScriptExecution, waited: bool) -> None:
        state, number = execution.status.state, execution.procedure_id
        if state is State.STOPPED:
            return
        if state is State.UNKNOWN:
            raise NotCertainYetError(
                f"Stop of procedure {number} was requested, but whether the script still runs cannot be known "
                f"({describe_end(execution)})"
            )
        if execution.is_finished:
            raise InvalidTransitionError(
                f"Cannot stop script with ID {number}: it ended by itself meanwhile ({describe_end(execution)})", state
            )
        why = "" if waited else " (too many requests wait already; ask for its state)"
        raise NotCertainYetError(f"Stop of procedure {number} was requested but is not certain yet: state {state}{why}")

    def _wait_for_abort(self, execution: ScriptExecution, wait: Wait) -> ScriptExecution:
        """Wait for the abort script of a stopped execution, and return it when it is COMPLETE."""
        number, settings = execution.procedure_id, self._settings
        assert number is not None
        stopped = f"Script with ID {number} is stopped"
        execution = wait(number, lambda one: find_aborter(one) is not None, settings.start_timeout_seconds)
        aborter_id = find_aborter(execution)
        if aborter_id is None:
            raise NotCertainYetError(
                f"{stopped}, but its abort script was not created yet; subarray activity may go on"
            )
        aborter = wait(aborter_id, lambda one: one.is_finished, settings.stop_timeout_seconds)
        if aborter.status.state is State.COMPLETE:
            return aborter
        if aborter.is_finished:
            raise InvalidTransitionError(
                f"{stopped}, but the abort script (ID {aborter_id}) ended {describe_end(aborter)}; "
                "subarray activity may go on",
                aborter.status.state,
            )
        raise NotCertainYetError(
            f"{stopped}, but the abort script (ID {aborter_id}) has not ended yet: state {aborter.status.state}"
        )

    # ---- the timeline --------------------------------------------------------------------------------------------

    def _record(self, cause: _Cause, topic: Topic, source: str, fields: Mapping[str, Any]) -> None:
        """Append what was asked or done. A timeline that takes nothing makes what was done no less done."""
        payload = {"msg_src": source, "request_id": cause.request_id, **fields}
        try:
            self._timeline.append(cause.procedure_id, str(topic), payload)
        except OetError as error:
            _log.warning("timeline of procedure %s lacks %s: %s", cause.procedure_id, topic, error)


def find_aborter(execution: ScriptExecution) -> int | None:
    """Return the procedure id of the abort script that the engine created after a stop, None while there is none."""
    abort = execution.status.abort
    return None if abort is None else abort.procedure_id


def _build_cause(execution: ScriptExecution) -> _Cause:
    assert execution.procedure_id is not None
    return _Cause(execution.procedure_id, time.time_ns())
