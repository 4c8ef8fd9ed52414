"""Write everything that is made from the code: `make generate`. `make verify` fails when that changes a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
from generate_ini import build_ini

from oet_api.openapi import build_document
from oet_crds.generate import FILE_NAME, render_crd
from oet_crds.settings import Settings
from oet_crds.states import FINAL_STATES, TRANSITIONS, State

ROOT = Path(__file__).parents[1]
NOTE = "<!-- Written by `make generate`. Do not edit. -->\n\n"


def build_states_page() -> str:
    """Return the page on states, from the transition table."""
    lines = [NOTE + "# States\n", "| state | final | may be followed by |", "|---|---|---|"]
    for state in State:
        after = ", ".join(str(one) for one in State if one in TRANSITIONS[state]) or "nothing"
        lines.append(f"| {state} | {'yes' if state in FINAL_STATES else ''} | {after} |")
    return "\n".join(lines) + "\n"


def build_settings_page() -> str:
    """Return the page on settings, from their models."""
    lines = [NOTE + "# Settings\n"]
    for name, field in Settings.model_fields.items():
        lines += [f"## [{name}]\n", "| key | default | environment | meaning |", "|---|---|---|---|"]
        for key, setting in field.annotation.model_fields.items():  # type: ignore[union-attr]
            variable = setting.json_schema_extra["env"]
            lines.append(f"| `{key}` | `{setting.default}` | `{variable}` | {setting.description} |")
        lines.append("")
    return "\n".join(lines)


def list_commands(path: list[str], command: click.Command) -> list[list[str]]:
    """Return the words of every command below one, itself first."""
    found = [path]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                found += list_commands([*path, name], below)
    return found


def build_cli_page() -> str:
    """Return the page on the command line client: the help of every command."""
    from oet_cli.main import cli

    lines = [NOTE + "# Command line\n"]
    for words in list_commands([], cli):
        command = [sys.executable, "-m", "oet_cli", *words, "--help"]
        environ = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "PATH": "", "HOME": "/nonexistent"}
        text = subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout
        text = text.replace("python -m oet_cli", "oet")
        lines += [f"## oet {' '.join(words)}".rstrip() + "\n", "```text", text.rstrip(), "```", ""]
    return "\n".join(lines)


def main() -> None:
    """Write all generated files."""
    pages = {
        f"crds/generated/{FILE_NAME}": render_crd(),
        "oet.ini": build_ini(),
        "docs/reference/states.md": build_states_page(),
        "docs/reference/settings.md": build_settings_page(),
        "docs/reference/cli.md": build_cli_page(),
        "docs/reference/openapi.json": json.dumps(build_document(), indent=1, sort_keys=True) + "\n",
    }
    for name, text in pages.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
