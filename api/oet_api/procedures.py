"""What creating, starting and stopping a procedure mean, over the ports alone: no HTTP here.

A start answers when the engine has granted or refused it, a stop when it is certain. What is answered is what is so; when
the time is over before it is known, that is what is answered.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from oet_api.decisions import (
    Join,
    complete_main,
    compute_subarrays,
    decide_abort,
    decide_armed,
    decide_start,
    describe_end,
    find_refusal,
    has_stale_refusal,
    is_abort_safe,
    is_start_settled,
)
from oet_api.errors import NotCertainYetError
from oet_api.origin import Origin
from oet_crds.aborts import ABORT_BEGIN_SECONDS, find_target, is_given_up
from oet_crds.alarms import Alarm, find_alarm
from oet_crds.ends import is_holding_unknown
from oet_crds.errors import (
    AbortFailedError,
    ConflictError,
    InvalidTransitionError,
    OetError,
    OverloadedError,
    SubarrayBusyError,
)
from oet_crds.execution import FunctionArgs, ScriptExecution, ScriptExecutionSpec, WhenBusy
from oet_crds.history import has_begun
from oet_crds.ports import ExecutionStore, SpecChange, Timeline
from oet_crds.settings import ServerSettings
from oet_crds.states import ConditionType, DesiredState, Mode, State
from oet_crds.topics import Topic

__all__ = ["Procedures", "Rendering", "Waits"]

_log = logging.getLogger(__name__)

REQUEST_SOURCE = "FastAPIWorker"
"""`msg_src` of requests, upstream's word."""

RESULT_SOURCE = "SESWorker"
"""`msg_src` of results, upstream's word."""

STOP_TRIES = 5
"""Tries to store a stop under the version that was seen: a runner reports some states within a second."""

LATE_TOLERANCE_SECONDS = 0.1
"""A wait may end so much before its time."""

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
    origin: Origin


_UNKNOWN = Origin()


class Procedures:
    """Creates, starts and stops procedures."""

    def __init__(self, store: ExecutionStore, timeline: Timeline, settings: ServerSettings, render: Rendering) -> None:
        self._store = store
        self._timeline = timeline
        self._settings = settings
        self._render = render
        self._waits = Waits(max(1, settings.threads - min(settings.max_streams, settings.threads) - RESERVED_THREADS))

    # ---- create --------------------------------------------------------------------------------------------------

    def create(
        self, spec: ScriptExecutionSpec, script: Mapping[str, Any], origin: Origin = _UNKNOWN
    ) -> ScriptExecution:
        """Create a procedure and return it, in state CREATING.

        Args:
            spec: What to run.
            script: The script as clients see it, for the timeline.
            origin: Who asks, and why, for the timeline.
        """
        command = {"script": script, "init_args": (spec.args.init or FunctionArgs()).to_wire()}
        request_id = time.time_ns()

        def record(execution: ScriptExecution) -> list[tuple[str, Mapping[str, Any]]]:
            asked = {"msg_src": REQUEST_SOURCE, "request_id": request_id, "cmd": command, **origin.to_fields()}
            done = {"msg_src": RESULT_SOURCE, "request_id": request_id, "result": self._render(execution)}
            return [(Topic.REQUEST_CREATE, asked), (Topic.CREATED, done)]

        return self._store.create(spec, record)

    # ---- start ---------------------------------------------------------------------------------------------------

    def start(self, procedure_id: int, main: FunctionArgs | None, origin: Origin = _UNKNOWN) -> ScriptExecution:
        """Start `main` and return the procedure as soon as the engine has granted it.

        Args:
            procedure_id: Which procedure.
            main: Arguments; None for those given at creation, or none.
            origin: Who asks, and why, for the timeline.

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
            cause = _build_cause(execution, origin)
            self._record(cause, Topic.REQUEST_START, REQUEST_SOURCE, {"cmd": command})
        self._check_started(execution, generation)
        if asked is Join.ASKED:
            self._record(cause, Topic.STARTED, RESULT_SOURCE, {"result": self._render(execution)})
        return execution

    def _ask_start(self, procedure_id: int, main: FunctionArgs | None, deadline: float) -> tuple[ScriptExecution, Join]:
        """Ask the engine for the start unless somebody did; decide again when the execution changes meanwhile."""
        while True:
            execution = self._store.get(procedure_id)
            if has_stale_refusal(execution) and time.monotonic() < deadline:
                self._withdraw_start(execution)
                execution = self._store.get(procedure_id)
            main = complete_main(execution, main)
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
            raise SubarrayBusyError(refusal.message, subarrays[0], refusal.holder)
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

    def stop(self, procedure_id: int, *, abort: bool, origin: Origin = _UNKNOWN) -> str:
        """Stop a procedure and return upstream's words when no process of it is left.

        The request to stop is stored first and stays, whatever this answers.

        Args:
            procedure_id: Which procedure.
            abort: Run the abort script on its subarray afterwards, and wait for its end. A rehearsal is stopped without.
            origin: Who asks, and why, for the timeline.

        Raises:
            NotFoundError: No such procedure.
            InvalidTransitionError: It is finished already, or ended in another way than by this stop; or no
                single subarray is known to abort.
            NotCertainYetError: The outcome was not known in time, or cannot be known.
        """
        is_rehearsal = self._store.get(procedure_id).spec.mode is Mode.REHEARSAL
        has_abort = abort and not is_rehearsal
        execution, is_first = self._ask_stop(procedure_id, has_abort, origin.user)
        with self._waits.slot() as may_wait:
            wait = self._build_wait(may_wait)
            timeout = execution.spec.stop.grace_period_seconds + self._settings.stop_timeout_seconds
            execution = wait(procedure_id, lambda one: one.is_finished, timeout)
            served_by = self._start_armed(execution) if is_first else None
            # Whatever became of it: who asked, and why. Not before the abort began, for a timeline may be slow.
            cause = _build_cause(execution, origin)
            command = {"process_uid": procedure_id, "run_abort": abort}
            self._record(cause, Topic.REQUEST_STOP, REQUEST_SOURCE, {"cmd": command})
            is_unknown = execution.status.state is State.UNKNOWN
            if not (has_abort and is_unknown):
                self._check_stopped(execution, may_wait)
            message = f"Successfully stopped script with ID {procedure_id}"
            if not has_abort:
                self._record(cause, Topic.STOPPED, RESULT_SOURCE, {"result": []})
                return f"{message}; it was a rehearsal, which has no telescope to abort" if abort else message
            aborter = self._wait_for_abort(execution, wait, served_by)
        if is_unknown:
            raise NotCertainYetError(
                f"The abort script (ID {aborter.procedure_id}) is {aborter.status.state}; {_describe_unknown(execution)}"
            )
        self._record(cause, Topic.STOPPED, RESULT_SOURCE, {"result": [self._render(aborter)]})
        return f"{message} and aborted subarray activity"

    def _build_wait(self, may_wait: bool) -> Wait:
        def wait(procedure_id: int, until: Callable[[ScriptExecution], bool], seconds: float) -> ScriptExecution:
            return self._store.wait(procedure_id, until, seconds if may_wait else 0.0)

        return wait

    def _ask_stop(self, procedure_id: int, abort: bool, user: str | None) -> tuple[ScriptExecution, bool]:
        """Store the request to stop.

        Returns:
            The execution, and whether it holds its subarray for an abort from before its end on: only then may somebody else than
            the engine start the abort script that is held.

        Raises:
            InvalidTransitionError: There is nothing to stop, or to abort.
        """
        for _ in range(STOP_TRIES):
            execution = self._store.get(procedure_id)
            if execution.is_finished and not is_holding_unknown(execution):
                raise InvalidTransitionError(
                    f"Cannot stop script with ID {procedure_id}: Script is not running ({execution.status.state})",
                    execution.status.state,
                )
            stop = None
            if abort:
                decide_abort(execution)
                stop = execution.spec.stop.model_copy(update={"abort": True})
            change = SpecChange(desired_state=DesiredState.STOPPED, stop=stop, user=user)
            if not abort or not is_abort_safe(execution):
                break
            with suppress(ConflictError):
                version = execution.metadata.resource_version
                return self._store.change(procedure_id, change, if_resource_version=version), True
        try:
            return self._store.change(procedure_id, change), False
        except InvalidTransitionError:
            execution = self._store.get(procedure_id)
            if not execution.is_finished:
                raise
            return execution, False

    def _start_armed(self, stopped: ScriptExecution) -> int | None:
        """Start the abort script that is held for a subarray, as soon as nothing of the stopped script is left.

        So an abort needs no engine at work. Who comes first, the engine or this, is decided by the version of the armed
        execution: only one of the two changes fits it.

        Returns:
            Procedure id of the execution that aborts; None: the engine sees to it.
        """
        for _ in range(STOP_TRIES):
            executions = self._store.list()
            choice = decide_armed(stopped, executions)
            if choice is None or choice.procedure_id is None:
                return None
            if find_target(choice) == stopped.uid:
                return choice.procedure_id
            change = SpecChange(desired_state=DesiredState.RUNNING, abort_of=stopped.uid)
            try:
                version = choice.metadata.resource_version
                self._store.change(choice.procedure_id, change, if_resource_version=version)
            except ConflictError:
                stopped = self._store.get(stopped.procedure_id or 0)
            except OetError as error:
                _log.warning("the abort of procedure %s is left to the engine: %s", stopped.procedure_id, error)
                return None
            else:
                return choice.procedure_id
        return None

    def _check_stopped(self, execution: ScriptExecution, waited: bool) -> None:
        state, number = execution.status.state, execution.procedure_id
        if state is State.STOPPED:
            return
        if state is State.UNKNOWN:
            raise NotCertainYetError(f"Stop of procedure {number} was requested, but {_describe_unknown(execution)}")
        if execution.is_finished:
            raise InvalidTransitionError(
                f"Cannot stop script with ID {number}: it ended by itself meanwhile ({describe_end(execution)})", state
            )
        why = "" if waited else " (too many requests wait already; ask for its state)"
        raise NotCertainYetError(f"Stop of procedure {number} was requested but is not certain yet: state {state}{why}")

    def _wait_for_abort(self, execution: ScriptExecution, wait: Wait, served_by: int | None) -> ScriptExecution:
        """Wait for the abort script of a stopped execution, and return it when it is COMPLETE.

        Args:
            execution: The stopped one.
            wait: How to wait.
            served_by: Procedure id of the abort script if that is known already; None: the engine will say.
        """
        settings = self._settings
        stopped = _describe_stop(execution)
        aborter = self._wait_for_begin(execution, wait, served_by)
        if not aborter.is_finished:
            assert aborter.procedure_id is not None
            aborter = wait(aborter.procedure_id, lambda one: one.is_finished, settings.stop_timeout_seconds)
        if aborter.status.state is State.COMPLETE:
            return aborter
        if aborter.is_finished:
            raise AbortFailedError(
                f"ALARM: {stopped}, but the abort script (ID {aborter.procedure_id}) ended {describe_end(aborter)}; "
                "subarray activity may go on",
                aborter.status.state,
            )
        raise NotCertainYetError(
            f"{stopped}, but the abort script (ID {aborter.procedure_id}) has not ended yet: state {aborter.status.state}"
        )

    def _wait_for_begin(self, execution: ScriptExecution, wait: Wait, served_by: int | None) -> ScriptExecution:
        """Wait until the abort script of a stopped execution has begun, and return its execution.

        One that was held and does not hear that it is to begin is given up by the engine, which has another one take its place.
        """
        number, begun_at, given_up = execution.procedure_id, time.monotonic(), None
        assert number is not None
        seconds = min(self._settings.start_timeout_seconds, ABORT_BEGIN_SECONDS)
        aborter_id, aborter = served_by, None

        def is_served(one: ScriptExecution) -> bool:
            return find_aborter(one) not in (None, given_up) or _find_abort_alarm(one) is not None

        while (left := begun_at + seconds - time.monotonic()) > 0:
            if aborter_id is None:
                execution = wait(number, is_served, left)
                aborter_id = find_aborter(execution)
            if aborter_id in (None, given_up):
                break
            left = max(0.0, begun_at + seconds - time.monotonic())
            aborter = wait(aborter_id, lambda one: one.is_finished or has_begun(one.status), left)
            if not is_given_up(aborter):
                break
            given_up, aborter_id = aborter_id, None
        if aborter is not None and aborter_id is not None and (aborter.is_finished or has_begun(aborter.status)):
            return aborter
        is_late = time.monotonic() - begun_at >= ABORT_BEGIN_SECONDS - LATE_TOLERANCE_SECONDS
        raise _build_late_abort(execution, aborter, is_late=is_late)

    # ---- release -------------------------------------------------------------------------------------------------

    def release(self, procedure_id: int, origin: Origin) -> ScriptExecution:
        """Release the subarray of a procedure that is UNKNOWN, and return the procedure once the engine has let go of it.

        Args:
            procedure_id: Which procedure.
            origin: Who releases it, and why it is certain that its script does not run.

        Raises:
            NotFoundError: No such procedure.
            InvalidTransitionError: It is not UNKNOWN, or holds no subarray.
            NotCertainYetError: The engine said nothing in time; the release stays in force.
        """
        words = f"{origin.reason} (by {origin.user})" if origin.user else origin.reason or ""
        execution = self._store.release(procedure_id, words)
        cause = _build_cause(execution, origin)
        self._record(cause, Topic.REQUEST_RELEASE, REQUEST_SOURCE, {"cmd": {"process_uid": procedure_id}})
        with self._waits.slot() as may_wait:
            wait = self._build_wait(may_wait)
            timeout = self._settings.start_timeout_seconds
            execution = wait(procedure_id, lambda one: not is_holding_unknown(one), timeout)
        if is_holding_unknown(execution):
            raise NotCertainYetError(
                f"The release of procedure {procedure_id} is stored, but the engine has not let go of its subarray yet"
            )
        return execution

    # ---- the timeline --------------------------------------------------------------------------------------------

    def _record(self, cause: _Cause, topic: Topic, source: str, fields: Mapping[str, Any]) -> None:
        """Append what was asked or done. A timeline that takes nothing makes what was done no less done."""
        asker = cause.origin.to_fields() if source == REQUEST_SOURCE else {}
        payload = {"msg_src": source, "request_id": cause.request_id, **fields, **asker}
        try:
            self._timeline.append(cause.procedure_id, str(topic), payload)
        except OetError as error:
            _log.warning("timeline of procedure %s lacks %s: %s", cause.procedure_id, topic, error)


def find_aborter(execution: ScriptExecution) -> int | None:
    """Return the procedure id of the abort script that the engine created after a stop, None while there is none."""
    abort = execution.status.abort
    return None if abort is None else abort.procedure_id


def _find_abort_alarm(execution: ScriptExecution) -> Alarm | None:
    return find_alarm(execution, ConditionType.ABORTED)


def _describe_unknown(execution: ScriptExecution) -> str:
    """Say what is so of an execution that is UNKNOWN, and what a person can do."""
    number = execution.procedure_id
    text = f"whether script {number} still runs cannot be known ({describe_end(execution)})"
    if not is_holding_unknown(execution):
        return text
    return f"{text}; its subarray is held until somebody releases it: oet procedure release --pid={number} --reason=..."


def _describe_stop(execution: ScriptExecution) -> str:
    is_unknown = execution.status.state is State.UNKNOWN
    how = f"{State.UNKNOWN} and may still run" if is_unknown else "stopped"
    return f"Script with ID {execution.procedure_id} is {how}"


def _build_late_abort(stopped: ScriptExecution, aborter: ScriptExecution | None, *, is_late: bool) -> OetError:
    """Build what a stop answers whose abort has not begun: an alarm, unless that may be a matter of seconds."""
    head = _describe_stop(stopped)
    if aborter is None and (alarm := _find_abort_alarm(stopped)):
        return AbortFailedError(f"ALARM: {head}, but {alarm.message.removeprefix('ALARM: ')}", stopped.status.state)
    if aborter is None:
        text = f"{head}, but its abort script was not created yet"
    else:
        text = (
            f"{head}, but the abort script (ID {aborter.procedure_id}) has not begun yet: state {describe_end(aborter)}"
        )
    text = f"{text}; subarray activity may go on"
    if not is_late:
        return NotCertainYetError(text)
    return AbortFailedError(f"ALARM: {text}; it is tried on", stopped.status.state)


def _build_cause(execution: ScriptExecution, origin: Origin) -> _Cause:
    assert execution.procedure_id is not None
    return _Cause(execution.procedure_id, time.time_ns(), origin)
