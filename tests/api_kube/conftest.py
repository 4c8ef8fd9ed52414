"""An engine over a small API server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import kubernetes.client
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_cluster import NAMESPACE, FakeCluster

from oet_api.kube.engine import KubeEngine
from oet_api.kube.informer import Patience
from oet_crds.ports import EntrySink
from oet_crds.settings import EngineSettings, ServerSettings, Settings


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    cluster = FakeCluster()
    yield cluster
    cluster.go_down()


def build(cluster: FakeCluster, sink: EntrySink | None = None, **settings: object) -> KubeEngine:
    configuration = kubernetes.client.Configuration(host=cluster.url)
    configuration.no_proxy = "*"
    return KubeEngine(
        Settings(
            server=ServerSettings(namespace=NAMESPACE),
            engine=EngineSettings(**settings),  # type: ignore[arg-type]
        ),
        configuration,
        Patience(watch_seconds=2, silence_seconds=3.0),
        sink,
    )


@pytest.fixture
def engines(cluster: FakeCluster) -> Iterator[list[KubeEngine]]:
    """Engines that a test started; they are ended after it."""
    started: list[KubeEngine] = []
    yield started
    for engine in started:
        engine.stop()


@pytest.fixture
def start(cluster: FakeCluster, engines: list[KubeEngine]):  # type: ignore[no-untyped-def]
    """Starts an engine."""

    def start(sink: EntrySink | None = None, **settings: object) -> KubeEngine:
        engine = build(cluster, sink, **settings)
        engines.append(engine)
        engine.start()
        return engine

    return start


@pytest.fixture
def engine(start) -> KubeEngine:  # type: ignore[no-untyped-def]
    """A running engine over an empty cluster."""
    return start()
