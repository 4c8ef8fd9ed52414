"""Write everything that is made from the code: `make generate`. `make verify` fails when that changes a file."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import click
from falcon.testing import TestClient
from generate_chart import build_values_schema, resolve_reference
from generate_ini import build_ini
from generate_metrics import METRICS_HEAD, list_api_metrics, list_operator_metrics
from generate_reference import build_crd_page, build_events_page, build_news_page, build_rest_page

from oet_api.app import create_app
from oet_api.services import compute_base
from oet_crds.generate import FILE_NAME, render_crd
from oet_crds.reasons import EventReason, Reason
from oet_crds.settings import ServerSettings, Settings
from oet_crds.states import FINAL_STATES, TRANSITIONS, ConditionType, State, is_allowed

ROOT = Path(__file__).parents[1]
NOTE = "<!-- Written by `make generate`. Do not edit. -->\n"

USUAL_PATHS = (
    ("a script with `init`", "CREATING IDLE LOADING IDLE INITIALISING READY RUNNING READY COMPLETE"),
    ("a script without `init`", "CREATING IDLE LOADING IDLE READY RUNNING READY COMPLETE"),
    ("with an environment of its own", "CREATING IDLE PREP_ENV IDLE LOADING IDLE READY RUNNING READY COMPLETE"),
    ("stopped while it runs", "CREATING IDLE LOADING IDLE READY RUNNING STOPPED"),
    ("stopped before it is ready", "CREATING IDLE LOADING STOPPED"),
    ("its file does not exist", "CREATING IDLE LOADING FAILED"),
)


def build_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table and an empty one after it."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines] + [""]


def read_meanings(words: type[Enum]) -> dict[str, str]:
    """Return what the source says below each member of an enum, by the member's value."""
    (body,) = [node.body for node in ast.parse(inspect.getsource(words)).body if isinstance(node, ast.ClassDef)]
    meanings = {}
    for before, after in itertools.pairwise(body):
        if isinstance(before, ast.Assign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            name = before.targets[0]
            assert isinstance(name, ast.Name)
            meanings[str(words[name.id])] = " ".join(str(after.value.value).split())
    return meanings


def build_path(words: str) -> str:
    """Return a path with arrows. Raises ValueError when the transition table does not allow a step of it."""
    states = [State(word) for word in words.split()]
    for before, after in itertools.pairwise(states):
        if not is_allowed(before, after):
            raise ValueError(f"{after} never follows {before}: correct USUAL_PATHS or the transition table")
    return " → ".join(states)


def build_states_page() -> str:
    """Return the page on states and reasons, from the transition table and the enums."""
    lines = [NOTE, "# States and reasons\n", "## States\n"]
    lines += ["What `oet procedure list` shows, and what the event stream reports. A final state never changes.\n"]
    meanings = read_meanings(State)
    rows = []
    for state in State:
        after = ", ".join(str(one) for one in State if one in TRANSITIONS[state]) or "nothing: final"
        rows.append([f"**{state}**" if state in FINAL_STATES else str(state), meanings[state], after])
    lines += build_table(["state", "meaning", "may be followed by"], rows)
    lines += ["## Usual paths\n"]
    lines += build_table(["of", "path"], [[name, build_path(path)] for name, path in USUAL_PATHS])
    lines += ["## Reasons\n", "Why it is in that state (`reason`), beside a message in words.\n"]
    lines += build_table(["reason", "meaning"], [[f"`{word}`", text] for word, text in read_meanings(Reason).items()])
    lines += ["## Conditions\n", "On Kubernetes, for `kubectl wait --for=condition=...` (`status.conditions`).\n"]
    lines += build_table(
        ["condition", "meaning"], [[f"`{word}`", text] for word, text in read_meanings(ConditionType).items()]
    )
    lines += [
        "## Events of Kubernetes\n",
        "What `kubectl describe` shows for a while. Trouble has a reason of those above.\n",
    ]
    lines += build_table(
        ["reason", "meaning"], [[f"`{word}`", text] for word, text in read_meanings(EventReason).items()]
    )
    return "\n".join(lines)


def describe_bounds(schema: dict[str, Any]) -> str:
    """Return what values a setting takes, in words."""
    words = {
        "minimum": "at least {}",
        "exclusiveMinimum": "more than {}",
        "maximum": "at most {}",
        "pattern": "like `{}`",
    }
    if "enum" in schema:
        return " or ".join(f"`{word}`" for word in schema["enum"])
    bounds = [text.format(schema[key]) for key, text in words.items() if key in schema]
    return ", ".join([schema["type"], *bounds])


def build_settings_page() -> str:
    """Return the page on settings, from their models."""
    lines = [
        NOTE,
        "# Settings\n",
        "Order of authority, for each key by itself: environment variable, the file that `OET_CONFIG` names, `oet.ini` in the",
        "home folder, the `oet.ini` in the root of the installation, the default. An unknown section or key is an error,",
        "because a misspelt limit is a limit that is not there. `oet config show` prints what is in force, and why.\n",
    ]
    for name, field in Settings.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        lines.append(f"## [{name}]\n")
        rows = []
        whole = section.model_json_schema()
        for key, about in whole["properties"].items():
            schema = resolve_reference(about, whole)
            default = f"`{schema['default']}`" if schema["default"] != "" else "(empty)"
            rows.append([f"`{key}`", default, describe_bounds(schema), f"`{schema['env']}`", schema["description"]])
        lines += build_table(["key", "default", "value", "environment", "meaning"], rows)
    return "\n".join(lines)


def build_metrics_page() -> str:
    """Return the page on metrics, from what /metrics answers."""
    lines = [
        NOTE,
        "# Metrics\n",
        "For Prometheus, at `/metrics`. A histogram is its name with `_bucket`, `_sum` and `_count`.\n",
    ]
    lines += ["## REST server\n", *build_table(METRICS_HEAD, list_api_metrics())]
    lines += ["## Operator\n", "On its own port, with `process_*` (memory, CPU, open files) beside them.\n"]
    lines += build_table(METRICS_HEAD, list_operator_metrics())
    return "\n".join(lines)


def list_commands(path: list[str], command: click.Command) -> Iterator[list[str]]:
    """Return the words of every command below one, itself first."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from list_commands([*path, name], below)


def build_cli_page() -> str:
    """Return the page on the command line client: the help of every command, as users see it."""
    from oet_cli.main import cli

    # Nothing of this machine may show: no width of its terminal, no settings of its user.
    kept = {key: value for key, value in os.environ.items() if key == "PYTHONPATH"}
    environ = {**kept, "COLUMNS": "100", "TERM": "dumb", "HOME": os.devnull, "LC_ALL": "C.UTF-8"}
    lines = [NOTE, "# Command line\n"]
    for words in list_commands([], cli):
        command = [str(Path(sys.executable).with_name("oet")), *words, "--help"]
        text = subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout
        title = " ".join(["oet", *words])
        lines += [f"## {title}\n", "```text", *(line.rstrip() for line in text.strip().splitlines()), "```", ""]
    return "\n".join(lines)


def build_openapi() -> str:
    """Return the API's own description of itself, as a server with default settings gives it."""
    settings = ServerSettings()
    # Nothing but the description is asked for, so there is no engine behind it.
    app = create_app(None, None, settings)  # type: ignore[arg-type]
    answer = TestClient(app).simulate_get(f"{compute_base(settings)}/openapi.json", host=settings.host)
    return json.dumps(answer.json, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def render_reference() -> dict[str, Callable[[], str]]:
    """Return the builders of the pages of `generate_reference`, by their files."""
    return {
        "docs/reference/rest.md": lambda: build_rest_page(NOTE, json.loads(build_openapi()), build_table),
        "docs/reference/scriptexecution.md": lambda: build_crd_page(NOTE, render_crd(), build_table),
        "docs/reference/events.md": lambda: build_events_page(NOTE, read_meanings, build_table),
        "docs/news.md": lambda: build_news_page(NOTE, ROOT / "docs" / "changes"),
    }


PAGES: dict[str, Callable[[], str]] = {
    f"crds/generated/{FILE_NAME}": render_crd,
    f"charts/oet/crds/{FILE_NAME}": render_crd,
    "charts/oet/values.schema.json": build_values_schema,
    "oet.ini": build_ini,
    "docs/reference/states.md": build_states_page,
    "docs/reference/settings.md": build_settings_page,
    "docs/reference/metrics.md": build_metrics_page,
    "docs/reference/cli.md": build_cli_page,
    "docs/reference/openapi.json": build_openapi,
    **render_reference(),
}
"""What is generated, and by what."""


def main() -> None:
    """Write all generated files."""
    for name, build in PAGES.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(build(), encoding="utf-8")


if __name__ == "__main__":
    main()
