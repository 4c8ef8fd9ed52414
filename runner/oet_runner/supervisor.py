"""The supervisor's loop: between driver and child, and the one that ends everything."""

from __future__ import annotations

import os
import signal
import sys
import time

from oet_crds.mailbox import MailKind
from oet_runner.given_file import GivenFile
from oet_runner.listener import Listener
from oet_runner.mailbox import log
from oet_runner.polling import Poller
from oet_runner.rehearsal import TANGO_HOST_VARIABLE, Rehearsal, is_rehearsal
from oet_runner.spool import Spool, encode
from oet_runner.verdict import Facts, How, decide_verdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from oet_runner.channels import Channels
    from oet_runner.family import Family
    from oet_runner.mailbox import Mailbox

__all__ = ["Supervisor", "catch_signals"]

STOP_GRACE_VARIABLE = "OET_STOP_GRACE_SECONDS"
DEFAULT_STOP_GRACE_SECONDS = 10.0
"""Grace period when the supervisor itself gets SIGTERM: a third of the 30 s that Kubernetes gives a Pod."""

ABANDONED_GRACE_SECONDS = 1.5
"""Grace period after the driver's death: with the killing it stays under 2 s, so that a new driver finds nothing."""

OTHERS_DELAY_SECONDS = 0.005
"""A stopped script has so long to end before /proc is searched for processes outside its group: most are quicker."""

OTHERS_POLL_SECONDS = 0.05
"""How often that search is done again, for what has lost its parent meanwhile."""

KILL_BURST_SECONDS = 0.05
"""Killing goes on for so long before the loop looks at its other work."""

STUBBORN_SECONDS = 30.0
"""After so long the log says that something cannot be ended. It is tried on, for ever: nothing false is reported."""

STUCK_POLL_SECONDS = 1.0
"""How often it is asked, at the end, whether to wait on for what does not move."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def catch_signals() -> int:
    """Have signals make a file descriptor readable; what is read there are their numbers. Return it."""
    fd, wakeup_fd = os.pipe()
    os.set_blocking(fd, False)
    os.set_blocking(wakeup_fd, False)
    for number in (*_STOP_SIGNALS, signal.SIGCHLD):
        signal.signal(number, lambda _number, _frame: None)
    signal.set_wakeup_fd(wakeup_fd, warn_on_full_buffer=False)
    return fd


def _observe_stop_grace() -> float:
    try:
        return float(os.environ.get(STOP_GRACE_VARIABLE, ""))
    except ValueError:
        return DEFAULT_STOP_GRACE_SECONDS


class Supervisor:
    """Drives one child through one execution.

    Attributes:
        stop_signal: Number of the first signal that told it to stop; 0: none did.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        channels: Channels,
        family: Family,
        wakeup_fd: int,
        observe_oom_kills: Callable[[], int],
    ) -> None:
        self._mailbox = mailbox
        self._channels = channels
        self._family = family
        self._wakeup_fd = wakeup_fd
        self._observe_oom_kills = observe_oom_kills
        self._oom_kills_before = observe_oom_kills()
        self._poller = Poller()
        self._poller.set(wakeup_fd, readable=True)
        self._spool = Spool()
        self._listener = Listener(channels, self._spool)
        self._rehearsal = Rehearsal()
        self._given_file = GivenFile()
        self._has_said_hello = False
        self._is_assigned = False
        self._is_granted = False
        self._is_stopping = False
        self._was_stopped = False
        self._was_killed = False
        self._others_due = 0.0
        self._kill_began: float | None = None
        self.stop_signal = 0
        self._has_complained = False

    def run(self) -> None:
        """Serve until the script has ended, all of it is gone, and the driver knows or is gone too."""
        while not self._advance(time.monotonic()):
            self._send_report()
            ready = self._wait(time.monotonic())
            # Words of the child first: what it did before a stop came, it did before the stop.
            self._listener.receive(ready)
            self._receive_simulation()
            self._receive_signals(ready)
            self._mailbox.receive(time.monotonic())
        self._listener.drain()
        self._given_file.remove()
        self._report_exit()

    # ---- in and out ----------------------------------------------------------------------------------------------

    def _wait(self, now: float) -> dict[int, bool]:
        self._mailbox.watch(self._poller)
        self._listener.watch(self._poller)
        self._rehearsal.watch(self._poller)
        timeouts = [self._listener.compute_timeout(now)]
        if self._spool and self._listener.hold_until > now:
            timeouts.append(self._listener.hold_until - now)
        deadline = self._mailbox.desired.stop_deadline
        if self._kill_began is not None:
            timeouts.append(0.0)
        elif deadline is not None:
            timeouts.append(max(0.0, deadline - now))
            timeouts.append(max(0.0, self._others_due - now))
        return self._poller.wait(min((seconds for seconds in timeouts if seconds is not None), default=None))

    def _receive_simulation(self) -> None:
        lines = [b"oet.simulation: " + line for line in self._rehearsal.receive(self._poller)]
        self._spool.add_lines("stderr", lines, time.time())

    def _receive_signals(self, ready: dict[int, bool]) -> None:
        if self._wakeup_fd not in ready:
            return
        try:
            numbers = os.read(self._wakeup_fd, 4096)
        except BlockingIOError:
            return
        told = [number for number in numbers if number in _STOP_SIGNALS]
        if told:
            self.stop_signal = self.stop_signal or told[0]
            self._mailbox.desired.ask_stop(_observe_stop_grace(), time.monotonic())

    def _send_report(self) -> None:
        self._channels.to_child.flush()
        self._mailbox.flush()
        self._spool.is_held = self._mailbox.is_full()
        if self._listener.hold_until > time.monotonic():
            return
        if self._mailbox.sends_states_apart:
            self._send_entries(self._spool.take_states())
        while self._spool and not self._mailbox.has_unsent():
            self._send_entries(self._spool.take_batch())

    def _say_hello(self) -> None:
        self._has_said_hello = True
        version = ".".join(map(str, sys.version_info[:3]))
        hello = {"kind": MailKind.HELLO, "pid": self._family.child_pid, "python": version}
        self._mailbox.send(encode({**hello, "confined": self._listener.is_confined}))

    def _send_entries(self, entries: bytes) -> None:
        if entries:
            self._mailbox.send(b'{"kind":"%s","entries":[%s]}' % (MailKind.REPORT.encode(), entries))

    # ---- the course of things ------------------------------------------------------------------------------------

    def _advance(self, now: float) -> bool:
        """Do what is to be done now; tell whether nothing of the script is left."""
        desired = self._mailbox.desired
        if desired.is_abandoned:
            desired.ask_stop(ABANDONED_GRACE_SECONDS, now)
        is_gone = self._family.reap()
        # Before any script is there that could say it instead.
        if self._listener.is_up and not self._has_said_hello:
            self._say_hello()
        if desired.stop_deadline is not None:
            self._begin_stop(now)
        else:
            self._forward()
        if is_gone:
            return True
        if self._kill_began is None:
            if not self._must_kill(now):
                return False
            self._kill_began = now
        self._complain_of_stubborn(now - self._kill_began)
        return self._family.kill(KILL_BURST_SECONDS)

    def _must_kill(self, now: float) -> bool:
        """Tell whether politeness is over; until it is, ask processes outside the script's group to end."""
        if not self._is_stopping:
            return self._family.child_status is not None or bool(self._rehearsal.problem)
        if not self._is_assigned:
            return True
        self._was_killed = now >= (self._mailbox.desired.stop_deadline or 0.0)
        if not self._was_killed and now >= self._others_due:
            self._others_due = now + OTHERS_POLL_SECONDS
            # A script that tidies up needs its telescope for that; when it has done, nobody does.
            left = self._family.terminate_others(spare=self._rehearsal.pid)
            return self._rehearsal.pid is not None and left == 0
        return self._was_killed

    def _forward(self) -> None:
        """Hand on to the child what it may know by now."""
        desired = self._mailbox.desired
        if desired.assignment is not None and self._has_said_hello and not self._is_assigned:
            self._assign(desired.assignment)
        if desired.grant is not None and self._is_assigned and not self._is_granted:
            self._is_granted = True
            self._channels.to_child.write(encode(desired.grant) + b"\n")

    def _assign(self, assignment: dict[str, Any]) -> None:
        """Give the child its script; in a rehearsal only once the simulated telescope is there."""
        if is_rehearsal(assignment):
            self._rehearsal.start()
            if not self._rehearsal.tango_host:
                return
            # Over whatever the environment says: a rehearsal that looks for the real telescope would only fail to find it.
            assignment = {**assignment, "environment": {TANGO_HOST_VARIABLE: self._rehearsal.tango_host}}
        self._is_assigned = True
        if problem := self._given_file.write(assignment):
            assignment = {**assignment, "problem": problem}
        self._channels.to_child.write(encode(assignment) + b"\n")

    def _begin_stop(self, now: float) -> None:
        if self._is_stopping:
            return
        self._is_stopping = True
        self._listener.receive_records()
        ending = self._listener.ending
        # A script that had failed before the stop came has failed. One that returned may still have threads that run.
        has_failed = ending is not None and ending.how is not How.RETURNED
        self._was_stopped = self._family.child_status is None and not has_failed
        if self._is_assigned:
            self._family.terminate_group()
        self._others_due = now + OTHERS_DELAY_SECONDS

    def _complain_of_stubborn(self, seconds: float) -> None:
        if seconds > STUBBORN_SECONDS and not self._has_complained:
            self._has_complained = True
            text = f"a process of the script cannot be ended for {seconds:.0f} s; it is tried on"
            log(text)
            self._spool.add_lines("stderr", [f"oet_runner: {text}".encode()], time.time())

    # ---- the end -------------------------------------------------------------------------------------------------

    def _report_exit(self) -> None:
        """Tell the driver how it ended, and wait until it has read that or is gone."""
        desired = self._mailbox.desired
        self._listener.hold_until = 0.0
        is_served = self._is_assigned or bool(self._rehearsal.problem)
        has_verdict = is_served or (self._is_stopping and not desired.is_abandoned)
        exit_mail = self._build_exit() if has_verdict else None
        self._poller = Poller()  # Of what was waited for so far, nothing matters any more.
        while not desired.is_abandoned:
            self._send_report()
            if exit_mail is not None and (not self._spool or self._mailbox.is_stuck(time.monotonic())):
                self._mailbox.send(exit_mail)
                exit_mail = None
            is_told = exit_mail is None and not self._spool and not self._mailbox.has_unsent()
            if is_told and not self._mailbox.is_delivering(time.monotonic()):
                return
            self._mailbox.watch(self._poller)
            self._poller.wait(STUCK_POLL_SECONDS if is_told or exit_mail is not None else None)
            self._mailbox.receive(time.monotonic())

    def _build_exit(self) -> bytes:
        facts = Facts(self._listener.ending, self._listener.phase, self._family.child_status)
        facts.is_stop_asked = self._was_stopped
        facts.stop_grace_seconds = self._mailbox.desired.stop_grace_seconds
        facts.was_killed = self._was_killed
        facts.problem, facts.problem_words = self._rehearsal.problem, self._rehearsal.words
        facts.has_oom_kill = self._observe_oom_kills() > self._oom_kills_before
        verdict = decide_verdict(facts)
        now = time.time()
        return encode(
            {
                "kind": MailKind.EXIT,
                "n": self._spool.take_number(now),
                "t": now,
                "outcome": verdict.outcome,
                "reason": verdict.reason,
                "message": verdict.message,
                "stacktrace": verdict.stacktrace,
                "exitCode": facts.exit_code,
                "signal": facts.signal,
                "commit": self._listener.commit,
            }
        )
