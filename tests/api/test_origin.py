"""Who asked, and why: what is written down, and what is not believed."""

from __future__ import annotations

from typing import Any

import pytest

from oet_api.origin import MAX_REASON_CHARS, Origin, clean_user
from oet_crds.settings import ServerSettings
from oet_crds.topics import Topic

FILE = {"script_type": "filesystem", "script_uri": "file:///scripts/a.py"}
ALICE = {"X-Forwarded-User": "alice@example.org"}
REQUESTS = {Topic.REQUEST_CREATE, Topic.REQUEST_START, Topic.REQUEST_STOP}


@pytest.fixture
def settings(settings: ServerSettings, request: pytest.FixtureRequest) -> ServerSettings:
    """Those of all tests, with the header that the test names."""
    return settings.model_copy(update={"user_header": getattr(request, "param", "X-Forwarded-User")})


def _ask_all(client: Any, headers: dict[str, str], **fields: str) -> None:
    body = {"script": FILE, "script_args": {"init": {"kwargs": {"subarray_id": 1}}}, **fields}
    assert client.ask("POST", "/procedures/", body, headers=headers).status_code == 201
    started = client.ask("PUT", "/procedures/1", {"state": "RUNNING", **fields}, headers=headers)
    assert started.status_code == 200, started.text
    stopped = client.ask("PUT", "/procedures/1", {"state": "STOPPED", **fields}, headers=headers)
    assert stopped.status_code == 200, stopped.text


def _find_origins(timeline: Any) -> dict[str, dict[str, str]]:
    return {
        entry.topic: {name: entry.payload[name] for name in ("user", "reason") if name in entry.payload}
        for entry in timeline.entries
    }


def test_each_request_tells_who_asked_and_why_and_nothing_else_does(client: Any, timeline: Any) -> None:
    _ask_all(client, ALICE, reason="wind above the limit")
    told = _find_origins(timeline)
    asked = {"user": "alice@example.org", "reason": "wind above the limit"}
    assert {topic: told[topic] for topic in REQUESTS} == dict.fromkeys(REQUESTS, asked)
    assert not any(origin for topic, origin in told.items() if topic not in REQUESTS)


@pytest.mark.parametrize("settings", [""], indirect=True)
def test_no_name_is_believed_where_no_header_is_agreed_on(client: Any, timeline: Any) -> None:
    _ask_all(client, ALICE)
    assert not any(_find_origins(timeline).values())


@pytest.mark.parametrize("reason", ["x" * (MAX_REASON_CHARS + 1), "a\0b", 5])
def test_reason_that_is_none_is_refused_before_anything_is_done(client: Any, store: Any, reason: Any) -> None:
    answer = client.ask("POST", "/procedures/", {"script": FILE, "reason": reason})
    assert answer.status_code == 422
    assert answer.json["detail"][0]["loc"][:2] == ["body", "reason"]
    assert not store.list()


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        pytest.param(None, None, id="absent"),
        pytest.param("  ", None, id="blank"),
        pytest.param("alice\t\x07", "alice", id="control_characters"),
        pytest.param("Zoë".encode().decode("latin-1"), "Zoë", id="utf8"),
        pytest.param("Zo\xeb", "Zo\ufffd", id="latin1"),
        pytest.param("a" * 300, "a" * 256, id="long"),
    ],
)
def test_name_is_shown_on_one_line(sent: str | None, shown: str | None) -> None:
    assert clean_user(sent) == shown


def test_nothing_known_is_nothing_told() -> None:
    assert Origin().to_fields() == {}


def test_stop_whose_outcome_is_not_known_yet_is_written_down_all_the_same(
    client: Any, store: Any, timeline: Any
) -> None:
    store.ends = None
    body = {"script": FILE, "script_args": {"init": {"kwargs": {"subarray_id": 1}}}}
    assert client.ask("POST", "/procedures/", body).status_code == 201
    answer = client.ask("PUT", "/procedures/1", {"state": "STOPPED", "reason": "wind"}, headers=ALICE)
    assert answer.status_code == 504
    assert _find_origins(timeline)[Topic.REQUEST_STOP] == {"user": "alice@example.org", "reason": "wind"}
