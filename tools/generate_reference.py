"""Reference pages that are no lists of settings or commands: REST from its OpenAPI document, the resource, events, the news."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from oet_crds.reasons import Reason
from oet_crds.topics import EntryKind, Topic

__all__ = ["build_crd_page", "build_events_page", "build_news_page", "build_rest_page"]

ROOT = Path(__file__).parents[1]

Json = Mapping[str, Any]
Table = Callable[[Sequence[str], Sequence[Sequence[str]]], list[str]]

SORTS = {"breaking": "Breaking", "new": "New", "fixed": "Fixed"}


def describe_type(schema: Json) -> str:
    """Return what a JSON schema allows, in words: types, names of other objects as links."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(describe_type(one) for one in schema[several])
    if "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {describe_type(schema.get('items', {}))}"
    return "nothing" if kind == "null" else str(kind)


def build_rest_page(note: str, document: Json, table: Table) -> str:
    """Return the page on the REST API, from its OpenAPI document."""
    lines = [
        note,
        "# REST API\n",
        "The base path is `/NAMESPACE/oet/api/v7`. A running server shows and tries all of this at `/ui` below it; the document",
        "itself is [openapi.json](openapi.json).\n",
    ]
    base = str(document["info"].get("x-base", ""))
    for path, methods in document["paths"].items():
        short = "/" + path.removeprefix(base).partition("/api/v")[2].partition("/")[2]
        for method, about in methods.items():
            lines += [
                f"## {method.upper()} {short}\n",
                f"{about['summary']}. {about.get('description', '')}".strip() + "\n",
            ]
            lines += describe_operation(about, table)
    lines += ["## Objects\n"]
    for name, schema in document["components"]["schemas"].items():
        lines += [f"### {name}\n", *([f"{schema['description']}\n"] if "description" in schema else [])]
        if "enum" in schema:
            lines += [describe_type(schema) + "\n"]
        required = schema.get("required", [])
        rows = [
            [f"`{key}`" + (" (required)" if key in required else ""), describe_type(one), one.get("description", "")]
            for key, one in schema.get("properties", {}).items()
        ]
        lines += table(["field", "type", "meaning"], rows) if rows else []
    return "\n".join(lines)


def describe_operation(about: Json, table: Table) -> list[str]:
    """Return the lines on an operation's parameters, body and answers."""
    lines: list[str] = []
    rows = [
        [f"`{one['name']}`", one["in"], describe_type(one["schema"]), one.get("description", "")]
        for one in about.get("parameters", [])
    ]
    lines += table(["parameter", "in", "type", "meaning"], rows) if rows else []
    for kind, body in about.get("requestBody", {}).get("content", {}).items():
        lines += [f"Body ({kind}): {describe_type(body['schema'])}\n"]
    answers = []
    for status, answer in about["responses"].items():
        types = [describe_type(one.get("schema", {})) for one in answer.get("content", {}).values()]
        answers.append([status, answer["description"], ", ".join(types)])
    return lines + table(["answer", "when", "body"], answers)


def build_crd_page(note: str, definition: str, table: Table) -> str:
    """Return the page on the resource, from its definition as YAML."""
    spec = yaml.safe_load(definition)["spec"]
    (version,) = spec["versions"]
    names = spec["names"]
    lines = [
        note,
        f"# {names['kind']}\n",
        f"`{spec['group']}/{version['name']}`, namespaced, short name `{names['shortNames'][0]}`.",
        "`kubectl explain se.spec` shows the same.\n",
    ]
    schema = version["schema"]["openAPIV3Schema"]["properties"]
    for part in ("spec", "status"):
        lines += [f"## {part}\n", *table(["field", "type", "meaning"], list(list_fields(schema[part], "")))]
        rules = list(list_rules(schema[part], part))
        if rules:
            lines += ["The API server refuses what breaks a rule:\n", *table(["at", "rule"], rules)]
    columns = [[one["name"], f"`{one['jsonPath']}`"] for one in version["additionalPrinterColumns"]]
    lines += ["## kubectl get se\n", *table(["column", "from"], columns)]
    return "\n".join(lines)


def list_fields(schema: Json, path: str) -> Iterator[list[str]]:
    """Return path, type and meaning of every field below an object."""
    for key, one in schema.get("properties", {}).items():
        items = one.get("items", {}) if one.get("type") == "array" else one
        own = f"{path}{key}" + ("[]" if items is not one else "")
        name = f"`{own}`" + (" (required)" if key in schema.get("required", []) else "")
        default = f" Default: `{json.dumps(one['default'])}`." if one.get("default") not in (None, {}) else ""
        yield [name, describe_type(one), f"{one.get('description', '')}{default}"]
        yield from list_fields(items, f"{own}.")


def list_rules(schema: Json, path: str) -> Iterator[list[str]]:
    """Return place and words of every rule at and below an object."""
    for rule in schema.get("x-kubernetes-validations", []):
        yield [f"`{path}`", rule["message"]]
    for key, one in schema.get("properties", {}).items():
        yield from list_rules(one, f"{path}.{key}")


def build_events_page(note: str, meanings: Callable[[type[Enum]], Mapping[str, str]], table: Table) -> str:
    """Return the page on what is told: topics of the event stream, kinds of entries, and Kubernetes Events."""
    topics, kinds = meanings(Topic), meanings(EntryKind)
    lines = [
        note,
        "# Events\n",
        "## Topics of the event stream\n",
        "`GET /stream` and `oet listen` tell them; scripts may publish on any other topic.\n",
        *table(["topic", "meaning"], [[f"`{topic}`", topics.get(str(topic), "")] for topic in Topic]),
        "## Entries of a timeline\n",
        "`GET /procedures/{id}/events` has them, oldest first.\n",
        *table(["kind", "meaning"], [[f"`{kind}`", kinds.get(str(kind), "")] for kind in EntryKind]),
        "## Kubernetes Events\n",
        "`kubectl describe se NAME` shows them. The operator leaves one when an execution has not gone as usual; its reason is",
        "one of these.\n",
        *table(["reason", "meaning"], [[f"`{word}`", text] for word, text in meanings(Reason).items()]),
    ]
    return "\n".join(lines)


def build_news_page(note: str, folder: Path) -> str:
    """Return the page on what is new, from the fragments that changes have left."""
    lines = [note, "# What is new\n", "Breaking is what differs from the existing OET or from an earlier version.\n"]
    for sort, title in SORTS.items():
        lines += [f"## {title}\n"]
        for path in sorted(folder.glob(f"*.{sort}.md")):
            lines += [f"### {path.name.partition('.')[0].replace('-', ' ').capitalize()}\n"]
            lines += [f"```{{include}} changes/{path.name}\n```\n"]
    return "\n".join(lines)
