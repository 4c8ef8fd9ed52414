"""Every adapter of the ports, under the same tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from oet_crds.ports import ExecutionStore, Timeline
from oet_crds.settings import EngineSettings
from oet_operator.local.engine import LocalEngine


@pytest.fixture(params=["local-namespace", "local-none"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalEngine]:
    """A running engine."""
    isolation = str(request.param).removeprefix("local-")
    settings = EngineSettings(
        state_dir=str(tmp_path / "state"),
        spares=1,
        history_limit=3,
        max_active=6,
        isolation=isolation,
        scripts_location=str(tmp_path),
    )
    engine = LocalEngine(settings)
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def store(engine: LocalEngine) -> ExecutionStore:
    """The execution store port."""
    return engine


@pytest.fixture
def timeline(engine: LocalEngine) -> Timeline:
    """The timeline port."""
    return engine.timeline
