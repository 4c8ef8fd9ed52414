"""Event streams and logs, read piece by piece without a network."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from oet_api.sse import FAREWELL, HEARTBEAT, build_frame
from oet_api.streams import (
    CHUNK_BYTES,
    RECENT_FRAMES,
    Broadcast,
    EventFilter,
    Pace,
    SlotIterator,
    Slots,
    iterate_events,
    join_chunks,
)
from oet_crds.errors import OverloadedError
from oet_crds.ports import TimelineEntry
from oet_crds.states import State
from oet_crds.topics import EntryKind, Topic

ALL = EventFilter()


@pytest.fixture
def broadcast(timeline: Any) -> Iterator[Broadcast]:
    broadcast = Broadcast(timeline)
    yield broadcast
    broadcast.stop()


def _listen(
    broadcast: Broadcast, after: int | None = None, wanted: EventFilter = ALL, beat: float = 60
) -> Iterator[bytes]:
    after = broadcast.start() if after is None else after
    broadcast.start()
    return iterate_events(broadcast, after, wanted, Pace(beat), lambda: False)


def _read(stream: Iterator[bytes], count: int) -> list[tuple[int, dict[str, Any]]]:
    """Read events until there are so many: ids and objects."""
    text, found = b"", []
    while len(found) < count:
        text += next(stream)
        *frames, text = text.split(b"\n\n")
        for frame in frames:
            lines = frame.strip().split(b"\n")
            if lines[0].startswith(b"data:"):
                found.append((int(lines[1].removeprefix(b"id:")), json.loads(lines[0][5:])))
    return found


def _send(timeline: Any, count: int, procedure_id: int = 1) -> None:
    for number in range(count):
        timeline.put_message(procedure_id, msg=f"m{number}")


# ---- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "frame"),
    [
        pytest.param(
            {"msg_src": "1", "new_state": "RUNNING"},
            b'data:{"msg_src": "1", "new_state": "RUNNING", "topic": "a.b"}\nid:5\n\n',
            id="upstreams-form",
        ),
        pytest.param({"topic": "x", "a": 1}, b'data:{"a": 1, "topic": "a.b"}\nid:5\n\n', id="topic-is-ours"),
        pytest.param({"a": "x\r\ny"}, b'data:{"a": "x\\r\\ny", "topic": "a.b"}\nid:5\n\n', id="line-breaks"),
        pytest.param({"a": float("nan")}, b'data:{"a": null, "topic": "a.b"}\nid:5\n\n', id="nan"),
        pytest.param(
            {"a": "\udc80\u2028"}, b'data:{"a": "\\udc80\\u2028", "topic": "a.b"}\nid:5\n\n', id="strange-text"
        ),
    ],
)
def test_frame_is_one_event(payload: dict[str, Any], frame: bytes) -> None:
    assert build_frame(TimelineEntry(5, 1, None, 0.0, EntryKind.MESSAGE, "a.b", payload)) == frame


def test_chunks_are_joined_up_to_a_size() -> None:
    assert list(join_chunks([])) == []
    assert list(join_chunks([b"a", b"b"])) == [b"ab"]
    large = b"x" * CHUNK_BYTES
    assert list(join_chunks([b"a", large, b"b"])) == [b"a" + large, b"b"]


# ---- events ----------------------------------------------------------------------------------------------------------


def test_stream_opens_at_once_and_starts_now(broadcast: Broadcast, timeline: Any) -> None:
    _send(timeline, 3)
    stream = _listen(broadcast)
    assert next(stream) == b"\n"
    _send(timeline, 1)
    assert [number for number, _ in _read(stream, 1)] == [4]


@pytest.mark.parametrize("before", [1, RECENT_FRAMES + 700])
def test_listener_that_resumes_misses_nothing_and_hears_nothing_twice(
    broadcast: Broadcast, timeline: Any, before: int
) -> None:
    broadcast.start()
    _send(timeline, before)
    timeline.put_line(1, "printed lines are not on the stream")
    sender = threading.Thread(target=_send, args=[timeline, 2000])
    sender.start()
    stream = _listen(broadcast, after=0)
    numbers = [number for number, _ in _read(stream, before + 2000)]
    sender.join()
    assert numbers == [*range(1, before + 1), *range(before + 2, before + 2002)]


def test_each_entry_is_serialised_once_for_all_listeners(
    broadcast: Broadcast, timeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def count(entry: TimelineEntry) -> bytes:
        built.append(entry.id)
        return build_frame(entry)

    monkeypatch.setattr("oet_api.streams.build_frame", count)
    streams = [_listen(broadcast) for _ in range(20)]
    _send(timeline, 5)
    for stream in streams:
        assert [number for number, _ in _read(stream, 5)] == [1, 2, 3, 4, 5]
    assert built == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (EventFilter(procedure_id=2), [2, 5]),
        (EventFilter(topics=frozenset({Topic.STATE_CHANGE})), [3, 5]),
        (EventFilter(procedure_id=1, topics=frozenset({Topic.STATE_CHANGE, "x"})), [3]),
    ],
)
def test_listener_hears_only_what_it_wants(
    broadcast: Broadcast, timeline: Any, wanted: EventFilter, numbers: list[int]
) -> None:
    stream = _listen(broadcast, wanted=wanted)
    timeline.put_message(1, msg="a")
    timeline.put_message(2, msg="b")
    timeline.put(1, EntryKind.STATE, Topic.STATE_CHANGE, {})
    timeline.put_line(2, "line")
    timeline.put(2, EntryKind.STATE, Topic.STATE_CHANGE, {})
    assert [number for number, _ in _read(stream, len(numbers))] == numbers


def test_silent_stream_sends_comments(broadcast: Broadcast) -> None:
    stream = _listen(broadcast, beat=0.02)
    next(stream)
    assert [next(stream), next(stream)] == [HEARTBEAT, HEARTBEAT]


def test_stream_of_a_stopping_server_ends_with_a_comment(broadcast: Broadcast) -> None:
    stream = _listen(broadcast)
    next(stream)
    threading.Timer(0.05, broadcast.stop).start()
    assert list(stream) == [FAREWELL]


def test_stream_whose_client_is_gone_ends(broadcast: Broadcast) -> None:
    stream = iterate_events(broadcast, broadcast.start(), ALL, Pace(60), lambda: True)
    assert list(stream) == [b"\n"]


def test_flood_of_lines_costs_listeners_nothing(broadcast: Broadcast, timeline: Any) -> None:
    stream = _listen(broadcast)
    next(stream)
    waits = []
    original = broadcast.wait

    def wait(after: int, timeout_seconds: float) -> None:
        waits.append(after)
        original(after, timeout_seconds)

    broadcast.wait = wait  # type: ignore[method-assign]
    for number in range(2000):
        timeline.put_line(1, f"line {number}")
    timeline.put_message(1, msg="end")
    assert [number for number, _ in _read(stream, 1)] == [2001]
    assert len(waits) < 5


def test_broadcast_survives_a_failing_timeline(
    broadcast: Broadcast, timeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oet_api.streams.LOOK_SECONDS", 0.01)
    failures = [ValueError("broken"), OverloadedError("busy", 1)]
    original = timeline.read

    def read(*args: Any, **named: Any) -> Any:
        if failures:
            raise failures.pop()
        return original(*args, **named)

    monkeypatch.setattr(timeline, "read", read)
    stream = _listen(broadcast)
    _send(timeline, 1)
    assert [number for number, _ in _read(stream, 1)] == [1]


# ---- places ----------------------------------------------------------------------------------------------------------


def test_places_are_bounded_and_come_back_however_a_stream_ends() -> None:
    slots = Slots(2)
    for _ in range(2):
        slots.take()
    with pytest.raises(OverloadedError):
        slots.take()
    never_read = SlotIterator(slots, iter([b"a"]))
    read = SlotIterator(slots, iter([b"a"]))
    assert list(read) == [b"a"]
    for _ in range(2):
        never_read.close()
        read.close()
    assert slots.taken == 0


# ---- over the application --------------------------------------------------------------------------------------------


def test_third_stream_is_503_and_a_head_takes_no_place(client: Any, services: Any) -> None:
    for _ in range(5):
        assert client.ask("HEAD", "/stream").status_code == 200
    for _ in range(2):
        services.slots.take()
    for path in ("/stream", f"/procedures/{client.create()}/logs?follow=true"):
        answer = client.ask("GET", path)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize("value", ["x", "-1", "1.0", "9" * 30, "٣".encode().decode("latin-1"), "7"])
def test_wrong_last_event_id_is_422(client: Any, services: Any, value: str) -> None:
    answer = client.ask("GET", "/stream", headers={"Last-Event-ID": value})
    assert answer.status_code == 422
    assert answer.json["detail"][0]["loc"] == ["header", "Last-Event-ID"]
    assert client.ask("GET", f"/stream?last_event_id={'9' * 5000}").status_code == 422
    assert services.slots.taken == 0


def test_stream_says_where_it_starts(client: Any, services: Any, timeline: Any) -> None:
    _send(timeline, 3)
    services.broadcast.stop()
    assert client.ask("GET", "/stream").headers["last-event-id"] == "3"
    assert client.ask("GET", "/stream", headers={"Last-Event-ID": "2"}).headers["last-event-id"] == "2"


# ---- logs ------------------------------------------------------------------------------------------------------------


def _printed(client: Any, timeline: Any) -> int:
    number: int = client.create()
    timeline.put_line(number, "one")
    timeline.put_line(99, "of another")
    timeline.put_line(number, "zwei \udc80 ä", "stderr")
    timeline.put(number, EntryKind.LOG, Topic.LOG_DROPPED, {"msg_src": str(number), "dropped": 123})
    return number


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("", "one\nzwei \\udc80 ä\n[oet: 123 lines dropped]\n"),
        ("?tail=1", "[oet: 123 lines dropped]\n"),
        ("?tail=2", "zwei \\udc80 ä\n[oet: 123 lines dropped]\n"),
        ("?tail=1000", "one\nzwei \\udc80 ä\n[oet: 123 lines dropped]\n"),
    ],
)
def test_logs_are_the_printed_lines(client: Any, services: Any, timeline: Any, query: str, text: str) -> None:
    number = _printed(client, timeline)
    answer = client.ask("GET", f"/procedures/{number}/logs{query}")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == text
    assert (services.slots.taken, services.downloads.taken) == (0, 0)


def test_logs_of_many_pages_are_complete(client: Any, timeline: Any) -> None:
    number = client.create()
    for line in range(3500):
        timeline.put_line(number, str(line))
    assert client.ask("GET", f"/procedures/{number}/logs").text.split() == [str(line) for line in range(3500)]
    assert client.ask("GET", f"/procedures/{number}/logs?tail=3").text.split() == ["3497", "3498", "3499"]


@pytest.mark.parametrize("how", [{"query": "?format=sse"}, {"query": "", "headers": {"Accept": "text/event-stream"}}])
def test_logs_as_events_have_ids_and_resume(client: Any, timeline: Any, how: dict[str, Any]) -> None:
    number = _printed(client, timeline)
    headers = how.get("headers", {})
    answer = client.ask("GET", f"/procedures/{number}/logs{how['query']}", headers=headers)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = _read(iter([answer.content]), 3)
    assert [event.get("line") for _, event in events] == ["one", "zwei \udc80 ä", None]
    headers = {**headers, "Last-Event-ID": str(events[0][0])}
    answer = client.ask("GET", f"/procedures/{number}/logs{how['query']}", headers=headers)
    assert _read(iter([answer.content]), 2) == events[1:]


def _end_soon(store: Any, timeline: Any, number: int) -> threading.Thread:
    def run() -> None:
        for line in range(30):
            timeline.put_line(number, f"line {line}")
            time.sleep(0.003)
        store.enter(number, State.COMPLETE)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("query", ["?follow=true", "?follow=true&format=sse", "?follow=true&tail=5"])
def test_followed_logs_end_with_the_procedure_and_miss_nothing(
    client: Any, store: Any, timeline: Any, query: str
) -> None:
    number = client.create()
    thread = _end_soon(store, timeline, number)
    answer = client.ask("GET", f"/procedures/{number}/logs{query}")
    thread.join()
    assert answer.text.count("line") >= 30
    for line in range(30):
        assert answer.text.count(f"line {line}\n" if "sse" not in query else f'"line {line}"') == 1


@pytest.mark.serial
def test_followed_logs_of_a_stopping_server_end(client: Any, services: Any) -> None:
    number = client.create()
    timer = threading.Timer(0.1, services.broadcast.stop)
    timer.start()
    begun = time.monotonic()
    client.ask("GET", f"/procedures/{number}/logs?follow=true")
    assert time.monotonic() - begun < 2
    timer.join()


def test_followed_logs_as_events_send_comments(client: Any, store: Any) -> None:
    number = client.create()
    timer = threading.Timer(0.5, lambda: store.enter(number, State.COMPLETE))
    timer.start()
    answer = client.ask("GET", f"/procedures/{number}/logs?follow=true&format=sse")
    assert HEARTBEAT in answer.content
    timer.join()


def test_followed_logs_of_a_removed_procedure_end(client: Any, store: Any) -> None:
    number = client.create()
    timer = threading.Timer(0.1, lambda: store.remove(number))
    timer.start()
    assert client.ask("GET", f"/procedures/{number}/logs?follow=true").text == ""
    timer.join()
