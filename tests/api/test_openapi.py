"""The OpenAPI document, the page that shows it, and the server held against it with generated requests."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from pathlib import Path
from typing import Any

import hypothesis
import openapi_spec_validator
import pytest
import schemathesis
from schemathesis.checks import (
    content_type_conformance,
    negative_data_rejection,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

from oet_api.app import build_application
from oet_api.services import build_services
from oet_crds.settings import OdaSettings, ServerSettings

EXAMPLES = 100
"""Generated requests for each operation, right ones and wrong ones each."""

ACTIVITY = {"sbd_id": "sbd-1", "activity_name": "observe"}
SBD = {"activities": {"observe": {"kind": "filesystem", "path": "file:///a.py"}}}
INLINE = {"script_type": "inline", "source": "def main(): pass"}


CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.fixture
def operations(fakes: Any, tmp_path: Path) -> dict[str, Any]:
    """The operations of an application, by name; its engine grants, and starts and stops take no time."""
    (tmp_path / "sbd/sbd-1").mkdir(parents=True)
    (tmp_path / "sbd/sbd-1/1.json").write_text(json.dumps(SBD))
    timeline = fakes.FakeTimeline()
    store = fakes.FakeStore(timeline)
    settings = ServerSettings(
        start_timeout_seconds=0.05, stop_timeout_seconds=0.05, max_body_bytes=20_000, max_args_bytes=5_000
    )
    app = build_application(build_services(store, timeline, settings, oda=OdaSettings(data_dir=str(tmp_path))))
    schema = schemathesis.openapi.from_wsgi("/ska-oso-oet/oet/api/v7/openapi.json", app)
    found = [result.ok() for result in schema.get_all_operations()]
    return {operation.definition.raw["operationId"]: operation for operation in found}


@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
@pytest.mark.parametrize(
    "name",
    [
        "create_procedure",
        "update_procedure",
        "list_procedures",
        "get_procedure",
        "list_events",
        "run_activity",
        "list_activities",
        "get_activity",
    ],
)
def test_answers_to_generated_requests_are_as_documented(operations: dict[str, Any], name: str, mode: Any) -> None:
    # A few procedures for the ids that are generated most.
    for _ in range(3):
        operations["create_procedure"].Case(body={"script": INLINE}, media_type="application/json").call()
    assert operations["run_activity"].Case(body=ACTIVITY, media_type="application/json").call().status_code == 201

    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operations[name].as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        if name == "run_activity" and mode is schemathesis.GenerationMode.POSITIVE:
            case.body = {**case.body, **ACTIVITY}  # One that is there: any other is 404 whatever else is said.
        answer = case.call()
        # Who sends too much is refused before anybody looks at what it says; schemathesis knows other refusals only.
        is_too_large = answer.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        checks = [one for one in CHECKS if not (is_too_large and one.__name__ == "negative_data_rejection")]
        case.validate_response(answer, checks=checks)

    check()


def test_document_is_valid_openapi_31(client: Any) -> None:
    document = client.ask("GET", "/openapi.json").json
    openapi_spec_validator.validate(document)
    assert (document["openapi"], document["info"]["title"]) == ("3.1.0", "Observation Execution Tool API")


def test_document_has_every_operation_with_its_media_types(client: Any) -> None:
    paths = client.ask("GET", "/openapi.json").json["paths"]
    found = {
        f"{method} {path.removeprefix('/ska-oso-oet/oet/api/v7')}": sorted(
            next(one for status, one in operation["responses"].items() if status.startswith("2"))["content"]
        )
        for path, operations in paths.items()
        for method, operation in operations.items()
    }
    json, text, events = "application/json", "text/plain; charset=utf-8", "text/event-stream; charset=utf-8"
    assert found == {
        "get /procedures/": [json],
        "post /procedures/": [json],
        "get /procedures/{procedure_id}": [json],
        "put /procedures/{procedure_id}": [json],
        "post /procedures/{procedure_id}/release": [json],
        "get /procedures/{procedure_id}/events": [json],
        "get /procedures/{procedure_id}/logs": [events, text],
        "get /activities/": [json],
        "post /activities/": [json],
        "get /activities/{activity_id}": [json],
        "get /stream": [events],
    }


@pytest.mark.parametrize("path", ["/ui", "/ui/"])
def test_page_loads_only_what_this_server_has(client: Any, path: str) -> None:
    page = client.ask("GET", path)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    targets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(targets) == 4
    for target in targets:
        answer = client.ask("GET", f"/{target}")
        assert answer.status_code == 200
        assert len(answer.content) > 100
        again = client.ask("GET", f"/{target}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    start = client.ask("GET", "/ui/start.js").text
    assert "/ska-oso-oet/oet/api/v7/openapi.json" in start
    assert "validatorUrl: null" in start
    assert "http" not in page.text + start


@pytest.mark.parametrize("name", ["nope.js", "LICENSE", "..%2fapp.py", "../app.py", ".", "%00"])
def test_other_files_are_not_there(client: Any, name: str) -> None:
    assert client.ask("GET", f"/ui/{name}").status_code == 404


def test_root_leads_to_the_page(client: Any) -> None:
    answer = client.ask("GET", "//")
    assert (answer.status_code, answer.headers["location"]) == (307, "/ska-oso-oet/oet/api/v7/ui")
