"""The JSON that clients and server exchange, in upstream's words, and pure conversions between it and a ScriptExecution.

Field names and the order of keys are upstream's (API version 7); what OET adds comes after, and only where it has a value.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, TypeAdapter, model_validator

from oet_api.decisions import parse_lockable_subarray
from oet_api.limits import is_clean_text
from oet_api.origin import MAX_REASON_CHARS
from oet_crds.alarms import find_alarm
from oet_crds.execution import (
    MAX_INLINE_SOURCE_CHARS,
    MAX_LIMIT_SECONDS,
    ExecutionArgs,
    FileScript,
    GitScript,
    InlineScript,
    ScriptExecution,
    ScriptExecutionSpec,
    ScriptSource,
    WhenBusy,
)
from oet_crds.execution import FunctionArgs as SpecArgs
from oet_crds.git import PASSWORD_IN_URL, find_secret, mask_secrets
from oet_crds.settings import GitSettings
from oet_crds.states import DesiredState, Mode, Purpose, State
from oet_crds.subarrays import MAX_SUBARRAY, SUBARRAY_KEY

__all__ = [
    "AbortMessage",
    "CreateProcedure",
    "FunctionArgs",
    "Procedure",
    "ReleaseProcedure",
    "ScriptArgs",
    "TimelineItem",
    "UpdateProcedure",
    "build_procedure",
    "build_spec",
    "build_spec_args",
    "check_subarray_id",
    "dump_json",
    "mask_payload",
    "parse_script",
    "render_script",
    "render_script_args",
]

SUBARRAY_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": MAX_SUBARRAY},
        {"type": "string", "pattern": "^[0-9]{1,4}$"},
        {"type": "null"},
    ]
}

_FILE_PREFIX = "file://"
_GIT_PREFIX = "git://"


def _check_clean(text: str) -> str:
    if not is_clean_text(text):
        raise ValueError("a NUL character is not allowed here")
    return text


def _check_said(text: str) -> str:
    if not text.strip():
        raise ValueError("say in words why it is certain that the script does not run")
    return text


def _check_prefix(text: str, prefix: str, kind: str) -> str:
    if re.search(PASSWORD_IN_URL, text):
        raise ValueError("it holds a password, which everybody would see who sees the execution: leave it out")
    if not text.startswith(prefix):
        raise ValueError(f"Incorrect prefix for {kind}: {text}")
    if text == prefix:
        raise ValueError(f"{prefix} needs a path after it")
    return text


def _check_no_secret(repository: str) -> str:
    if secret := find_secret(repository):
        raise ValueError(secret)
    return repository


Clean = AfterValidator(_check_clean)


def check_subarray_id(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments as they are. Raises ValueError when their `subarray_id` is no subarray to lock."""
    value = kwargs.get(SUBARRAY_KEY)
    if value is not None and parse_lockable_subarray(value) is None:
        raise ValueError(
            f"{SUBARRAY_KEY} must be an integer from 0 to {MAX_SUBARRAY}: it says which subarray is locked"
        )
    return kwargs


class Request(BaseModel):
    """Base of what clients send: unknown keys are refused, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FunctionArgs(Request):
    """Arguments of one function of the script; passed to it exactly as JSON gives them."""

    args: list[Any] = Field(default_factory=list, description="Positional arguments.")
    kwargs: Annotated[dict[str, Any], AfterValidator(check_subarray_id)] = Field(
        default_factory=dict,
        description="Keyword arguments. `subarray_id`, if given, says which subarray is locked while main runs.",
        json_schema_extra={"properties": {SUBARRAY_KEY: SUBARRAY_SCHEMA}},
    )


class ScriptArgs(Request):
    """Arguments of the script's functions."""

    init: FunctionArgs | None = Field(None, description="Arguments of init.")
    main: FunctionArgs | None = Field(None, description="Arguments of main.")

    @model_validator(mode="after")
    def _one_subarray(self) -> Self:
        named = [parse_lockable_subarray(one.kwargs.get(SUBARRAY_KEY)) for one in (self.init, self.main) if one]
        if len({number for number in named if number is not None}) > 1:
            raise ValueError(f"{SUBARRAY_KEY} of init and main differ, but only one subarray can be locked")
        return self


class FileSystemScript(Request):
    """A file on the server's file system."""

    script_uri: Annotated[
        str,
        Clean,
        AfterValidator(lambda text: _check_prefix(text, _FILE_PREFIX, "FileSystemScript")),
        Field(max_length=4096, json_schema_extra={"pattern": "^file://[^\\u0000]+$"}),
    ] = Field(description="file:// and the path of the script.", examples=["file:///scripts/hello.py"])
    script_type: Literal["filesystem"]


class GitArgs(Request):
    """Where the repository is, and which version of it."""

    git_repo: Annotated[str, Clean, AfterValidator(_check_no_secret)] | None = Field(
        None,
        min_length=1,
        max_length=2048,
        description="URL of the repository, without password and query; absent: the one of the server's settings, usually "
        "ska-oso-scripting.",
    )
    git_branch: Annotated[str, Clean] | None = Field(
        None,
        max_length=255,
        description="Branch or tag; null: the repository's default. Absent, without a commit: that of the server's settings.",
    )
    git_commit: Annotated[str, Clean] | None = Field(None, max_length=64, description="Commit; wins over the branch.")


class GitRepositoryScript(Request):
    """A file in a git repository."""

    script_uri: Annotated[
        str,
        Clean,
        AfterValidator(lambda text: _check_prefix(text, _GIT_PREFIX, "GitScript")),
        Field(max_length=4096, json_schema_extra={"pattern": "^git://[^\\u0000]+$"}),
    ] = Field(description="git:// and the path of the script in the repository.", examples=["git://demo.py"])
    git_args: GitArgs | None = Field(
        default_factory=GitArgs, description="Which repository; absent: the one of the server's settings."
    )
    create_env: StrictBool = Field(False, description="Build the project's own Python environment first.")
    script_type: Literal["git"]


class InlineSourceScript(Request):
    """The script's text itself (an addition to upstream)."""

    source: Annotated[str, Clean] = Field(
        min_length=1,
        max_length=MAX_INLINE_SOURCE_CHARS,
        description="Python source of the script.",
        json_schema_extra={"pattern": "^[^\\u0000]*$"},
    )
    script_type: Literal["inline"]


class ConfigMapKeyScript(Request):
    """A key of a Kubernetes ConfigMap; seen where an execution was created with kubectl."""

    name: str
    key: str
    script_type: Literal["configmap"]


Script = Annotated[FileSystemScript | GitRepositoryScript | InlineSourceScript, Field(discriminator="script_type")]


_SCRIPT: TypeAdapter[FileSystemScript | GitRepositoryScript | InlineSourceScript] = TypeAdapter(Script)

Reason = Annotated[
    Annotated[str, Clean, Field(max_length=MAX_REASON_CHARS, json_schema_extra={"pattern": "^[^\\u0000]*$"})] | None,
    Field(description="Why this is asked for, in the caller's words; kept in the timeline."),
]


class CreateProcedure(Request):
    """Body of POST /procedures/."""

    script: Script
    script_args: ScriptArgs | None = Field(None, description="Arguments of init, and of main if already known.")
    mode: Mode = Field(
        Mode.OPERATION,
        description="Rehearsal: against a simulated telescope, out of reach of the real one, without holding the subarray.",
    )
    ready_timeout_seconds: StrictInt | None = Field(
        None,
        ge=1,
        le=MAX_LIMIT_SECONDS,
        description="FAIL the procedure when it is not READY this long after its creation; absent: never.",
    )
    reason: Reason = None


class UpdateProcedure(Request):
    """Body of PUT /procedures/{id}: RUNNING starts, STOPPED stops."""

    script_args: ScriptArgs | None = Field(None, description="Arguments of main.")
    state: State | None = Field(None, description="RUNNING or STOPPED; absent: change nothing.")
    abort: StrictBool = Field(False, description="With STOPPED: run the abort script on the subarray afterwards.")
    reason: Reason = None


class ReleaseProcedure(Request):
    """Body of POST /procedures/{id}/release."""

    reason: Annotated[
        str,
        Clean,
        AfterValidator(_check_said),
        Field(
            max_length=MAX_REASON_CHARS,
            json_schema_extra={"minLength": 1, "pattern": "^[^\\u0000]*[^\\u0000\\s][^\\u0000]*$"},
        ),
    ] = Field(
        description="Why it is certain that the script does not run, in the caller's words; kept with the procedure."
    )


class History(BaseModel):
    """What a procedure went through."""

    process_states: list[tuple[State, float]] = Field(description="States and seconds since the epoch, oldest first.")
    stacktrace: str | None = Field(description="Tail of the stack trace of a failed script.")


class Procedure(BaseModel):
    """One procedure: a script, its arguments, and what became of it."""

    id: int
    script: Annotated[
        FileSystemScript | GitRepositoryScript | InlineSourceScript | ConfigMapKeyScript,
        Field(discriminator="script_type"),
    ]
    script_args: dict[str, FunctionArgs] = Field(description="Of init, and of main as soon as known.")
    history: History
    state: State
    uri: str
    mode: Mode | None = Field(None, description="Rehearsal. Absent: on the telescope.")
    purpose: Purpose | None = Field(None, description="Abort: it runs the abort script. Absent: a user's script.")
    subarray: int | None = Field(None, description="The subarray held. Absent: none.")
    aborted_by: int | None = Field(
        None, description="Id of the procedure that aborts after this one's stop. Absent: none."
    )
    alarm: str | None = Field(None, description="What somebody must look at. Absent: nothing.")
    reason: str | None = Field(None, description="Why it is in this state, as one word. Absent: nothing to say.")
    message: str | None = Field(None, description="The reason in words.")
    commit: str | None = Field(None, description="The commit that the script was fetched from. Absent: none.")


class AbortMessage(BaseModel):
    """Answer to a stop that succeeded: no process of the script is left."""

    abort_message: str


class TimelineItem(BaseModel):
    """One entry of a timeline."""

    id: int = Field(description="Position in the whole timeline; the id of stream events.")
    seq: int | None = Field(description="The runner's number of it; null: not from the runner.")
    time: float = Field(description="Seconds since the epoch.")
    kind: str
    topic: str
    payload: dict[str, Any]


def build_spec(request: CreateProcedure, git: GitSettings) -> ScriptExecutionSpec:
    """Return the spec that a request asks for: prepared and held; a start finds a busy subarray refused, not waited for.

    Args:
        request: What is asked for.
        git: Says what a script from git comes from when the request does not.
    """
    args = request.script_args or ScriptArgs()
    return ScriptExecutionSpec(
        script=_build_source(request.script, git),
        args=ExecutionArgs(init=build_spec_args(args.init), main=build_spec_args(args.main)),
        mode=request.mode,
        ready_timeout_seconds=request.ready_timeout_seconds,
        desired_state=DesiredState.READY,
        when_busy=WhenBusy.REJECT,
    )


def build_spec_args(args: FunctionArgs | None) -> SpecArgs | None:
    """Return arguments as the spec holds them; None for none."""
    return None if args is None else SpecArgs(args=args.args, kwargs=args.kwargs)


def parse_script(script: Mapping[str, Any], git: GitSettings) -> ScriptSource:
    """Return where a script is, out of the form that requests have. Raises pydantic.ValidationError."""
    return _build_source(_SCRIPT.validate_python(script), git)


def _build_source(
    script: FileSystemScript | GitRepositoryScript | InlineSourceScript, settings: GitSettings
) -> ScriptSource:
    if isinstance(script, FileSystemScript):
        return ScriptSource(file=FileScript(path=script.script_uri.removeprefix(_FILE_PREFIX)))
    if isinstance(script, InlineSourceScript):
        return ScriptSource(inline=InlineScript(source=script.source))
    git = script.git_args or GitArgs()
    is_named = "git_branch" in git.model_fields_set or git.git_commit is not None
    return ScriptSource(
        git=GitScript(
            repository=git.git_repo or settings.repository,
            path=script.script_uri.removeprefix(_GIT_PREFIX),
            branch=git.git_branch if is_named else settings.branch,
            commit=git.git_commit,
            create_env=script.create_env,
        )
    )


def build_procedure(execution: ScriptExecution, base: str) -> dict[str, Any]:
    """Return an execution as clients see it; keys in upstream's order.

    Args:
        execution: What is shown.
        base: Base path of the API, which goes into `uri` behind upstream's literal host.
    """
    status = execution.status
    procedure: dict[str, Any] = {
        "id": status.procedure_id,
        "script": render_script(execution.spec.script),
        "script_args": render_script_args(execution),
        "history": {
            "process_states": [[str(entry.state), entry.time.timestamp()] for entry in status.history],
            "stacktrace": status.stacktrace,
        },
        "state": str(status.state),
        "uri": f"http://localhost{base}/procedures/{status.procedure_id}",
    }
    if execution.spec.mode is Mode.REHEARSAL:
        procedure["mode"] = str(execution.spec.mode)
    elif status.grant is not None and status.grant.subarray is not None:
        procedure["subarray"] = status.grant.subarray
    elif execution.spec.subarray is not None:
        procedure["subarray"] = execution.spec.subarray
    procedure.update(_render_abort(execution))
    if status.reason is not None:
        procedure["reason"] = str(status.reason)
    if status.message is not None:
        procedure["message"] = mask_secrets(status.message)
    if status.resolved is not None and status.resolved.commit is not None:
        procedure["commit"] = status.resolved.commit
    return procedure


def render_script_args(execution: ScriptExecution) -> dict[str, Any]:
    """Return the arguments of an execution's functions as clients see them; of main once they are known."""
    args = execution.spec.args
    script_args = {"init": _render_args(args.init)}
    if args.main is not None or execution.spec.desired_state is DesiredState.RUNNING:
        script_args["main"] = _render_args(args.main)
    return script_args


def _render_abort(execution: ScriptExecution) -> dict[str, Any]:
    """Return what an execution has to do with aborts."""
    shown: dict[str, Any] = {}
    if execution.spec.purpose is Purpose.ABORT:
        shown["purpose"] = str(execution.spec.purpose)
    if execution.status.abort is not None:
        shown["aborted_by"] = execution.status.abort.procedure_id
    if alarm := find_alarm(execution):
        shown["alarm"] = alarm.message
    return shown


def _render_args(args: SpecArgs | None) -> dict[str, Any]:
    return {"args": args.args, "kwargs": args.kwargs} if args else {"args": [], "kwargs": {}}


def render_script(source: ScriptSource) -> dict[str, Any]:
    """Return where a script is, as clients see it."""
    if source.file:
        return {"script_uri": _FILE_PREFIX + source.file.path, "script_type": "filesystem"}
    if source.git:
        git = source.git
        return {
            "script_uri": _GIT_PREFIX + git.path,
            "git_args": {"git_repo": mask_secrets(git.repository), "git_branch": git.branch, "git_commit": git.commit},
            "create_env": git.create_env,
            "script_type": "git",
        }
    if source.config_map:
        return {"name": source.config_map.name, "key": source.config_map.key, "script_type": "configmap"}
    assert source.inline is not None
    return {"source": source.inline.source, "script_type": "inline"}


def mask_payload(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what an entry of a timeline says, as people may see it: an older release has taken passwords in URLs."""
    for name in ("cmd", "result"):
        holder = payload.get(name)
        script = holder.get("script") if isinstance(holder, Mapping) else None
        git = script.get("git_args") if isinstance(script, Mapping) else None
        repository = git.get("git_repo") if isinstance(git, Mapping) else None
        if isinstance(repository, str) and find_secret(repository):
            masked = {**script, "git_args": {**git, "git_repo": mask_secrets(repository)}}  # type: ignore[dict-item]
            payload = {**payload, name: {**holder, "script": masked}}  # type: ignore[dict-item]
    return payload


def dump_json(value: Any, *, compact: bool = True) -> bytes:
    """Return a value as JSON that every client can read, whatever a script put into it.

    Only ASCII, so that half a surrogate pair stays readable; NaN and infinite numbers become null.

    Args:
        value: Something JSON-able.
        compact: False for upstream's form on the event stream, with a space after commas and colons.
    """
    separators = (",", ":") if compact else None
    try:
        return json.dumps(value, separators=separators, allow_nan=False).encode("ascii")
    except ValueError:
        return json.dumps(_without_nan(value), separators=separators).encode("ascii")


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value
