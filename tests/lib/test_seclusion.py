"""A rehearsal is out of the telescope's reach: tried out by connections to real listeners."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from oet.simulation import seclusion
from oet.simulation.seclusion import SeclusionError, has_answered, parse_addresses, wait_until_secluded

LOOPBACK = "127.0.0.1"


class Telescope:
    """Listens, and closes its port after so many visits."""

    def __init__(self, visits: int) -> None:
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port = int(self._listener.getsockname()[1])
        self.visits = 0
        self._thread = threading.Thread(target=self._serve, args=[visits])
        self._thread.start()

    def _serve(self, visits: int) -> None:
        with self._listener:
            while self.visits < visits:
                self._listener.accept()[0].close()
                self.visits += 1

    def close(self) -> None:
        """End it, if need be by visits of our own."""
        while self._thread.is_alive():
            has_answered(LOOPBACK, self.port)
            self._thread.join(0.01)


@pytest.fixture(params=[1, 3])
def telescope(request: pytest.FixtureRequest) -> Iterator[Telescope]:
    telescope = Telescope(request.param)
    yield telescope
    telescope.close()


def test_telescope_that_is_open_at_first_is_waited_for(telescope: Telescope) -> None:
    wait_until_secluded([(LOOPBACK, telescope.port)], seconds=20)
    assert telescope.visits > 0
    assert not has_answered(LOOPBACK, telescope.port)


def test_telescope_that_stays_open_is_an_error_that_says_what_to_do() -> None:
    with (
        socket.create_server((LOOPBACK, 0), backlog=100) as listener,
        pytest.raises(
            SeclusionError, match=f"telescope at {LOOPBACK}:{listener.getsockname()[1]} can be reached.*plug-in"
        ),
    ):
        wait_until_secluded([(LOOPBACK, 1), listener.getsockname()[:2]], seconds=0.2)


@pytest.mark.parametrize("host", [LOOPBACK, "no.such.host.invalid"], ids=["refused", "unknown_name"])
def test_address_that_nobody_answers_is_out_of_reach(host: str) -> None:
    wait_until_secluded([(host, 1)], seconds=0)


def test_connection_that_is_never_answered_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seclusion, "KNOCK_SECONDS", 0.2)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((LOOPBACK, 0), backlog=0))
        for _ in range(4):  # Linux drops what comes to a queue that is full, as many policies do.
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        assert not has_answered(*listener.getsockname())


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("", []),
        ("db:10000", [("db", 10000)]),
        ("db.telescope.svc:10000, 10.0.0.7:1", [("db.telescope.svc", 10000), ("10.0.0.7", 1)]),
        ("[::1]:10000", [("::1", 10000)]),
    ],
)
def test_databases_are_read_from_a_tango_host(text: str, addresses: list[tuple[str, int]]) -> None:
    assert parse_addresses(text) == addresses


@pytest.mark.parametrize("text", ["db", "db:", ":10000", "db:port", "db:10000,other"])
def test_tango_host_that_names_no_port_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        parse_addresses(text)


def simulate(away_from: str) -> subprocess.CompletedProcess[str]:
    """Run a command beside a simulated telescope."""
    words = ["-m", "oet.simulation", f"--away-from={away_from}", "--", "true"]
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60, check=False)


def test_simulation_begins_when_the_telescope_is_out_of_reach(telescope: Telescope) -> None:
    pytest.importorskip("tango")
    done = simulate(f"{LOOPBACK}:{telescope.port}")
    assert (done.returncode, telescope.visits > 0) == (0, True), done.stderr


def test_simulation_says_what_is_wrong_with_an_address() -> None:
    done = simulate("db")
    assert (done.returncode, "'db' is not HOST:PORT" in done.stderr) == (2, True), done.stderr
