"""Write the CustomResourceDefinition from the models: `python -m oet_crds.generate FOLDER`.

A structural schema is stricter than JSON Schema: no references, no unions, no null; see
https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from oet_crds.execution import ScriptExecutionSpec, ScriptExecutionStatus
from oet_crds.names import CATEGORY, GROUP, KIND, PLURAL, SHORT_NAME, VERSION

__all__ = ["FILE_NAME", "build_crd", "build_structural_schema", "render_crd"]

FILE_NAME = f"{PLURAL}.{GROUP}.yaml"

_HEADER = "# Written by `make generate` from crds/oet_crds/execution.py. Do not edit.\n"

_KEPT = frozenset(
    {"type", "description", "format", "enum", "default", "required", "pattern", "multipleOf", "uniqueItems"}
    | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength"}
    | {"minItems", "maxItems", "minProperties", "maxProperties"}
)
"""The keywords of JSON Schema that a structural schema may have beside its structure."""

_COLUMNS = (
    ("ID", "integer", ".status.procedureId", "The number that users know it by."),
    ("Script", "string", ".spec.script.file.path", "Path of the script; empty when it is not a file."),
    ("Subarray", "integer", ".spec.subarray", "Subarray that the spec names."),
    ("State", "string", ".status.state", "What it is doing."),
    ("Reason", "string", ".status.reason", "Why it is in this state."),
    ("Age", "date", ".metadata.creationTimestamp", "Time since it was created."),
)

_SELECTABLE = (".status.state", ".status.podName", ".spec.subarray")
"""Fields that a watch may select by: the runner watches its own execution by its Pod's name."""


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
    kept = {key: value for key, value in flat.items() if key in _KEPT or key.startswith("x-kubernetes-")}
    for bound, plain in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in kept and not isinstance(kept[bound], bool):
            kept[plain], kept[bound] = kept[bound], True
    if kept.get("default", 0) is None:
        del kept["default"]
    if "properties" in flat:
        kept["properties"] = {
            name: build_structural_schema(part, definitions, f"{path}.{name}")
            for name, part in flat["properties"].items()
        }
    elif flat.get("type") == "array":
        kept["items"] = build_structural_schema(flat["items"], definitions, f"{path}[]")
    if "type" not in kept and not kept.get("x-kubernetes-preserve-unknown-fields"):
        raise ValueError(f"{path} has no type, so it has no structural form")
    return kept


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


def _build_part(model: type[ScriptExecutionSpec] | type[ScriptExecutionStatus], name: str) -> dict[str, Any]:
    schema = model.model_json_schema(by_alias=True)
    return build_structural_schema(schema, schema.get("$defs", {}), name)


def build_crd() -> dict[str, Any]:
    """Build the CustomResourceDefinition of ScriptExecution."""
    root = {
        "type": "object",
        "description": "One request to run a script, and what became of it.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _build_part(ScriptExecutionSpec, "spec"),
            "status": _build_part(ScriptExecutionStatus, "status"),
        },
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": root},
        "subresources": {"status": {}},
        "selectableFields": [{"jsonPath": path} for path in _SELECTABLE],
        "additionalPrinterColumns": [
            {"name": name, "type": type_, "jsonPath": path, "description": about}
            for name, type_, path, about in _COLUMNS
        ],
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


def render_crd() -> str:
    """Return the text of the CRD's YAML file; equal for equal models."""
    # A copy without shared parts, so that the text has no YAML anchors.
    return _HEADER + yaml.dump(_copy(build_crd()), sort_keys=False, width=120, allow_unicode=True)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(part) for key, part in value.items()}
    return [_copy(part) for part in value] if isinstance(value, (list, tuple)) else value


def main() -> None:
    """Write the CRD into the folder that the command line names."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).write_text(render_crd(), encoding="utf-8")


if __name__ == "__main__":
    main()
