"""`oet procedure`: prepare, start, watch and stop scripts."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from oet_cli.arguments import parse_words
from oet_cli.client import Client
from oet_cli.events import events
from oet_cli.exits import EPILOG, CliError, Exit, compute_exit
from oet_cli.following import Follower, Pauses, StopWait, Waiting, ask_patiently, find_newest, is_over, print_entry
from oet_cli.options import (
    ScriptCommand,
    build_request,
    build_script,
    flag_option,
    git_options,
    output_option,
    pid_option,
    print_result,
    ready_timeout_option,
    reason_option,
    rehearse_option,
    script_argument,
    take_script,
    words_argument,
)
from oet_cli.run import run
from oet_cli.screen import Screen
from oet_cli.tables import render_description, render_list
from oet_crds.states import State
from oet_crds.subarrays import SUBARRAY_KEY

__all__ = ["procedure"]


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


@procedure.command(cls=ScriptCommand)
@script_argument
@click.option(
    "--subarray_id", "--subarray-id", type=int, default=1, show_default=True, help="Subarray, handed to init."
)
@click.option("--wait", is_flag=True, help="Wait until it is READY.")
@rehearse_option
@ready_timeout_option
@git_options
@reason_option
@output_option
@click.pass_obj
def create(server_url: str, /, words: tuple[str, ...], subarray_id: int, wait: bool, output: str, **how: Any) -> None:
    """Prepare SCRIPT and hold it READY; ARGS and --KEY=VALUE go to its init.

    SCRIPT is a path, file://..., git://..., or - for a script on standard input. A VALUE that is a Python literal is one (1, 2.5,
    [1, 2], {"a": 1}, True), everything else is text; --KEY alone is True, --noKEY is False.
    """
    client = Client(server_url)
    script, args, kwargs = take_script(words)
    init = {"args": args, "kwargs": {**kwargs, SUBARRAY_KEY: subarray_id}}
    choices = {name: how.pop(name) for name in ("rehearse", "reason", "ready_timeout")}
    created = client.create(build_request(build_script(script, how), init, **choices))
    if wait:
        created = _wait_for(client, created, State.READY, None)
    print_result(created, output, lambda one: render_list([one]))


@procedure.command("list", cls=ScriptCommand)
@pid_option
@output_option
@click.pass_obj
def list_(server_url: str, pid: int | None, output: str) -> None:
    """List all procedures, oldest first."""
    client = Client(server_url)
    print_result(client.read_all() if pid is None else [client.get(pid)], output, render_list)


@procedure.command(cls=ScriptCommand, epilog=EPILOG)
@words_argument
@pid_option
@flag_option("listen", "Show what it does until it has ended.", default=True)
@reason_option
@output_option
@click.pass_obj
def start(server_url: str, /, words: tuple[str, ...], pid: int | None, listen: bool, **how: Any) -> int:
    """Start a READY procedure, the last one created if no --pid is given; ARGS and --KEY=VALUE go to its main.

    Then shows what the procedure does until it has ended; the exit code tells how. With --listen=False it returns at once.
    """
    client = Client(server_url)
    pid = _choose_ready(client) if pid is None else pid
    # What was there before the start is known: nothing that comes after it can be missed, and nothing older is shown.
    after = find_newest(client, pid) if listen else 0
    args, kwargs = parse_words(words)
    started = client.start(pid, {"args": args, "kwargs": kwargs}, how["reason"])
    screen, output = Screen(), how["output"]
    try:
        print_result(started, output, lambda one: render_list([one]))
        return _show_events(Follower(client, pid, screen, after), screen, output) if listen else Exit.OK
    except (KeyboardInterrupt, BrokenPipeError):
        screen.note(f"Procedure {pid} goes on; stop it with: oet procedure stop --pid={pid}")
        raise
    finally:
        screen.clear()


def _show_events(follower: Follower, screen: Screen, output: str) -> Exit:
    """Show what a procedure does until it has ended. JSON or YAML on standard output stays alone there."""
    write = screen.write if output == "table" else screen.note
    if output == "table":
        screen.write("\nEvents\n------\n")
    for entry in follower:
        print_entry(entry, screen, write, write)
    return follower.find_exit()


def _choose_ready(client: Client) -> int:
    """Return the procedure that was created last. Raises CliError when it cannot be started."""
    last = _find_last(client, "start")
    if last["state"] != State.READY:
        text = (
            f"The last procedure created is in {last['state']} state and cannot be started, "
            "please specify a valid procedure ID."
        )
        raise CliError(text, Exit.USAGE)
    return int(last["id"])


@procedure.command(cls=ScriptCommand)
@pid_option
@flag_option("run_abort", "Run the abort script on its subarray afterwards.", default=True)
@reason_option
@click.pass_obj
def stop(server_url: str, pid: int | None, run_abort: bool, reason: str | None) -> None:
    """Stop a procedure, the one that runs if no --pid is given. Answers when it is certain."""
    client = Client(server_url)
    if pid is None:
        running = [int(one["id"]) for one in client.read_all() if one["state"] == State.RUNNING]
        if not running:
            raise CliError("No procedures to stop", Exit.USAGE)
        if len(running) > 1:
            text = "WARNING: More than one procedure is running. Specify ID of the procedure to stop."
            raise CliError(text, Exit.USAGE)
        pid = running[0]
    screen = Screen()
    try:
        screen.write(client.stop(pid, abort=run_abort, reason=reason, tell=StopWait(pid, screen).tell))
    except KeyboardInterrupt:
        text = f"\nThe stop stays in force if it reached the server. See: oet procedure wait --pid={pid}"
        click.echo(text, err=True)
        raise
    finally:
        screen.clear()


@procedure.command(cls=ScriptCommand)
@pid_option
@click.option("--reason", metavar="TEXT", required=True, help="Why it is certain that the script does not run; kept.")
@click.pass_obj
def release(server_url: str, pid: int | None, reason: str) -> None:
    """Release the subarray of a procedure that is UNKNOWN, and so may still run.

    Only when it is certain that its script does not run any more: the next script on the subarray can start then. The procedure
    stays UNKNOWN. To abort what it may be doing, stop it with --run_abort.
    """
    if pid is None:
        raise CliError("Say which procedure to release: --pid=ID", Exit.USAGE)
    released = Client(server_url).release(pid, reason)
    click.echo(f"Procedure {released['id']} has let go of its subarray; it stays {released['state']}")


@procedure.command(cls=ScriptCommand)
@pid_option
@output_option
@click.pass_obj
def describe(server_url: str, pid: int | None, output: str) -> None:
    """Show all that is known of a procedure, the last one created if no --pid is given."""
    client = Client(server_url)
    found = _find_last(client, "describe") if pid is None else client.get(pid)
    print_result(found, output, render_description)


@procedure.command()
@pid_option
@click.option("-f", "--follow", "is_following", is_flag=True, help="Go on until the procedure has ended.")
@click.option("--tail", type=click.IntRange(1, 100_000), help="Only so many of the last lines.")
@click.pass_obj
def logs(server_url: str, pid: int | None, is_following: bool, tail: int | None) -> None:
    """Show what a script printed, the last one created if no --pid is given."""
    client = Client(server_url)
    pid = _choose(client, pid, "show")
    if is_following:
        _follow_logs(client, pid, tail)
    else:
        click.echo(client.read_logs(pid, tail), nl=False)


def _follow_logs(client: Client, pid: int, tail: int | None) -> None:
    """Print lines as they come. A lost connection is opened again, and goes on where it was lost."""
    path, last_id, screen, pauses = f"/procedures/{pid}/logs?format=sse&follow=true", "", Screen(), Pauses()
    while True:
        # Asked before the stream is read: only then is its end known to be the end of the procedure too.
        is_last = is_over(ask_patiently(lambda: client.get(pid), screen)["state"])
        only = "" if tail is None or last_id else f"&tail={tail}"
        stream = ask_patiently(lambda: client.open_stream(path + only, last_id), screen)  # noqa: B023 -- called at once
        try:
            for data in stream:
                screen.write(_describe_line(data))
        except CliError as error:
            screen.note(f"lost the server ({str(error).splitlines()[0]}); asking again")
            is_last = False
        last_id = stream.last_id
        if is_last:
            return
        pauses.sleep()


def _describe_line(data: str) -> str:
    try:
        line = json.loads(data)
        if "line" in line:
            return str(line["line"])
        return f"[oet: {line.get('message') or str(line['dropped']) + ' lines dropped'}]"
    except (ValueError, KeyError, TypeError) as error:
        return f"[oet: a line could not be read: {error}]"


@procedure.command(epilog=EPILOG)
@pid_option
@click.option(
    "--for",
    "wanted",
    type=click.Choice([str(state) for state in State], case_sensitive=False),
    help="State to wait for, if it is not past already; without it, the end.",
)
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait; without it, for ever.")
@click.pass_obj
def wait(server_url: str, pid: int | None, wanted: str | None, timeout: float | None) -> int:
    """Wait until a procedure has ended, or was in a state; the last one created if no --pid is given.

    Without --for, the exit code tells how the procedure ended.
    """
    client = Client(server_url)
    # A server that is not there to begin with is told at once; one that goes away later may come back.
    first = _find_last(client, "wait for") if pid is None else client.get(pid)
    found = _wait_for(client, first, State(wanted) if wanted else None, timeout)
    why = _describe_why(found) if is_over(found["state"]) and found["state"] != State.COMPLETE else ""
    click.echo(f"Procedure {found['id']} is {found['state']}{why}", err=True)
    return Exit.OK if wanted else compute_exit(found["state"])


def _wait_for(client: Client, found: dict[str, Any], wanted: State | None, timeout: float | None) -> dict[str, Any]:
    """Wait for a state to be reached, or for the end when it is None. Raises CliError when it cannot come any more.

    Args:
        client: The server.
        found: The procedure as it was seen last.
        wanted: The state.
        timeout: Seconds; None for ever.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    pid, screen, pauses = int(found["id"]), Screen(), Pauses()
    waiting = Waiting(screen)
    try:
        while not _is_reached(found, wanted):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise CliError(f"Procedure {pid} is still {found['state']} after {timeout:g} s", Exit.NOT_CERTAIN)
            waiting.look(found)
            screen.show(f"Procedure {pid} is {found['state']}")
            pauses.sleep(left)
            found = ask_patiently(lambda: client.get(pid), screen, left)
        return found
    finally:
        screen.clear()


def _is_reached(found: dict[str, Any], wanted: State | None) -> bool:
    """Tell whether a procedure was in a state, or is at its end when it is None. Raises CliError when it never will be."""
    state = found["state"]
    if wanted is None:
        return is_over(state)
    if state == wanted or any(entry[0] == wanted for entry in found["history"]["process_states"]):
        return True
    if is_over(state):
        text = f"Procedure {found['id']} is {state}, not {wanted}{_describe_why(found)}"
        raise CliError(text, compute_exit(state) or Exit.NOT_CERTAIN)
    return False


def _describe_why(found: dict[str, Any]) -> str:
    return f": {found['message']}" if found.get("message") else ""


procedure.add_command(events)
procedure.add_command(run)
