"""A real server for system tests: in processes of its own, over real HTTP, with real scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from oet_support import Client, Server

from oet_operator.local.runner import is_isolation_available


@pytest.fixture(params=["namespace", "none"])
def isolation(request: pytest.FixtureRequest) -> str:
    """How scripts are kept apart; tests that ask for it run once with each that works here."""
    if request.param == "namespace" and not is_isolation_available():
        pytest.skip("no PID namespaces here")
    return str(request.param)


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A running server; it uses the test's `isolation` and `confinement` if the test asks for them."""
    settings = {"OET_SPARES": "1"}
    if "isolation" in request.fixturenames:
        settings["OET_ISOLATION"] = request.getfixturevalue("isolation")
    if "confinement" in request.fixturenames:
        settings["OET_CONFINEMENT"] = request.getfixturevalue("confinement")
    server = Server(tmp_path, **settings)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of the server."""
    client = Client(server.port)
    yield client
    client.close()
