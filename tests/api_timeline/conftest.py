"""A real PostgreSQL, and stores of the timeline on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from oet_support_postgres import Postgres, running_postgres
from oet_support_timeline import Start

from oet_api.kube.lasting import LastingTimeline
from oet_api.timeline.store import TimelineStore
from oet_crds.settings import TimelineSettings


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/timeline.db"
    return str(request.getfixturevalue("postgres").make_database())


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """An empty database of PostgreSQL."""
    return postgres.make_database()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts timelines, as servers do; they are ended after the test."""
    started: list[LastingTimeline] = []

    def start(url: str, log_limit_bytes: int = 1024 * 1024, **settings: float) -> LastingTimeline:
        store = TimelineStore(TimelineSettings(database=url, **settings), "test")  # type: ignore[arg-type]
        timeline = LastingTimeline(store, log_limit_bytes)
        started.append(timeline)
        timeline.start()
        return timeline

    yield start
    for timeline in started:
        timeline.stop()
