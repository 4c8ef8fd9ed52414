"""`oet procedure events`: what happened to a procedure, and who asked for what, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import click

from oet_cli.client import Client
from oet_cli.exits import CliError, Exit
from oet_cli.following import Follower
from oet_cli.options import ScriptCommand, output_option, pid_option, print_result
from oet_cli.screen import Screen
from oet_cli.texts import describe_event
from oet_crds.topics import EntryKind

__all__ = ["describe_entry", "events"]

KIND_WIDTH = max(len(kind) for kind in EntryKind)


@click.command(cls=ScriptCommand)
@pid_option
@click.option("--kind", type=click.Choice([str(kind) for kind in EntryKind]), help="Only entries of this kind.")
@click.option("-f", "--follow", "is_following", is_flag=True, help="Go on until the procedure has ended.")
@output_option
@click.pass_obj
def events(server_url: str, pid: int | None, kind: str | None, is_following: bool, output: str) -> None:
    """Show what happened to a procedure: states, messages, printed lines, and requests with who asked and why.

    The last one created if no --pid is given. Times are UTC.
    """
    client, screen = Client(server_url), Screen()
    if is_following and output != "table":
        raise click.UsageError("--follow shows a table only: JSON and YAML are written when all is known")
    if pid is None:
        procedures = client.read_all()
        if not procedures:
            raise CliError("No procedures to show", Exit.USAGE)
        pid = int(procedures[-1]["id"])
    found = iter(Follower(client, pid, screen)) if is_following else _iterate_pages(client, pid, kind)
    chosen = (entry for entry in found if kind in (None, entry.get("kind")))
    try:
        if output != "table":
            print_result(list(chosen), output, str)
            return
        for entry in chosen:
            screen.write(describe_entry(entry))
    finally:
        screen.clear()


def _iterate_pages(client: Client, pid: int, kind: str | None) -> Iterator[dict[str, Any]]:
    after = 0
    while page := client.read_events(pid, after, None if kind is None else EntryKind(kind)):
        yield from page
        after = int(page[-1]["id"])


def describe_entry(entry: Mapping[str, Any]) -> str:
    """Return an entry of a timeline on a line: time, kind, words. Pure."""
    time, payload = entry.get("time"), entry.get("payload") or {}
    shown = f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S.%f}" if isinstance(time, (int, float)) else "?"
    kind = str(entry.get("kind"))
    if kind == EntryKind.LOG:
        words = str(payload["line"]) if "line" in payload else f"{payload.get('dropped')} printed lines were dropped"
    else:
        words = describe_event({**payload, "topic": entry.get("topic")})
    return f"{shown}  {kind.ljust(KIND_WIDTH)}  {words}"
