"""Procedures as tables for people. Pure.

The layout (header, rule, rows; id and script first) is upstream's, because programs parse it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from oet_cli.texts import describe_script
from oet_crds.states import State
from oet_crds.waits import is_waiting

__all__ = ["build_table", "render_activities", "render_activity", "render_description", "render_list"]

FOOTER = " For more details:- oet procedure describe --pid=<id>"

ACTIVITY_FOOTER = """ For details on activity:- oet activity describe --aid=<ID>
 For details on script execution:- oet procedure describe --pid=<Procedure ID>"""

HEADER_PADDING = 2
"""Characters that a column is wider than its header, at least."""


def build_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows below a header and a rule, columns aligned, numbers to the right."""
    texts = [[" ".join(str(cell).splitlines()) for cell in row] for row in rows]
    columns = range(len(header))
    widths = [max([len(header[at]) + HEADER_PADDING, *(len(row[at]) for row in texts)]) for at in columns]
    numeric = [bool(rows) and all(isinstance(row[at], int) for row in rows) for at in columns]

    def line(cells: Sequence[str]) -> str:
        pairs = zip(cells, widths, numeric, strict=True)
        return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in pairs).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, texts)])


def _describe_time(seconds: float, *, precise: bool = False) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S" + (".%f" if precise else ""))


def render_list(procedures: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of procedures; times are UTC."""
    rows = []
    for procedure in procedures:
        states = procedure["history"]["process_states"]
        created = _describe_time(states[0][1]) if states else ""
        rows.append([procedure["id"], describe_script(procedure["script"]), created, procedure["state"]])
    header = ["ID", "Script", "Creation Time", "State"]
    waits = [_describe_wait(procedure) for procedure in procedures]
    if any(waits):
        header.append("Reason")
        rows = [[*row, wait] for row, wait in zip(rows, waits, strict=True)]
    table = build_table(header, rows)
    return f"{table}\n{FOOTER}" if rows else table


def _describe_wait(procedure: Mapping[str, Any]) -> str:
    state, reason = procedure["state"], procedure.get("reason")
    return f"{reason}: {procedure.get('message') or ''}" if is_waiting(state, reason) else ""


def render_description(procedure: Mapping[str, Any]) -> str:
    """Return all that is known of a procedure, in sections with a blank line between them."""
    identity = [procedure["id"], describe_script(procedure["script"]), procedure.get("uri", "")]
    sections = [build_table(["ID", "Script", "URI"], [identity])]
    extra = {name: procedure.get(name) for name in ("mode", "purpose", "subarray", "reason", "message")}
    known = {name.capitalize(): value for name, value in extra.items() if value is not None}
    if known:
        sections.append(build_table(list(known), [list(known.values())]))
    states = _number_runs(procedure["history"]["process_states"])
    sections.append(build_table(["Time", "State"], [[_describe_time(at, precise=True), name] for name, at in states]))
    calls = procedure.get("script_args", {}).items()
    rows = [[at, name, call.get("args", []), call.get("kwargs", {})] for at, (name, call) in enumerate(calls, 1)]
    sections.append(build_table(["Index", "Method", "Arguments", "Keyword Arguments"], rows))
    git = procedure["script"].get("git_args")
    if git:
        # The commit that was fetched says more than the one that was asked for, which may be its beginning.
        commit = procedure.get("commit") or git.get("git_commit") or ""
        place = [git.get("git_repo") or "", git.get("git_branch") or "", commit]
        sections.append(build_table(["Repository", "Branch", "Commit"], [place]))
    stacktrace = procedure["history"].get("stacktrace")
    if stacktrace:
        sections.append(f"Stack Trace:\n------------\n{stacktrace.rstrip()}")
    return "\n\n".join(sections)


def render_activities(activities: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of activities; times are UTC."""
    rows = []
    for one in activities:
        states = one["activity_states"]
        created = _describe_time(states[0][1]) if states else ""
        rows.append([one["id"], one["activity_name"], one["sbd_id"], created, one["procedure_id"], one["state"]])
    table = build_table(["ID", "Activity", "SB ID", "Creation Time", "Procedure ID", "State"], rows)
    return f"{table}\n{ACTIVITY_FOOTER}" if rows else table


def render_activity(activity: Mapping[str, Any]) -> str:
    """Return all that is known of an activity, in sections with a blank line between them."""
    identity = [activity[name] for name in ("id", "activity_name", "sbd_id", "procedure_id", "state")]
    more = {"URI": activity.get("uri", ""), "Prepare Only": activity["prepare_only"], "SBI ID": activity.get("sbi_id")}
    extra = {name.capitalize(): activity[name] for name in ("mode", "message") if activity.get(name)}
    calls = activity.get("script_args", {}).items()
    args = [[name, call.get("args", []), call.get("kwargs", {})] for name, call in calls]
    states = [[_describe_time(at, precise=True), name] for name, at in activity["activity_states"]]
    arguments = build_table(["Method", "Arguments", "Keyword Arguments"], args)
    sections = [
        build_table(["ID", "Activity", "SB ID", "Procedure ID", "State"], [identity]),
        build_table(list(more), [list(more.values())]),
        *([build_table(list(extra), [list(extra.values())])] if extra else []),
        build_table(["Time", "State"], states),
        f"Script Arguments\n----------------\n{arguments}",
    ]
    return "\n\n".join(sections)


def _number_runs(states: Sequence[Sequence[Any]]) -> list[tuple[str, float]]:
    """Return the history with RUNNING numbered, as users of OET know it."""
    named, runs = [], 0
    for name, at in states:
        if name == State.RUNNING:
            runs += 1
            name = f"{name} {runs}"
        named.append((name, at))
    return named
