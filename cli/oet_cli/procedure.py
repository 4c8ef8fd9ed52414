"""`oet procedure`: prepare, start, watch and stop scripts."""

from __future__ import annotations

import time
from typing import Any

import click

from oet_cli.arguments import parse_words
from oet_cli.client import Client
from oet_cli.exits import EPILOG, CliError, Exit, compute_exit
from oet_cli.following import follow, print_entry
from oet_cli.options import FLAG, FREE, build_script, output_option, pid_option, print_result, words_argument
from oet_cli.run import run
from oet_cli.tables import render_description, render_list
from oet_crds.states import State, is_final

__all__ = ["procedure"]

SUBARRAY = "subarray_id"


@click.group(epilog=EPILOG)
def procedure() -> None:
    """Prepare, start, watch and stop scripts."""


def _find_last(client: Client, verb: str) -> dict[str, Any]:
    """Return the procedure that was created last."""
    procedures = client.read_all()
    if not procedures:
        raise CliError(f"No procedures to {verb}", Exit.USAGE)
    return procedures[-1]


def _choose(client: Client, pid: int | None, verb: str) -> int:
    return int(_find_last(client, verb)["id"]) if pid is None else pid


def git_options(command: Any) -> Any:
    """Add the options of git scripts."""
    for name, about in (("repo", "Repository"), ("branch", "Branch"), ("commit", "Commit")):
        command = click.option(f"--git_{name}", f"--git-{name}", help=f"{about} of a git:// script.")(command)
    about = "Build the git script's own environment."
    return click.option("--create_env", "--create-env", type=FLAG, default=False, help=about)(command)


@procedure.command(context_settings=FREE)
@click.argument("script")
@words_argument
@click.option(
    "--subarray_id", "--subarray-id", type=int, default=1, show_default=True, help="Subarray, handed to init."
)
@click.option("--wait", is_flag=True, help="Wait until it is READY.")
@git_options
@output_option
@click.pass_obj
def create(
    server_url: str, /, script: str, words: tuple[str, ...], subarray_id: int, wait: bool, **options: Any
) -> None:
    """Prepare SCRIPT and hold it READY; ARGS and --KEY=VALUE go to its init.

    SCRIPT is a path, file://..., git://..., or - for a script on standard input.
    """
    client, output, create_env = Client(server_url), options.pop("output"), options.pop("create_env")
    args, kwargs = parse_words(words)
    init = {"args": args, "kwargs": {SUBARRAY: subarray_id, **kwargs}}
    created = client.create({"script": build_script(script, options, create_env), "script_args": {"init": init}})
    if wait:
        created = _wait_for(client, created["id"], State.READY, None)
    print_result(created, output, lambda one: render_list([one]))


@procedure.command("list")
@pid_option
@output_option
@click.pass_obj
def list_(server_url: str, pid: int | None, output: str) -> None:
    """List all procedures, oldest first."""
    client = Client(server_url)
    print_result(client.read_all() if pid is None else [client.get(pid)], output, render_list)


@procedure.command(context_settings=FREE)
@words_argument
@pid_option
@click.option("--listen", type=FLAG, default=True, show_default=True, help="Show what it does until it has ended.")
@output_option
@click.pass_obj
def start(server_url: str, words: tuple[str, ...], pid: int | None, listen: bool, output: str) -> int:
    """Start a READY procedure, the last one created if no --pid is given; ARGS and --KEY=VALUE go to its main."""
    client = Client(server_url)
    if pid is None:
        last = _find_last(client, "start")
        if last["state"] != State.READY:
            text = (
                f"The last procedure created is in {last['state']} state and cannot be started, "
                "please specify a valid procedure ID."
            )
            raise CliError(text, Exit.USAGE)
        pid = int(last["id"])
    # What was there before the start is known; nothing that comes after it is missed.
    after = max((int(entry["id"]) for entry in client.read_events(pid, 0)), default=0)
    args, kwargs = parse_words(words)
    started = client.start(pid, {"args": args, "kwargs": kwargs})
    print_result(started, output, lambda one: render_list([one]))
    return _follow_to_the_end(client, pid, after) if listen else Exit.OK


@procedure.command()
@pid_option
@click.option(
    "--run_abort", "--run-abort", type=FLAG, default=True, show_default=True, help="Run the abort script afterwards."
)
@click.pass_obj
def stop(server_url: str, pid: int | None, run_abort: bool) -> None:
    """Stop a procedure, the one that runs if no --pid is given. Answers when it is certain."""
    client = Client(server_url)
    if pid is None:
        running = [one["id"] for one in client.read_all() if one["state"] == State.RUNNING]
        if not running:
            raise CliError("No procedures to stop", Exit.USAGE)
        if len(running) > 1:
            text = "WARNING: More than one procedure is running. Specify ID of the procedure to stop."
            raise CliError(text, Exit.USAGE)
        pid = int(running[0])
    click.echo(client.stop(pid, abort=run_abort))


@procedure.command()
@pid_option
@output_option
@click.pass_obj
def describe(server_url: str, pid: int | None, output: str) -> None:
    """Show all that is known of a procedure, the last one created if no --pid is given."""
    client = Client(server_url)
    print_result(client.get(_choose(client, pid, "describe")), output, render_description)


@procedure.command()
@pid_option
@click.option("-f", "--follow", "is_following", is_flag=True, help="Go on until the procedure has ended.")
@click.option("--tail", type=click.IntRange(min=1), help="Only the last lines.")
@click.pass_obj
def logs(server_url: str, pid: int | None, is_following: bool, tail: int | None) -> int:
    """Show what a script printed, the last one created if no --pid is given."""
    client = Client(server_url)
    pid = _choose(client, pid, "show")
    if is_following:
        return _follow_to_the_end(client, pid, 0)
    click.echo(client.read_logs(pid, tail), nl=False)
    return Exit.OK


@procedure.command()
@pid_option
@click.option(
    "--for",
    "wanted",
    type=click.Choice([str(state) for state in State]),
    help="State to wait for; without it, the end.",
)
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait; without it, for ever.")
@click.pass_obj
def wait(server_url: str, pid: int | None, wanted: str | None, timeout: float | None) -> int:
    """Wait until a procedure has ended, or is in a state; the last one created if no --pid is given."""
    client = Client(server_url)
    pid = _choose(client, pid, "wait for")
    found = _wait_for(client, pid, State(wanted) if wanted else None, timeout)
    click.echo(f"Procedure {pid} is {found['state']}", err=True)
    return Exit.OK if wanted else compute_exit(found["state"])


def _wait_for(client: Client, pid: int, wanted: State | None, timeout: float | None) -> dict[str, Any]:
    """Wait for a state, or for the end when it is None. Raises CliError when it cannot come any more."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        found = client.get(pid)
        state = State(found["state"])
        if state is wanted or (wanted is None and is_final(state)):
            return found
        if is_final(state):
            why = f": {found['message']}" if found.get("message") else ""
            raise CliError(f"Procedure {pid} is {state}, not {wanted}{why}", compute_exit(state))
        if deadline is not None and time.monotonic() > deadline:
            raise CliError(f"Procedure {pid} is still {state} after {timeout:g} s", Exit.NOT_CERTAIN)
        time.sleep(0.05)


def _follow_to_the_end(client: Client, pid: int, after: int) -> Exit:
    """Print what a procedure does until it has ended; return the exit code for its end."""
    for entry in follow(client, pid, after):
        print_entry(entry)
    return compute_exit(client.get(pid)["state"])


procedure.add_command(run)
