"""A cluster for the tests that are marked `cluster`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from oet_cluster.cluster import Cluster, State
from oet_cluster.kubectl import Kubectl, find_kubectl
from oet_cluster.places import Places

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def places() -> Places:
    return Places.from_environ(os.environ)


@pytest.fixture(scope="module")
def admin(places: Places) -> Iterator[Kubectl]:
    """The administrator's kubectl of the cluster that KUBECONFIG names, or of our own with OET_CLUSTER=1."""
    if os.environ.get("KUBECONFIG"):
        yield Kubectl(find_kubectl(places), Path(os.environ["KUBECONFIG"]))
        return
    if os.environ.get("OET_CLUSTER") != "1":
        pytest.skip("set KUBECONFIG to a cluster's, or OET_CLUSTER=1 to bring one up")
    cluster = Cluster(places)
    was_down = cluster.observe_state() is State.DOWN
    try:
        cluster.up()
        yield Kubectl(find_kubectl(places), places.kubeconfig)
    finally:
        if was_down:
            cluster.down()


@pytest.fixture(scope="module")
def kubectl(admin: Kubectl) -> Iterator[Kubectl]:
    """Kubectl in a namespace of its own."""
    name = f"oet-test-{uuid4().hex[:12]}"
    admin.run("create", "namespace", name)
    inside = admin.within(name)
    # Pods of a namespace cannot be created before its ServiceAccount is there.
    inside.run("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    yield inside
    admin.run("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def executions(admin: Kubectl, kubectl: Kubectl) -> Kubectl:
    """Kubectl in a namespace of a cluster that knows ScriptExecutions. The definition is never removed: others may use it."""
    admin.run("apply", "--server-side", "--force-conflicts", f"--filename={REPOSITORY / 'crds/generated'}")
    admin.run("wait", "--for=condition=Established", "--timeout=30s", f"--filename={REPOSITORY / 'crds/generated'}")
    return kubectl
