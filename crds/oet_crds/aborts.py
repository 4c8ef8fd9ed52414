"""Which executions abort, for whom, and which script they run. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from oet_crds.conditions import find_condition
from oet_crds.execution import FileScript, GitScript, ScriptExecution, ScriptSource
from oet_crds.git import find_secret, find_version_problem, is_commit, parse_place
from oet_crds.history import has_begun
from oet_crds.reasons import Reason
from oet_crds.states import ConditionType, DesiredState, Purpose, State

__all__ = [
    "ABORT_BEGIN_SECONDS",
    "ABORT_SCRIPT",
    "build_abort_source",
    "find_ready_abort",
    "find_serving",
    "find_target",
    "is_armed",
    "is_given_up",
    "was_armed",
    "is_ready_to_abort",
    "parse_abort_script",
]

ABORT_SCRIPT = "abort.py"
"""Name of the abort script in the folder of the shipped scripts (upstream's name)."""

ABORT_BEGIN_SECONDS = 10.0
"""An abort that has not begun so long after the script's end is an alarm: three times as long as a start takes."""

_FILE_PREFIX = "file://"
_GIT_PREFIX = "git+"
_GIT_URI = re.compile(r"(?P<repository>[a-z]+://[^/#?]*/[^@#?]+)(@(?P<version>[^#?]+))?#(?P<path>[^#?]+)")


def parse_abort_script(uri: str) -> ScriptSource | None:
    """Return the script that `[engine] abort_script` names; None when it is empty.

    Raises:
        ValueError: It is neither of the two forms; the text says what is wrong.
    """
    if not uri:
        return None
    if uri.startswith(f"{_FILE_PREFIX}/") and not uri.endswith("/"):
        return ScriptSource(file=FileScript(path=uri.removeprefix(_FILE_PREFIX)))
    found = _GIT_URI.fullmatch(uri.removeprefix(_GIT_PREFIX)) if uri.startswith(_GIT_PREFIX) else None
    if found is None:
        raise ValueError(
            "it is neither file:///PATH nor git+URL@VERSION#PATH, for example git+https://host/repo.git@branch#scripts/abort.py"
        )
    repository, version, path = found["repository"], found["version"], found["path"]
    if secret := find_secret(repository):
        raise ValueError(secret)
    parse_place(repository)
    commit, branch = (version, None) if is_commit(version) else (None, version)
    if problem := find_version_problem(branch, commit):
        raise ValueError(problem)
    return ScriptSource(git=GitScript(repository=repository, path=path, branch=branch, commit=commit))


def build_abort_source(uri: str, scripts_location: str) -> ScriptSource:
    """Return the abort script: the one that the setting names, else `abort.py` in the folder of the shipped scripts.

    Args:
        uri: `[engine] abort_script`, checked; empty: none is named.
        scripts_location: The folder.
    """
    return parse_abort_script(uri) or ScriptSource(file=FileScript(path=f"{scripts_location}/{ABORT_SCRIPT}"))


def find_target(execution: ScriptExecution) -> str | None:
    """Return the uid of the stopped execution that an execution aborts for; None: for none, or not yet for any."""
    grant = execution.status.grant
    return execution.spec.abort_of or (grant.abort_of if grant else None)


def is_armed(execution: ScriptExecution) -> bool:
    """Tell whether an execution is an abort script that is held, or being prepared to be held, for a stop yet to come."""
    return execution.spec.purpose is Purpose.ABORT and find_target(execution) is None


def was_armed(execution: ScriptExecution) -> bool:
    """Tell whether an abort script was held before it was told for whom to run."""
    grant = execution.status.grant
    return execution.spec.purpose is Purpose.ABORT and grant is not None and grant.standing is not None


def is_given_up(execution: ScriptExecution) -> bool:
    """Tell whether an abort script that was held is being ended because it did not begin, or has ended before it did.

    One that a person stopped is as that person wants it.
    """
    stopping = find_condition(execution.status, ConditionType.STOPPING)
    if stopping is not None and stopping.reason == Reason.ABORT_NOT_BEGUN:
        return True
    is_over = execution.status.state in (State.FAILED, State.UNKNOWN)
    return was_armed(execution) and find_target(execution) is not None and is_over and not has_begun(execution.status)


def is_ready_to_abort(execution: ScriptExecution) -> bool:
    """Tell whether an armed execution begins `main` the moment it is told to."""
    status = execution.status
    stopping = find_condition(status, ConditionType.STOPPING)
    return (
        is_armed(execution)
        and status.state is State.READY
        and execution.spec.desired_state is DesiredState.READY
        and status.grant is not None
        and bool(status.grant.standing)
        and (status.runner is None or status.runner.exit is None)
        and stopping is None
        and execution.metadata.deletion_timestamp is None
    )


def find_ready_abort(executions: Iterable[ScriptExecution], subarray: int) -> ScriptExecution | None:
    """Return the armed execution that can abort a subarray now, None when there is none. There is never more than one."""
    ready = (one for one in executions if one.spec.subarray == subarray and is_ready_to_abort(one))
    return next(ready, None)


def find_serving(executions: Iterable[ScriptExecution], uid: str) -> ScriptExecution | None:
    """Return the execution that aborts for a stopped one, None when there is none so far.

    One that was given up counts only while no other has taken its place.
    """
    serving = [one for one in executions if find_target(one) == uid]
    return next((one for one in serving if not is_given_up(one)), serving[0] if serving else None)
