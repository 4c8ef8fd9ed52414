"""/procedures/ and /procedures/{procedure_id}: create, look at, start and stop procedures."""

from __future__ import annotations

from collections.abc import Sequence

import falcon
from pydantic import BaseModel, ConfigDict, Field

from oet_api.decisions import compute_subarrays
from oet_api.errors import BadRequestError
from oet_api.openapi import JSON, Operation, endpoint
from oet_api.origin import Origin, observe_user
from oet_api.services import Services
from oet_api.wire import (
    AbortMessage,
    CreateProcedure,
    Procedure,
    ReleaseProcedure,
    ScriptArgs,
    TimelineItem,
    UpdateProcedure,
    build_spec,
    build_spec_args,
    dump_json,
    mask_payload,
    render_script,
)
from oet_crds.aborts import is_armed
from oet_crds.errors import InvalidTransitionError, UnavailableError
from oet_crds.execution import GitScript, ScriptExecution
from oet_crds.git import find_problem
from oet_crds.ports import Archive, Timeline, TimelineEntry
from oet_crds.settings import GitSettings
from oet_crds.states import State
from oet_crds.subarrays import MAX_SUBARRAY
from oet_crds.topics import EntryKind

__all__ = [
    "EventsResource",
    "ProcedureResource",
    "ProceduresResource",
    "ReleaseResource",
    "check_size",
    "select_archived",
    "select_executions",
]

_NOT_FROM_LOGS = frozenset({EntryKind.STATE, EntryKind.ACTION})

MAX_NUMBER = 2**63 - 1
"""Ids are 64 bit numbers."""

PAGE_BYTES = 8 * 1024 * 1024
"""Text of one page of events, at most, besides its last entry: a page of 1000 messages could have 128 MiB."""


ARCHIVE_LIMIT = 1000
"""Procedures that are listed without a limit, besides those that the engine has: an archive of years is for pages."""

ARCHIVE_PAGE = 200


class ListQuery(BaseModel):
    """Query of GET /procedures/."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int | None = Field(
        None, ge=1, le=1000, description="At most so many; absent: all that the engine has, and the newest 1000."
    )
    after: int = Field(0, ge=0, le=MAX_NUMBER, description="Only those with a greater id, for paging.")
    state: State | None = Field(None, description="Only those in this state.")
    subarray: int | None = Field(None, ge=0, le=MAX_SUBARRAY, description="Only those on this subarray.")
    armed: bool = Field(False, description="Also the abort scripts that are held READY, which no client can start.")


class EventsQuery(BaseModel):
    """Query of GET /procedures/{procedure_id}/events."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int = Field(100, ge=1, le=1000, description="At most so many.")
    after: int = Field(0, ge=0, le=MAX_NUMBER, description="Only those with a greater id, for paging.")
    kind: EntryKind | None = Field(None, description="Only those of this kind.")


def select_executions(executions: Sequence[ScriptExecution], query: ListQuery) -> Sequence[ScriptExecution]:
    """Return the executions that a query asks for, oldest first. Pure."""
    chosen = [
        execution
        for execution in executions
        if (execution.procedure_id or 0) > query.after
        and query.state in (None, execution.status.state)
        and (query.armed or not is_armed(execution))
        and (query.subarray is None or query.subarray in compute_subarrays(execution))
    ]
    return chosen[: query.limit]


def select_archived(live: Sequence[ScriptExecution], archive: Archive, query: ListQuery) -> Sequence[ScriptExecution]:
    """Return the executions that a query asks for, oldest first, those among them that the engine has removed.

    Raises:
        UnavailableError: These cannot be read now.
    """
    current = {execution.procedure_id or 0: execution for execution in live}
    if query.limit is None:
        stored = archive.read_archive(query.after, ARCHIVE_LIMIT, is_backwards=True)
        found = {**{execution.procedure_id or 0: execution for execution in stored}, **current}
        return select_executions([found[number] for number in sorted(found)], query)
    chosen: list[ScriptExecution] = []
    after = query.after
    while len(chosen) < query.limit:
        stored = archive.read_archive(after, ARCHIVE_PAGE)
        is_last = len(stored) < ARCHIVE_PAGE
        until = MAX_NUMBER if is_last else stored[-1].procedure_id or 0
        found = {execution.procedure_id or 0: execution for execution in stored}
        found.update((number, one) for number, one in current.items() if after < number <= until)
        chosen += select_executions([found[number] for number in sorted(found)], query)
        after = until
        if is_last:
            break
    return chosen[: query.limit]


class ProceduresResource:
    """All procedures."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @endpoint(Operation("list_procedures", Procedure, query=ListQuery, is_list=True))
    def on_get(self, req: falcon.Request, resp: falcon.Response, query: ListQuery) -> None:
        """List procedures, oldest first.

        With a timeline in a database also those that Kubernetes has removed: without a limit the newest of them, with limit
        and after all of them in pages. While the database does not answer they are missing, and a header Warning says so.
        """
        services = self._services
        live, archive = services.store.list(), services.archive
        try:
            chosen = select_executions(live, query) if archive is None else select_archived(live, archive, query)
        except UnavailableError:
            chosen = select_executions(live, query)
            resp.set_header("Warning", '199 oet "procedures that Kubernetes has removed cannot be read now"')
        _answer(resp, services.renderer.render_list(chosen))

    @endpoint(Operation("create_procedure", Procedure, status=201, body=CreateProcedure, errors=[403, 503]))
    def on_post(self, req: falcon.Request, resp: falcon.Response, body: CreateProcedure) -> None:
        """Create a procedure: fetch and load a script, and run its init.

        The answer comes at once, in state CREATING. It can be started when it is READY.
        """
        services = self._services
        check_size(body.script_args, services.settings.max_args_bytes)
        spec = build_spec(body, services.git)
        _check_git(spec.script.git, services.git)
        origin = Origin(observe_user(req, services.settings.user_header), body.reason)
        execution = services.procedures.create(spec, render_script(spec.script), origin)
        _answer(resp, services.renderer.render(execution))
        resp.status = falcon.HTTP_201
        resp.set_header("Location", f"{services.base}/procedures/{execution.procedure_id}")


class ProcedureResource:
    """One procedure."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @endpoint(Operation("get_procedure", Procedure))
    def on_get(self, req: falcon.Request, resp: falcon.Response, procedure_id: int) -> None:
        """Show a procedure."""
        services = self._services
        _answer(resp, services.renderer.render(services.store.get(procedure_id)))

    @endpoint(Operation("update_procedure", (Procedure, AbortMessage), body=UpdateProcedure, errors=[409, 503, 504]))
    def on_put(self, req: falcon.Request, resp: falcon.Response, procedure_id: int, body: UpdateProcedure) -> None:
        """Start (state RUNNING) or stop (state STOPPED) a procedure.

        A start answers with the procedure when the engine has granted it. A stop answers when no process of the script
        is left; with abort, when the abort script on the same subarray is COMPLETE as well.
        """
        services = self._services
        check_size(body.script_args, services.settings.max_args_bytes)
        origin = Origin(observe_user(req, services.settings.user_header), body.reason)
        if body.state is State.STOPPED:
            message = services.procedures.stop(procedure_id, abort=body.abort, origin=origin)
            _answer(resp, dump_json(AbortMessage(abort_message=message).model_dump()))
        elif body.state is State.RUNNING:
            main = build_spec_args(body.script_args.main if body.script_args else None)
            _answer(resp, services.renderer.render(services.procedures.start(procedure_id, main, origin)))
        else:
            execution = services.store.get(procedure_id)
            _check_unchanged(execution, body.state)
            _answer(resp, services.renderer.render(execution))


class ReleaseResource:
    """The release of one procedure's subarray."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @endpoint(Operation("release_procedure", Procedure, body=ReleaseProcedure, errors=[409, 503, 504]))
    def on_post(self, req: falcon.Request, resp: falcon.Response, procedure_id: int, body: ReleaseProcedure) -> None:
        """Release the subarray of a procedure that is UNKNOWN.

        It is held as long as the script may still run: only who is certain that it does not, releases it. The procedure stays
        UNKNOWN. To abort what it may be doing, stop it with abort.
        """
        services = self._services
        origin = Origin(observe_user(req, services.settings.user_header), body.reason)
        _answer(resp, services.renderer.render(services.procedures.release(procedure_id, origin)))


class EventsResource:
    """The timeline of one procedure."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @endpoint(Operation("list_events", TimelineItem, query=EventsQuery, is_list=True))
    def on_get(self, req: falcon.Request, resp: falcon.Response, procedure_id: int, query: EventsQuery) -> None:
        """List what happened to a procedure: states, messages, printed lines, requests.

        A page may be shorter than the limit; the last one is empty. A header Warning says so where more is to come of the past,
        because the log of the script's Pod is still being read.
        """
        self._services.store.get(procedure_id)
        entries, gap = _read_entries(self._services.timeline, procedure_id, query)
        if gap:
            resp.set_header("Warning", f'199 oet "{gap}"')
        _answer(resp, b"[" + b",".join(_render_page(entries)) + b"]")


def _read_entries(timeline: Timeline, procedure_id: int, query: EventsQuery) -> tuple[Sequence[TimelineEntry], str]:
    """Return a page, and why it does not have all of the past that it should; empty when it does."""
    kinds = None if query.kind is None else [query.kind]
    while True:
        # Asked before and after: only what was whole before is known to be read as a whole.
        gap = "" if query.kind in _NOT_FROM_LOGS else timeline.describe_gap(procedure_id)
        entries = timeline.read(query.after, limit=query.limit, procedure_id=procedure_id, kinds=kinds)
        if not gap or (gap := timeline.describe_gap(procedure_id)):
            return entries, gap


def _render_page(entries: Sequence[TimelineEntry]) -> list[bytes]:
    page: list[bytes] = []
    size = 0
    for entry in entries:
        item = {"id": entry.id, "seq": entry.seq, "time": entry.time, "kind": str(entry.kind)}
        page.append(dump_json({**item, "topic": str(entry.topic), "payload": dict(mask_payload(entry.payload))}))
        size += len(page[-1])
        if size > PAGE_BYTES:
            break
    return page


def _answer(resp: falcon.Response, data: bytes) -> None:
    resp.content_type = JSON
    resp.data = data


def check_size(args: ScriptArgs | None, limit: int) -> None:
    """Raise BadRequestError when arguments have more than `limit` bytes as JSON."""
    if args is not None and (size := len(dump_json(args.model_dump()))) > limit:
        raise BadRequestError(413, f"script_args have {size} bytes as JSON; this server takes {limit}")


def _check_git(script: GitScript | None, settings: GitSettings) -> None:
    """Refuse what a runner would refuse as well, before anything is made for it."""
    if script is not None and (problem := find_problem(script.repository, settings.build_policy())):
        raise BadRequestError(403, problem)


def _check_unchanged(execution: ScriptExecution, wanted: State | None) -> None:
    """Raise InvalidTransitionError when a client asks for a state that cannot be asked for."""
    state = execution.status.state
    if wanted not in (None, state):
        raise InvalidTransitionError(
            f"Procedure {execution.procedure_id} is {state}, and cannot be asked to become {wanted}; "
            f"ask for {State.RUNNING} or {State.STOPPED}",
            state,
        )
