"""The REST server on a real Kubernetes with the real operator, as clients see it: two replicas in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from oet_cluster.kubectl import Kubectl
from oet_support import Client, Refused, Server
from oet_support_cluster import RESOURCE, prepare_namespace, running_operator

from oet_crds.names import API_MAJOR
from oet_crds.states import State

pytestmark = pytest.mark.cluster

LONG = "import time\ndef main(**_):\n    print('up')\n    time.sleep(600)"


@pytest.fixture(scope="module")
def clients(executions: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Client]]:
    """A client of each replica."""
    prepare_namespace(executions)
    settings = {"OET_ENGINE": "kubernetes", "KUBECONFIG": str(executions.kubeconfig), "OET_START_TIMEOUT_SECONDS": "2"}
    servers = [
        Server(tmp_path_factory.mktemp("server"), KUBE_NAMESPACE=str(executions.namespace), **settings)
        for _ in range(2)
    ]
    for server in servers:
        server.start()
    base = f"/{executions.namespace}/oet/api/v{API_MAJOR}"
    clients = Client(servers[0].port, base), Client(servers[1].port, base)
    yield clients
    for client, server in zip(clients, servers, strict=True):
        client.close()
        server.stop()


def test_script_is_prepared_started_and_stopped_through_any_replica(
    executions: Kubectl, clients: tuple[Client, Client], tmp_path: Path
) -> None:
    one, other = clients
    with running_operator(executions, tmp_path / "log"):
        procedure = one.prepare(LONG)
        other.start(procedure)
        one.wait_for(procedure, State.RUNNING)
        assert other.stop(procedure)["abort_message"] == f"Successfully stopped script with ID {procedure}"
        assert one.wait_for(procedure, State.STOPPED)["state"] == State.STOPPED


def test_start_on_a_held_subarray_is_refused_with_its_holder(
    executions: Kubectl, clients: tuple[Client, Client], tmp_path: Path
) -> None:
    one, other = clients
    with running_operator(executions, tmp_path / "log"):
        holder, second = one.prepare(LONG, 2), one.prepare(LONG, 2)
        one.start(holder)
        with pytest.raises(Refused, match=f"PID #{holder} is RUNNING on subarray 2") as refused:
            other.start(second)
        assert refused.value.status == HTTPStatus.CONFLICT
        assert one.get(second)["state"] == State.READY
        one.stop(holder)
        one.stop(second)


def test_without_an_operator_stops_are_confirmed_and_starts_and_creations_are_not_pretended(
    executions: Kubectl, clients: tuple[Client, Client], tmp_path: Path
) -> None:
    one, other = clients
    with running_operator(executions, tmp_path / "log"):
        running, ready = one.prepare(LONG, 3), one.prepare(LONG, 3)
        one.start(running)
        one.wait_for(running, State.RUNNING)
    one.stop(running)
    assert other.wait_for(running, State.STOPPED)["state"] == State.STOPPED
    with pytest.raises(Refused, match="not granted yet") as refused:
        one.start(ready)
    assert refused.value.status == HTTPStatus.GATEWAY_TIMEOUT
    other.stop(ready)
    assert one.wait_for(ready, State.STOPPED)["state"] == State.STOPPED
    before = executions.run("get", RESOURCE, "--output=name")
    with pytest.raises(Refused, match="nothing was created") as refused:
        one.create(LONG)
    assert refused.value.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert executions.run("get", RESOURCE, "--output=name") == before
