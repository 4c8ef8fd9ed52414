"""The CRD is what the models say, and what Kubernetes accepts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from oet_crds.execution import ScriptExecutionSpec
from oet_crds.generate import FILE_NAME, build_crd, build_structural_schema, render_crd
from oet_crds.states import State

ROOT = Path(__file__).parents[2]


def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def _walk(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from _walk(part, f"{path}.{name}")
    if "items" in schema:
        yield from _walk(schema["items"], f"{path}[]")


def test_committed_crd_is_the_generated_one() -> None:
    assert (ROOT / "crds/generated" / FILE_NAME).read_text() == render_crd(), "run `make generate`"


def test_kubernetes_accepts_the_crd() -> None:
    command = [str(Path(sys.executable).with_name("kubernetes-validate")), "--strict", "-k", "1.35"]
    done = subprocess.run([*command, ROOT / "crds/generated" / FILE_NAME], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_place_of_the_schema_allows_what_is_not_structural() -> None:
    for path, schema in _walk(_schema(), ""):
        assert not {"$ref", "anyOf", "oneOf", "allOf", "const", "nullable"} & schema.keys(), path


def test_every_field_that_a_user_writes_is_described() -> None:
    for path, schema in _walk(_schema()["properties"]["spec"], "spec"):
        assert schema.get("description") or path.endswith("[]"), path


def test_state_is_one_of_the_eleven() -> None:
    assert set(_schema()["properties"]["status"]["properties"]["state"]["enum"]) == {str(state) for state in State}


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.yaml")))
def test_example_is_valid(name: str) -> None:
    example = yaml.safe_load((ROOT / "examples" / name).read_text())
    jsonschema.validate(example, _schema())
    ScriptExecutionSpec.model_validate(example["spec"])


@pytest.mark.parametrize(
    ("schema", "word"),
    [({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "union"), ({"description": "x"}, "no type")],
)
def test_model_without_structural_form_is_refused_with_its_place(schema: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=rf"spec\.field.*{word}"):
        build_structural_schema(schema, {}, "spec.field")


def test_bounds_and_options_get_their_structural_form() -> None:
    schema = {
        "anyOf": [{"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 9}, {"type": "null"}],
        "default": None,
    }
    expected = {"type": "integer", "minimum": 0, "exclusiveMinimum": True, "maximum": 9, "exclusiveMaximum": True}
    assert build_structural_schema(schema, {}, "x") == expected
