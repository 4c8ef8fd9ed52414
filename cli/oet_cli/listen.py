"""`oet listen`: the event stream as lines, for as long as the user wants."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import click

from oet_cli.client import Client
from oet_cli.exits import CliError, Exit
from oet_cli.options import pid_option
from oet_cli.texts import describe_event

__all__ = ["build_path", "is_wanted", "listen"]

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0
"""Pauses before a lost stream is opened again: doubled each time, so that a server that comes back is not run over."""

UNKNOWN_ID = 422
"""Status of the answer to an id that the server never gave: it has lost its events, or is another one."""

DEFAULT_EXCLUDE = "request,procedure.pool"


def is_wanted(topic: str, topics: list[str], excluded: list[str]) -> bool:
    """Tell whether a topic is to be shown. Pure.

    Args:
        topic: Dotted topic of an event.
        topics: Topics to show, whole; empty for all.
        excluded: Beginnings of topics not to show, at a dot.
    """
    if topics and topic not in topics:
        return False
    return not any(topic == start or topic.startswith(f"{start}.") for start in excluded)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@click.command()
@click.option("--topics", default="all", show_default=True, help="Topics to show, with commas between them.")
@click.option("--exclude", default=DEFAULT_EXCLUDE, show_default=True, help="Beginnings of topics not to show.")
@pid_option
@click.option("--subarray", type=click.IntRange(min=0), help="Only events of procedures on this subarray.")
@click.pass_context
def listen(ctx: click.Context, topics: str, exclude: str, pid: int | None, subarray: int | None) -> None:
    """Show what happens, until Ctrl-C.

    A lost connection is opened again, and goes on where it was lost. Topics that are named in --topics are shown whatever the
    default of --exclude says.
    """
    wanted = [] if topics == "all" else _split(topics)
    excluded = [] if wanted and exclude == DEFAULT_EXCLUDE else _split(exclude)
    with contextlib.suppress(KeyboardInterrupt):
        for data in _iterate_for_ever(Client(ctx.obj), build_path(pid, subarray)):
            line = _describe(data, wanted, excluded)
            if line is not None:
                click.echo(line)


def build_path(pid: int | None, subarray: int | None) -> str:
    """Return the path of the stream with the filters that the server does; None for no such filter. Pure."""
    filters = {"procedure_id": pid, "subarray": subarray}
    query = urlencode({name: number for name, number in filters.items() if number is not None})
    return f"/stream?{query}" if query else "/stream"


def _iterate_for_ever(client: Client, path: str) -> Iterator[str]:
    """Yield the data of all events. Raises CliError if the stream cannot be opened at first, or is refused later."""
    last_id, pause, is_first = "", 0.0, True
    while True:
        stream, why = None, "the server ended it"
        try:
            stream = client.open_stream(path, last_id)
            if not is_first:
                click.echo("listening again", err=True)
            is_first, pause = False, 0.0
            yield from stream
        except CliError as error:
            if is_first or _is_final(error, last_id):
                raise
            why = str(error).splitlines()[0]
            if error.status == UNKNOWN_ID:
                why, last_id = "the server begins its events anew", ""
        last_id = stream.last_id if stream is not None else last_id
        pause = min(LONGEST_PAUSE_SECONDS, pause * 2 or FIRST_PAUSE_SECONDS)
        click.echo(f"lost the stream ({why}); listening again in {pause:g} s", err=True)
        time.sleep(pause)


def _is_final(error: CliError, last_id: str) -> bool:
    """Tell whether listening again makes no sense: refused, but not for being busy or for an id of before a new start."""
    is_new_start = error.status == UNKNOWN_ID and bool(last_id)
    return error.code is Exit.REFUSED and not is_new_start and (error.status or 0) < 500


def _describe(data: str, topics: list[str], excluded: list[str]) -> str | None:
    """Return the line for an event; None when it is not wanted."""
    try:
        event: dict[str, Any] = json.loads(data)
        topic = str(event["topic"])
    except (ValueError, KeyError, TypeError) as error:
        return f"- ERROR Could not parse event: {error}"
    return f"- {describe_event(event)}" if is_wanted(topic, topics, excluded) else None
