"""A cluster for the tests that are marked `cluster`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from oet_cluster.kubectl import Kubectl
from oet_cluster.places import Places
from oet_support_cluster import define_executions, making_namespace, reaching_cluster


@pytest.fixture(scope="session")
def places() -> Places:
    return Places.from_environ(os.environ)


@pytest.fixture(scope="module")
def admin(places: Places) -> Iterator[Kubectl]:
    """The administrator's kubectl."""
    with reaching_cluster(places) as admin:
        yield admin


@pytest.fixture(scope="module")
def kubectl(admin: Kubectl) -> Iterator[Kubectl]:
    """Kubectl in a namespace of its own."""
    with making_namespace(admin) as kubectl:
        yield kubectl


@pytest.fixture(scope="module")
def executions(admin: Kubectl, kubectl: Kubectl) -> Kubectl:
    """Kubectl in a namespace of a cluster that knows ScriptExecutions."""
    define_executions(admin)
    return kubectl
