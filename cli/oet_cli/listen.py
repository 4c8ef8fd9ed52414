"""`oet listen`: the event stream as lines, for as long as the user wants."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from oet_cli.client import Client
from oet_cli.exits import CliError, Exit
from oet_cli.texts import describe_event

__all__ = ["is_wanted", "listen"]

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0
"""Pauses before a lost stream is opened again: doubled each time, so that a server that comes back is not run over."""


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
@click.option(
    "--exclude", default="request,procedure.pool", show_default=True, help="Beginnings of topics not to show."
)
@click.pass_obj
def listen(server_url: str, topics: str, exclude: str) -> None:
    """Show what happens, until Ctrl-C.

    A lost connection is opened again, and goes on where it was lost.
    """
    wanted = [] if topics == "all" else _split(topics)
    excluded = [] if topics != "all" and exclude == "request,procedure.pool" else _split(exclude)
    client, last_id, pause = Client(server_url), "", 0.0
    try:
        while True:
            try:
                with client.listen("/stream", last_id) as events:
                    pause = 0.0
                    for event in events:
                        last_id = event.last_id
                        _show(event.data, wanted, excluded)
            except CliError as error:
                if error.code is not Exit.UNREACHABLE or (not last_id and pause == 0.0):
                    raise
            pause = min(LONGEST_PAUSE_SECONDS, pause * 2 or FIRST_PAUSE_SECONDS)
            click.echo(f"lost the stream; listening again in {pause:g} s", err=True)
            time.sleep(pause)
    except KeyboardInterrupt:
        return


def _show(data: str, topics: list[str], excluded: list[str]) -> None:
    try:
        event: dict[str, Any] = json.loads(data)
        topic = str(event["topic"])
    except (ValueError, KeyError, TypeError) as error:
        click.echo(f"- ERROR Could not parse event: {error}")
        return
    if is_wanted(topic, topics, excluded):
        click.echo(f"- {describe_event(event)}")
