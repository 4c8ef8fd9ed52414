"""What holds for every path: methods, slashes, errors in one form, health, metrics; and what a person reads at the start."""

from __future__ import annotations

from typing import Any

import pytest
from falcon.testing import TestClient

from oet_api.__main__ import build_greeting
from oet_api.app import build_application
from oet_api.services import build_services
from oet_crds.ports import Health
from oet_crds.settings import ServerSettings


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/procedures/", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("/procedures/1", {"GET", "HEAD", "PUT", "OPTIONS"}),
        ("/stream", {"GET", "HEAD", "OPTIONS"}),
        ("/ui", {"GET", "HEAD", "OPTIONS"}),
    ],
)
@pytest.mark.parametrize("method", ["DELETE", "PATCH", "TRACE"])
def test_method_that_is_not_there_is_405(client: Any, path: str, allowed: set[str], method: str) -> None:
    answer = client.ask(method, path)
    assert (answer.status_code, answer.json) == (405, {"detail": "Method Not Allowed"})
    assert set(answer.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/nope", "/procedures/1/nope", "//nope", "/activities/1/nope"])
def test_path_that_is_not_there_is_404(client: Any, path: str) -> None:
    answer = client.ask("GET", path)
    assert (answer.status_code, answer.json) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    "path", ["/procedures", "/procedures/", "/procedures/1", "/procedures/1/", "/procedures/1/events/", "/openapi.json"]
)
def test_both_slash_forms_and_head_work(client: Any, path: str) -> None:
    client.create()
    got, head = client.ask("GET", path), client.ask("HEAD", path)
    assert (got.status_code, head.status_code) == (200, 200)
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize("prefix", ["/", ""])
def test_health_is_told_at_the_root_and_under_the_base(client: Any, store: Any, prefix: str) -> None:
    for name in ("healthz", "readyz", "metrics"):
        assert client.ask("GET", f"{prefix}/{name}").status_code == 200
    store.health = Health(False, "the disk is full")
    answer = client.ask("GET", f"{prefix}/readyz")
    assert (answer.status_code, answer.json) == (503, {"ready": False, "detail": "the disk is full"})
    assert client.ask("GET", f"{prefix}/healthz").status_code == 200


def test_stopping_server_is_not_ready(client: Any, services: Any) -> None:
    services.broadcast.stop()
    assert client.ask("GET", "/readyz").status_code == 503


def test_metrics_count_answers_streams_and_executions(client: Any, services: Any) -> None:
    client.create()
    client.ask("GET", "/procedures/99")
    services.slots.take()
    lines = client.ask("GET", "/metrics").text.splitlines()
    assert 'oet_http_answers_total{method="POST",status="201"} 1' in lines
    assert 'oet_http_answers_total{method="GET",status="404"} 1' in lines
    assert "oet_open_streams 1" in lines
    assert 'oet_executions{state="READY"} 1' in lines


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("0.0.0.0", 5000, ["http://localhost:5000/ska-oso-oet/oet/api/v7/ui", "  oet procedure run examples/hello.py"]),
        ("127.0.0.1", 5001, ["OET_URL=http://127.0.0.1:5001/ska-oso-oet/oet/api/v7 oet procedure run"]),
        ("::1", 5000, ["OET_URL=http://[::1]:5000/"]),
    ],
)
def test_greeting_says_where_and_how(host: str, port: int, words: list[str]) -> None:
    greeting = build_greeting(ServerSettings(), host, port)
    for word in words:
        assert word in greeting


@pytest.mark.parametrize(
    ("host", "is_reached"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True), ("10.1.2.3", True)]
)
def test_server_that_others_reach_says_so(store: Any, timeline: Any, host: str, is_reached: bool) -> None:
    assert ("can run Python" in build_greeting(ServerSettings(), host, 5000)) is is_reached
    services = build_services(store, timeline, ServerSettings(host=host))
    answer = TestClient(build_application(services)).simulate_get("/readyz", host="localhost")
    assert (f"whoever reaches it at {host} can run Python" in answer.json["detail"]) is is_reached


def test_server_listens_on_this_machine_alone_unless_told_otherwise() -> None:
    assert ServerSettings().host == "127.0.0.1"
