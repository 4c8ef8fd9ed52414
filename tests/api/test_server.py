"""The real server process: slow and broken clients, streams, stopping, and the address."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BASE = "/ska-oso-oet/oet/api/v7"
SERVER = Path(__file__).with_name("fake_server.py")

LIMITS = {
    "host": "127.0.0.1",
    "port": 0,
    "threads": 32,
    "max_streams": 8,
    "heartbeat_seconds": 0.2,
    "request_timeout_seconds": 1.0,
    "start_timeout_seconds": 1.0,
    "stop_timeout_seconds": 1.0,
    "max_body_bytes": 20_000,
}

BODY = json.dumps({"script": {"script_type": "inline", "source": "def main(): pass"}}).encode()


_opened: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _connections_are_closed() -> Iterator[None]:
    """Close what a test opened, also when it fails: its open sockets would be warnings, and errors of a test after it."""
    yield
    while _opened:
        _opened.pop().close()


class Process:
    """A server process over a fake engine."""

    def __init__(self, limits: dict[str, Any] | None = None, **knobs: Any) -> None:
        arguments = [json.dumps({**LIMITS, **(limits or {})}), json.dumps(knobs)]
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        self.port = int(first.removeprefix("port ")) if first else 0

    def order(self, **order: Any) -> None:
        """Make the engine do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> tuple[int, str, str]:
        """Return exit code, output and errors when it has ended."""
        out, err = self._process.communicate(timeout=20)
        return self._process.returncode, out, err

    def stop(self) -> tuple[int, str, str]:
        """Stop in order."""
        if self._process.poll() is None:
            self._process.terminate()
        return self.wait()

    def connect(self, data: bytes = b"", receive_bytes: int | None = None) -> socket.socket:
        """Return a raw connection, with a receive buffer of some size if that matters."""
        raw = socket.socket()
        _opened.append(raw)
        raw.settimeout(10)
        if receive_bytes is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        raw.connect(("127.0.0.1", self.port))
        raw.sendall(data)
        return raw

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Send a request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def create(self) -> int:
        """Create a procedure."""
        status, data = self.ask("POST", f"{BASE}/procedures/", BODY)
        assert status == 201
        return int(json.loads(data)["id"])

    def listen(self, path: str = "/stream", receive_bytes: int | None = None, **headers: str) -> socket.socket:
        """Open a stream, and return it when its first byte has come."""
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        raw = self.connect(f"GET {BASE}{path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode(), receive_bytes)
        head = b""
        # One byte at a time: what comes after the opening is the test's.
        while not head.endswith(b"1\r\n\n\r\n"):
            head += raw.recv(1)
        assert head.startswith(b"HTTP/1.1 200 OK")
        return raw


def read_until(raw: socket.socket, mark: bytes) -> bytes:
    """Read until some bytes have come."""
    data = b""
    while mark not in data:
        more = raw.recv(65536)
        assert more, f"closed after {data!r}"
        data += more
    return data


def read_all(raw: socket.socket) -> bytes:
    """Read until the server closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := raw.recv(65536):
            data += more
    raw.close()
    return data


def wait_for(condition: Callable[[], Any], seconds: float = 8) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def shared() -> Iterator[Process]:
    """One server for all tests that leave it as it was."""
    process = Process()
    yield process
    code, out, err = process.stop()
    assert (code, err) == (0, "")
    assert "engine stopped" in out


@pytest.fixture
def own() -> Iterator[Process]:
    """A server for one test."""
    process = Process()
    yield process
    process.stop()


def _head(method: str, path: str, *lines: str) -> bytes:
    written = ["Content-Type: application/json"] if method in ("POST", "PUT") else []
    return "\r\n".join([f"{method} {BASE}{path} HTTP/1.1", "Host: localhost", *written, *lines, "", ""]).encode()


POST = ("POST", "/procedures/")


# ---- broken requests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(_head(*POST, "Content-Length: 20001"), 413, id="large-body-announced"),
        pytest.param(_head(*POST, "Content-Length: 99999999999999999999999"), 413, id="absurd-length"),
        pytest.param(_head(*POST, "Content-Length: -1") + b"{}", 400, id="negative-length"),
        pytest.param(_head(*POST, "Content-Length: x") + b"{}", 400, id="length-no-number"),
        pytest.param(_head(*POST, "Content-Length: 2", "Content-Length: 3") + b"{}", 400, id="two-lengths"),
        pytest.param(_head(*POST, "Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n\r\n", 411, id="chunked"),
        pytest.param(_head("GET", "/procedures/?" + "a" * 9000), 414, id="long-query"),
        pytest.param(b"GET /" + b"a" * 20_000, 414, id="endless-request-line"),
        pytest.param(_head("GET", "/procedures/", "A: " + "a" * 20_000), 431, id="long-header"),
        pytest.param(_head("GET", "/procedures/", *["A: a"] * 200), 431, id="many-headers"),
        pytest.param(_head("GET", "/procedures/", "Expect: wonders"), 417, id="expects-wonders"),
        pytest.param(b"nonsense\r\n\r\n", 400, id="no-http"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, id="tls"),
        pytest.param(b"GET / HTTP/1.1\r\nbad header\r\n\r\n", 400, id="header-without-colon"),
        pytest.param(b"GET / HTTP/1.1\r\nA\x00: b\r\n\r\n", 400, id="nul-in-a-header"),
        pytest.param(_head("GET", "/procedures/%ff%00"), 422, id="strange-path"),
        pytest.param(_head("BREW", "/procedures/"), 400, id="unknown-method"),
    ],
)
def test_broken_request_is_a_client_error_in_one_form(shared: Process, data: bytes, status: int) -> None:
    raw = shared.connect(data)
    raw.shutdown(socket.SHUT_WR)
    head, _, body = read_all(raw).partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status, head
    assert "detail" in json.loads(body)
    assert b"application/json" in head


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_head(*POST, "Content-Length: 100") + b"{", id="half-a-body"),
        pytest.param(b"GET / HTT", id="half-a-head"),
    ],
)
def test_request_that_ends_too_early_is_400(shared: Process, data: bytes) -> None:
    raw = shared.connect(data)
    raw.shutdown(socket.SHUT_WR)
    assert read_all(raw).startswith(b"HTTP/1.1 400 ")


@pytest.mark.serial
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_head(*POST, "Content-Length: 100") + b"{", id="half-a-body"),
        pytest.param(b"GET / HTT", id="half-a-head"),
    ],
)
def test_slow_request_is_408_in_time(shared: Process, data: bytes) -> None:
    raw = shared.connect(data)
    begun = time.monotonic()
    answer = b""
    # A client that drips bytes gets no more time than one that is silent.
    while not answer and time.monotonic() - begun < 8:
        with contextlib.suppress(TimeoutError):
            raw.settimeout(0.1)
            answer = raw.recv(65536)
        if not answer:
            raw.sendall(b"a")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert 0.9 < time.monotonic() - begun < 3
    raw.close()


@pytest.mark.serial
def test_silent_connection_is_closed_in_time(shared: Process) -> None:
    begun = time.monotonic()
    assert read_all(shared.connect()) == b""
    assert 0.9 < time.monotonic() - begun < 3


def test_body_may_wait_for_continue(shared: Process) -> None:
    raw = shared.connect(_head(*POST, f"Content-Length: {len(BODY)}", "Expect: 100-continue"))
    assert read_until(raw, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    raw.sendall(BODY)
    assert read_until(raw, b"\r\n\r\n").startswith(b"HTTP/1.1 201 ")
    raw.close()


def test_pipelined_requests_are_answered_in_order(shared: Process) -> None:
    number = shared.create()
    one = _head("GET", f"/procedures/{number}")
    raw = shared.connect(one * 20 + _head("GET", "/procedures/999", "Connection: close"))
    data = read_all(raw)
    assert data.count(b"HTTP/1.1 200 OK") == 20
    assert data.index(b"HTTP/1.1 404") > data.rindex(b"HTTP/1.1 200 OK")


def test_body_that_was_not_read_does_not_become_the_next_request(shared: Process) -> None:
    smuggled = _head("GET", "/procedures/999")
    raw = shared.connect(
        _head("GET", "/nope", f"Content-Length: {len(smuggled)}")
        + smuggled
        + _head("GET", "/nope", "Connection: close")
    )
    data = read_all(raw)
    assert data.count(b"HTTP/1.1 ") == data.count(b'"Not Found"') == 2


def test_head_has_no_body_and_keeps_the_connection(shared: Process) -> None:
    raw = shared.connect(
        _head("HEAD", "/procedures/") + _head("HEAD", "/stream") + _head("GET", "/readyz", "Connection: close")
    )
    data = read_all(raw)
    assert data.count(b"HTTP/1.1 200 OK") == 3
    assert data.count(b"\r\n\r\n{") == 1


# ---- what nobody is believed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "PATH_INFO", "REMOTE_USER"])
def test_path_is_what_was_asked_for_whatever_headers_say(shared: Process, name: str) -> None:
    """Else a path could be hidden from a proxy beside the server that guards by paths."""
    raw = shared.connect(
        f"GET /a/healthz HTTP/1.1\r\nHost: localhost\r\n{name}: /a\r\nConnection: close\r\n\r\n".encode()
    )
    assert read_all(raw).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    "name", ["X-Forwarded-Host", "Forwarded", "X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method-Override"]
)
def test_host_and_method_are_what_was_asked_for_whatever_headers_say(shared: Process, name: str) -> None:
    raw = shared.connect(
        f"GET /healthz HTTP/1.1\r\nHost: rebound.example\r\n{name}: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    assert read_all(raw).startswith(b"HTTP/1.1 421 ")


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        pytest.param(["Host: localhost"], 415, id="no-content-type"),
        pytest.param(["Host: localhost", "Content-Type: text/plain"], 415, id="text"),
        pytest.param(
            ["Host: localhost", "Content-Type: application/json", "Origin: https://other.example"], 403, id="origin"
        ),
        pytest.param(
            ["Host: localhost", "Content-Type: application/json", "Sec-Fetch-Site: cross-site"], 403, id="site"
        ),
        pytest.param(["Host: rebound.example:15821", "Content-Type: application/json"], 421, id="host"),
        pytest.param(
            ["Host: localhost", "Host: rebound.example", "Content-Type: application/json"], 400, id="two-hosts"
        ),
        pytest.param(["Content-Type: application/json"], 400, id="no-host"),
        pytest.param(["Host: localhost", "Origin: https://other.example"], 403, id="finding-of-the-review"),
    ],
)
def test_write_of_a_web_page_creates_nothing(shared: Process, lines: list[str], status: int) -> None:
    before = shared.ask("GET", f"{BASE}/procedures/")[1]
    head = [f"POST {BASE}/procedures/ HTTP/1.1", *lines, f"Content-Length: {len(BODY)}", "Connection: close", "", ""]
    raw = shared.connect("\r\n".join(head).encode() + BODY)
    assert read_all(raw).startswith(f"HTTP/1.1 {status} ".encode())
    assert shared.ask("GET", f"{BASE}/procedures/")[1] == before


def test_no_answer_tells_a_version_of_the_server(shared: Process) -> None:
    for request in (_head("GET", "/procedures/", "Connection: close"), b"nonsense\r\n\r\n"):
        head = read_all(shared.connect(request)).partition(b"\r\n\r\n")[0].decode().split("\r\n")
        told = [line for line in head if line.lower().startswith(("server:", "x-powered-by:", "via:"))]
        assert not [line for line in told if any(one.isdigit() for one in line)]


# ---- many slow clients -----------------------------------------------------------------------------------------------


@pytest.mark.serial
def test_three_hundred_slow_clients_delay_nobody(own: Process) -> None:
    number = own.create()
    slow = [own.connect() for _ in range(100)]
    slow += [own.connect(b"GET / HTTP/1.1\r\nHost:") for _ in range(100)]
    slow += [own.connect(_head(*POST, "Content-Length: 5000") + b"{") for _ in range(100)]
    longest = 0.0
    for _ in range(50):
        begun = time.monotonic()
        assert own.ask("GET", f"{BASE}/procedures/{number}")[0] == 200
        longest = max(longest, time.monotonic() - begun)
    assert longest < 0.5
    for raw in slow:
        raw.close()


@pytest.mark.serial
def test_clients_that_do_not_read_delay_nobody(own: Process) -> None:
    source = json.dumps({"script": {"script_type": "inline", "source": "#" * 19_000}}).encode()
    for _ in range(200):
        assert own.ask("POST", f"{BASE}/procedures/", source)[0] == 201
    deaf = []
    for _ in range(40):
        deaf.append(own.connect(_head("GET", "/procedures/"), receive_bytes=4096))
    for _ in range(20):
        begun = time.monotonic()
        assert own.ask("GET", f"{BASE}/procedures/1")[0] == 200
        assert time.monotonic() - begun < 0.7
    # One that reads late, but reads, gets everything.
    late = deaf.pop()
    late.settimeout(10)
    head, _, body = read_until(late, b"\r\n\r\n").partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split()[0])
    while len(body) < length:
        body += late.recv(1 << 20)
    assert len(json.loads(body)) == 200
    for raw in [*deaf, late]:
        raw.close()


@pytest.mark.serial
def test_keep_alive_requests_are_quick(shared: Process) -> None:
    number = shared.create()
    connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=10)
    took = []
    with contextlib.closing(connection):
        for _ in range(200):
            begun = time.perf_counter()
            connection.request("GET", f"{BASE}/procedures/{number}")
            connection.getresponse().read()
            took.append(time.perf_counter() - begun)
    # The median of this is half a millisecond; Nagle's delay alone would be 40 ms.
    assert sorted(took)[100] < 0.02


# ---- streams ---------------------------------------------------------------------------------------------------------


def test_stream_sends_upstreams_frames_and_comments(own: Process) -> None:
    number = own.create()
    raw = own.listen()
    own.order(id=number, messages=2)
    data = read_until(raw, b"message 1")
    data += read_until(raw, b":\n\n")
    raw.close()
    assert b'data:{"msg_src": "1", "msg": "message 0", "topic": "script.announce"}\nid:' in data


def test_stream_resumes_by_header_and_by_query(own: Process) -> None:
    number = own.create()
    own.order(id=number, messages=5)
    wait_for(lambda: json.loads(own.ask("GET", f"{BASE}/procedures/{number}/events?after=7&limit=5")[1])[4:])
    for stream in (own.listen(Last_Event_ID="9"), own.listen("/stream?last_event_id=9")):
        data = read_until(stream, b"message 4")
        assert [f"id:{n}\n".encode() in data for n in range(8, 13)] == [False, False, True, True, True]
        stream.close()


def test_ninth_stream_is_503_and_a_closed_one_gives_its_place_back(own: Process) -> None:
    streams = [own.listen() for _ in range(8)]
    status, body = own.ask("GET", f"{BASE}/stream")
    assert (status, "8 streams" in json.loads(body)["detail"]) == (503, True)
    streams.pop().close()
    wait_for(lambda: own.ask("GET", "/metrics")[1].count(b"oet_open_streams 7"))
    streams.append(own.listen())
    for stream in streams:
        stream.close()
    wait_for(lambda: own.ask("GET", "/metrics")[1].count(b"oet_open_streams 0"))


def test_client_that_dies_before_the_first_byte_leaves_no_place_taken(own: Process) -> None:
    for _ in range(30):
        own.connect(_head("GET", "/stream")).close()
    wait_for(lambda: own.ask("GET", "/metrics")[1].count(b"oet_open_streams 0"))
    own.listen().close()


def test_listener_that_does_not_read_is_dropped(own: Process) -> None:
    number = own.create()
    raw = own.listen(receive_bytes=4096)
    for _ in range(10):
        own.order(id=number, messages=100, extra={"filler": "x" * 10_000})
    wait_for(lambda: own.ask("GET", "/metrics")[1].count(b"oet_open_streams 0"), 15)
    raw.close()


def test_followed_logs_arrive_as_they_are_printed_and_end(own: Process) -> None:
    number = own.create()
    raw = own.connect(_head("GET", f"/procedures/{number}/logs?follow=true"))
    own.order(id=number, lines=1)
    assert b"line 0\n" in read_until(raw, b"line 0")
    own.order(id=number, lines=3)
    own.order(id=number, enter="COMPLETE")
    data = read_until(raw, b"0\r\n\r\n")
    assert b"line 2\n" in data
    raw.close()


# ---- waiting ---------------------------------------------------------------------------------------------------------


@pytest.mark.serial
def test_many_waiting_stops_are_all_stored_and_leave_threads_for_the_rest() -> None:
    process = Process(ends=None)
    numbers = [process.create() for _ in range(60)]
    answers: list[tuple[int, bytes]] = []

    def stop(number: int) -> None:
        answers.append(process.ask("PUT", f"{BASE}/procedures/{number}", b'{"state": "STOPPED"}'))

    threads = [threading.Thread(target=stop, args=[number]) for number in numbers]
    for thread in threads:
        thread.start()
    # 32 threads, less 8 for streams, less 16 for the rest: 8 requests may wait.
    wait_for(lambda: len(answers) == 52)
    begun = time.monotonic()
    assert process.ask("GET", f"{BASE}/procedures/1")[0] == 200
    assert time.monotonic() - begun < 1
    assert {status for status, _ in answers} == {504}
    assert b"too many requests wait" in answers[0][1]
    # Each stop was stored, whatever was answered; those that wait hear of the end.
    for number in numbers:
        process.order(id=number, enter="STOPPED")
    for thread in threads:
        thread.join(20)
    assert sorted({status for status, _ in answers[52:]}) == [200]
    process.stop()


# ---- life ------------------------------------------------------------------------------------------------------------


@pytest.mark.serial
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ordered_stop_ends_streams_and_engine_soon(number: signal.Signals) -> None:
    process = Process()
    procedure = process.create()
    streams = [process.listen() for _ in range(7)]
    logs = process.connect(_head("GET", f"/procedures/{procedure}/logs?follow=true"))
    idle = process.connect(_head("GET", "/readyz"))
    read_until(idle, b"}")
    begun = time.monotonic()
    process.send_signal(number)
    for stream in streams:
        assert read_all(stream).endswith(b":the server stops\n\n\r\n0\r\n\r\n")
    assert read_all(logs).endswith(b"0\r\n\r\n")
    assert time.monotonic() - begun < 2
    code, out, err = process.wait()
    assert (code, "engine stopped" in out, err) == (0, True, "")
    assert time.monotonic() - begun < 4
    idle.close()


def test_request_under_way_is_answered_before_the_server_ends() -> None:
    process = Process(ends=None)
    number = process.create()
    assert process.ask("PUT", f"{BASE}/procedures/{number}", b'{"state": "RUNNING"}')[0] == 200
    raw = process.connect(_head("PUT", f"/procedures/{number}", "Content-Length: 20") + b'{"state": "STOPPED"}')
    again = b'{"state": "RUNNING"}'
    # A start of what is being stopped is refused: from then on the stop is known to be stored.
    wait_for(lambda: b"being stopped" in process.ask("PUT", f"{BASE}/procedures/{number}", again)[1])
    process.send_signal(signal.SIGTERM)
    process.order(id=number, enter="STOPPED")
    assert b"Successfully stopped script" in read_all(raw)
    assert process.wait()[0] == 0


def test_busy_port_is_told_in_one_line_with_exit_code_1(shared: Process) -> None:
    process = Process({"port": shared.port})
    code, out, err = process.wait()
    assert (code, out) == (1, "")
    assert err == (
        f"oet: port {shared.port} of 127.0.0.1 is in use by another program: end it, or set OET_PORT to another port\n"
    )


def test_engine_that_cannot_start_ends_the_server_with_its_reason() -> None:
    process = Process(start_failure="another OET uses the state folder")
    code, _, err = process.wait()
    assert code == 1
    assert err.startswith("oet: another OET uses the state folder\n")
    assert err.count("another OET") == 1
