"""Drives real runner processes over real pipes, with a deadline on everything."""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import pytest
from oet_support import find_marked

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 20.0
MARK = "OET_TEST_MARK"


def find_python(version):
    """Return an interpreter of that version; None where there is none."""
    # pyenv's own folders first: what it puts on the PATH may refuse to run.
    candidates = [str(path) for path in sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    candidates.append(shutil.which(f"python{version}"))
    return next((c for c in candidates if c and os.access(c, os.X_OK)), None)


class Harness:
    """A runner, and what it said."""

    def __init__(self, python=sys.executable, environ=None, pipes=False, prefix=(), options=()):
        self.mark = str(uuid.uuid4())
        path = os.pathsep.join(str(ROOT / part) for part in ("crds", "runner", "lib"))
        env = {**os.environ, "PYTHONPATH": path, MARK: self.mark, **(environ or {})}
        self._is_wrapped = bool(prefix)
        self._received = b""
        self.entries, self.hello, self.exit, self.is_closed = [], None, None, False
        if pipes:
            to_runner, self.fd_out = os.pipe()
            self.fd_in, from_runner = os.pipe()
            theirs = [to_runner, from_runner]
        else:
            ours, runners = socket.socketpair()
            self.fd_in = self.fd_out = ours.detach()
            theirs = [runners.detach()]
        arguments = ["-m", "oet_runner", "--mailbox-in", str(theirs[0]), "--mailbox-out", str(theirs[-1]), *options]
        self.process = subprocess.Popen(
            [*prefix, python, *arguments],
            pass_fds=theirs,
            env=env,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        for fd in theirs:
            os.close(fd)

    # ---- talking

    def send(self, kind, **fields):
        os.write(self.fd_out, json.dumps({"kind": kind, **fields}).encode() + b"\n")

    def assign(self, source, init=None, procedure_id=7):
        script = source if isinstance(source, dict) else {"inline": {"source": textwrap.dedent(source)}}
        self.send("assign", uid="uid-7", procedureId=procedure_id, script=script, init=init)

    def grant(self, *args, **kwargs):
        self.send("grant", main={"args": list(args), "kwargs": kwargs})

    def stop(self, grace=10.0):
        self.send("stop", gracePeriodSeconds=grace)

    def run(self, source, init=None, main=None):
        self.assign(source, init)
        self.send("grant", main=main or {"args": [], "kwargs": {}})
        return self.wait_exit()

    # ---- listening

    def _read(self, timeout):
        if not select.select([self.fd_in], [], [], max(0.0, timeout))[0]:
            raise TimeoutError(f"nothing more came; so far {self.entries[-20:]}")
        try:
            data = os.read(self.fd_in, 1 << 20)
        except ConnectionResetError:
            data = b""
        self.is_closed = not data
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            mail = json.loads(line)
            assert self.exit is None, "the exit is the last line"
            if mail["kind"] == "report":
                self.entries += mail["entries"]
            else:
                setattr(self, mail["kind"], mail)

    def wait_for(self, condition, seconds=DEADLINE_SECONDS):
        deadline = time.monotonic() + seconds
        while not condition():
            assert not self.is_closed, f"the runner ended; it said {self.entries[-20:]} {self.exit}"
            self._read(deadline - time.monotonic())

    def wait_state(self, state, count=1):
        self.wait_for(lambda: self.states.count(state) >= count)

    def wait_line(self, line):
        self.wait_for(lambda: line in self.lines())

    def wait_exit(self, seconds=DEADLINE_SECONDS):
        self.wait_for(lambda: self.exit is not None, seconds)
        assert self._is_wrapped or set(self.alive()) <= {self.process.pid}, "exit came before all processes had ended"
        numbers = [entry["n"] for entry in [*self.entries, self.exit]]
        assert numbers == list(range(1, len(numbers) + 1))
        assert self.process.wait(DEADLINE_SECONDS) == 0
        return self.exit

    @property
    def states(self):
        return [entry["state"] for entry in self.entries if entry["k"] == "state"]

    @property
    def messages(self):
        return [(entry["topic"], entry["data"]) for entry in self.entries if entry["k"] == "message"]

    def lines(self, stream=None):
        return [e["line"] for e in self.entries if "line" in e and stream in (None, e["stream"])]

    # ---- truth

    def alive(self):
        """Return the processes that carry this runner's mark and are not dead."""
        return find_marked(f"{MARK}={self.mark}")

    def wait_nothing_alive(self, seconds=DEADLINE_SECONDS):
        deadline = time.monotonic() + seconds
        while self.alive():
            assert time.monotonic() < deadline, f"still alive: {self.alive()}"
            time.sleep(0.005)

    def close(self):
        for fd in {self.fd_in, self.fd_out}:
            with contextlib.suppress(OSError):
                os.close(fd)
        deadline = time.monotonic() + DEADLINE_SECONDS
        self.process.kill()
        while time.monotonic() < deadline and (pids := self.alive()):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
        self.process.wait(DEADLINE_SECONDS)
        self.process.stderr.close()


@pytest.fixture
def start_runner():
    """Start runners; whatever a test leaves behind is ended."""
    started = []

    def _start(**options):
        started.append(Harness(**options))
        return started[-1]

    yield _start
    for runner in started:
        runner.close()


@pytest.fixture
def runner(start_runner):
    return start_runner()


@pytest.fixture(params=["running", "3.8", "3.13"])
def any_python(request):
    """The Python of the tests, and the oldest and newest that are there."""
    python = sys.executable if request.param == "running" else find_python(request.param)
    if python is None:
        pytest.skip(f"no Python {request.param} here")
    return python


@pytest.fixture
def any_runner(any_python, start_runner):
    """A runner under each of these."""
    return start_runner(python=any_python)
