"""The application over an engine in memory."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import falcon.testing
import pytest

from oet_api.app import Application, build_application
from oet_api.services import Services, build_services
from oet_crds.settings import ServerSettings


def _load_fakes() -> ModuleType:
    """Load the fakes beside this file; folders of tests are no packages."""
    spec = importlib.util.spec_from_file_location("oet_api_fakes", Path(__file__).with_name("fakes.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


BASE = "/ska-oso-oet/oet/api/v7"


@pytest.fixture(scope="session")
def fakes() -> ModuleType:
    """The module of fakes."""
    return sys.modules.get("oet_api_fakes") or _load_fakes()


@pytest.fixture
def settings() -> ServerSettings:
    """Limits small enough for tests to meet them."""
    return ServerSettings(
        host="127.0.0.1",
        port=0,
        start_timeout_seconds=0.3,
        stop_timeout_seconds=0.3,
        heartbeat_seconds=0.1,
        max_body_bytes=20_000,
        max_args_bytes=5_000,
        max_streams=2,
    )


@pytest.fixture
def timeline(fakes: ModuleType) -> Any:
    """The timeline of the fake engine."""
    return fakes.FakeTimeline()


@pytest.fixture
def store(fakes: ModuleType, timeline: Any) -> Any:
    """The fake engine."""
    return fakes.FakeStore(timeline)


@pytest.fixture
def services(store: Any, timeline: Any, settings: ServerSettings) -> Iterator[Services]:
    """The parts of the application."""
    services = build_services(store, timeline, settings)
    yield services
    services.broadcast.stop()


@pytest.fixture
def app(services: Services) -> Application:
    """The application."""
    return build_application(services)


class Client:
    """Speaks to the application without a network."""

    def __init__(self, app: Application) -> None:
        self._client = falcon.testing.TestClient(app)

    def ask(self, method: str, path: str, json: Any = None, **more: Any) -> falcon.testing.Result:
        """Send a request to a path below the base path, or to an absolute one that starts with `//`."""
        target = path[1:] if path.startswith("//") else BASE + path
        if json is not None:
            more["json"] = json
        more.setdefault("host", "localhost")
        return self._client.simulate_request(method, target, **more)

    def create(self, subarray: Any = None, **fields: Any) -> int:
        """Create a procedure."""
        kwargs = {} if subarray is None else {"subarray_id": subarray}
        body = {
            "script": {"script_type": "filesystem", "script_uri": "file:///scripts/a.py"},
            "script_args": {"init": {"args": [], "kwargs": kwargs}},
            **fields,
        }
        answer = self.ask("POST", "/procedures/", body)
        assert answer.status_code == 201, answer.text
        return int(answer.json["id"])

    def start(self, procedure_id: int, *args: Any) -> falcon.testing.Result:
        """Start a procedure."""
        body = {"state": "RUNNING", "script_args": {"main": {"args": list(args)}}}
        return self.ask("PUT", f"/procedures/{procedure_id}", body)

    def stop(self, procedure_id: int, **fields: Any) -> falcon.testing.Result:
        """Stop a procedure."""
        return self.ask("PUT", f"/procedures/{procedure_id}", {"state": "STOPPED", **fields})


@pytest.fixture
def client(app: Application) -> Client:
    """A client of the application."""
    return Client(app)
