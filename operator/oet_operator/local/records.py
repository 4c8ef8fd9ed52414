"""Building the records that the local engine stores: pure functions from what happened to values."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from oet_crds.execution import (
    HISTORY_LIMIT,
    HistoryEntry,
    Metadata,
    RunnerExit,
    RunnerStatus,
    ScriptExecution,
    ScriptExecutionSpec,
    ScriptExecutionStatus,
)
from oet_crds.git import is_commit
from oet_crds.mailbox import MAX_STACKTRACE_CHARS
from oet_crds.reasons import Outcome, Reason
from oet_crds.states import State
from oet_operator.local.runner import RunnerProtocolError

__all__ = [
    "build_execution",
    "build_runner_exit",
    "describe_process_end",
    "with_runner_exit",
    "with_runner_state",
]


def build_execution(spec: ScriptExecutionSpec, procedure_id: int, now: datetime, **status: Any) -> ScriptExecution:
    """Build a new execution in state CREATING; `status` sets further status fields."""
    return ScriptExecution(
        metadata=Metadata(
            name=f"procedure-{procedure_id}", uid=str(uuid.uuid4()), creation_timestamp=now, resource_version="0"
        ),
        spec=spec,
        status=ScriptExecutionStatus(
            procedure_id=procedure_id,
            history=[HistoryEntry(seq=1, state=State.CREATING, time=now)],
            **status,
        ),
    )


def _to_datetime(seconds: Any) -> datetime:
    try:
        return datetime.fromtimestamp(float(seconds), UTC)
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise RunnerProtocolError(f"not a time: {seconds!r}") from error


def with_runner_state(execution: ScriptExecution, entry: Mapping[str, Any]) -> ScriptExecution:
    """Return the execution with one more transition in `status.runner`. Raises RunnerProtocolError."""
    runner = execution.status.runner or RunnerStatus()
    try:
        state = State(entry.get("state"))
    except ValueError as error:
        raise RunnerProtocolError(str(error)) from error
    if len(runner.transitions) >= HISTORY_LIMIT:
        raise RunnerProtocolError("more states than a script has")
    transition = HistoryEntry.model_construct(
        seq=len(runner.transitions) + 1, state=state, time=_to_datetime(entry.get("t"))
    )
    changes = {"transitions": [*runner.transitions, transition], "resolved_commit": _find_commit(runner, entry)}
    return _with_runner(execution, runner.model_copy(update=changes))


def _find_commit(runner: RunnerStatus, mail: Mapping[str, Any]) -> str | None:
    commit = mail.get("commit")
    return commit if is_commit(commit) else runner.resolved_commit


def _to_text(value: Any) -> str:
    """Return a text that can be stored: half a surrogate pair, which no runner sends, becomes `?`."""
    return str(value).encode("utf-8", "replace").decode()


def build_runner_exit(mail: Mapping[str, Any]) -> RunnerExit:
    """Build the record of a script's end from its runner's last mail. Raises RunnerProtocolError."""
    stacktrace = mail.get("stacktrace")
    try:
        return RunnerExit(
            outcome=Outcome(mail.get("outcome")),
            reason=Reason(mail.get("reason")),
            message=_to_text(mail.get("message") or ""),
            time=_to_datetime(mail.get("t")),
            stacktrace=_to_text(stacktrace)[-MAX_STACKTRACE_CHARS:] if stacktrace else None,
            exit_code=mail.get("exitCode"),
            signal=mail.get("signal"),
        )
    except ValueError as error:
        raise RunnerProtocolError(str(error)) from error


def with_runner_exit(execution: ScriptExecution, end: RunnerExit, mail: Mapping[str, Any]) -> ScriptExecution:
    """Return the execution with the script's end, and what else its runner's last mail tells, in `status.runner`."""
    runner = execution.status.runner or RunnerStatus()
    changes = {"exit": end, "resolved_commit": _find_commit(runner, mail)}
    return _with_runner(execution, runner.model_copy(update=changes))


def _with_runner(execution: ScriptExecution, runner: RunnerStatus) -> ScriptExecution:
    return execution.model_copy(update={"status": execution.status.model_copy(update={"runner": runner})})


def describe_process_end(returncode: int | None) -> str:
    """Say in words how a process ended, from `subprocess`' return code; None means that it is not known."""
    if returncode is None:
        return "ended in a way that is not known"
    if returncode < 0:
        try:
            return f"was killed by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"was killed by signal {-returncode}"
    return f"ended with exit code {returncode}"
