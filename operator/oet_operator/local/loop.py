"""The engine's thread: observes runners and requests, lets the core decide, and does what it says.

One pass of the loop is one transaction: all that was seen is decided on and stored, then the effects are done, so that a
grant is stored before a script runs by it.
"""

from __future__ import annotations

import heapq
import logging
import os
import selectors
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from oet_crds.aborts import is_armed
from oet_crds.ends import is_holding_unknown
from oet_crds.execution import ScriptExecution
from oet_crds.mailbox import MailKind
from oet_crds.reasons import Reason
from oet_crds.settings import EngineSettings
from oet_crds.states import DesiredState, Mode
from oet_operator.core.aborts import is_outcome_open
from oet_operator.core.locks import is_abort_due, may_begin
from oet_operator.core.snapshot import Presence, RunnerObservation
from oet_operator.local.applier import Effects, Observed, apply_decision, apply_history_limit
from oet_operator.local.inbox import Inbox
from oet_operator.local.processes import kill_and_reap_orphans, kill_leftovers
from oet_operator.local.records import describe_process_end
from oet_operator.local.runner import Reading, Runner, RunnerProtocolError
from oet_operator.local.spares import SparePool
from oet_operator.local.store import LocalStore, Transaction
from oet_operator.local.traces import Traces

__all__ = ["EngineLoop"]

_log = logging.getLogger(__name__)

LEFTOVER_GRACE_SECONDS = 3.0
"""How long runners of a dead engine have to stop their scripts by themselves; they take 2 s at most."""

TRACE_GRACE_SECONDS = 10.0
"""The same where only they can tell whether they have: a machine that is just starting services is slow."""

SWEEP_SECONDS = 0.005
"""Pause between two looks at processes that are being killed: the kernel needs about a millisecond."""

READ_PAUSE_SECONDS = 0.05
"""A runner that filled a whole read is read again after this pause: 2.5 MiB/s of printed text per script leaves the other
executions their answer times on two cores. What is more, the runner drops and counts."""

LAST_READS = 64
"""Reads of the last words of a runner that has ended: 8 MiB, more than a socket holds. What its script has taken over goes on."""

RETRY_SECONDS = 1.0
"""Pause before a decision that failed is tried again, and between tries to write to a full disk."""

SHUTDOWN_GRACE_SECONDS = 5.0
"""Longest grace a script gets when the engine is shut down: within the 10 s after which supervisors of services kill."""

IDLE_SECONDS = 60.0
"""Longest sleep of the loop: a look round costs nothing, and no lost wake-up is lost for ever."""


_UNPROVEN = (
    "the engine and the script's supervisor were killed while this execution was active, and scripts ran without PID namespaces: "
    "whether anything of the script is left is not known"
)


@dataclass(eq=False)
class _Service:
    """A runner in the service of an execution, and what it was told."""

    runner: Runner
    inbox: Inbox
    grant_sent: bool = False
    stop_sent_seconds: float | None = None
    has_ended: bool = False


class EngineLoop:
    """The loop. `run` is the thread's body; `wake`, `shut_down` and `observe_problem` may be called from any thread.

    Attributes:
        is_confined: Whether the newest runner confines its script; None before the first one is up.
    """

    def __init__(
        self, store: LocalStore, settings: EngineSettings, start_runner: Callable[[Mode], Runner], traces: Traces
    ) -> None:
        self._traces = traces
        self._store = store
        self._settings = settings
        self._start_runner = start_runner
        self._pool = SparePool(settings.spares, self._start_watched)
        self._runners: dict[int, Runner] = {}
        self._services: dict[int, _Service] = {}
        self._gone: dict[int, RunnerObservation] = {}
        self._sweeping: dict[int, RunnerObservation] = {}
        self._recovering: set[int] = set()
        self._recover_marks = ("", "")
        self._recover_kill_at = 0.0
        self._dirty: deque[int] = deque()
        self._submitted: deque[Effects] = deque()
        self._due: list[tuple[float, int]] = []
        self._paused: list[tuple[float, int]] = []
        self._selector = selectors.DefaultSelector()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake_fd, selectors.EVENT_READ, None)
        self._shutdown_at: float | None = None
        self._is_closing = False
        self._problem: str | None = None
        self.is_confined: bool | None = None

    # ---- for other threads -----------------------------------------------------------------------------------------

    def wake(self, procedure_id: int) -> None:
        """Have an execution looked at now."""
        self._dirty.append(procedure_id)
        os.eventfd_write(self._wake_fd, 1)

    def submit(self, effects: Effects) -> None:
        """Have the effects of a decision done that another thread made and stored."""
        self._submitted.append(effects)
        os.eventfd_write(self._wake_fd, 1)

    def shut_down(self, timeout_seconds: float) -> None:
        """Ask the loop to stop all scripts and end; after the time it kills them."""
        self._shutdown_at = time.monotonic() + timeout_seconds
        os.eventfd_write(self._wake_fd, 1)

    @property
    def is_shutting_down(self) -> bool:
        """Tell whether the loop was asked to end."""
        return self._shutdown_at is not None

    def observe_problem(self) -> str | None:
        """Return what keeps the engine from working, None when nothing does."""
        return self._problem or self._store.write_error

    # ---- the loop --------------------------------------------------------------------------------------------------

    def recover(self, store_id: str, own_mark: str) -> None:
        """Take over what an earlier engine of this store left: call once, before `run`."""
        self._recover_marks = (store_id, own_mark)
        open_uids = []
        for execution in self._store.list():
            if not execution.is_finished or is_holding_unknown(execution):
                # Without a runner's name nothing was started for it yet: it simply goes on.
                target = self._recovering.add if execution.status.pod_name else self._dirty.append
                target(_id(execution))
                open_uids.append(execution.uid)
            elif is_armed(execution) or is_abort_due(execution) or is_outcome_open(execution):
                self._dirty.append(_id(execution))
        self._traces.keep(open_uids)
        has_traces = any(map(self._traces.is_left, open_uids))
        self._recover_kill_at = time.monotonic() + (TRACE_GRACE_SECONDS if has_traces else LEFTOVER_GRACE_SECONDS)

    def run(self) -> None:
        """Loop until the engine is shut down. Survives whatever an execution brings."""
        stopped = False
        while not stopped:
            try:
                stopped = self._pass()
                self._problem = None
            except Exception as error:  # noqa: BLE001 -- the loop must outlive any defect; it is logged and shown
                _log.exception("a pass of the engine failed; it goes on")
                self._problem = f"the engine's loop fails: {error!r}"
                time.sleep(SWEEP_SECONDS)
        self._selector.close()

    def _pass(self) -> bool:
        """Observe, decide, store, act. Returns whether the engine has been shut down."""
        ready = self._selector.select(self._compute_timeout())
        while self._submitted:
            self._apply(self._submitted.popleft())
        effects = Effects()
        with self._store.transaction(durable=False) as transaction:
            for key, _ in ready:
                self._on_readable(transaction, effects, key)
            self._observe_ends()
            self._on_time()
            self._decide_dirty(transaction, effects)
            if any(execution.is_finished for execution in transaction.executions.values()):
                apply_history_limit(self._store, transaction, self._settings.history_limit)
        self._apply(effects)
        if self._store.write_error:
            self._store.retry_unsaved()
        return self._is_shut_down()

    def _compute_timeout(self) -> float:
        """Return how long the loop may sleep, in seconds. Starts a missing spare when it is time."""
        now = time.monotonic()
        timeouts = [IDLE_SECONDS, *(heap[0][0] - now for heap in (self._due, self._paused) if heap)]
        if not self.is_shutting_down and (refill := self._pool.refill()) is not None:
            timeouts.append(refill)
        if self._sweeping:
            timeouts.append(SWEEP_SECONDS)
        if self._recovering or self.is_shutting_down:
            timeouts.append(10 * SWEEP_SECONDS)
        if self._store.write_error:
            timeouts.append(RETRY_SECONDS)
        # What was handed over since the pass looked at it has perhaps been announced by a wake-up that the pass took for another.
        return 0.0 if self._dirty or self._submitted else max(0.0, min(timeouts))

    def _on_time(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            self._dirty.append(heapq.heappop(self._due)[1])
        while self._paused and self._paused[0][0] <= now:
            if runner := self._runners.get(heapq.heappop(self._paused)[1]):
                self._selector.register(runner.socket, selectors.EVENT_READ, runner)

    # ---- observing runners -------------------------------------------------------------------------------------------

    def _start_watched(self, mode: Mode = Mode.OPERATION) -> Runner:
        runner = self._start_runner(mode)
        self._runners[runner.pid] = runner
        self._selector.register(runner.socket, selectors.EVENT_READ, runner)
        self._selector.register(runner.pidfd, selectors.EVENT_READ, runner.pid)
        return runner

    def _on_readable(self, transaction: Transaction, effects: Effects, key: selectors.SelectorKey) -> None:
        if key.data is None:
            os.eventfd_read(self._wake_fd)
        elif isinstance(key.data, Runner):
            if key.data.pid in self._runners:  # Else its end was handled earlier in this pass.
                self._on_mail(transaction, effects, key.data)
        elif runner := self._runners.get(key.data):
            self._on_runner_end(transaction, effects, runner)

    def _on_mail(self, transaction: Transaction, effects: Effects, runner: Runner) -> Reading:
        """Read and handle what a runner sent."""
        try:
            mails, reading = runner.read_mail()
            for mail in mails:
                self._on_one_mail(transaction, effects, runner, mail)
        except RunnerProtocolError as error:
            _log.error("the runner of procedure %s broke the protocol and is killed: %s", runner.procedure_id, error)
            runner.kill()
            reading = Reading.CLOSED
        except Exception:  # noqa: BLE001 -- a defect met by one execution must not reach another
            _log.exception("a mail of procedure %s cannot be handled; its runner is killed", runner.procedure_id)
            runner.kill()
            reading = Reading.CLOSED
        if reading in (Reading.CLOSED, Reading.FLOOD):
            self._unwatch(runner.socket)
        if reading is Reading.FLOOD:
            heapq.heappush(self._paused, (time.monotonic() + READ_PAUSE_SECONDS, runner.pid))
        return reading

    def _on_one_mail(self, transaction: Transaction, effects: Effects, runner: Runner, mail: dict[str, object]) -> None:
        kind, procedure_id = mail.get("kind"), runner.procedure_id
        if kind == MailKind.HELLO and not runner.is_up:  # A second one would be a script's words.
            runner.is_up, runner.is_confined = True, mail.get("confined") is True
            self.is_confined = runner.is_confined
            self._pool.on_hello()
        if procedure_id is None:
            return
        if runner.exit_seen:
            runner.has_lied = True
            raise RunnerProtocolError("it went on after it had reported the end of its script")
        inbox = self._services[procedure_id].inbox
        if kind == MailKind.REPORT:
            entries = mail.get("entries")
            inbox.on_report(transaction, entries, lambda: self._decide(transaction, effects, procedure_id))
        elif kind == MailKind.EXIT:
            runner.exit_seen = True
            inbox.on_exit(transaction, mail, shutting_down=self.is_shutting_down)
        self._dirty.append(procedure_id)

    def _on_runner_end(self, transaction: Transaction, effects: Effects, runner: Runner) -> None:
        """Read the last words of a runner whose process ended, and find out what it left."""
        for _ in range(LAST_READS):
            if self._on_mail(transaction, effects, runner) not in (Reading.SOME, Reading.FLOOD):
                break
        returncode = runner.reap()
        if returncode is None:
            return
        self._unwatch(runner.socket)
        self._unwatch(runner.pidfd)
        del self._runners[runner.pid]
        runner.close()
        if runner.procedure_id is None:
            self._pool.discard(runner)
            return
        self._services[runner.procedure_id].has_ended = True
        reason = Reason.RUNNER_LOST if runner.is_up else Reason.RUNNER_START_FAILED
        reason = Reason.END_UNCONFIRMED if runner.has_lied else reason
        message = f"the script's supervisor {describe_process_end(returncode)}; what was left of the script was killed"
        gone = {runner.procedure_id: RunnerObservation(Presence.GONE, reason, message)}
        # A supervisor leaves by itself only when it has reaped everything; its last mail somebody else may have written.
        if runner.exit_seen and returncode == 0 and not runner.has_lied:
            self._on_gone(gone)
        else:
            self._sweeping.update(gone)

    def _unwatch(self, watched: object) -> None:
        if watched in self._selector.get_map():
            self._selector.unregister(watched)  # type: ignore[arg-type]

    def _observe_ends(self) -> None:
        """See whether what is being killed, or ends by itself after the death of an engine, is gone."""
        if self._sweeping and kill_and_reap_orphans(self._runners) == 0:
            self._on_gone(self._sweeping)
            self._sweeping = {}
        if self._recovering:
            kill = time.monotonic() >= self._recover_kill_at
            if kill_leftovers(*self._recover_marks, kill=kill) == 0:
                ended, self._recovering = self._recovering, set()
                self._on_gone({procedure_id: self._observe_recovered(procedure_id) for procedure_id in ended})

    def _observe_recovered(self, procedure_id: int) -> RunnerObservation:
        """Say what is known of an execution of an earlier engine, none of whose runners is there any more."""
        execution = self._store.find(procedure_id)
        if execution is not None and self._traces.is_left(execution.uid):
            return RunnerObservation(Presence.LOST, Reason.ENGINE_LOST, _UNPROVEN)
        message = "the engine died while this execution was active; nothing of its script is left"
        return RunnerObservation(Presence.GONE, Reason.ENGINE_LOST, message)

    def _on_gone(self, gone: dict[int, RunnerObservation]) -> None:
        self._gone.update(gone)
        self._dirty.extend(gone)
        for procedure_id, observation in gone.items():
            execution = self._store.find(procedure_id)
            if execution is not None and observation.presence is Presence.GONE:
                self._traces.forget(execution.uid)

    # ---- deciding and acting -----------------------------------------------------------------------------------------

    def _decide_dirty(self, transaction: Transaction, effects: Effects) -> None:
        while self._dirty:
            for procedure_id in self._take_dirty():
                self._decide(transaction, effects, procedure_id)
            self._dirty.extend(effects.look_at)
            effects.look_at = []

    def _take_dirty(self) -> dict[int, None]:
        """Return who is to be looked at, once each, in order."""
        waiting: dict[int, None] = {}
        # One by one: what another thread adds while this goes on is either taken here or left for the next time. (To copy all
        # and then clear would lose what came in between, and its execution would stay as it is for ever.)
        while self._dirty:
            waiting[self._dirty.popleft()] = None
        return waiting

    def _decide(self, transaction: Transaction, effects: Effects, procedure_id: int) -> None:
        """Decide on one execution; whatever goes wrong with it stays with it."""
        if procedure_id in self._recovering:
            return
        observed = Observed(procedure_id, self._observe_runner(procedure_id), datetime.now(UTC))
        try:
            apply_decision(self._store, self._settings, transaction, effects, observed)
        except Exception:  # noqa: BLE001 -- a defect met by one execution must not reach another
            _log.exception("procedure %d cannot be decided on; tried again in %g s", procedure_id, RETRY_SECONDS)
            effects.requeue.append((RETRY_SECONDS, procedure_id))

    def _observe_runner(self, procedure_id: int) -> RunnerObservation:
        if gone := self._gone.get(procedure_id):
            return gone
        if service := self._services.get(procedure_id):
            return RunnerObservation(Presence.ALIVE if service.runner.is_up else Presence.STARTING)
        return RunnerObservation(Presence.NONE)

    def _apply(self, effects: Effects) -> None:
        now = time.monotonic()
        for seconds, procedure_id in effects.requeue:
            heapq.heappush(self._due, (now + seconds, procedure_id))
        for procedure_id in effects.assign:
            self._assign(procedure_id)
        for procedure_id in effects.deliver:
            self._deliver(procedure_id, effects.stops.get(procedure_id))
        for procedure_id in effects.kill:
            self._end_runner(procedure_id)

    def _assign(self, procedure_id: int) -> None:
        execution = self._store.find(procedure_id)
        if execution is None or procedure_id in self._services or self.is_shutting_down:
            return
        try:
            # Spares are outside of what keeps a rehearsal away from the telescope.
            is_rehearsal = execution.spec.mode is Mode.REHEARSAL
            if not is_rehearsal:
                self._traces.note(execution.uid)
            runner = self._start_watched(Mode.REHEARSAL) if is_rehearsal else self._pool.take()
        except OSError as error:
            message = f"no runner could be started: {error}"
            self._on_gone({procedure_id: RunnerObservation(Presence.GONE, Reason.RUNNER_START_FAILED, message)})
            return
        runner.procedure_id = procedure_id
        self._services[procedure_id] = _Service(runner, Inbox(procedure_id, self._settings.log_limit_bytes))
        runner.send_assignment(execution)

    def _deliver(self, procedure_id: int, stop_seconds: float | None) -> None:
        """Tell a runner what it has not been told yet."""
        service, execution = self._services.get(procedure_id), self._store.find(procedure_id)
        if service is None or execution is None or execution.is_finished:
            self._clean_up(procedure_id)
            return
        if may_begin(execution) and not service.grant_sent:
            service.grant_sent = True
            service.runner.send_grant(execution.spec.args.main)
        if execution.spec.desired_state is DesiredState.STOPPED:
            wanted = execution.spec.stop.grace_period_seconds
            stop_seconds = wanted if stop_seconds is None else min(wanted, stop_seconds)
        if stop_seconds is not None:
            self._send_stop(service, stop_seconds)

    def _send_stop(self, service: _Service, seconds: float) -> None:
        if service.stop_sent_seconds is None or seconds < service.stop_sent_seconds:
            service.stop_sent_seconds = seconds
            service.runner.send_stop(seconds)

    def _end_runner(self, procedure_id: int) -> None:
        """Kill a runner that the core wants gone."""
        service = self._services.get(procedure_id)
        if service and not service.has_ended:
            service.runner.kill()

    def _clean_up(self, procedure_id: int) -> None:
        """Forget a finished execution's runner once its process has ended."""
        service = self._services.get(procedure_id)
        if service is None or service.has_ended:
            self._services.pop(procedure_id, None)
            self._gone.pop(procedure_id, None)

    # ---- shutting down -----------------------------------------------------------------------------------------------

    def _is_shut_down(self) -> bool:
        """Go on with the shutdown if one was asked for. Returns whether nothing is left to be ended."""
        if self._shutdown_at is None:
            return False
        if not self._is_closing:
            self._is_closing = True
            self._pool.close()
            for procedure_id, service in self._services.items():
                execution = self._store.find(procedure_id)
                if execution and not service.has_ended:
                    grace = execution.spec.stop.grace_period_seconds
                    self._send_stop(service, min(grace, SHUTDOWN_GRACE_SECONDS))
        late = time.monotonic() - self._shutdown_at
        if late > 0:
            for runner in self._runners.values():
                runner.kill()
        return late > LEFTOVER_GRACE_SECONDS or not (self._runners or self._sweeping or self._dirty)


def _id(execution: ScriptExecution) -> int:
    """Return the procedure id of a stored execution; the store gives every one of them an id."""
    assert execution.procedure_id is not None
    return execution.procedure_id
