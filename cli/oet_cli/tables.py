"""Procedures as tables for people. Pure. The layout of `list` (header, rule, rows; id and script first) is upstream's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from oet_crds.states import State

__all__ = ["build_table", "render_description", "render_list"]

FOOTER = " For more details:- oet procedure describe --pid=<id>"


def build_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows below a header and a rule, columns aligned, numbers to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in [list(header), *texts]) for column in range(len(header))]
    numeric = [bool(rows) and all(isinstance(row[column], int) for row in rows) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        pairs = zip(cells, widths, numeric, strict=True)
        return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in pairs).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, texts)])


def _describe_script(procedure: Mapping[str, Any]) -> str:
    script = procedure["script"]
    return str(script.get("script_uri") or script["script_type"])


def _describe_time(seconds: float, *, precise: bool = False) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S" + (".%f" if precise else ""))


def render_list(procedures: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of procedures; times are UTC."""
    rows = []
    for procedure in procedures:
        states = procedure["history"]["process_states"]
        created = _describe_time(states[0][1]) if states else ""
        rows.append([procedure["id"], _describe_script(procedure), created, procedure["state"]])
    return build_table(["ID", "Script", "Creation Time", "State"], rows) + "\n" + FOOTER


def render_description(procedure: Mapping[str, Any]) -> str:
    """Return all that is known of a procedure, in sections with a blank line between them."""
    identity = [procedure["id"], _describe_script(procedure), procedure["uri"]]
    sections = [build_table(["ID", "Script", "URI"], [identity])]
    if procedure.get("reason"):
        end = [procedure["state"], procedure["reason"], procedure.get("message") or ""]
        sections.append(build_table(["State", "Reason", "Message"], [end]))
    states = _number_runs(procedure["history"]["process_states"])
    sections.append(build_table(["Time", "State"], [[_describe_time(at, precise=True), name] for name, at in states]))
    calls = procedure.get("script_args", {})
    rows = [[name, call.get("args", []), call.get("kwargs", {})] for name, call in calls.items()]
    sections.append(build_table(["Method", "Arguments", "Keyword Arguments"], rows))
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
