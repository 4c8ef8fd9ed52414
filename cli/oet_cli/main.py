"""The `oet` command. What a command needs is imported when it runs, so that `oet --help` and completion are quick."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence

import click

from oet_cli.exits import EPILOG, CliError, Exit
from oet_cli.interrupts import raised, take_interrupt
from oet_crds.names import API_MAJOR, DEFAULT_NAMESPACE

__all__ = ["DEFAULT_URL", "cli", "main"]

DEFAULT_URL = f"http://127.0.0.1:5000/{DEFAULT_NAMESPACE}/oet/api/v{API_MAJOR}"
"""Where `make rest` listens."""

_COMMANDS = {
    "activity": ("oet_cli.activity", "activity", "Run activities of scheduling blocks, and look at them."),
    "completion": ("oet_cli.completion", "completion", "Print a script that completes `oet` in your shell."),
    "config": ("oet_cli.config", "config", "Show the settings in force."),
    "listen": ("oet_cli.listen", "listen", "Show what happens, until Ctrl-C."),
    "procedure": ("oet_cli.procedure", "procedure", "Prepare, start, watch and stop scripts."),
}


class LazyGroup(click.Group):
    """A group that imports a command when it is called, not when it is listed."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command. When who reads its output went away, say so: click itself would exit with 1, as a FAILED script does."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise CliError("the reader of the output went away", Exit.PIPE_CLOSED) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, None when there is none of that name."""
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        command: click.Command = getattr(importlib.import_module(place[0]), place[1])
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, place[2]) for name, place in _COMMANDS.items()])


def _show_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import version

        click.echo(f"oet {version('ska-oso-oet')}")
        ctx.exit()


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--server-url",
    "--server_url",
    envvar="OET_URL",
    default=DEFAULT_URL,
    show_default=True,
    help="Base URL of the REST server; environment: OET_URL. The default is where `make rest` listens; in a cluster name its "
    "service, such as http://ska-oso-oet-rest:5000/<namespace>/oet/api/v7.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
@click.pass_context
def cli(ctx: click.Context, server_url: str) -> None:
    """Run Python scripts on the telescope: prepare, start, watch and stop them."""
    ctx.obj = server_url


def main(args: Sequence[str] | None = None) -> None:
    """Run `oet`; exits with a code of `oet_cli.exits.Exit`.

    Args:
        args: Words of the command line; None for those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A script may print what the terminal's encoding lacks: show it escaped rather than fail.
            stream.reconfigure(errors="backslashreplace")
    sys.exit(int(_run(args)))


def _run(args: Sequence[str] | None) -> int:
    """Run the command; say what went wrong, in words, and return the exit code."""
    try:
        take_interrupt()
        with raised(signal.SIGINT):
            return int(cli(args, standalone_mode=False) or Exit.OK)
    except CliError as error:
        if error.code is Exit.PIPE_CLOSED:
            # `oet ... | head` is no error to talk of; but Python would complain when it flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            click.echo(f"Error: {error}", err=True)
        return error.code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except Exception as error:
        if os.environ.get("OET_DEBUG"):
            raise
        text = f"Error: oet itself failed ({type(error).__name__}: {error}). OET_DEBUG=1 shows where; please report it."
        click.echo(text, err=True)
        return Exit.DEFECT


if __name__ == "__main__":
    main()
