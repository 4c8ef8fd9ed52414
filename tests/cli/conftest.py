"""A server that plays what a test tells it to, and the `oet` command in this process and in one of its own."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from oet_cli import main as oet_main


@dataclass(frozen=True)
class Answer:
    """An answer: JSON or bytes; pieces make it a stream, which may break off."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pieces: tuple[bytes, ...] = ()
    breaks: bool = False


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


DROP = Answer(breaks=True)
"""The connection is closed without an answer."""


class Play:
    """What the server answers, and what it was asked."""

    Answer, DROP = Answer, DROP

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[Asked] = []
        self._answers: dict[str, list[Any]] = {}

    def play(self, what: str, *answers: Any) -> None:
        """Answer `METHOD /path` in turn, the last answer again and again.

        An answer is an `Answer`, a function from what was asked to one, or a JSON value that is answered with 200.
        """
        self._answers[what] = list(answers)

    def find(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        answers = self._answers.get(f"{asked.method} {asked.path}")
        if answers is None:
            return Answer({"detail": f"nothing at {asked.method} {asked.path}"}, 404)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer = answer(asked) if callable(answer) else answer
        return answer if isinstance(answer, Answer) else Answer(answer)

    def find_asked(self, method: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.method == method]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    play: Play

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, url.path, dict(parse_qsl(url.query)), headers, json.loads(body) if body else None)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send(self.play.find(asked))

    do_GET = do_POST = do_PUT = handle_any

    def send(self, answer: Answer) -> None:
        if answer.breaks and not answer.pieces:
            return self.drop()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.pieces:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in answer.pieces:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            return self.drop() if answer.breaks else self.wfile.write(b"0\r\n\r\n")
        data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        return None

    def drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[Play]:
    play = Play()
    handler = type("PlayHandler", (Handler,), {"play": play})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=[0.01])
    thread.start()
    play.url = f"http://127.0.0.1:{http.server_port}"
    yield play
    http.shutdown()
    http.server_close()
    thread.join()


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def oet(server: Play, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Run `oet` in this process."""

    def run(*words: str, text: str = "", url: str = server.url) -> Done:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        monkeypatch.delenv("OET_URL", raising=False)
        with pytest.raises(SystemExit) as ended:
            oet_main.main(["--server-url", url, *words])
        out, err = capfd.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def start_oet(server: Play) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `oet` in a process of its own, as a shell does."""
    with contextlib.ExitStack() as stack:

        def start(*words: str, program: Sequence[str] = ("-m", "oet_cli"), **options: Any) -> subprocess.Popen[str]:
            pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            command = [sys.executable, *program, "--server-url", server.url, *words]
            process = stack.enter_context(subprocess.Popen(command, text=True, **{**pipes, **options}))
            stack.callback(process.kill)
            return process

        yield start
