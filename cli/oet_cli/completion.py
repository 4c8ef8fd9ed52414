"""`oet completion`: the shell's side of completion, made by click."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes `oet` in your shell.

    For bash: eval "$(oet completion bash)"
    """
    completer = get_completion_class(shell)
    assert completer is not None  # The choice has only shells that click knows.
    click.echo(completer(ctx.find_root().command, {}, "oet", "_OET_COMPLETE").source())
