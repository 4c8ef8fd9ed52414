"""What a listener hears, from the real engine."""

from __future__ import annotations

import time

import pytest
from oet_support import Client, Server, Stream

SCRIPT = """
import oet
from pubsub import pub
def init(subarray_id):
    print("initialising", subarray_id)
def main(word):
    print("before")
    oet.announce("hello " + word)
    pub.sendMessage("my.topic", foo=1)
    print("after")
"""


def _run(client: Client) -> int:
    procedure = client.prepare(SCRIPT)
    client.start(procedure, "world")
    client.wait_for(procedure, "COMPLETE")
    return procedure


def test_listener_hears_states_and_messages_in_order(client: Client, server: Server) -> None:
    stream = Stream(server.port)
    procedure = _run(client)
    heard = []
    while heard[-1:] != ["COMPLETE"]:
        event = stream.read_event()
        if event.get("msg_src") == str(procedure):
            heard.append(event.get("new_state") or event.get("msg") or event["topic"])
    stream.close()
    assert heard == [
        "CREATING", "IDLE", "LOADING", "IDLE", "INITIALISING", "READY", "RUNNING", "hello world", "my.topic", "READY", "COMPLETE",
    ]  # fmt: skip


def test_listener_that_comes_back_misses_nothing_and_hears_nothing_twice(client: Client, server: Server) -> None:
    whole = Stream(server.port)
    part = Stream(server.port)
    first = [part.read_event() for _ in range(1)] if client.create("def main(): pass", 7) else []
    resume_at = part.last_id
    part.close()
    procedure = _run(client)
    resumed = Stream(server.port, Last_Event_ID=resume_at)
    expected, got = [], list(first)

    def is_end(event: dict[str, object]) -> bool:
        return event.get("new_state") == "COMPLETE" and event["msg_src"] == str(procedure)

    for events, stream in ((expected, whole), (got, resumed)):
        while not events or not is_end(events[-1]):
            events.append(stream.read_event())
        stream.close()
    assert got == expected


def test_events_survive_a_restart(client: Client, server: Server) -> None:
    procedure = _run(client)
    before = client.ask("GET", f"/procedures/{procedure}/events?limit=1000")
    client.close()
    server.stop()
    server.start()
    again = Client(server.port)
    after = again.ask("GET", f"/procedures/{procedure}/events?limit=1000")
    again.close()
    assert after == before
    assert len(before) > 10


@pytest.mark.serial
def test_flood_of_output_delays_nobody_and_is_counted(client: Client, tmp_path: object) -> None:
    flood = client.prepare(
        "def main():\n    import oet\n    for n in range(3_000_000): print('x' * 80)\n    oet.announce('end')", 1
    )
    other = client.prepare("def main(): pass", 2)
    client.start(flood)
    begun = time.monotonic()
    client.start(other)
    client.wait_for(other, "COMPLETE")
    assert time.monotonic() - begun < 5
    client.wait_for(flood, "COMPLETE", seconds=120)
    events = client.ask("GET", f"/procedures/{flood}/events?limit=1000&kind=message")
    assert [event["payload"]["msg"] for event in events if event["topic"] == "script.announce"] == ["end"]


def test_listener_of_a_subarray_hears_its_procedures_alone(client: Client, server: Server) -> None:
    stream = Stream(server.port, "/stream?subarray=2")
    other = client.prepare("def main(): pass", 1)
    wanted = client.prepare("def main(): pass", 2)
    heard = set()
    while True:
        event = stream.read_event()
        if event["msg_src"].isdigit():
            heard.add(int(event["msg_src"]))
        if event.get("new_state") == "READY":
            break
    stream.close()
    assert heard == {wanted}
    assert other != wanted
