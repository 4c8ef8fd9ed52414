"""`oet completion`: the shell's side of completion, made by click; and what is completed from the server."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

from oet_cli.client import Client
from oet_cli.exits import CliError
from oet_cli.texts import describe_script

__all__ = ["complete_file", "complete_pid", "completion"]

CONNECT_SECONDS = 0.3
READ_SECONDS = 0.7
"""Who pressed Tab waits no longer than this for a server that is away."""

HELP = """Print a script that completes `oet` in your shell, procedure ids included.

\b
bash: eval "$(oet completion bash)"
zsh:  eval "$(oet completion zsh)"
fish: oet completion fish | source
"""


@click.command(help=HELP)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes `oet` in a shell."""
    completer = get_completion_class(shell)
    assert completer is not None  # The choice has only shells that click knows.
    click.echo(completer(ctx.find_root().command, {}, "oet", "_OET_COMPLETE").source())


def complete_pid(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the ids of procedures, newest first; none when the server does not answer at once."""
    url = str(ctx.find_root().params.get("server_url", ""))
    try:
        procedures = Client(url, CONNECT_SECONDS, READ_SECONDS).read_all()
    except CliError:
        return []
    return [
        CompletionItem(str(one["id"]), help=f"{one['state']} {describe_script(one['script'])}")
        for one in reversed(procedures)
        if str(one["id"]).startswith(incomplete)
    ]


def complete_file(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a path."""
    return [CompletionItem(incomplete, type="file")]
