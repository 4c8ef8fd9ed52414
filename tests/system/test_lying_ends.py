"""A script takes its runner's identity, reports an end and goes on: its subarray is held until it is gone, and no end said."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oet_support import Client, Refused, Server, find_descendants

from oet_crds.reasons import Reason
from oet_crds.states import State
from oet_crds.topics import Topic
from oet_operator.core.decide import LEAVE_SECONDS

LYING = Path(__file__).with_name("lying_runner")


@pytest.fixture
def client(tmp_path: Path, isolation: str) -> Iterator[Client]:
    """A client of a server whose runners lie."""
    server = Server(tmp_path, PYTHONPATH=str(LYING), OET_SPARES="0", OET_ISOLATION=isolation)
    server.start()
    client = Client(server.port)
    client.pid = server.pid  # type: ignore[attr-defined]
    yield client
    client.close()
    server.stop()


def _count_runners(client: Any) -> int:
    """Return how many runner processes are there, as the machine shows them."""
    words = [Path(f"/proc/{pid}/cmdline") for pid in find_descendants(client.pid)]
    return sum(b"--mailbox-in" in path.read_bytes() for path in words if path.exists())


def test_runner_that_stays_after_its_reported_end_holds_the_subarray_until_it_was_removed(client: Client) -> None:
    liar, other = client.prepare("stay"), client.prepare("leave")
    client.start(liar)
    end = time.monotonic() + LEAVE_SECONDS / 2
    while time.monotonic() < end:
        assert client.get(liar)["state"] == State.READY
        with pytest.raises(Refused, match=f"PID #{liar} is RUNNING"):
            client.start(other)
    shown = client.wait_for(liar, State.FAILED, seconds=3 * LEAVE_SECONDS)
    assert shown["reason"] == Reason.END_UNCONFIRMED
    topics = [entry["topic"] for entry in client.ask("GET", f"/procedures/{liar}/events?kind=action")]
    assert Topic.END_UNCONFIRMED in topics
    assert client.start(other)["state"] in (State.RUNNING, State.READY, State.COMPLETE)
    client.wait_for(other, State.COMPLETE)
    assert _count_runners(client) == 0


def test_runner_that_speaks_after_its_reported_end_is_removed_at_once(client: Client) -> None:
    liar = client.prepare("speak")
    began = time.monotonic()
    client.start(liar)
    assert client.wait_for(liar, State.FAILED)["reason"] == Reason.END_UNCONFIRMED
    assert time.monotonic() - began < LEAVE_SECONDS
    assert _count_runners(client) == 0


def test_stop_is_certain_also_for_a_runner_that_says_it_has_ended(client: Client) -> None:
    liar = client.prepare("stay")
    client.start(liar)
    with pytest.raises(Refused, match="what it reported is not believed") as refused:
        client.stop(liar)
    assert refused.value.status == 409
    assert client.get(liar)["state"] == State.FAILED
    assert _count_runners(client) == 0
