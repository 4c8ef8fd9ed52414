"""The ScriptExecution resource as pydantic models: camelCase on the wire, snake_case in Python.

The models are frozen: a change is a new value (`model_copy(update=...)`). The CRD YAML is generated from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from oet_crds.git import PASSWORD_IN_URL
from oet_crds.names import GROUP, KIND, VERSION
from oet_crds.reasons import Outcome, Reason
from oet_crds.states import FINAL_STATES, DesiredState, Mode, Purpose, State, is_final
from oet_crds.subarrays import MAX_SUBARRAY

__all__ = [
    "DEFAULT_GRACE_PERIOD_SECONDS",
    "HISTORY_LIMIT",
    "MAX_LIMIT_SECONDS",
    "AbortStatus",
    "Activity",
    "Condition",
    "ConfigMapScript",
    "ExecutionArgs",
    "FileScript",
    "FunctionArgs",
    "GitScript",
    "Grant",
    "HistoryEntry",
    "InlineScript",
    "Metadata",
    "Refusal",
    "Resolved",
    "RunnerExit",
    "RunnerStatus",
    "ScriptExecution",
    "ScriptExecutionSpec",
    "ScriptExecutionStatus",
    "ScriptSource",
    "StopOptions",
    "WhenBusy",
    "kubernetes_extension",
    "parse_execution",
]

DEFAULT_GRACE_PERIOD_SECONDS = 10
"""Between the polite and the certain end of a script: long enough for one Tango command with its 3 s time-out and a
second try, short enough for an operator who waits."""

MAX_LIMIT_SECONDS = 100 * 365 * 24 * 3600
"""Longest limit in time: more than any script lives, and little enough for a date that lies so far ahead."""

HISTORY_LIMIT = 64
"""Entries that `status.history` keeps. The longest usual path has 11; the rest is room for repeats."""

MAX_SB_JSON_CHARS = 512 * 1024
"""A scheduling block travels in the object as well: with the largest arguments (256 KiB) and a stack trace it stays under
etcd's 1.5 MiB. Usual ones have some 20 KiB."""

MAX_INLINE_SOURCE_CHARS = 256 * 1024
"""An inline script must fit a Kubernetes object (etcd refuses over 1.5 MiB) with room for arguments and status."""


def kubernetes_extension(**extensions: Any) -> dict[str, Any]:
    """Build the `x-kubernetes-*` keys of a schema from Python names, for `json_schema_extra`."""
    return {"x-kubernetes-" + name.replace("_", "-"): value for name, value in extensions.items()}


def _rule(rule: str, message: str) -> dict[str, str]:
    return {"rule": rule, "message": message}


_RUN_AGAIN = "for another run create another ScriptExecution (a new name, or generateName with `kubectl create`)"
"""What to do instead of a change that is refused."""


def _fixed(field: str, words: str = "") -> str:
    """Build the message of a rule by which a field never changes."""
    return f"{field} is immutable{words}; {_RUN_AGAIN}"


def _desires(who: str, state: DesiredState) -> str:
    """Build the condition that a spec desires a state; absent means Running, but nothing is filled in (`desired_state`)."""
    given = f"{who}.desiredState == '{state}'"
    return (
        f"(!has({who}.desiredState) || {given})"
        if state is DesiredState.RUNNING
        else f"(has({who}.desiredState) && {given})"
    )


def _kept(field: str, meaning: str) -> dict[str, str]:
    """Build the rule that a line is not taken away: absent would mean something else than what was asked."""
    return _rule(
        f"!has(oldSelf.{field}) || has(self.{field})",
        f"{field} cannot be taken away, for that would mean {meaning}: say which value is wanted",
    )


def _unchanged(field: str) -> str:
    """Build the condition that an optional field of a spec is not changed, and neither added nor removed.

    A rule at the field itself would not be asked when the field appears or goes. (`.?` would be shorter, but the API server
    cannot bound the cost of comparing optional objects and refuses it.)
    """
    return f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"


class Model(BaseModel):
    """Base of all parts of the resource: frozen, camelCase aliases, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, use_enum_values=False
    )

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form: camelCase, no absent fields, RFC 3339 times."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


ANY_JSON: dict[str, Any] = {**kubernetes_extension(preserve_unknown_fields=True), "nullable": True}
"""Schema of a value that is kept as it comes. Nullable, or a rule that compares it would fail on a null."""

Keywords = Annotated[dict[str, Any], Field(json_schema_extra={"additionalProperties": ANY_JSON})]
"""An object of any JSON whose keys and values rules can compare."""


PodTemplate = Annotated[
    dict[str, Any],
    Field(
        json_schema_extra={
            "properties": {
                "metadata": {**ANY_JSON, "description": "Labels and annotations."},
                "spec": {**ANY_JSON, "description": "As of a Pod; containers are merged by their name."},
            },
            **kubernetes_extension(preserve_unknown_fields=True),
        }
    ),
]
"""A part of a Pod. Two parts are named, or rules could not compare them: objects of unknown fields they take for equal when a
field was renamed. Other fields are kept, so that they are refused (by the chart's policy, by the operator) and not dropped."""


class FileScript(Model):
    """A file in the image or on a mounted volume."""

    path: str = Field(min_length=1, max_length=4096, description="Path of the script as the runner sees it.")


class GitScript(Model):
    """A file in a git repository."""

    model_config = ConfigDict(
        json_schema_extra=kubernetes_extension(
            # Of the object, not of the URL: the API server repeats a text that breaks a rule, in refusals and in warnings.
            # Where the URL is stored from earlier, it warns and takes all other changes, a stop among them.
            validations=[
                _rule(
                    f"!self.repository.matches(r'{PASSWORD_IN_URL}') && !self.repository.matches('://.*[?]')",
                    "a repository's URL may have neither password nor query, which everybody would see: give OET credentials by "
                    "a Secret (the chart's git.secret)",
                )
            ]
        )
    )

    repository: str = Field(
        min_length=1, max_length=2048, description="URL of the repository, without password and query."
    )
    path: str = Field(min_length=1, max_length=4096, description="Path of the script in the repository.")
    branch: str | None = Field(None, max_length=255, description="Branch; absent: the default branch.")
    commit: str | None = Field(None, max_length=64, description="Commit; wins over the branch.")
    create_env: bool = Field(False, description="Build the project's own Python environment first.")


class InlineScript(Model):
    """The script's text itself."""

    source: str = Field(min_length=1, max_length=MAX_INLINE_SOURCE_CHARS, description="Python source of the script.")


class ConfigMapScript(Model):
    """A key of a ConfigMap in the execution's namespace."""

    name: str = Field(min_length=1, max_length=253, description="Name of the ConfigMap.")
    key: str = Field(min_length=1, max_length=253, description="Key that holds the script.")


class ScriptSource(Model):
    """Where the script is: exactly one of the four."""

    model_config = ConfigDict(
        json_schema_extra=kubernetes_extension(
            validations=[
                _rule(
                    "[has(self.file), has(self.git), has(self.inline), has(self.configMap)].exists_one(given, given)",
                    "exactly one of file, git, inline and configMap must be given",
                )
            ]
        )
    )

    file: FileScript | None = Field(None, description="A file in the image or on a mounted volume.")
    git: GitScript | None = Field(None, description="A file in a git repository.")
    inline: InlineScript | None = Field(None, description="The script's text itself.")
    config_map: ConfigMapScript | None = Field(None, description="A key of a ConfigMap.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [source for source in (self.file, self.git, self.inline, self.config_map) if source]
        if len(given) != 1:
            raise ValueError("exactly one of file, git, inline and configMap must be given")
        return self


class FunctionArgs(Model):
    """Arguments of one call, passed exactly as JSON gives them."""

    args: list[Any] = Field(
        default_factory=list,
        description="Positional arguments.",
        json_schema_extra={"items": ANY_JSON},
    )
    kwargs: Keywords = Field(default_factory=dict, description="Keyword arguments.")


class ExecutionArgs(Model):
    """Arguments of the script's two functions."""

    init: FunctionArgs | None = Field(None, description="Arguments of init; absent: none.")
    main: FunctionArgs | None = Field(None, description="Arguments of main; absent: none.")


class WhenBusy(StrEnum):
    """What happens to a start when the subarray is held by another execution."""

    WAIT = "Wait"
    REJECT = "Reject"


class StopOptions(Model):
    """How a stop is done."""

    grace_period_seconds: float = Field(
        DEFAULT_GRACE_PERIOD_SECONDS,
        ge=0,
        le=3600,
        description="Seconds between the polite stop (SIGTERM) and the certain one (SIGKILL).",
    )
    abort: bool = Field(False, description="Run the abort script on the subarray after the stop.")


class Activity(Model):
    """The activity of a scheduling block that an execution carries out."""

    name: str = Field(min_length=1, max_length=253, description="Name of the activity in its definition.")
    sbd_id: str = Field(min_length=1, max_length=253, description="Id of the scheduling block definition.")
    sbd_version: int = Field(ge=0, description="Version of the definition.")
    sbi_id: str = Field(min_length=1, max_length=253, description="Id of the scheduling block instance.")
    prepare_only: bool = Field(False, description="It was asked to be prepared, not to be started.")
    sb_path: str = Field(
        min_length=1,
        max_length=253,
        pattern="^/.+$",
        description="File that the runner makes of sbJson before the script is loaded.",
    )
    sb_json: str = Field(max_length=MAX_SB_JSON_CHARS, description="The definition as JSON, for the script to read.")


class ScriptExecutionSpec(Model):
    """What the user wants."""

    model_config = ConfigDict(
        json_schema_extra=kubernetes_extension(
            validations=[
                _rule("self.script == oldSelf.script", _fixed("script")),
                _rule(_unchanged("mode"), _fixed("mode", ": an execution is a rehearsal from the beginning, or never")),
                _rule(_unchanged("purpose"), _fixed("purpose")),
                _rule(_unchanged("subarray"), _fixed("subarray", ": neither changed nor added nor removed")),
                _rule(
                    "has(self.activity) == has(oldSelf.activity) && (!has(self.activity) || "
                    "(self.activity.name == oldSelf.activity.name && self.activity.sbdId == oldSelf.activity.sbdId "
                    "&& self.activity.sbiId == oldSelf.activity.sbiId))",
                    _fixed("activity", ": an execution belongs to one scheduling block instance, or to none"),
                ),
                _rule(_unchanged("args.init"), _fixed("args.init", ": neither changed nor added nor removed")),
                _rule(
                    f"{_desires('oldSelf', DesiredState.READY)} || ({_unchanged('args.main')})",
                    _fixed("args.main", " once Running was asked"),
                ),
                _kept("desiredState", "Running"),
                _kept("whenBusy", "Wait"),
                _rule(
                    f"!{_desires('oldSelf', DesiredState.STOPPED)} || {_desires('self', DesiredState.STOPPED)}",
                    f"desiredState Stopped is final; {_RUN_AGAIN}",
                ),
                _rule(
                    f"!({_desires('oldSelf', DesiredState.STOPPED)} && oldSelf.stop.abort) || self.stop.abort",
                    "an abort that was asked for with the stop cannot be taken back",
                ),
                _rule(
                    "!has(oldSelf.abortOf) || (has(self.abortOf) && self.abortOf == oldSelf.abortOf)",
                    "abortOf is immutable once it is set",
                ),
                _rule(
                    f"!has(self.purpose) || self.purpose != '{Purpose.ABORT}' "
                    f"|| !{_desires('self', DesiredState.RUNNING)} || has(self.abortOf)",
                    "an abort script is started by a stop with abort, never by hand",
                ),
                _rule(
                    f"has(self.purpose) && self.purpose == '{Purpose.ABORT}' || !has(self.abortOf)",
                    "abortOf is for abort scripts alone",
                ),
            ]
        )
    )

    @model_validator(mode="after")
    def _abort_of_somebody(self) -> Self:
        if self.purpose is Purpose.ABORT and self.desired_state is DesiredState.RUNNING and self.abort_of is None:
            raise ValueError("an abort script is started by a stop with abort, never by hand")
        if self.purpose is not Purpose.ABORT and self.abort_of is not None:
            raise ValueError("abortOf is for abort scripts alone")
        return self

    script: ScriptSource = Field(description="Where the script is.")
    args: ExecutionArgs = Field(
        default_factory=ExecutionArgs,
        description="Arguments of the script's functions.",
        json_schema_extra={"default": {}},
    )
    mode: Mode = Field(
        Mode.OPERATION,
        description="Operation: on the telescope; Rehearsal: on a simulated one, out of reach of the real one.",
    )
    purpose: Purpose = Field(
        Purpose.SCRIPT, description="Script: a user's; Abort: an abort script, which OET makes and starts by itself."
    )
    abort_of: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="Of an abort script: uid of the stopped execution that it aborts for; absent: it is held for one.",
    )
    subarray: int | None = Field(
        None,
        ge=0,
        le=MAX_SUBARRAY,
        description="Subarray to lock while running; absent: subarray_id of init's, then of main's kwargs.",
    )
    activity: Activity | None = Field(
        None, description="The activity that is carried out; absent: the script is run for itself."
    )
    # No defaults in the schema for the next two: the API server would fill them in whenever a line is taken away as well.
    desired_state: DesiredState = Field(
        DesiredState.RUNNING,
        description="Ready: prepare and hold; Running, also when it is absent from the beginning: run; Stopped: stop, for good.",
        json_schema_extra={"default": None},
    )
    when_busy: WhenBusy = Field(
        WhenBusy.WAIT,
        description="Wait for a held subarray, also when it is absent from the beginning, or reject the start.",
        json_schema_extra={"default": None},
    )
    stop: StopOptions = Field(
        default_factory=StopOptions, description="How a stop is done.", json_schema_extra={"default": {}}
    )
    active_deadline_seconds: int | None = Field(
        None,
        ge=1,
        le=MAX_LIMIT_SECONDS,
        description="Stop and fail the execution this long after its creation; absent: never.",
    )
    ready_timeout_seconds: int | None = Field(
        None,
        ge=1,
        le=MAX_LIMIT_SECONDS,
        description="Fail the execution when it is not READY after this long; absent: never.",
    )
    ttl_seconds_after_finished: int | None = Field(
        None,
        ge=0,
        le=MAX_LIMIT_SECONDS,
        description="Remove the finished execution after this long; absent: keep it.",
    )
    image: str | None = Field(
        None, min_length=1, max_length=1024, description="Python image to run in; absent: OET's own."
    )
    pod_template: PodTemplate | None = Field(
        None, description="Overlay on the Pod: resources, volumes, node selector, tolerations, environment."
    )


class HistoryEntry(Model):
    """A state and when it was reached."""

    seq: int = Field(ge=1, description="1, 2, 3... without gaps.")
    state: State = Field(description="The state.")
    time: datetime = Field(description="When it was reached.")


class Grant(Model):
    """Permission to start `main`, given once, by the operator alone. Holding it is holding the subarray."""

    time: datetime = Field(description="When it was given.")
    subarray: int | None = Field(None, description="The subarray held; absent: the execution needs none.")
    standing: bool | None = Field(
        None,
        description="Of an abort script that is held: main may begin when desiredState becomes Running, and nothing is held "
        "before; absent: main may begin.",
    )
    abort_of: str | None = Field(
        None,
        max_length=64,
        description="Of an abort script that was held: uid of the stopped execution that it was given the subarray for.",
    )


class Refusal(Model):
    """A start that was refused because the subarray was busy (`whenBusy: Reject`)."""

    generation: int = Field(description="The metadata.generation that asked for the start.")
    holder: int = Field(description="Procedure id of the execution that held the subarray.")
    message: str = Field(description="The refusal in words.")
    time: datetime = Field(description="When the start was refused.")


class AbortStatus(Model):
    """The abort that was asked for with a stop."""

    procedure_id: int = Field(ge=1, description="Procedure id of the execution that runs the abort script.")


class Condition(Model):
    """A Kubernetes condition."""

    type: str = Field(description="What it tells, in one word.")
    status: str = Field(description="True, False or Unknown.")
    reason: str = Field(description="Why, in one word for programs.")
    message: str = Field("", description="Why, in words for people.")
    last_transition_time: datetime = Field(description="When the status last changed.")
    observed_generation: int | None = Field(None, description="The metadata.generation that it speaks of.")


class Resolved(Model):
    """What references became when they were looked up."""

    commit: str | None = Field(None, description="The commit that the branch named.")
    image: str | None = Field(None, description="The image that ran the script, by its digest, as its node names it.")


class RunnerExit(Model):
    """How the script ended, as its runner saw it; written only when no process of the script was left.

    Whoever takes the runner's identity can write it too: it counts once the runner itself is gone, or if nobody could.
    """

    outcome: Outcome = Field(description="How it ended.")
    reason: Reason = Field(description="Why, in one word for programs.")
    message: str = Field(description="Why, in words for people.")
    time: datetime = Field(description="When the last process was gone.")
    stacktrace: str | None = Field(None, description="Tail of the script's stack trace; absent: it raised nothing.")
    exit_code: int | None = Field(None, description="Exit code of the script's process; absent: a signal ended it.")
    signal: int | None = Field(
        None, description="Number of the signal that ended the script's process; absent: none did."
    )
    log_entries: int | None = Field(
        None, description="Printed lines and messages that went to the container's log; absent: not counted."
    )


class RunnerStatus(Model):
    """What the runner saw. Written by the runner alone."""

    model_config = ConfigDict(
        json_schema_extra=kubernetes_extension(
            validations=[
                _rule(
                    f"!has(oldSelf.claim) || {_unchanged('confined')}",
                    "confined is told with the claim, and that is never changed, neither added nor removed",
                ),
            ]
        )
    )

    claim: str | None = Field(
        None,
        max_length=64,
        description="Random name of the one runner that serves the execution; present before any line of the script runs.",
    )
    confined: bool | None = Field(
        None,
        description="True: the script cannot take its runner's identity (Landlock); told with the claim, before any line of the "
        "script ran; absent: it could.",
    )
    transitions: list[HistoryEntry] = Field(
        default_factory=list,
        description="States that it reached, oldest first.",
        # Of what is written, not of what is read: who has a Pod's token must not fill the object with states.
        json_schema_extra={"maxItems": HISTORY_LIMIT},
    )
    exit: RunnerExit | None = Field(None, description="How the script ended; absent: it has not, or it is not known.")
    resolved_commit: str | None = Field(None, description="The commit that was fetched; absent: not from git.")


class ScriptExecutionStatus(Model):
    """What is. Each field has one writer: `runner` the runner, all others the operator."""

    state: State = Field(State.CREATING, description="What the execution is doing.")
    procedure_id: int | None = Field(None, ge=1, description="The small number that users know it by.")
    script: str | None = Field(None, description="Where the script is, in one line.")
    subarray: int | None = Field(None, description="The subarray that the start locks; absent: none so far.")
    history: list[HistoryEntry] = Field(default_factory=list, description="States reached, oldest first.")
    pod_name: str | None = Field(None, description="The Pod (or local runner) that runs it.")
    grant: Grant | None = Field(None, description="Permission to start main.")
    refusal: Refusal | None = Field(None, description="The last refused start.")
    reason: Reason | None = Field(None, description="Why it is in this state.")
    message: str | None = Field(None, description="The reason in words.")
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Kubernetes conditions, one of each type.",
        json_schema_extra=kubernetes_extension(list_type="map", list_map_keys=["type"]),
    )
    observed_generation: int | None = Field(None, description="The generation this status speaks of.")
    resolved: Resolved | None = Field(None, description="What the script's references became.")
    stacktrace: str | None = Field(None, description="Tail of the script's stack trace.")
    abort: AbortStatus | None = Field(None, description="The abort that followed the stop.")
    runner: RunnerStatus | None = Field(None, description="What the runner saw.")


class Metadata(Model):
    """The part of Kubernetes' object metadata that OET uses."""

    model_config = ConfigDict(extra="ignore")

    name: str = Field(description="Name, unique in the namespace.")
    namespace: str = Field("default", description="Namespace that the execution is in.")
    uid: str = Field(description="Identity, unique for ever.")
    generation: int = Field(1, description="Counts the changes of spec.")
    resource_version: str = Field("1", description="Names this version, for a change that must not overwrite another.")
    creation_timestamp: datetime = Field(description="When it was created.")
    deletion_timestamp: datetime | None = Field(None, description="When its removal was asked for; absent: it was not.")
    labels: Mapping[str, str] = Field(default_factory=dict, description="What it can be selected by.")
    annotations: Mapping[str, str] = Field(default_factory=dict, description="Notes of other tools.")


class ScriptExecution(Model):
    """One request to run a script, and what became of it."""

    model_config = ConfigDict(
        json_schema_extra=kubernetes_extension(
            validations=[
                _rule(
                    f"!{_desires('self.spec', DesiredState.READY)} || {_desires('oldSelf.spec', DesiredState.READY)} "
                    "|| !oldSelf.?status.?grant.hasValue()",
                    "main has begun: desiredState cannot go back to Ready, only to Stopped",
                ),
                _rule(
                    f"!oldSelf.?status.?podName.hasValue() || ({_unchanged('spec.image')})",
                    _fixed("image", " once its Pod was made"),
                ),
                _rule(
                    f"!oldSelf.?status.?podName.hasValue() || ({_unchanged('spec.podTemplate')})",
                    _fixed("podTemplate", " once its Pod was made"),
                ),
                _rule(
                    f"!(oldSelf.?status.?state.orValue('') in {[str(state) for state in sorted(FINAL_STATES)]}) "
                    f"|| {_desires('self.spec', DesiredState.STOPPED)} "
                    f"|| {_desires('self.spec', DesiredState.READY)} == {_desires('oldSelf.spec', DesiredState.READY)}",
                    f"it has ended, so that nothing can be started any more; {_RUN_AGAIN}",
                ),
            ]
        )
    )

    api_version: str = Field(f"{GROUP}/{VERSION}", description="Group and version of the resource.")
    kind: str = Field(KIND, description="Kind of the resource.")
    metadata: Metadata = Field(description="Standard object metadata.")
    spec: ScriptExecutionSpec = Field(description="What the user wants.")
    status: ScriptExecutionStatus = Field(
        default_factory=ScriptExecutionStatus, description="What is. Nothing that a user writes here is kept."
    )

    @property
    def uid(self) -> str:
        """Identity of this execution, unique for ever."""
        return self.metadata.uid

    @property
    def procedure_id(self) -> int | None:
        """The number users know it by; None until the operator gave it one."""
        return self.status.procedure_id

    @property
    def is_finished(self) -> bool:
        """Tell whether the state is final."""
        return is_final(self.status.state)


def parse_execution(wire: Mapping[str, Any]) -> ScriptExecution:
    """Read an execution as the API server gives it; fields that a newer release has added are left out.

    While a release is replaced, its parts are not all of one age. Raises pydantic.ValidationError.
    """
    return ScriptExecution.model_validate(wire, extra="ignore")
