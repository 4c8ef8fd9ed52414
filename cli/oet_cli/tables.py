"""Procedures as tables for people. Pure.

The layout (header, rule, rows; id and script first) is upstream's, because programs parse it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from oet_cli.texts import describe_script
from oet_crds.states import State

__all__ = ["build_table", "render_description", "render_list"]

FOOTER = " For more details:- oet procedure describe --pid=<id>"

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
    table = build_table(["ID", "Script", "Creation Time", "State"], rows)
    return f"{table}\n{FOOTER}" if rows else table


def render_description(procedure: Mapping[str, Any]) -> str:
    """Return all that is known of a procedure, in sections with a blank line between them."""
    identity = [procedure["id"], describe_script(procedure["script"]), procedure.get("uri", "")]
    sections = [build_table(["ID", "Script", "URI"], [identity])]
    extra = {name: procedure.get(name) for name in ("subarray", "reason", "message")}
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
        place = [git.get(f"git_{key}") or "" for key in ("repo", "branch", "commit")]
        sections.append(build_table(["Repository", "Branch", "Commit"], [place]))
    stacktrace = procedure["history"].get("stacktrace")
    if stacktrace:
        sections.append(f"Stack Trace:\n------------\n{stacktrace.rstrip()}")
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
