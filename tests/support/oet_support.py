"""What system tests and benchmarks share: a real server in a process of its own, and plain clients for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BASE = "/ska-oso-oet/oet/api/v7"


PORTS = range(10_000, 30_000)
"""Where tests' servers listen: above the usual services, below Kubernetes' node ports and what Linux gives to connections."""
_given: set[int] = set()


def find_free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on now, that the kernel gives to nobody, and that was not returned before.

    A server of a test may end and come back on its port. One that the kernel chose (a bind to port 0) could be given by it to
    any other test meanwhile, and the server could not come back.
    """
    chance = random.SystemRandom()  # Tests seed the common one, each worker alike.
    while True:
        port = chance.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            if port not in _given:
                probe.bind((host, port))
                _given.add(port)
                return port


def wait_until(condition: Callable[[], Any], seconds: float, complaint: str) -> None:
    """Poll until a condition holds. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(complaint)
        time.sleep(0.005)


def find_descendants(root: int) -> list[int]:
    """Return all processes below a process."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                stat = Path("/proc", name, "stat").read_text()
                children.setdefault(int(stat[stat.rindex(")") + 2 :].split()[1]), []).append(int(name))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def find_marked(mark: str) -> list[int]:
    """Return living processes that have a text in their environment; zombies have none any more."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if mark.encode() in Path("/proc", name, "environ").read_bytes():
                    found.append(int(name))
    return found


class Server:
    """A server process on a port and state folder of its own; that is below the folder it is given, which scripts can read."""

    def __init__(self, state_dir: str | Path, **settings: str) -> None:
        self.port = find_free_port()
        self.state_dir = Path(state_dir)
        self.environ = {
            **os.environ,
            "OET_HOST": "127.0.0.1",
            "OET_PORT": str(self.port),
            "OET_STATE_DIR": str(self.state_dir / "state"),
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it takes work."""
        log = (self.state_dir / "server.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "oet_api"], env=self.environ, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(lambda: self._process.poll() is not None or self.is_ready(), 30, "the server is not ready")  # type: ignore[union-attr]
        if self._process.poll() is not None:
            raise ChildProcessError(f"the server ended with {self._process.returncode}: {self.read_log()}")

    def read_log(self) -> str:
        """Return what the server printed."""
        return (self.state_dir / "server.log").read_text(errors="replace")

    def is_ready(self) -> bool:
        """Ask the server whether it takes work."""
        url = f"http://127.0.0.1:{self.port}/readyz"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        """Kill the server at once, all its own processes, as a power cut would; runners are sessions of their own."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    def stop(self) -> int:
        """Stop the server in order, and return its exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(30)


@contextlib.contextmanager
def running_server(**settings: str) -> Iterator[Server]:
    """Run a server with a state folder of its own."""
    with tempfile.TemporaryDirectory() as state:
        server = Server(state, **settings)
        server.start()
        try:
            yield server
        finally:
            server.stop()


class Refused(Exception):
    """The server answered with an error status."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body


class Client:
    """A keep-alive connection, with Nagle's delay off as every HTTP library has it."""

    def __init__(self, port: int, base: str = BASE) -> None:
        self._base = base
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request and return the JSON answer. Raises Refused for an error status."""
        text = None if body is None else json.dumps(body)
        self._connection.request(method, self._base + path, text, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        data = json.loads(answer.read())
        if answer.status >= 400:
            raise Refused(answer.status, data)
        return data

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def create(self, source: str, subarray: int | None = 1, **init: Any) -> int:
        """Create a procedure from source text and return its id."""
        kwargs = init if subarray is None else {"subarray_id": subarray, **init}
        body = {
            "script": {"script_type": "inline", "source": source},
            "script_args": {"init": {"args": [], "kwargs": kwargs}},
        }
        return int(self.ask("POST", "/procedures/", body)["id"])

    def get(self, procedure_id: int) -> Any:
        """Return one procedure."""
        return self.ask("GET", f"/procedures/{procedure_id}")

    def wait_for(self, procedure_id: int, *states: str, seconds: float = 30) -> Any:
        """Poll until a procedure is in one of the states, and return it."""
        seen: dict[str, Any] = {}

        def is_there() -> bool:
            seen.update(self.get(procedure_id))
            return seen["state"] in states

        wait_until(is_there, seconds, f"procedure {procedure_id} is not {states}")
        return seen

    def prepare(self, source: str, subarray: int | None = 1, **init: Any) -> int:
        """Create a procedure from source text and wait until it is READY."""
        procedure_id = self.create(source, subarray, **init)
        self.wait_for(procedure_id, "READY")
        return procedure_id

    def start(self, procedure_id: int, *args: Any, **kwargs: Any) -> Any:
        """Start a procedure."""
        body = {"state": "RUNNING", "script_args": {"main": {"args": list(args), "kwargs": kwargs}}}
        return self.ask("PUT", f"/procedures/{procedure_id}", body)

    def stop(self, procedure_id: int) -> Any:
        """Stop a procedure."""
        return self.ask("PUT", f"/procedures/{procedure_id}", {"state": "STOPPED"})


class Stream:
    """An open event stream."""

    def __init__(self, port: int, path: str = "/stream", **headers: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self._socket.sendall(f"GET {BASE}{path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
        self._buffer = b""
        while b"\r\n\r\n" not in self._buffer:
            self._buffer += self._socket.recv(65536)
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        self.head = head.decode()
        self.status = int(self.head.split()[1])
        self.last_id = ""

    def read_event(self) -> dict[str, Any]:
        """Return the next event; `last_id` is its id then."""
        event: dict[str, Any] = {}
        while True:
            while b"\n" in self._buffer:
                line, self._buffer = self._buffer.split(b"\n", 1)
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                elif line.startswith(b"id:"):
                    self.last_id = line[3:].strip().decode()
                elif not line.strip() and event:
                    return event
            data = self._socket.recv(65536)
            if not data:
                raise EOFError("the stream ended")
            self._buffer += data

    def wait_for(self, is_wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read until an event is the wanted one, and return it."""
        while not is_wanted(event := self.read_event()):
            pass
        return event

    def close(self) -> None:
        """End the stream."""
        self._socket.close()
