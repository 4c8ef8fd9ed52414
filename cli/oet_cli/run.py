"""`oet procedure run`: create, start and follow in one, with an exit code that tells the outcome."""

from __future__ import annotations

import signal
from typing import Any

import click

from oet_cli.client import Client
from oet_cli.exits import EPILOG, CliError, Exit
from oet_cli.following import STOP_PATIENCE_SECONDS, Follower, ask_patiently, is_over, print_entry
from oet_cli.interrupts import raised, take_interrupt
from oet_cli.options import (
    ScriptCommand,
    build_request,
    build_script,
    call_option,
    git_options,
    merge_calls,
    ready_timeout_option,
    reason_option,
    rehearse_option,
    script_argument,
    take_script,
)
from oet_cli.screen import Screen
from oet_crds.states import State
from oet_crds.subarrays import SUBARRAY_KEY

__all__ = ["run"]


@click.command(cls=ScriptCommand, epilog=EPILOG)
@script_argument
@click.option("--subarray_id", "--subarray-id", type=int, help="Subarray, handed to init.")
@call_option("init")
@call_option("main")
@rehearse_option
@ready_timeout_option
@git_options
@reason_option
@click.pass_obj
def run(server_url: str, /, words: tuple[str, ...], subarray_id: int | None, init: Any, main: Any, **how: Any) -> int:
    """Prepare SCRIPT, start it, and show what it does until it has ended; ARGS and --KEY=VALUE go to its main.

    SCRIPT is a path, file://..., git://..., or - for a script on standard input. Arguments of init are given with --init;
    --subarray_id is added to them only if it is given.

    What the script prints goes to standard output, or to standard error if it prints there; everything else goes to standard
    error. Ctrl-C stops the script (without the abort script) and waits until that is certain; a second one leaves at once.
    """
    client, screen = Client(server_url), Screen()
    script, args, kwargs = take_script(words)
    init = merge_calls(init, [], {} if subarray_id is None else {SUBARRAY_KEY: subarray_id})
    choices = {name: how.pop(name) for name in ("rehearse", "reason", "ready_timeout")}
    request = build_request(build_script(script, how), init, **choices)
    # SIGTERM is taken for Ctrl-C: who ends this command, such as `timeout`, wants the script ended.
    with raised(signal.SIGTERM):
        pid = _create(client, request)
        follower, is_told = Follower(client, pid, screen), False
        try:
            try:
                _follow(client, pid, follower, merge_calls(main, args, kwargs), screen)
            except KeyboardInterrupt:
                take_interrupt()
                is_told = True
                _stop(client, pid, follower, screen)
            return follower.find_exit()
        except (KeyboardInterrupt, BrokenPipeError):
            screen.note(_describe_leaving(pid, is_told))
            raise
        except CliError as error:
            if error.code in (Exit.UNREACHABLE, Exit.NOT_CERTAIN):
                screen.note(f"Procedure {pid} may go on; stop it with: oet procedure stop --pid={pid}")
            raise
        finally:
            screen.clear()


def _describe_leaving(pid: int, is_told: bool) -> str:
    if is_told:
        return f"Left procedure {pid} before its stop was certain; see how it ends with: oet procedure wait --pid={pid}"
    return f"Left procedure {pid}; stop it with: oet procedure stop --pid={pid}"


def _create(client: Client, request: dict[str, Any]) -> int:
    try:
        return int(client.create(request)["id"])
    except KeyboardInterrupt:
        click.echo("\nInterrupted before the server answered: see oet procedure list for what it made of it.", err=True)
        raise


def _follow(client: Client, pid: int, follower: Follower, main: dict[str, Any], screen: Screen) -> None:
    """Start the procedure when it is READY, and show it until its end."""
    is_started = False
    for entry in follower:
        _print(entry, screen)
        if follower.state is State.READY and not is_started:
            is_started = True
            _start(client, pid, main, screen)


def _start(client: Client, pid: int, main: dict[str, Any], screen: Screen) -> None:
    """Start it; when that is refused, release what was prepared, for nobody else knows of it."""
    try:
        client.start(pid, main)
    except CliError as error:
        if error.code is Exit.REFUSED and not is_over(client.get(pid)["state"]):
            _release(client, pid, screen)
            raise
        if error.code not in (Exit.REFUSED, Exit.NOT_CERTAIN):
            raise
        # It ended before, or it may still begin: the timeline will tell.
        screen.note(str(error))


def _release(client: Client, pid: int, screen: Screen) -> None:
    try:
        client.stop(pid, abort=False)
    except CliError as error:
        screen.note(f"Procedure {pid} could not be released ({error}); try: oet procedure stop --pid={pid}")


def _stop(client: Client, pid: int, follower: Follower, screen: Screen) -> None:
    """Stop what Ctrl-C interrupted, and show it until its end is certain."""
    screen.note(f"\nStopping procedure {pid}; Ctrl-C again to leave it.")
    try:
        # May be asked twice: all who stop one procedure get the same answer.
        screen.note(ask_patiently(lambda: client.stop(pid, abort=False), screen))
    except CliError as error:
        # It ended by itself meanwhile, or its stop is not certain yet: the timeline will tell.
        if error.code not in (Exit.REFUSED, Exit.NOT_CERTAIN):
            raise
        screen.note(str(error))
    follower.give_up_after(STOP_PATIENCE_SECONDS)
    for entry in follower:
        _print(entry, screen)


def _print(entry: dict[str, Any], screen: Screen) -> None:
    print_entry(entry, screen, screen.note, screen.write)
