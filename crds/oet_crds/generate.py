"""Write the CustomResourceDefinition from the models: `python -m oet_crds.generate FOLDER`.

A structural schema is stricter than JSON Schema: no references, no unions, no null (but in values that are kept as they
come); see
https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from oet_crds.execution import ScriptExecution
from oet_crds.names import CATEGORY, GROUP, KIND, PLURAL, SHORT_NAME, VERSION
from oet_crds.reasons import Reason

__all__ = ["FILE_NAME", "build_crd", "build_structural_schema", "render_crd"]

FILE_NAME = f"{PLURAL}.{GROUP}.yaml"

_HEADER = "# Written by `make generate` from crds/oet_crds/execution.py. Do not edit.\n"

_KEYWORDS = (
    *("description", "type", "nullable", "format", "enum", "default"),
    *("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"),
    *("minLength", "maxLength", "pattern", "minItems", "maxItems", "minProperties", "maxProperties", "required"),
)
"""The keywords of JSON Schema that a structural schema may have beside its structure, in the order they are written in."""

_COLUMNS = (
    ("ID", "integer", ".status.procedureId", "The number that users know it by."),
    ("Script", "string", ".status.script", "Where the script is."),
    ("Subarray", "integer", ".status.subarray", "Subarray that the start locks, named by the spec or its arguments."),
    ("State", "string", ".status.state", "What it is doing."),
    ("Age", "date", ".metadata.creationTimestamp", "Time since it was created."),
)

_WIDE_COLUMNS = (
    ("Mode", "string", ".spec.mode", "Operation on the telescope, or Rehearsal on a simulated one."),
    ("Desired", "string", ".spec.desiredState", "What its user wants; empty: Running."),
    ("Reason", "string", ".status.reason", "Why it is in this state."),
    ("Pod", "string", ".status.podName", "The Pod that runs it."),
    ("Message", "string", ".status.message", "The reason in words."),
)
"""Shown by `kubectl get -o wide` only."""

_SELECTABLE = (".status.state", ".status.podName", ".spec.subarray")
"""Fields that a watch may select by: the runner watches its own execution by its Pod's name."""


_OPEN = frozenset({Reason.__name__})
"""Enumerations that grow. An upgrade by Helm leaves the installed CRD as it is, and an older CRD must never refuse the end that a
newer runner or operator reports."""


def build_structural_schema(schema: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Turn a JSON Schema as pydantic writes it into a structural one.

    Args:
        schema: The schema of one place.
        definitions: What its references mean.
        path: Where it is, for the message of an error.

    Raises:
        ValueError: It has no structural form, for example a union of two types.
    """
    flat = _resolve(schema, definitions, path)
    for bound, plain in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if not isinstance(flat.get(bound, True), bool):
            flat[plain], flat[bound] = flat[bound], True
    if "type" not in flat and not flat.get("x-kubernetes-preserve-unknown-fields"):
        raise ValueError(f"{path} has no type, so it has no structural form")
    extensions = sorted(key for key in flat if key.startswith("x-kubernetes-"))
    kept = {key: flat[key] for key in [*_KEYWORDS, *extensions] if key in flat}
    if kept.get("default", 0) is None:
        del kept["default"]  # Absent is absent: nothing is stored as null.
    return kept | _build_inside(flat, definitions, path)


def _build_inside(flat: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Build what is below a schema: properties, values or items."""
    if "properties" in flat:
        parts = flat["properties"].items()
        return {
            "properties": {name: build_structural_schema(part, definitions, f"{path}.{name}") for name, part in parts}
        }
    if isinstance(flat.get("additionalProperties"), Mapping):
        return {"additionalProperties": build_structural_schema(flat["additionalProperties"], definitions, f"{path}.*")}
    if flat.get("type") == "array":
        return {"items": build_structural_schema(flat["items"], definitions, f"{path}[]")}
    return {}


def _resolve(schema: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Put in what is referred to, and turn `T or null` into an optional T; outer descriptions and defaults win."""
    flat = dict(schema)
    while "$ref" in flat or "anyOf" in flat:
        if "$ref" in flat:
            inner = definitions[flat.pop("$ref").rsplit("/", 1)[1]]
        else:
            choices = [choice for choice in flat.pop("anyOf") if choice.get("type") != "null"]
            if len(choices) != 1:
                raise ValueError(f"{path} is a union, which has no structural form")
            inner = choices[0]
        rules = [*inner.get("x-kubernetes-validations", []), *flat.get("x-kubernetes-validations", [])]
        flat = {**inner, **flat, **({"x-kubernetes-validations": rules} if rules else {})}
    return flat


def _without_defaults(schema: Any) -> Any:
    """Return a schema whose fields are absent until somebody writes them: each field of a status has one writer."""
    if isinstance(schema, Mapping):
        return {key: _without_defaults(part) for key, part in schema.items() if key != "default"}
    return schema


def _build_schema() -> dict[str, Any]:
    schema = ScriptExecution.model_json_schema(by_alias=True)
    definitions = {
        name: {key: part for key, part in definition.items() if key != "enum" or name not in _OPEN}
        for name, definition in schema["$defs"].items()
    }
    properties: dict[str, Any] = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
    }
    for name in ("spec", "status"):
        properties[name] = build_structural_schema(schema["properties"][name], definitions, name)
    properties["status"] = _without_defaults(properties["status"])
    root = build_structural_schema({**schema, "properties": {}, "required": ["spec"]}, {}, KIND)
    return {**root, "properties": properties}


def _build_columns() -> list[dict[str, Any]]:
    return [
        {"name": name, "type": type_, "jsonPath": path, "description": about, **wide}
        for columns, wide in ((_COLUMNS, {}), (_WIDE_COLUMNS, {"priority": 1}))
        for name, type_, path, about in columns
    ]


def build_crd() -> dict[str, Any]:
    """Build the CustomResourceDefinition of ScriptExecution."""
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _build_schema()},
        "subresources": {"status": {}},
        "selectableFields": [{"jsonPath": path} for path in _SELECTABLE],
        "additionalPrinterColumns": _build_columns(),
    }
    names = {
        "kind": KIND,
        "listKind": f"{KIND}List",
        "plural": PLURAL,
        "singular": KIND.lower(),
        "shortNames": [SHORT_NAME],
        "categories": [CATEGORY],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


class _Dumper(yaml.SafeDumper):
    """Writes equal parts again in each place, instead of a reference to the first."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def render_crd() -> str:
    """Return the text of the CRD's YAML file; equal for equal models."""
    return _HEADER + yaml.dump(build_crd(), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def main() -> None:
    """Write the CRD into the folder that the command line names, by default the one where it is kept."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).write_text(render_crd(), encoding="utf-8")


if __name__ == "__main__":
    main()
