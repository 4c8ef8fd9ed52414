"""Following one procedure: everything in its timeline, in order, until its state is final."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from oet_cli.client import Client
from oet_cli.exits import CliError, Exit
from oet_cli.texts import describe_event
from oet_crds.states import State, is_final
from oet_crds.topics import EntryKind, Topic

__all__ = ["find_new_state", "follow", "print_entry"]

PAUSE_SECONDS = 0.1
"""Pause between two looks: a person sees no delay, and the server answers a look in half a millisecond."""

PATIENCE_SECONDS = 60.0
"""How long a server that does not answer is asked again: a restart takes a few seconds."""


def follow(client: Client, procedure_id: int, after: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the entries of a procedure's timeline as they come, up to the one that says its final state.

    Args:
        client: The server.
        procedure_id: Which procedure.
        after: Id of the last entry that is known already; 0 for none.

    Raises:
        CliError: The server does not answer for `PATIENCE_SECONDS`, or knows no such procedure.
    """
    while True:
        entries = _ask_patiently(lambda: client.read_events(procedure_id, after))  # noqa: B023 -- called at once
        for entry in entries:
            after = int(entry["id"])
            yield entry
            state = find_new_state(entry)
            if state is not None and is_final(state):
                return
        if not entries:
            time.sleep(PAUSE_SECONDS)


def _ask_patiently(ask: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    has_complained = False
    while True:
        try:
            return ask()
        except CliError as error:
            if error.code is not Exit.UNREACHABLE or time.monotonic() > deadline:
                raise
            if not has_complained:
                click.echo("lost the server; asking again", err=True)
                has_complained = True
            time.sleep(10 * PAUSE_SECONDS)


def find_new_state(entry: dict[str, Any]) -> State | None:
    """Return the state that an entry says the procedure reached; None when it says something else. Pure."""
    if entry.get("topic") != Topic.STATE_CHANGE or entry.get("kind") != EntryKind.STATE:
        return None
    return State(entry["payload"]["new_state"])


def print_entry(entry: dict[str, Any]) -> None:
    """Print an entry: what the script printed on standard output, everything else on standard error."""
    payload = entry["payload"]
    if entry["kind"] == EntryKind.ACTION:
        return  # What was asked for is what the user of this command did.
    if entry["kind"] != EntryKind.LOG:
        click.echo(f"- {describe_event({**payload, 'topic': entry['topic']})}", err=True)
    elif "dropped" in payload:
        click.echo(f"- {payload['dropped']} printed lines were dropped", err=True)
    else:
        click.echo(payload.get("line", ""))
