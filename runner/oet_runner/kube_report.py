"""What a runner in a Pod reads out of its execution, and what it writes into `status.runner`. Pure."""

from __future__ import annotations

import json
import time
from enum import Enum

from oet_crds.names import CONFIG_MAP_FOLDER
from oet_crds.states import FINAL_STATES, ConditionType, DesiredState, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "CLAIM_REVISION",
    "Course",
    "Execution",
    "RunnerReport",
    "build_claim",
    "build_file",
    "build_script",
    "build_update",
    "decide_course",
    "format_time",
]

DEFAULT_GRACE_SECONDS = 10.0
"""As `oet_crds.execution` has it, which cannot be imported here: the API server fills it in anyhow."""

CLAIM_REVISION = 1
"""The report that holds the claim and nothing else."""

CUT_STACKTRACE_CHARS = 1024
CUT_MESSAGE_CHARS = 200
"""What is left of them when the API server finds the report too large."""

_NO_ARGUMENTS: dict[str, Any] = {"args": [], "kwargs": {}}


class Execution:
    """What matters of a ScriptExecution to its runner.

    Attributes:
        name: Its name.
        uid: Its identity.
        version: The resourceVersion.
        claim: Name of the runner that serves it; None while none does.
        runner: All of `status.runner`; None where nothing is there.
        is_final: Its state is final.
        must_stop: A user or the operator wants it stopped, or it is being deleted.
        grace_seconds: Grace period of that stop.
        grant: Arguments of `main`; None while it must not start.
        is_armed: It is an abort script that is held, and was not told to begin.
        assignment: The mail that tells the child what to run.
    """

    __slots__ = (
        "assignment",
        "claim",
        "grace_seconds",
        "grant",
        "is_armed",
        "is_final",
        "must_stop",
        "name",
        "runner",
        "uid",
        "version",
    )

    def __init__(self, wire: dict[str, Any]) -> None:
        """Read the API server's JSON.

        Raises:
            ValueError: It is not a ScriptExecution.
        """
        try:
            metadata, spec, status = wire["metadata"], wire["spec"], wire.get("status") or {}
            self.name = str(metadata["name"])
            self.uid = str(metadata["uid"])
            self.version = str(metadata["resourceVersion"])
            self.runner: dict[str, Any] | None = status.get("runner")
            self.claim: str | None = (self.runner or {}).get("claim") or None
            self.is_final = any(status.get("state") == state for state in FINAL_STATES)
            stop = spec.get("stop") or {}
            self.grace_seconds = float(stop.get("gracePeriodSeconds", DEFAULT_GRACE_SECONDS))
            self.must_stop = (
                spec.get("desiredState") == DesiredState.STOPPED
                or metadata.get("deletionTimestamp") is not None
                or any(_is_stopping(condition) for condition in status.get("conditions") or [])
            )
            arguments = spec.get("args") or {}
            self.grant: dict[str, Any] | None = None
            grant = status.get("grant")
            # A standing grant, which an abort script has that is held, is one once its start is asked for.
            if grant and (not grant.get("standing") or spec.get("desiredState") == DesiredState.RUNNING):
                self.grant = arguments.get("main") or _NO_ARGUMENTS
            self.is_armed = bool(grant) and self.grant is None
            self.assignment = {
                "uid": self.uid,
                "procedureId": status.get("procedureId"),
                "mode": spec.get("mode"),
                "script": build_script(spec["script"]),
                "init": arguments.get("init"),
                "file": build_file(spec.get("activity")),
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"an execution from the API server cannot be understood: {error!r}") from error


def _is_stopping(condition: dict[str, Any]) -> bool:
    return condition.get("type") == ConditionType.STOPPING and condition.get("status") == "True"


def build_script(script: dict[str, Any]) -> dict[str, Any]:
    """Return the script as the child finds it: a ConfigMap is a mounted file. Pure."""
    config_map = script.get("configMap")
    if config_map:
        return {"file": {"path": f"{CONFIG_MAP_FOLDER}/{config_map['key']}"}}
    return script


def build_file(activity: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the file that the script is to find, of `spec.activity`; None for none. Pure."""
    return {"path": activity["sbPath"], "text": activity["sbJson"]} if activity else None


class Course(Enum):
    """What a runner does with an execution."""

    CLAIM = "claim"
    """Nobody serves it: claim it."""
    SERVE = "serve"
    """It is ours."""
    STOP = "stop"
    """It is to be stopped before anybody served it: say that nothing ran."""
    LEAVE = "leave"
    """It is over, or another's: do nothing with it, and say nothing of it."""


def decide_course(execution: Execution, name: str, *, has_claim: bool) -> Course:
    """Decide what to do with an execution that names this runner's Pod. Pure.

    Args:
        execution: As it was seen last; it may be older than what the runner knows.
        name: The name with which this runner claims.
        has_claim: The runner has seen before that its claim was accepted: no one can take that away.
    """
    if has_claim or execution.claim == name:
        return Course.SERVE
    if execution.claim is not None or execution.is_final:
        return Course.LEAVE
    return Course.STOP if execution.must_stop else Course.CLAIM


def format_time(seconds: float) -> str:
    """Return seconds since the epoch as RFC 3339 in UTC with microseconds. Pure."""
    whole, micros = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{micros:06d}Z"


class RunnerReport:
    """All that this runner has to say in `status.runner`: it only grows.

    Attributes:
        revision: Counts the changes, from `CLAIM_REVISION`.
        has_exit: The exit is in it.
        has_run: RUNNING is among the states.
        is_confined: The script cannot take this runner's identity; to be set before the claim.
        last_state: The last state that it tells; None before the first.
    """

    __slots__ = (
        "_claim",
        "_commit",
        "_cuts",
        "_exit",
        "_transitions",
        "has_exit",
        "has_run",
        "is_confined",
        "last_state",
        "revision",
    )

    def __init__(self, claim: str) -> None:
        self._claim = claim
        self._commit: str | None = None
        self._transitions: list[dict[str, Any]] = []
        self._exit: dict[str, Any] = {}
        self._cuts = 0
        self.revision = CLAIM_REVISION
        self.is_confined = False
        self.has_exit = False
        self.has_run = False
        self.last_state: State | None = None

    def add_state(self, entry: dict[str, Any]) -> None:
        """Add a state, given as an entry of the mailbox. None is ever left out: whoever merges them counts them."""
        number = len(self._transitions) + 1
        self.last_state = State(entry["state"])
        self.has_run = self.has_run or self.last_state is State.RUNNING
        self._commit = entry.get("commit") or self._commit
        self._transitions.append({"seq": number, "state": str(self.last_state), "time": format_time(entry["t"])})
        self.revision += 1

    def set_exit(self, mail: dict[str, Any]) -> None:
        """Add the exit, given as the mail of that kind."""
        names = ("outcome", "reason", "message", "stacktrace", "exitCode", "signal", "logEntries")
        self._exit = {name: mail[name] for name in names if mail.get(name) is not None}
        self._commit = mail.get("commit") or self._commit
        self._exit["time"] = format_time(mail["t"])
        self.has_exit = True
        self.revision += 1

    def cut(self) -> bool:
        """Make the report shorter, as the API server finds it too large; tell whether anything was left to cut."""
        before = len(self._exit.get("stacktrace", "")) + len(self._exit.get("message", ""))
        self._cuts += 1
        if self._cuts == 1 and "stacktrace" in self._exit:
            self._exit["stacktrace"] = self._exit["stacktrace"][-CUT_STACKTRACE_CHARS:]
        else:
            self._exit.pop("stacktrace", None)
        if self._cuts > 2 and self._exit:
            self._exit["message"] = self._exit["message"][:CUT_MESSAGE_CHARS]
        is_shorter = len(self._exit.get("stacktrace", "")) + len(self._exit.get("message", "")) < before
        self.revision += int(is_shorter)
        return is_shorter

    def build(self) -> dict[str, Any]:
        """Return the whole of `status.runner`."""
        runner: dict[str, Any] = {"claim": self._claim}
        if self.is_confined:
            runner["confined"] = True
        if self._transitions:
            runner["transitions"] = list(self._transitions)
        if self._commit:
            runner["resolvedCommit"] = self._commit
        if self._exit:
            runner["exit"] = dict(self._exit)
        return runner


def build_claim(execution: Execution, report: RunnerReport) -> bytes:
    """Return the merge patch that claims an execution, if nobody has written to it since it was seen. Pure.

    The resourceVersion tells one object of a name from the next as well. (A uid would not: in a patch of `status` the API server
    takes no notice of it.)
    """
    metadata = {"resourceVersion": execution.version}
    return json.dumps({"metadata": metadata, "status": {"runner": report.build()}}).encode()


def build_update(execution: Execution, report: RunnerReport, known: dict[str, Any] | None) -> bytes:
    """Return the JSON patch that brings the report up to date, if nobody but its runner has touched it. Pure.

    So the operator's writes at the same time are no obstacle; an execution of the same name that came after ours is not written
    to; and a request that was thought lost and comes late cannot undo a newer one.

    Args:
        execution: Whose.
        report: What to write.
        known: What `status.runner` holds, as the API server said last; None where it holds nothing.
    """
    operations: list[dict[str, Any]] = [{"op": "test", "path": "/metadata/uid", "value": execution.uid}]
    if known is not None:
        operations.append({"op": "test", "path": "/status/runner", "value": known})
    operations.append({"op": "add", "path": "/status/runner", "value": report.build()})
    return json.dumps(operations).encode()
