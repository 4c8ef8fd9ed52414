"""How did it end? Pure: what was seen goes in, outcome, reason and words for people come out."""

from __future__ import annotations

import signal as signals
from enum import Enum

from oet_crds.mailbox import MAX_STACKTRACE_CHARS
from oet_crds.reasons import Outcome, Reason
from oet_crds.states import State

__all__ = ["Ending", "Facts", "How", "Phase", "Verdict", "compute_phase", "decide_verdict", "parse_ending"]

MAX_TEXT_CHARS = 1000
"""What a script adds to a message, at most: the rest is in the stack trace."""


class Phase(str, Enum):
    """What the script's process was at. The value completes the sentence "it ended while ..."."""

    START = "it was being started"
    PREPARE = "its environment was being prepared"
    LOAD = "the script was being loaded"
    INIT = "init ran"
    WAIT = "it waited for the start of main"
    MAIN = "main ran"
    AFTER = "it tidied up after main"

    __str__ = str.__str__


class How(str, Enum):
    """How the script's process itself says that the script ended."""

    RETURNED = "returned"
    RAISED = "raised"
    EXITED = "exited"
    TERMINATED = "terminated"
    UNSUPPORTED = "unsupported"
    UNFETCHED = "unfetched"
    UNPREPARED = "unprepared"

    __str__ = str.__str__


class Ending:
    """What the script's process said of the end.

    Attributes:
        how: In which way.
        phase: During what.
        text: The exception in one line, or what `sys.exit` was given.
        stacktrace: The traceback; None where nothing was raised.
        is_memory_error: The exception is a MemoryError.
        is_clean_exit: `sys.exit()` or `sys.exit(0)`.
    """

    __slots__ = ("how", "is_clean_exit", "is_memory_error", "phase", "stacktrace", "text")

    def __init__(self, how: How, phase: Phase, text: str = "", stacktrace: str | None = None) -> None:
        self.how = how
        self.phase = phase
        self.text = text[:MAX_TEXT_CHARS]
        self.stacktrace = stacktrace[-MAX_STACKTRACE_CHARS:] if stacktrace else None
        self.is_memory_error = False
        self.is_clean_exit = False


def parse_ending(record: dict[str, object]) -> Ending:
    """Build an ending from what came over the control channel.

    Raises:
        ValueError: It is not an ending.
    """
    text, stacktrace = record.get("text", ""), record.get("stacktrace")
    if not isinstance(text, str) or not (stacktrace is None or isinstance(stacktrace, str)):
        raise ValueError("text and stacktrace must be strings")
    ending = Ending(How(record.get("how")), Phase(record.get("phase")), text, stacktrace)
    ending.is_memory_error = record.get("isMemoryError") is True
    ending.is_clean_exit = record.get("isCleanExit") is True
    return ending


class Facts:
    """All that a verdict depends on.

    Attributes:
        ending: What the script's process said; None when it said nothing.
        phase: What it was last known to be at.
        exit_code: With what it exited; None when a signal ended it or it never had an assignment.
        signal: The signal that ended it; None otherwise.
        is_stop_asked: A stop came before the end did.
        stop_grace_seconds: The grace period of that stop.
        was_killed: The grace period ran out before all of it had ended.
        has_oom_kill: The kernel killed something for want of memory meanwhile.
        problem: Why the simulated telescope of a rehearsal did not start; empty where it did, or none was needed.
        problem_words: What it printed.
    """

    __slots__ = (
        "ending",
        "exit_code",
        "has_oom_kill",
        "is_stop_asked",
        "phase",
        "problem",
        "problem_words",
        "signal",
        "stop_grace_seconds",
        "was_killed",
    )

    def __init__(self, ending: Ending | None, phase: Phase, wait_status: int | None) -> None:
        self.ending = ending
        self.phase = phase
        self.exit_code: int | None = None
        self.signal: int | None = None
        if wait_status is not None:
            # os.waitstatus_to_exitcode is not in Python 3.8: low 7 bits are the signal, the next byte the exit code.
            self.signal = wait_status & 0x7F or None
            self.exit_code = None if self.signal else wait_status >> 8 & 0xFF
        self.is_stop_asked = False
        self.stop_grace_seconds = 0.0
        self.was_killed = False
        self.has_oom_kill = False
        self.problem = ""
        self.problem_words = ""


class Verdict:
    """How it ended, for programs and for people."""

    __slots__ = ("message", "outcome", "reason", "stacktrace")

    def __init__(self, outcome: Outcome, reason: Reason, message: str, stacktrace: str | None = None) -> None:
        self.outcome = outcome
        self.reason = reason
        self.message = message
        self.stacktrace = stacktrace


def compute_phase(state: State | None, *, has_run: bool) -> Phase:
    """Return what the script's process is at when `state` is the last that it reported. Pure.

    Args:
        state: None before the first one.
        has_run: Whether RUNNING was among its states.
    """
    if state is State.READY:
        return Phase.AFTER if has_run else Phase.WAIT
    phases = {State.PREP_ENV: Phase.PREPARE, State.LOADING: Phase.LOAD}
    phases.update({State.INITIALISING: Phase.INIT, State.RUNNING: Phase.MAIN})
    return phases.get(state, Phase.START) if state else Phase.START


def decide_verdict(facts: Facts) -> Verdict:
    """Decide how it ended, the strongest fact first: a stop, an end by force, what the script said. Pure."""
    ending = facts.ending
    if facts.is_stop_asked:
        return _describe_stop(facts)
    if facts.problem:
        return _describe_problem(facts)
    if ending is not None and ending.how is not How.RETURNED and not (ending.is_clean_exit and _is_in_main(ending)):
        return _describe_failure(ending)
    if facts.signal:
        return _describe_signal(facts)
    if ending is None or facts.exit_code:
        message = f"the script's process ended itself with exit code {facts.exit_code} while {facts.phase}"
        return Verdict(Outcome.FAILED, Reason.PROCESS_EXITED, message)
    message = "main returned" if ending.how is How.RETURNED else "the script left by sys.exit(0)"
    return Verdict(Outcome.COMPLETE, Reason.COMPLETED, message)


def _is_in_main(ending: Ending) -> bool:
    return ending.how is How.EXITED and ending.phase is Phase.MAIN


def _describe_stop(facts: Facts) -> Verdict:
    message = f"stopped on request while {facts.phase}"
    ending, stacktrace = facts.ending, None
    if facts.was_killed:
        message += (
            f"; not all of it had ended within the grace period of {facts.stop_grace_seconds:g} s, the rest was killed"
        )
    if ending is not None and ending.how is How.RAISED:
        message += f"; on its way out it raised {ending.text}"
        stacktrace = ending.stacktrace
    return Verdict(Outcome.STOPPED, Reason.STOP_REQUESTED, message, stacktrace)


_NOT_HAD = {
    How.UNSUPPORTED: Reason.UNSUPPORTED_SOURCE,
    How.UNFETCHED: Reason.FETCH_FAILED,
    How.UNPREPARED: Reason.ENVIRONMENT_FAILED,
}
"""Scripts that never became a file: none of their own lines is to blame."""


def _describe_problem(facts: Facts) -> Verdict:
    words = facts.problem_words.strip()
    message = f"{facts.problem}: {words.splitlines()[-1]}" if words else facts.problem
    stacktrace = words[-MAX_STACKTRACE_CHARS:] or None
    return Verdict(Outcome.FAILED, Reason.SIMULATION_FAILED, message[:MAX_TEXT_CHARS], stacktrace)


def _describe_failure(ending: Ending) -> Verdict:
    failed = {Phase.INIT: Reason.INIT_FAILED, Phase.MAIN: Reason.MAIN_FAILED}
    reason = failed.get(ending.phase, Reason.LOAD_FAILED)
    message = f"{ending.text} (raised while {ending.phase})"
    if ending.how in _NOT_HAD:
        reason, message = _NOT_HAD[ending.how], ending.text
    elif ending.how is How.EXITED:
        reason, message = Reason.SCRIPT_EXITED, f"the script left by sys.exit({ending.text}) while {ending.phase}"
    elif ending.how is How.TERMINATED:
        reason = Reason.PROCESS_KILLED
        message = f"the script's process was ended by SIGTERM (signal 15), which OET did not send, while {ending.phase}"
    elif ending.is_memory_error:
        reason = Reason.OUT_OF_MEMORY
    return Verdict(Outcome.FAILED, reason, message, ending.stacktrace)


def _describe_signal(facts: Facts) -> Verdict:
    assert facts.signal
    try:
        name = f"{signals.Signals(facts.signal).name} (signal {facts.signal})"
    except ValueError:
        name = f"signal {facts.signal}"
    message = f"the script's process was killed by {name} while {facts.phase}"
    if facts.signal != signals.SIGKILL:
        return Verdict(Outcome.FAILED, Reason.PROCESS_KILLED, message)
    if facts.has_oom_kill:
        return Verdict(Outcome.FAILED, Reason.OUT_OF_MEMORY, f"{message}: the kernel had run out of memory")
    message += "; OET did not send it: it came from the script itself, a person, or the kernel"
    return Verdict(Outcome.FAILED, Reason.PROCESS_KILLED, message)
