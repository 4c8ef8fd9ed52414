"""`oet activity`: run what a scheduling block says, and look at it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from oet_cli.client import Client
from oet_cli.exits import EPILOG, CliError, Exit
from oet_cli.following import Follower, Pauses, ask_patiently, is_over, print_entry
from oet_cli.options import (
    ScriptCommand,
    flag_option,
    output_option,
    print_result,
    reason_option,
    rehearse_option,
)
from oet_cli.screen import Screen
from oet_cli.tables import render_activities, render_activity
from oet_crds.states import Mode, State

__all__ = ["activity"]


@click.group(epilog=EPILOG)
def activity() -> None:
    """Run activities of scheduling blocks, and look at them."""


def _parse_args(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> dict[str, Any] | None:
    if value is None:
        return None
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise click.BadParameter('it looks like {"init": {"kwargs": {"subarray_id": 1}}, "main": {"args": [1]}}')
    return parsed


_Command = TypeVar("_Command", bound=Callable[..., Any])


def _aid_option(about: str) -> Callable[[_Command], _Command]:
    return click.option("--aid", type=click.IntRange(min=1), help=about)


@activity.command(cls=ScriptCommand, epilog=EPILOG)
@click.argument("activity_name")
@click.argument("sbd_id")
@click.option(
    "--script-args",
    "--script_args",
    "script_args",
    metavar="JSON",
    callback=_parse_args,
    help="Arguments that replace those of the scheduling block, for each function that is given.",
)
@flag_option("prepare_only", "Do not start it when it is READY.", default=False)
@flag_option("create_env", "Build the git script's own environment.", default=False)
@flag_option("listen", "Show what it does until it has ended, or is prepared if no more was asked for.", default=True)
@rehearse_option
@reason_option
@output_option
@click.pass_obj
def run(server_url: str, /, activity_name: str, sbd_id: str, listen: bool, output: str, **how: Any) -> int:
    """Run ACTIVITY_NAME of the scheduling block definition SBD_ID.

    Then shows what its script does until it has ended; the exit code tells how. With --listen=False it returns at once.
    """
    client, screen = Client(server_url), Screen()
    body = {"activity_name": activity_name, "sbd_id": sbd_id, **_build_options(how)}
    found = client.run_activity(body)
    pid = int(found["procedure_id"])
    try:
        print_result(found, output, lambda one: render_activities([one]))
        return _follow(client, found, screen, output) if listen else Exit.OK
    except (KeyboardInterrupt, BrokenPipeError):
        screen.note(f"Activity {found['id']} goes on; stop it with: oet procedure stop --pid={pid}")
        raise
    finally:
        screen.clear()


def _build_options(how: dict[str, Any]) -> dict[str, Any]:
    """Return what was said on the command line, as the request has it; only what is not usual."""
    fields = {name: how[name] for name in ("script_args", "reason") if how[name] is not None}
    fields.update({name: how[name] for name in ("prepare_only", "create_env")})
    return {**fields, **({"mode": str(Mode.REHEARSAL)} if how["rehearse"] else {})}


def _follow(client: Client, found: dict[str, Any], screen: Screen, output: str) -> Exit:
    """Show what the activity's procedure does. Returns how it ended; OK when it was prepared and that was all."""
    write = screen.write if output == "table" else screen.note
    if output == "table":
        screen.write("\nEvents\n------\n")
    follower = Follower(client, int(found["procedure_id"]), screen)
    for entry in follower:
        print_entry(entry, screen, write, write)
        if follower.state is State.READY:
            if found["prepare_only"]:
                return Exit.OK
            _check_start(client, int(found["id"]), screen)
    return follower.find_exit()


def _check_start(client: Client, aid: int, screen: Screen) -> None:
    """Wait until a prepared activity has begun, or is over. Raises CliError when its start was refused."""
    pauses = Pauses()
    while True:
        procedure = ask_patiently(lambda: client.get(aid), screen)
        if is_over(procedure["state"]) or procedure["state"] == State.RUNNING:
            return
        # READY again: main has returned, and the end is about to be seen.
        if any(entry[0] == State.RUNNING for entry in procedure["history"]["process_states"]):
            return
        message = ask_patiently(lambda: client.get_activity(aid), screen).get("message")
        if message:
            raise CliError(
                f"{message}\nIt stays prepared; start it with: oet procedure start --pid={aid}", Exit.REFUSED
            )
        pauses.sleep()


@activity.command("list", cls=ScriptCommand)
@_aid_option("Id of the activity.")
@output_option
@click.pass_obj
def list_(server_url: str, aid: int | None, output: str) -> None:
    """List all activities, oldest first."""
    client = Client(server_url)
    found = client.read_activities() if aid is None else [client.get_activity(aid)]
    print_result(found, output, render_activities)


@activity.command(cls=ScriptCommand)
@_aid_option("Id of the activity; without it the one that was run last.")
@output_option
@click.pass_obj
def describe(server_url: str, aid: int | None, output: str) -> None:
    """Show all that is known of an activity."""
    client = Client(server_url)
    if aid is not None:
        found = client.get_activity(aid)
    elif activities := client.read_activities():
        found = activities[-1]
    else:
        raise CliError("No activities to describe", Exit.USAGE)
    print_result(found, output, render_activity)
