"""What an execution waits for on a real Kubernetes: the command line and the event stream tell it while it waits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from oet_cluster.kubectl import Kubectl
from oet_cluster.waiting import wait_for
from oet_support import Client, Server
from oet_support_cluster import RESOURCE, prepare_namespace, running_operator

from oet_crds.names import API_MAJOR, GROUP, KIND, SCRIPT_CONTAINER, VERSION
from oet_crds.reasons import Reason
from oet_crds.states import State
from oet_crds.topics import EntryKind, Topic

pytestmark = pytest.mark.cluster

QUOTA = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "none"},
    "spec": {"hard": {"count/pods": "0"}},
}
IMAGE = {"containers": [{"name": SCRIPT_CONTAINER, "image": "localhost/oet/nobody:0"}]}


@pytest.fixture(scope="module")
def server(executions: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A REST server of a namespace with the operator at work."""
    prepare_namespace(executions)
    settings = {"OET_ENGINE": "kubernetes", "KUBECONFIG": str(executions.kubeconfig)}
    server = Server(tmp_path_factory.mktemp("server"), KUBE_NAMESPACE=str(executions.namespace), **settings)
    with running_operator(executions, tmp_path_factory.mktemp("operator") / "log"):
        server.start()
        yield server
        server.stop()


def prepare(kubectl: Kubectl, name: str, pod: Mapping[str, Any] | None) -> str:
    """Create an execution; returns its procedure id."""
    spec: dict[str, Any] = {"script": {"inline": {"source": "def main(): pass"}}, "desiredState": "Ready"}
    if pod is not None:
        spec["podTemplate"] = {"spec": pod}
    manifest = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": {"name": name}, "spec": spec}
    kubectl.run("create", "--filename=-", manifest=manifest)
    where = "--output=jsonpath={.status.procedureId}"
    return wait_for(lambda: kubectl.run("get", RESOURCE, name, where), 20, "it has no procedure id")


def run_oet(server: Server, kubectl: Kubectl, *words: str) -> subprocess.CompletedProcess[str]:
    url = f"http://127.0.0.1:{server.port}/{kubectl.namespace}/oet/api/v{API_MAJOR}"
    command = [sys.executable, "-m", "oet_cli", "--server-url", url, "procedure", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("name", "reason", "pod", "words"),
    [
        ("no-node", Reason.UNSCHEDULABLE, {"nodeSelector": {"oet.skao.int/nobody": "here"}}, "0/1 nodes are available"),
        ("no-image", Reason.IMAGE_PULL_FAILED, IMAGE, "localhost/oet/nobody:0"),
        ("no-quota", Reason.POD_REJECTED, None, "exceeded quota"),
    ],
)
def test_command_that_waits_tells_why_and_the_event_stream_does(
    executions: Kubectl, server: Server, name: str, reason: Reason, pod: Mapping[str, Any] | None, words: str
) -> None:
    if reason is Reason.POD_REJECTED:
        executions.run("create", "--filename=-", manifest=QUOTA)
        # Quotas hold from the moment on that their controller has counted.
        where = "--output=jsonpath={.status.hard}"
        wait_for(lambda: executions.run("get", "resourcequota/none", where), 20, "the quota does not hold")
    number = prepare(executions, name, pod)
    done = run_oet(server, executions, "wait", f"--pid={number}", "--for=READY", "--timeout=8")
    assert done.returncode == 6
    told = [line for line in done.stderr.splitlines() if line.startswith(f"- Procedure {number} is {State.CREATING}: ")]
    assert told
    assert len(told) == len(set(told))
    assert words in told[-1]
    assert told[-1].endswith(f" ({reason})")
    listed = run_oet(server, executions, "list", f"--pid={number}").stdout
    assert str(reason) in listed
    client = Client(server.port, f"/{executions.namespace}/oet/api/v{API_MAJOR}")
    events = client.ask("GET", f"/procedures/{number}/events?kind={EntryKind.ACTION}")
    client.close()
    waits = [event["payload"] for event in events if event["topic"] == Topic.WAITING]
    assert (waits[-1]["state"], waits[-1]["reason"]) == (State.CREATING, reason)
    assert words in json.dumps(waits[-1])
