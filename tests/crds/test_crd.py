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
from oet_crds.names import GROUP, KIND, VERSION
from oet_crds.states import State

ROOT = Path(__file__).parents[2]


def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def _walk(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from _walk(part, f"{path}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", ".*")):
        if key in schema:
            yield from _walk(schema[key], path + mark)


def test_committed_crd_is_the_generated_one() -> None:
    assert (ROOT / "crds/generated" / FILE_NAME).read_text() == render_crd(), "run `make generate`"


def test_kubernetes_accepts_the_crd() -> None:
    command = [str(Path(sys.executable).with_name("kubernetes-validate")), "--strict", "-k", "1.35"]
    done = subprocess.run([*command, ROOT / "crds/generated" / FILE_NAME], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_place_of_the_schema_allows_what_is_not_structural() -> None:
    for path, schema in _walk(_schema(), ""):
        assert not {"$ref", "anyOf", "oneOf", "allOf", "const"} & schema.keys(), path


def test_null_is_stored_where_any_json_is_kept_only() -> None:
    nullable = {path for path, schema in _walk(_schema(), "") if schema.get("nullable")}
    args = {f".spec.args.{call}.{place}" for call in ("init", "main") for place in ("args[]", "kwargs.*")}
    assert nullable == args | {f".spec.podTemplate.{part}" for part in ("metadata", "spec")}


@pytest.mark.parametrize("part", ["spec", "status"])
def test_every_field_is_described(part: str) -> None:
    for path, schema in _walk(_schema()["properties"][part], part):
        assert schema.get("description") or path.endswith(("[]", ".*")), path


def test_absent_choices_are_filled_in_by_the_api_server() -> None:
    fields = _schema()["properties"]["spec"]["properties"]
    given = {name: field["default"] for name, field in fields.items() if "default" in field}
    assert given == {
        "args": {},
        "mode": "Operation",
        "purpose": "Script",
        "stop": {},
    }
    stop = {name: field["default"] for name, field in fields["stop"]["properties"].items()}
    assert stop == {"gracePeriodSeconds": 10, "abort": False}


def test_status_has_no_defaults_because_each_field_has_one_writer() -> None:
    assert [path for path, schema in _walk(_schema()["properties"]["status"], "") if "default" in schema] == []


def test_reason_that_this_crd_does_not_know_is_accepted() -> None:
    status = _schema()["properties"]["status"]["properties"]
    for place in (status["reason"], status["runner"]["properties"]["exit"]["properties"]["reason"]):
        assert place["type"] == "string"
        assert "enum" not in place


def test_kubectl_shows_the_columns_that_users_expect() -> None:
    version = build_crd()["spec"]["versions"][0]
    columns = [column["name"] for column in version["additionalPrinterColumns"] if not column.get("priority")]
    assert columns == ["ID", "Script", "Subarray", "State", "Age"]


def test_watches_can_select_by_state_pod_and_subarray() -> None:
    version = build_crd()["spec"]["versions"][0]
    for field in version["selectableFields"]:
        place = _schema()
        for step in field["jsonPath"].lstrip(".").split("."):
            place = place["properties"][step]
        assert place["type"] in {"string", "integer", "boolean"}, field
    paths = {field["jsonPath"] for field in version["selectableFields"]}
    assert paths == {".status.state", ".status.podName", ".spec.subarray"}


def test_every_rule_says_in_words_what_it_forbids() -> None:
    rules = [rule for _, schema in _walk(_schema(), "") for rule in schema.get("x-kubernetes-validations", [])]
    assert len(rules) == 21
    assert all(rule["message"] and "\n" not in rule["message"] for rule in rules)


def test_generator_writes_into_the_folder_that_it_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "oet_crds.generate", str(tmp_path / "new")]
    subprocess.run(command, check=True, capture_output=True)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [FILE_NAME]
    assert (tmp_path / "new" / FILE_NAME).read_text() == render_crd()


def test_state_is_one_of_the_eleven() -> None:
    assert set(_schema()["properties"]["status"]["properties"]["state"]["enum"]) == {str(state) for state in State}


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.yaml")))
def test_example_is_valid(name: str) -> None:
    example = yaml.safe_load((ROOT / "examples" / name).read_text())
    jsonschema.validate(example, _schema())
    assert (example["apiVersion"], example["kind"]) == (f"{GROUP}/{VERSION}", KIND)
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
