"""The `oet` command. What a command needs is imported when it runs, so that `oet --help` and completion are quick."""

from __future__ import annotations

import importlib
import os
import sys

import click

from oet_cli.exits import EPILOG, CliError, Exit
from oet_crds.names import API_MAJOR, DEFAULT_NAMESPACE

__all__ = ["DEFAULT_URL", "cli", "main"]

DEFAULT_URL = f"http://127.0.0.1:5000/{DEFAULT_NAMESPACE}/oet/api/v{API_MAJOR}"
"""Where `make rest` listens."""

_COMMANDS = {
    "completion": ("oet_cli.completion", "completion", "Print a script that completes `oet` in your shell."),
    "listen": ("oet_cli.listen", "listen", "Show what happens, until Ctrl-C."),
    "procedure": ("oet_cli.procedure", "procedure", "Prepare, start, watch and stop scripts."),
}


class LazyGroup(click.Group):
    """A group that imports a command when it is called, not when it is listed."""

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
    help="Base URL of the REST server; environment: OET_URL.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
@click.pass_context
def cli(ctx: click.Context, server_url: str) -> None:
    """Run Python scripts on the telescope: prepare, start, watch and stop them."""
    ctx.obj = server_url


def main() -> None:
    """Run `oet`; exits with a code of `oet_cli.exits.Exit`."""
    try:
        code = cli(standalone_mode=False)
    except CliError as error:
        click.echo(f"Error: {error}", err=True)
        code = error.code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = Exit.INTERRUPTED
    except BrokenPipeError:
        # Who read our output has enough (`oet ... | head`). Python would complain again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Exit.OK
    sys.exit(int(code or 0))


if __name__ == "__main__":
    main()
