"""Options that several commands share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from oet_cli.arguments import parse_flag

__all__ = ["FLAG", "FREE", "build_script", "output_option", "pid_option", "print_result", "words_argument"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

FREE = {"ignore_unknown_options": True, "allow_interspersed_args": True}
"""Context settings of commands that hand unknown options on to the script."""


class Flag(click.ParamType[bool]):
    """A truth value written out, as in `--listen=False`."""

    name = "True|False"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        """Return the truth value; a wrong word is a usage error."""
        if isinstance(value, bool):
            return value
        try:
            return parse_flag(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


FLAG = Flag()


def pid_option(command: _Command) -> _Command:
    """Add `--pid`."""
    return click.option("--pid", type=click.IntRange(min=1), help="Id of the procedure.")(command)


def output_option(command: _Command) -> _Command:
    """Add `-o`."""
    choice = click.Choice(["table", "json", "yaml"])
    return click.option("-o", "--output", type=choice, default="table", show_default=True, help="How to show it.")(
        command
    )


def words_argument(command: _Command) -> _Command:
    """Take everything else as arguments of the script."""
    return click.argument("words", metavar="[ARGS] [--KEY=VALUE]...", nargs=-1, type=click.UNPROCESSED)(command)


def print_result(result: Any, output: str, render: Callable[[Any], str]) -> None:
    """Print a result as a table, JSON or YAML."""
    if output == "json":
        click.echo(json.dumps(result, indent=2))
    elif output == "yaml":
        import yaml

        click.echo(yaml.safe_dump(result, sort_keys=False), nl=False)
    else:
        click.echo(render(result))


def build_script(name: str, git: dict[str, str | None], create_env: bool) -> dict[str, Any]:
    """Build the script part of a request.

    Args:
        name: `file://...`, `git://...`, a path, or `-` for a script on standard input.
        git: Git arguments; None for those not given.
        create_env: Whether a git script's own environment is to be built.

    Raises:
        click.UsageError: They do not fit together, or the path names no file.
    """
    given = {key: value for key, value in git.items() if value is not None}
    if name.startswith("git://"):
        return {"script_type": "git", "script_uri": name, "git_args": given, "create_env": create_env}
    if given or create_env:
        words = ", ".join([*given, *(["create_env"] if create_env else [])])
        raise click.UsageError(f"Git arguments ({words}) are for git:// scripts only.")
    if name == "-":
        return {"script_type": "inline", "source": sys.stdin.read()}
    if name.startswith("file://"):
        return {"script_type": "filesystem", "script_uri": name}
    if "://" in name:
        raise click.UsageError(
            f"Script URI type not handled: {name}. Use file://, git://, a path, or - for standard input."
        )
    path = Path(name)
    if not path.is_file():
        raise click.UsageError(f"There is no script {name} in {os.getcwd()}.")
    return {"script_type": "filesystem", "script_uri": f"file://{path.absolute()}"}
