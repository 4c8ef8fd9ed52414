"""`oet procedure run`: create, start and follow in one, with an exit code that tells the outcome."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from oet_cli.arguments import parse_words
from oet_cli.client import Client
from oet_cli.exits import EPILOG, CliError, Exit, compute_exit
from oet_cli.following import find_new_state, follow, print_entry
from oet_cli.options import FREE, build_script, words_argument
from oet_crds.states import State

__all__ = ["run"]


def _parse_init(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> dict[str, Any]:
    if value is None:
        return {"args": [], "kwargs": {}}
    try:
        init = json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}") from error
    if not isinstance(init, dict) or not set(init) <= {"args", "kwargs"}:
        raise click.BadParameter('it looks like {"args": [1, 2], "kwargs": {"name": "value"}}')
    return {"args": init.get("args", []), "kwargs": init.get("kwargs", {})}


@click.command(context_settings=FREE, epilog=EPILOG)
@click.argument("script")
@words_argument
@click.option("--subarray_id", "--subarray-id", type=int, help="Subarray, handed to init.")
@click.option("--init", metavar="JSON", callback=_parse_init, help='Arguments of init: {"args": [], "kwargs": {}}.')
@click.pass_obj
def run(server_url: str, script: str, words: tuple[str, ...], subarray_id: int | None, init: dict[str, Any]) -> int:
    """Prepare SCRIPT, start it, and show what it does until it has ended; ARGS and --KEY=VALUE go to its main.

    What the script prints goes to standard output, everything else to standard error. Ctrl-C stops the script and waits
    until that is certain; a second one leaves at once.
    """
    client = Client(server_url)
    if subarray_id is not None:
        init["kwargs"]["subarray_id"] = subarray_id
    args, kwargs = parse_words(words)
    created = client.create({"script": build_script(script, {}, False), "script_args": {"init": init}})
    pid = int(created["id"])
    main = {"args": args, "kwargs": kwargs}
    try:
        return _follow(client, pid, main)
    except KeyboardInterrupt:
        return _stop(client, pid)


def _follow(client: Client, pid: int, main: dict[str, Any]) -> Exit:
    """Start the procedure when it is READY, and show it until its end."""
    is_started = False
    with _live_state(pid) as show:
        for entry in follow(client, pid):
            print_entry(entry)
            state = find_new_state(entry)
            if state is not None:
                show(state)
            if state is State.READY and not is_started:
                is_started = True
                _start(client, pid, main)
    found = client.get(pid)
    if found.get("message") and found["state"] != State.COMPLETE:
        click.echo(f"Procedure {pid} is {found['state']}: {found['message']}", err=True)
    return compute_exit(found["state"])


def _start(client: Client, pid: int, main: dict[str, Any]) -> None:
    """Start it; when that is refused, release what was prepared, for nobody else knows of it."""
    try:
        client.start(pid, main)
    except CliError as error:
        if error.code is Exit.REFUSED:
            client.stop(pid, abort=False)
        raise


def _stop(client: Client, pid: int) -> Exit:
    """Stop what Ctrl-C interrupted, and wait until that is certain."""
    click.echo(f"\nStopping procedure {pid}; Ctrl-C again to leave it.", err=True)
    try:
        click.echo(client.stop(pid, abort=False), err=True)
    except CliError as error:
        if error.code is not Exit.REFUSED:
            raise
        click.echo(str(error), err=True)  # It ended by itself meanwhile.
    except KeyboardInterrupt:
        click.echo(f"Left procedure {pid}; stop it with: oet procedure stop --pid={pid}", err=True)
        return Exit.INTERRUPTED
    return compute_exit(client.get(pid)["state"])


@contextmanager
def _live_state(pid: int) -> Iterator[Any]:
    """Show the state in a line that stays at the bottom, on a terminal; elsewhere show nothing more than the events."""
    if not (sys.stderr.isatty() and sys.stdout.isatty()):
        yield lambda state: None
        return
    from rich.console import Console

    begun = time.monotonic()
    with Console().status(f"Procedure {pid}") as status:
        yield lambda state: status.update(f"Procedure {pid} is {state} ({time.monotonic() - begun:.1f} s)")
