"""The command against servers, networks and terminals that behave as none should, seen from outside only."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Reply = bytes | Callable[[socket.socket], None]


class OddServer:
    """Sends the bytes that a test tells it to, one reply for each connection; the last reply is repeated."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._answer, args=[connection])
            self._threads.append(thread)
            thread.start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(30)
            request = _read_request(connection)
            if request is None:
                return
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            self.requests.append(request)
            try:
                if callable(reply):
                    reply(connection)
                else:
                    connection.sendall(reply)
            except OSError:
                return  # The command under test hung up, as it may.

    def stop(self) -> None:
        """End all threads; may be done twice."""
        if self._listener.fileno() >= 0:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        for thread in self._threads:
            thread.join(20)


def _read_request(connection: socket.socket) -> bytes | None:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def _reply(status: str, body: Any = b"", *headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(data)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + data


PROCEDURE = {
    "id": 1,
    "script": {"script_type": "filesystem", "script_uri": "file:///a.py"},
    "script_args": {},
    "history": {"process_states": [["READY", 1.0]], "stacktrace": None},
    "state": "READY",
    "uri": "http://127.0.0.1/procedures/1",
}


@pytest.fixture
def odd() -> Iterator[OddServer]:
    server = OddServer()
    yield server
    server.stop()


def _command(server: OddServer, *words: str) -> list[str]:
    return [sys.executable, "-m", "oet_cli", "--server-url", server.url, *words]


def _oet(server: OddServer, *words: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(_command(server, *words), capture_output=True, timeout=30, check=False, **more)
    assert b"Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("place", ["https://else.where/base/procedures/", "/base/procedures/"])
def test_write_does_not_follow_a_redirect_and_names_the_new_place(odd: OddServer, place: str) -> None:
    odd.replies = [_reply("302 Found", b"", f"Location: {place}")]
    done = _oet(odd, "procedure", "create", "file:///a.py")
    assert done.returncode == 2
    assert (b"https://else.where/base;" if "else" in place else f"{odd.url}/base;".encode()) in done.stderr
    assert len(odd.requests) == 1


@pytest.mark.parametrize("answer", [None, [1], {"x": 1}, {**PROCEDURE, "history": []}], ids=json.dumps)
def test_wait_does_not_ask_a_server_again_that_is_not_of_oet(odd: OddServer, answer: Any) -> None:
    odd.replies = [_reply("200 OK", PROCEDURE), _reply("200 OK", answer)]
    done = _oet(odd, "procedure", "wait", "--pid=1")
    assert done.returncode == 4
    assert b"does not answer as OET does" in done.stderr
    assert len(odd.requests) == 2


def test_stream_that_ends_with_its_connection_is_shown_as_it_comes(odd: OddServer) -> None:
    release = threading.Event()

    def stream(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        connection.sendall(b'data:{"topic":"script.announce","msg":"first"}\nid:1\n\n')
        release.wait(20)

    odd.replies = [stream]
    with subprocess.Popen(_command(odd, "listen"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listener:
        watchdog = threading.Timer(15, listener.kill)
        watchdog.start()
        try:
            assert listener.stdout is not None
            # The stream is still open: the line must not wait for its end.
            assert listener.stdout.readline() == b"- Script message: first\n"
            listener.send_signal(signal.SIGINT)
            assert listener.wait(15) == 0
        finally:
            watchdog.cancel()
            listener.kill()
            release.set()


def test_listener_that_heard_nothing_yet_survives_a_restart_and_then_resumes(odd: OddServer) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    event = b'data:{"topic":"script.announce","msg":"hi"}\nid:7\n\n'
    chunk = b"%x\r\n%b\r\n" % (len(event), event)
    gone = _reply("404 Not Found", {"detail": "gone"})
    odd.replies = [head + b"1\r\n\n\r\n", head + chunk, gone]
    done = _oet(odd, "listen")
    assert (done.returncode, done.stdout) == (5, b"- Script message: hi\n")
    assert [b"last-event-id: 7" in request.lower() for request in odd.requests] == [False, False, True]


@pytest.mark.parametrize(
    ("given", "text"),
    [pytest.param(b"\xff\xfe", b"not UTF-8", id="bytes"), pytest.param(b" \n", b"empty", id="empty")],
)
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_standard_input_that_is_no_script_is_usage(odd: OddServer, given: bytes, text: bytes, locale: str) -> None:
    done = _oet(odd, "procedure", "run", "-", input=given, env={"LC_ALL": locale})
    assert done.returncode == 2
    assert text in done.stderr
    assert odd.requests == []


def test_closed_standard_input_is_usage(odd: OddServer) -> None:
    command = 'exec "$@" <&-'
    words = ["sh", "-c", command, "sh", *_command(odd, "procedure", "run", "-")]
    done = subprocess.run(words, capture_output=True, timeout=30, check=False)
    assert (done.returncode, b"empty" in done.stderr) == (2, True)


@pytest.mark.parametrize("words", [["wait", "--pid=1"], ["wait"], ["wait", "--pid=1", "--timeout=0"]], ids=" ".join)
def test_wait_for_a_server_that_was_never_there_ends_at_once(odd: OddServer, words: list[str]) -> None:
    odd.stop()
    done = _oet(odd, "procedure", *words)
    assert done.returncode == 4
    assert b"cannot reach OET" in done.stderr


def test_wait_ends_at_its_timeout_also_when_the_server_went_away(odd: OddServer) -> None:
    odd.replies = [_reply("200 OK", PROCEDURE), lambda _: None]
    begun = time.monotonic()
    done = _oet(odd, "procedure", "wait", "--pid=1", "--timeout=1")
    assert done.returncode == 4
    # The repeats of one read and one pause of the patience come on top, but not the patience itself (60 s).
    assert time.monotonic() - begun < 20
