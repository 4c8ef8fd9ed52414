"""`oet config`: the settings in force on this machine."""

from __future__ import annotations

import os

import click
from pydantic import SecretStr

from oet_cli.exits import EPILOG, CliError, Exit
from oet_cli.options import output_option, print_result
from oet_cli.tables import build_table
from oet_crds.settings import Effective, SettingsError, explain_settings

__all__ = ["config"]


@click.group(epilog=EPILOG)
def config() -> None:
    """Show the settings in force."""


@config.command(epilog=EPILOG)
@output_option
def show(output: str) -> None:
    """Print every setting, its value, and where the value came from.

    These are the settings of this user on this machine, which a server, operator or script that is started here gets. A server
    that runs elsewhere has those of its own machine, Pod or container.
    """
    try:
        settings = list(explain_settings(os.environ))
    except SettingsError as error:
        raise CliError(str(error), Exit.USAGE) from error
    rows = [[f"[{one.section}] {one.key}", _write(one.value), one.source] for one in settings]
    print_result(
        [_describe(one) for one in settings], output, lambda _: build_table(["Setting", "Value", "Source"], rows)
    )


def _describe(one: Effective) -> dict[str, object]:
    return {
        "section": one.section,
        "key": one.key,
        # A password shows as stars, and as nothing where there is none; a word of a list is a text.
        "value": str(one.value) if isinstance(one.value, (str, SecretStr)) else one.value,
        "source": one.source,
        "environment": one.variable,
    }


def _write(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
