"""What a web page can make a browser send is refused before anything looks at it; answers are for this server's pages alone."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import falcon
import pytest

from oet_api.connection import build_refusal
from oet_api.guard import Head, HostNames, build_host_names, find_refusal, is_loopback_address
from oet_crds.names import ENTRIES_PATH
from oet_crds.settings import ServerSettings

BASE = "/ska-oso-oet/oet/api/v7"
JSON = "application/json"
NAMES = HostNames(["oet.example.org", "*.ska.example"])
BODY = {"script": {"script_type": "filesystem", "script_uri": "file:///scripts/a.py"}}


def _judge(method: str = "POST", host: str | None = "localhost:5000", **more: Any) -> int | None:
    given = {"content_type": JSON, "has_body": True, **more}
    refusal = find_refusal(Head(method, host, **given), NAMES)
    return refusal and refusal.status


# ---- the host --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[(host, None) for host in ("localhost", "localhost:5000", "LocalHost", "localhost.", "a.localhost:80")],
        *[
            (host, None)
            for host in ("127.0.0.1", "127.0.0.1:5000", "10.1.2.3:5000", "0.0.0.0", "[::1]", "[fe80::1]:5000")
        ],
        *[(host, None) for host in ("oet.example.org", "OET.example.org:443", "oet.example.org.", "mid.ska.example")],
        *[(host, 421) for host in ("rebound.example", "rebound.example:5000", "localhost.evil", "evil-localhost")],
        *[
            (host, 421)
            for host in ("127.0.0.1.evil", "127.1", "0x7f000001", "2130706433", "ska.example", "xska.example")
        ],
        *[(host, 421) for host in ("oet.example.org.evil", "evil.oet.example.org", "oet", "*.ska.example.x")],
        *[(host, 400) for host in (None, "", " ", "a b", "a,localhost", "localhost:x", "me@localhost", "[::1", "a/b")],
    ],
)
@pytest.mark.parametrize("method", ["GET", "OPTIONS", "POST"])
def test_host_that_is_not_this_server_is_refused_whatever_is_asked(
    host: str | None, status: int | None, method: str
) -> None:
    assert _judge(method, host) == status


def test_request_of_http_10_may_lack_its_host_but_then_no_page_sent_it() -> None:
    assert _judge(host=None, may_lack_host=True) is None
    assert _judge(host=None, may_lack_host=True, origin="http://localhost:5000") == 403


@pytest.mark.parametrize(
    ("settings", "host", "is_known"),
    [
        ({}, "laptop", True),
        ({}, "laptop.example", False),
        ({"host": "laptop.example"}, "laptop.example", True),
        ({"hosts": "a.example, *.b.example"}, "a.example", True),
        ({"hosts": "a.example, *.b.example"}, "x.b.example", True),
        ({"hosts": "a.example, *.b.example"}, "b.example", False),
        ({"hosts": "*"}, "anything.example", True),
    ],
)
def test_names_come_from_settings_and_machine(settings: dict[str, str], host: str, is_known: bool) -> None:
    assert build_host_names(ServerSettings(**settings), ["laptop"]).is_known(host) is is_known  # type: ignore[arg-type]


# ---- the page --------------------------------------------------------------------------------------------------------

OWN = [
    ({"origin": "http://localhost:5000"}, "localhost:5000"),
    ({"origin": "http://localhost:5000", "site": "same-origin"}, "localhost:5000"),
    ({"site": "none"}, "localhost:5000"),
    ({"origin": "http://[::1]:5000"}, "[::1]:5000"),
    ({"origin": "http://10.1.2.3"}, "10.1.2.3:80"),
    ({"origin": "https://oet.example.org"}, "oet.example.org"),  # TLS ended before.
    ({"origin": "https://OET.example.org"}, "oet.example.org:443"),
    ({"origin": "https://oet.example.org:8443"}, "oet.example.org:8443"),
    ({}, "localhost:5000"),
]
FOREIGN = [
    {"origin": "https://other.example"},
    {"origin": "http://localhost"},
    {"origin": "http://localhost:5001"},
    {"origin": "http://127.0.0.1:5000"},
    {"origin": "http://localhost:5000.evil"},
    {"origin": "http://evil@localhost:5000"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "localhost:5000"},
    {"origin": "file://localhost:5000"},
    {"origin": "chrome-extension://abcdef"},
    {"origin": "http://localhost:5000,http://localhost:5000"},
    {"site": "cross-site"},
    {"site": "same-site"},
    {"site": "Cross-Site"},
    {"site": "what-comes-next"},
    {"origin": "http://localhost:5000", "site": "cross-site"},
]


@pytest.mark.parametrize(("headers", "host"), OWN)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
@pytest.mark.parametrize("mode", [None, "cors", "navigate"])
def test_page_of_this_server_and_whatever_is_no_browser_may_do_all(
    headers: dict[str, str], host: str, method: str, mode: str | None
) -> None:
    assert _judge(method, host, **headers, mode=mode) is None


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize("method", ["POST", "PUT", "BREW"])
@pytest.mark.parametrize("mode", [None, "navigate"])
@pytest.mark.parametrize("has_body", [True, False])
def test_page_from_elsewhere_changes_nothing_with_or_without_a_body(
    headers: dict[str, str], method: str, mode: str | None, has_body: bool
) -> None:
    assert _judge(method, **headers, mode=mode, has_body=has_body) == 403


@pytest.mark.parametrize("headers", FOREIGN)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_page_from_elsewhere_may_lead_here_but_cannot_hold_a_stream(headers: dict[str, str], method: str) -> None:
    assert _judge(method, **headers, mode="navigate") is None
    assert _judge(method, **headers) is None
    assert _judge(method, **headers, mode="no-cors") == 403


# ---- the body --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    ("content_type", "has_body", "status"),
    [
        (JSON, True, None),
        ("Application/JSON ; charset=utf-8", True, None),
        ("application/vnd.ska+json", True, None),
        (None, False, None),
        (None, True, 415),
        ("", True, 415),
        ("text/plain", True, 415),
        ("text/plain; application/json", True, 415),
        ("application/x-www-form-urlencoded", True, 415),
        ("multipart/form-data; boundary=application/json", True, 415),
        ("application/jsonx", True, 415),
        ("application/json, text/plain", True, 415),
        ("text/plain", False, 415),
    ],
)
def test_write_says_that_it_is_json(method: str, content_type: str | None, has_body: bool, status: int | None) -> None:
    assert _judge(method, content_type=content_type, has_body=has_body) == status


# ---- the application -------------------------------------------------------------------------------------------------

PATHS = [
    *[f"{BASE}{path}" for path in ("/procedures/", "/procedures/1", "/procedures/1/events", "/procedures/1/logs")],
    *[f"{BASE}{path}" for path in ("/activities/", "/activities/1", "/stream", "/openapi.json", "/ui", "/ui/start.js")],
    *["/", "/healthz", "/readyz", "/metrics", f"{BASE}/healthz", f"{BASE}/readyz", f"{BASE}/metrics", "/nope"],
]


@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_guarded_and_nothing_is_created(client: Any, store: Any, path: str) -> None:
    asked = {
        421: client.ask("GET", f"/{path}", host="rebound.example"),
        403: client.ask("POST", f"/{path}", BODY, headers={"Origin": "https://other.example"}),
        415: client.ask("POST", f"/{path}", body=json.dumps(BODY)),
    }
    assert {status: answer.status_code for status, answer in asked.items()} == {status: status for status in asked}
    assert all(isinstance(answer.json["detail"], str) for answer in asked.values())
    assert "[server] hosts" in asked[421].json["detail"]
    assert not store.list()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE", "TRACE"])
@pytest.mark.parametrize("host", ["localhost", "rebound.example"])
def test_every_answer_is_for_this_servers_pages_alone(client: Any, path: str, method: str, host: str) -> None:
    if path.endswith("/stream") and method == "GET" and host == "localhost":
        method = "HEAD"  # The answer would not end.
    headers = client.ask(method, f"/{path}", host=host).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    for rule in ("frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'", "default-src"):
        assert rule in headers["content-security-policy"]
    is_file = path.endswith("start.js") and headers["content-type"].startswith("text/javascript")
    assert headers["cache-control"] == ("public, max-age=86400" if is_file else "no-store")
    assert "access-control-allow-origin" not in headers


def test_answer_to_an_unforeseen_error_has_the_headers_too(client: Any, store: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(store, "list", lambda: 1 / 0)
    answer = client.ask("GET", "/procedures/")
    assert answer.status_code == 500
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_answer_that_never_reaches_the_application_has_the_headers_too() -> None:
    head = build_refusal(431, "too long").partition(b"\r\n\r\n")[0].decode().lower().split("\r\n")
    assert "x-content-type-options: nosniff" in head
    assert "cache-control: no-store" in head
    assert "cross-origin-resource-policy: same-origin" in head


def test_runner_comes_by_any_name_because_its_token_says_who_it_is(client: Any) -> None:
    path = ENTRIES_PATH.format(uid="x")
    assert client.ask("POST", f"/{path}", {}, host="oet.mesh.example").status_code == 404  # There is no such path here.
    foreign = client.ask("POST", f"/{path}", {}, host="oet.mesh.example", headers={"Origin": "https://other.example"})
    assert foreign.status_code == 403


def test_guard_costs_microseconds() -> None:
    head = Head("POST", "localhost:5000", "http://localhost:5000", "same-origin", "cors", JSON, True)
    begun = time.process_time()  # Of this process alone: others may keep the machine busy.
    for _ in range(2000):
        assert find_refusal(head, NAMES) is None
    assert (time.process_time() - begun) / 2000 < 50e-6


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        *[(host, True) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")],
        *[(host, False) for host in ("0.0.0.0", "::", "", "10.0.0.1", "laptop")],
    ],
)
def test_addresses_of_this_machine_alone_are_known(host: str, is_loopback: bool) -> None:
    assert is_loopback_address(host) is is_loopback


def test_own_name_of_the_machine_is_taken(client: Any) -> None:
    assert client.ask("GET", "//healthz", host=socket.gethostname()).status_code == 200


def test_status_421_is_known_to_falcon() -> None:
    assert falcon.code_to_http_status(421) == "421 Misdirected Request"
