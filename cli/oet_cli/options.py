"""What several commands share: options, and how a command line with arguments for a script is taken apart."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from oet_cli.arguments import parse_flag, parse_words, split_words
from oet_cli.completion import complete_file, complete_pid
from oet_crds.states import Mode

__all__ = [
    "FLAG",
    "ScriptCommand",
    "build_request",
    "build_script",
    "call_option",
    "flag_option",
    "git_options",
    "merge_calls",
    "output_option",
    "pid_option",
    "rehearse_option",
    "print_result",
    "ready_timeout_option",
    "reason_option",
    "script_argument",
    "take_script",
    "words_argument",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])

WORDS = "words"
"""Name of the parameter that takes what is meant for the script."""


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


class ScriptCommand(click.Command):
    """A command that understands `--nolisten` as `--listen=False`, as users of OET know it.

    If it takes words for the script, it hands on to it the options that it does not know itself, and what is after `--`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ignore_unknown_options = any(param.name == WORDS for param in self.params)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the command line apart."""
        flags = {name.lstrip("-") for param in self.params if param.type is FLAG for name in param.opts}
        at = args.index("--") if "--" in args else len(args)
        own = [_write_out(word, flags) for word in args[:at]]
        if not self.ignore_unknown_options:
            return super().parse_args(ctx, [*own, *args[at:]])
        rest = super().parse_args(ctx, own)
        ctx.params[WORDS] = (*ctx.params.get(WORDS, ()), *args[at:])
        return rest


def _write_out(word: str, flags: set[str]) -> str:
    name = word.removeprefix("--no").lstrip("-_")
    return f"--{name}=False" if word.startswith("--no") and name in flags else word


def flag_option(name: str, about: str, *, default: bool) -> Callable[[_Command], _Command]:
    """Build an option with a truth value; alone, without a value, it means True."""
    names = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
    return click.option(
        *names, type=FLAG, is_flag=False, flag_value="True", default=default, show_default=True, help=about
    )


def pid_option(command: _Command) -> _Command:
    """Add `--pid`."""
    number = click.IntRange(min=1)
    return click.option("--pid", type=number, help="Id of the procedure.", shell_complete=complete_pid)(command)


def rehearse_option(command: _Command) -> _Command:
    """Add `--rehearse`."""
    about = "Run against a simulated telescope, out of reach of the real one; no subarray is held."
    return click.option("--rehearse", is_flag=True, help=about)(command)


def reason_option(command: _Command) -> _Command:
    """Add `--reason`."""
    return click.option("--reason", metavar="TEXT", help="Why; kept in the procedure's timeline.")(command)


def ready_timeout_option(command: _Command) -> _Command:
    """Add `--ready-timeout`."""
    about = "FAIL it when it is not READY after so many seconds."
    return click.option("--ready-timeout", type=click.IntRange(min=1), metavar="SECONDS", help=about)(command)


def output_option(command: _Command) -> _Command:
    """Add `-o`."""
    choice = click.Choice(["table", "json", "yaml"])
    return click.option("-o", "--output", type=choice, default="table", show_default=True, help="How to show it.")(
        command
    )


def words_argument(command: _Command) -> _Command:
    """Take everything else as arguments of the script."""
    return click.argument(WORDS, metavar="[ARGS]... [--KEY=VALUE]...", nargs=-1, type=click.UNPROCESSED)(command)


def script_argument(command: _Command) -> _Command:
    """Take a script, and everything else as its arguments."""
    return click.argument(
        WORDS,
        metavar="SCRIPT [ARGS]... [--KEY=VALUE]...",
        nargs=-1,
        type=click.UNPROCESSED,
        shell_complete=complete_file,
    )(command)


def git_options(command: _Command) -> _Command:
    """Add the options of git scripts."""
    command = flag_option("create_env", "Build the git script's own environment.", default=False)(command)
    for name, about in (("commit", "Commit"), ("branch", "Branch"), ("repo", "Repository")):
        command = click.option(f"--git_{name}", f"--git-{name}", help=f"{about} of a git:// script.")(command)
    return command


def call_option(name: str) -> Callable[[_Command], _Command]:
    """Build an option that takes all arguments of one function as JSON."""
    about = f'All arguments of {name}: {{"args": [], "kwargs": {{}}}}.'
    return click.option(f"--{name}", metavar="JSON", callback=_parse_call, help=about)


def _parse_call(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> dict[str, Any]:
    if value is None:
        return {"args": [], "kwargs": {}}
    try:
        call = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"not JSON: {error}") from error
    if isinstance(call, dict) and set(call) <= {"args", "kwargs"}:
        args, kwargs = call.get("args", []), call.get("kwargs", {})
        if isinstance(args, list) and isinstance(kwargs, dict):
            return {"args": args, "kwargs": kwargs}
    raise click.BadParameter('it looks like {"args": [1, 2], "kwargs": {"name": "value"}}')


def merge_calls(call: dict[str, Any], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call with more after them; of two with one name the later wins. Pure."""
    return {"args": [*call["args"], *args], "kwargs": {**call["kwargs"], **kwargs}}


def take_script(words: Sequence[str]) -> tuple[str, list[Any], dict[str, Any]]:
    """Return the script, and its positional and keyword arguments.

    Raises:
        click.UsageError: There is no script.
    """
    positional, _ = split_words(words)
    if not positional:
        raise click.UsageError("Missing argument 'SCRIPT'.")
    args, kwargs = parse_words(words)
    return positional[0], args[1:], kwargs


def build_script(name: str, git: dict[str, Any]) -> dict[str, Any]:
    """Build the script part of a request.

    Args:
        name: `file://...`, `git://...`, a path, or `-` for a script on standard input.
        git: What `git_options` took.

    Raises:
        click.UsageError: They do not fit together, or the script cannot be read.
    """
    create_env = bool(git["create_env"])
    given = {key: value for key, value in git.items() if key != "create_env" and value is not None}
    if name.startswith("git://"):
        return {"script_type": "git", "script_uri": name, "git_args": given, "create_env": create_env}
    if given or create_env:
        words = ", ".join([*given, *(["create_env"] if create_env else [])])
        raise click.UsageError(f"Git arguments ({words}) are for git:// scripts only.")
    if name == "-":
        return {"script_type": "inline", "source": _read_standard_input()}
    if name.startswith("file://"):
        return {"script_type": "filesystem", "script_uri": name}
    if "://" in name:
        raise click.UsageError(
            f"Script URI type not handled: {name}. Use file://, git://, a path, or - for standard input."
        )
    path = Path(name)
    if not path.is_file():
        raise click.UsageError(_describe_missing(path))
    return {"script_type": "filesystem", "script_uri": f"file://{path.absolute()}"}


def _describe_missing(path: Path) -> str:
    if path.exists():
        return f"{path} is no file: name the script itself."
    return f"There is no script {path}" + ("." if path.is_absolute() else f" in {os.getcwd()}.")


def build_request(
    script: dict[str, Any],
    init: dict[str, Any],
    *,
    rehearse: bool,
    reason: str | None = None,
    ready_timeout: int | None = None,
) -> dict[str, Any]:
    """Build the request for a procedure from its script and the arguments of init. Pure."""
    mode = {"mode": str(Mode.REHEARSAL)} if rehearse else {}
    limit = {} if ready_timeout is None else {"ready_timeout_seconds": ready_timeout}
    why = {} if reason is None else {"reason": reason}
    return {"script": script, "script_args": {"init": init}, **mode, **limit, **why}


def _read_standard_input() -> str:
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Python's source is UTF-8, whatever the encoding of the terminal is.
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")
    try:
        # None when the shell closed it (`<&-`).
        source = "" if sys.stdin is None else sys.stdin.read()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"The script on standard input is not UTF-8: {error}") from error
    if not source.strip():
        raise click.UsageError("The script on standard input is empty.")
    return source


def print_result(result: Any, output: str, render: Callable[[Any], str]) -> None:
    """Print a result as a table, JSON or YAML."""
    if output == "json":
        click.echo(json.dumps(result, indent=2))
    elif output == "yaml":
        import yaml

        click.echo(yaml.safe_dump(result, sort_keys=False), nl=False)
    else:
        click.echo(render(result))
