"""Activities: a script, and its arguments, that a scheduling block definition names. Carried out as procedures.

An activity is its execution, seen as one: it has the number of its procedure, and is stored nowhere else.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from oet_api.activity_wire import CreateActivity
from oet_api.errors import BadRequestError
from oet_api.limits import InvalidJsonError, parse_json
from oet_api.oda.port import Oda, Sbd
from oet_api.origin import Origin
from oet_api.procedures import REQUEST_SOURCE, RESULT_SOURCE, Rendering
from oet_api.wire import ScriptArgs, build_spec_args, parse_script, render_script
from oet_crds.activities import ACTIVITY_SOURCE
from oet_crds.errors import NotFoundError, RequestRefusedError
from oet_crds.execution import (
    MAX_SB_JSON_CHARS,
    Activity,
    ExecutionArgs,
    ScriptExecution,
    ScriptExecutionSpec,
    WhenBusy,
)
from oet_crds.git import find_problem
from oet_crds.names import SB_FOLDER
from oet_crds.ports import ExecutionStore
from oet_crds.settings import GitSettings
from oet_crds.states import DesiredState
from oet_crds.topics import Topic

__all__ = ["Activities", "build_activity_spec", "build_sbi", "build_sbi_id", "find_activity", "merge_args"]

SBI_INTERFACE = "https://schema.skao.int/ska-oso-pdm-sbi/0.1"

ID_CHARS = "abcdefghijklmnopqrstuvwxyz234567"
"""Base 32 in lower case, RFC 4648."""

ID_LENGTH = 10
"""50 random bits: of a million instances of one day two are the same with a chance of 1 to 2,000."""

NO_USER = "oet"
"""Who made an instance when nobody knows who asked."""


class SbdActivity(BaseModel):
    """What a definition says of one activity. What else is there is for others."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    kind: str
    path: str
    repo: str | None = None
    branch: str | None = None
    commit: str | None = None
    function_args: dict[str, dict[str, Any] | None] = Field(default_factory=dict)


# ---- pure ------------------------------------------------------------------------------------------------------------


def build_sbi_id(now: datetime) -> str:
    """Return a new id of an instance: unique without asking anybody. In the form of SKUID's: kind, generator, day, number."""
    return f"sbi-oet-{now:%Y%m%d}-" + "".join(secrets.choice(ID_CHARS) for _ in range(ID_LENGTH))


def find_activity(sbd: Sbd, name: str) -> SbdActivity:
    """Return what a definition says of an activity. Pure.

    Raises:
        NotFoundError: It has no activity of this name.
        RequestRefusedError: What it says cannot be understood.
    """
    activities = sbd.document.get("activities")
    found = activities.get(name) if isinstance(activities, dict) else None
    if found is None:
        raise NotFoundError(f"Activity '{name}' not present in the SBDefinition {sbd.sbd_id}")
    try:
        return SbdActivity.model_validate(found)
    except ValidationError as error:
        raise _build_wrong(sbd, name, error) from error


def _build_wrong(sbd: Sbd, name: str, error: ValidationError) -> RequestRefusedError:
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    text = problem["msg"].removeprefix("Value error, ")
    where = f"{name}.{place}" if place else name
    return RequestRefusedError(f"SBDefinition {sbd.sbd_id}, activity {where}: {text}"[:1000])


def merge_args(defined: Mapping[str, Any], asked: ScriptArgs | None) -> dict[str, Any]:
    """Return the arguments of each function: as asked where the request says any, else as the definition has them. Pure.

    A function's arguments are replaced as a whole, not key by key.
    """
    merged = {name: call for name, call in defined.items() if call is not None}
    for name in ScriptArgs.model_fields:
        call = getattr(asked, name) if asked else None
        if call is not None:
            merged[name] = call.model_dump()
    return merged


@dataclass(frozen=True, slots=True)
class Block:
    """A definition, and the instance that is made of it.

    Attributes:
        sbd: The definition.
        text: Its JSON, as the script gets it.
        sbi_id: Id of the instance.
    """

    sbd: Sbd
    text: str
    sbi_id: str


def build_activity_spec(request: CreateActivity, block: Block, git: GitSettings) -> ScriptExecutionSpec:
    """Return what to run for an activity. Pure.

    Raises:
        NotFoundError: The definition has no activity of this name.
        RequestRefusedError: What the definition says, with what was asked, cannot be run; the text says why.
    """
    name, sbd = request.activity_name, block.sbd
    found = find_activity(sbd, name)
    try:
        args = ScriptArgs.model_validate(_check_json(merge_args(found.function_args, request.script_args)))
        script = parse_script(_build_script(found, create_env=request.create_env), git)
    except ValidationError as error:
        raise _build_wrong(sbd, name, error) from error
    except InvalidJsonError as error:
        raise RequestRefusedError(f"SBDefinition {sbd.sbd_id}, activity {name}: {error}") from error
    path = f"{SB_FOLDER}/{block.sbi_id}.json"
    init, main = build_spec_args(args.init), build_spec_args(args.main)
    given = main.model_dump() if main else {"args": [], "kwargs": {}}
    given["kwargs"] = {**given["kwargs"], "sb_json": path, "sbi_id": block.sbi_id}
    activity = Activity(
        name=name,
        sbd_id=sbd.sbd_id,
        sbd_version=sbd.version,
        sbi_id=block.sbi_id,
        prepare_only=request.prepare_only,
        sb_path=path,
        sb_json=block.text,
    )
    return ScriptExecutionSpec(
        script=script,
        args=ExecutionArgs.model_validate({"init": init, "main": given}),
        mode=request.mode,
        activity=activity,
        desired_state=DesiredState.READY if request.prepare_only else DesiredState.RUNNING,
        when_busy=WhenBusy.REJECT,
    )


def _check_json(value: Any) -> Any:
    """Return a value of the archive. Raises InvalidJsonError when it is nothing that a request could hold either."""
    return parse_json(json.dumps(value).encode())


def _build_script(found: SbdActivity, *, create_env: bool) -> dict[str, Any]:
    """Return an activity's script as a request for a procedure has it."""
    script: dict[str, Any] = {"script_type": found.kind, "script_uri": found.path}
    if found.kind == "git":
        git = {"git_repo": found.repo, "git_branch": found.branch, "git_commit": found.commit}
        script["git_args"] = {name: value for name, value in git.items() if value is not None}
        script["create_env"] = create_env
    elif create_env:
        raise RequestRefusedError("create_env is for activities whose script comes from git")
    return script


def build_sbi(request: CreateActivity, block: Block, now: datetime, user: str | None) -> dict[str, Any]:
    """Return the instance as the archive keeps it: with the arguments of the request alone, as upstream has it. Pure."""
    who, when = user or NO_USER, now.isoformat()
    asked = request.script_args.model_dump(exclude_none=True) if request.script_args else {}
    return {
        "interface": SBI_INTERFACE,
        "sbi_id": block.sbi_id,
        "metadata": {
            "version": 1,
            "created_by": who,
            "created_on": when,
            "last_modified_by": who,
            "last_modified_on": when,
        },
        "telescope": block.sbd.document.get("telescope"),
        "sbd_ref": block.sbd.sbd_id,
        "sbd_version": block.sbd.version,
        "activities": [
            {
                "activity_ref": request.activity_name,
                "executed_at": when,
                "runtime_args": [{"function_name": name, "function_args": call} for name, call in asked.items()],
            }
        ],
    }


def _dump_sbd(sbd: Sbd) -> str:
    """Return a definition's JSON. Raises RequestRefusedError when it is larger than an execution can carry."""
    text = json.dumps(sbd.document, separators=(",", ":"))
    if len(text) > MAX_SB_JSON_CHARS:
        raise RequestRefusedError(
            f"SBDefinition {sbd.sbd_id} has {len(text)} characters as JSON; a script can be handed {MAX_SB_JSON_CHARS}"
        )
    return text


# ---- shell -----------------------------------------------------------------------------------------------------------


class Activities:
    """Runs activities, and finds them again."""

    def __init__(
        self, store: ExecutionStore, oda: Oda, git: GitSettings, procedure: Rendering, activity: Rendering
    ) -> None:
        """Run them on an engine.

        Args:
            store: The engine.
            oda: The archive.
            git: What scripts from git may be.
            procedure: How an execution is shown as a procedure.
            activity: How it is shown as an activity.
        """
        self._store = store
        self._oda = oda
        self._git = git
        self._render_procedure = procedure
        self._render = activity

    def run(
        self, request: CreateActivity, origin: Origin, now: Callable[[], datetime] | None = None
    ) -> ScriptExecution:
        """Make an instance of a scheduling block, and the procedure that carries its activity out.

        Unless it is only to be prepared the procedure starts by itself when it is READY; a start that finds the subarray
        held is refused, which the activity then says.

        Raises:
            NotFoundError: No such definition, or no such activity in it.
            RequestRefusedError: What the definition says cannot be run.
            BadRequestError: The script may not come from where it is.
            UnavailableError: The archive or the engine does not answer. Without the engine the instance stays in the
                archive, without a procedure.
        """
        at = (now or _observe_now)()
        sbd = self._oda.get_sbd(request.sbd_id)
        block = Block(sbd, _dump_sbd(sbd), build_sbi_id(at))
        spec = build_activity_spec(request, block, self._git)
        if spec.script.git and (problem := find_problem(spec.script.git.repository, self._git.build_policy())):
            raise BadRequestError(403, problem)
        self._oda.add_sbi(build_sbi(request, block, at, origin.user))
        return self._store.create(spec, self._build_record(request, spec, origin))

    def _build_record(
        self, request: CreateActivity, spec: ScriptExecutionSpec, origin: Origin
    ) -> Callable[[ScriptExecution], Sequence[tuple[str, Mapping[str, Any]]]]:
        asked = request.model_dump(mode="json", include=set(_COMMAND))
        init = spec.args.init.to_wire() if spec.args.init else {"args": [], "kwargs": {}}
        command = {"script": render_script(spec.script), "init_args": init}
        number = time.time_ns()

        def build(source: str, **fields: Any) -> Mapping[str, Any]:
            return {"msg_src": source, "request_id": number, **fields}

        def record(execution: ScriptExecution) -> Sequence[tuple[str, Mapping[str, Any]]]:
            entries = [
                (Topic.REQUEST_ACTIVITY_RUN, build(REQUEST_SOURCE, cmd=asked, **origin.to_fields())),
                (Topic.REQUEST_CREATE, build(ACTIVITY_SOURCE, cmd=command)),
                (Topic.CREATED, build(RESULT_SOURCE, result=self._render_procedure(execution))),
            ]
            if not request.prepare_only:
                main = spec.args.main.to_wire() if spec.args.main else {}
                start = {
                    "process_uid": execution.procedure_id,
                    "fn_name": "main",
                    "run_args": main,
                    "force_start": True,
                }
                entries.append((Topic.REQUEST_START, build(ACTIVITY_SOURCE, cmd=start)))
            return [*entries, (Topic.ACTIVITY_RUNNING, build(ACTIVITY_SOURCE, result=self._render(execution)))]

        return record

    def get(self, activity_id: int) -> ScriptExecution:
        """Return the execution of an activity. Raises NotFoundError, also for a procedure that is no activity."""
        missing = NotFoundError(f"No information available for ID={activity_id}")
        try:
            execution = self._store.get(activity_id)
        except NotFoundError as error:
            raise missing from error
        if execution.spec.activity is None:
            raise missing
        return execution

    def list(self) -> Sequence[ScriptExecution]:
        """Return the executions of all activities, oldest first."""
        return [one for one in self._store.list() if one.spec.activity is not None]


_COMMAND = ("activity_name", "sbd_id", "prepare_only", "create_env", "script_args")
"""Upstream's fields of the command, in a request on the stream."""


def _observe_now() -> datetime:
    return datetime.now(UTC)
