"""The whole of OET in a cluster, installed by Helm from the image of this work tree, with the chart's rights and policies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from oet_cluster.kubectl import Kubectl
from oet_cluster.places import Places
from oet_support import wait_until
from oet_support_chart import find_helm
from oet_support_cluster import keeping_a_folder
from oet_support_cluster import run_chart_tool as run_tool
from oet_support_executions import Executions

from oet_crds.mailbox import CONFINEMENT_VARIABLE, Confinement
from oet_crds.names import API_MAJOR, SCRIPT_CONTAINER
from oet_crds.reasons import Reason
from oet_crds.states import DesiredState, State
from oet_crds.topics import EntryKind, Topic

pytestmark = pytest.mark.cluster

ABORT = "def init(subarray_id): print('abort', subarray_id)\ndef main(): print('aborted')"
MESSAGES = 50
TALKATIVE = f"""
import oet
def main():
    for number in range({MESSAGES}):
        oet.announce(str(number))
        print("line", number)
"""
LONG = "import time\ndef main():\n    while True: time.sleep(0.05)"
SPY = """
import http.client, json, os, ssl
FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount/"
def main(other):
    token = open(FOLDER + "token").read()
    context = ssl.create_default_context(cafile=FOLDER + "ca.crt")
    def ask(verb, path, body=None):
        host = os.environ["KUBERNETES_SERVICE_HOST"], int(os.environ["KUBERNETES_SERVICE_PORT"])
        connection = http.client.HTTPSConnection(*host, context=context, timeout=10)
        headers = {"Authorization": "Bearer " + token, "Content-Type": "application/merge-patch+json"}
        connection.request(verb, path, body and json.dumps(body), headers)
        return connection.getresponse().status
    base = "/apis/oet.skao.int/v1alpha1/namespaces/" + os.environ["OET_NAMESPACE"] + "/scriptexecutions/" + other
    lie = {"status": {"runner": {"exit": None}, "state": "COMPLETE"}}
    answers = [
        ask("PATCH", base + "/status", lie),
        ask("PATCH", base, {"spec": {"desiredState": "Stopped"}}),
        ask("DELETE", base),
        ask("GET", "/api/v1/namespaces/" + os.environ["OET_NAMESPACE"] + "/secrets"),
        ask("GET", "/api/v1/namespaces/" + os.environ["OET_NAMESPACE"] + "/pods"),
    ]
    assert set(answers) == {403}, answers
"""


@pytest.fixture(scope="module")
def deployed(executions: Kubectl) -> Iterator[Kubectl]:
    """A namespace with OET in it: two REST servers, two operators, and a ConfigMap with the abort script."""
    find_helm()
    inside = executions.within(f"oet-test-{uuid4().hex[:12]}")
    inside.run("create", "namespace", str(inside.namespace))
    inside.run("label", "namespace", str(inside.namespace), "pod-security.kubernetes.io/enforce=restricted")
    inside.run("create", "configmap", "scripts", f"--from-literal=abort.py={ABORT}", "--from-literal=long.py=" + LONG)
    try:
        run_tool(inside, "up", "--set=api.replicas=2", "--set=scripts.configMap=scripts", "--timeout=2m")
        yield inside
    finally:
        run_tool(inside, "down", "--stop", "--all")
    kinds = "validatingadmissionpolicybinding,validatingadmissionpolicy"
    assert str(inside.namespace) not in inside.run("get", kinds, "--output=name")


@pytest.fixture(scope="module")
def world(deployed: Kubectl) -> Executions:
    return Executions(deployed)


def test_helm_test_runs_a_script_through_the_rest_server(deployed: Kubectl) -> None:
    assert "COMPLETE" in run_tool(deployed, "test")


def test_mounted_script_runs_and_its_stop_with_abort_runs_the_abort_script(world: Executions) -> None:
    world.create("mounted", {"file": {"path": "/scripts/long.py"}}, subarray=3)
    world.wait_for("mounted", State.RUNNING)
    world.stop("mounted", abort=True)
    status = world.wait("mounted", lambda status: "abort" in status)
    assert status["state"] == State.STOPPED
    number = status["abort"]["procedureId"]
    abort = next(one for one, found in world.list().items() if found.get("status", {}).get("procedureId") == number)
    world.wait_for(abort, State.COMPLETE)
    assert "abort 3\naborted" in world.read_log(abort)


def test_script_cannot_reach_another_execution_nor_anything_else_of_the_cluster(world: Executions) -> None:
    world.create("victim", LONG, subarray=4)
    world.wait_for("victim", State.RUNNING)
    # One that is confined could not even read the token.
    env = [{"name": CONFINEMENT_VARIABLE, "value": str(Confinement.NONE)}]
    template = {"spec": {"containers": [{"name": SCRIPT_CONTAINER, "env": env}]}}
    world.create("spy", SPY, args={"main": {"kwargs": {"other": "victim"}}}, podTemplate=template)
    assert world.wait_for_end("spy")["state"] == State.COMPLETE, world.get_status("spy").get("stacktrace")
    assert world.get_status("victim")["state"] == State.RUNNING
    world.stop("victim")
    world.wait_for("victim", State.STOPPED)


def test_death_of_servers_and_operators_leaves_scripts_alone(deployed: Kubectl, world: Executions) -> None:
    world.create("steady", LONG, subarray=5)
    world.create("prepared", "def main(): pass", desiredState=DesiredState.READY)
    world.wait_for("steady", State.RUNNING)
    world.wait_for("prepared", State.READY)
    for part in ("api", "operator"):
        selector = f"--selector=app.kubernetes.io/component={part}"
        deployed.run("delete", "pod", selector, "--force", "--grace-period=0", "--wait=false")
    world.patch("prepared", desiredState=DesiredState.RUNNING)
    world.wait_for("prepared", State.COMPLETE)
    assert world.get_status("steady")["state"] == State.RUNNING
    world.stop("steady")
    assert world.wait_for("steady", State.STOPPED)["reason"] == Reason.STOP_REQUESTED
    deployed.run("wait", "deployment", "--all", "--for=condition=Available", "--timeout=120s")


def test_upgrade_goes_on_with_what_runs(deployed: Kubectl, world: Executions) -> None:
    world.create("through", LONG, subarray=6)
    world.wait_for("through", State.RUNNING)
    run_tool(deployed, "up", "--set=api.replicas=1", "--set=scripts.configMap=scripts", "--timeout=2m")
    wait_until(
        lambda: (
            len(deployed.run("get", "pods", "--selector=app.kubernetes.io/component=api", "--output=name").split()) == 1
        ),
        60,
        "the second server does not go",
    )
    assert world.get_status("through")["state"] == State.RUNNING
    world.stop("through")
    world.wait_for("through", State.STOPPED)


def test_simulated_telescope_comes_with_the_release_and_scripts_observe_with_it(
    deployed: Kubectl, world: Executions
) -> None:
    run_tool(deployed, "up", "--set=api.replicas=1", "--set=simulation.enabled=true", "--timeout=2m")
    deployed.run("rollout", "status", "deployment/oet-operator", "--timeout=120s")
    args = {"init": {"kwargs": {"subarray_id": 1}}, "main": {"kwargs": {"scans": 1}}}
    world.create("observe", {"file": {"path": "/scripts/observe.py"}}, args=args)
    ended = world.wait_for_end("observe")
    assert ended["state"] == State.COMPLETE, ended


@pytest.fixture
def kept(deployed: Kubectl, places: Places) -> Iterator[str]:
    """A claim on a folder of this machine, as a volume that outlives every Pod."""
    if deployed.kubeconfig != places.kubeconfig:
        pytest.skip("the node must be this machine: the volume is a folder of it")
    with keeping_a_folder(deployed) as claim:
        yield claim


def ask_api(kubectl: Kubectl, path: str) -> Any:
    """Ask the REST server in the cluster; None while it does not answer."""
    base = (
        f"/api/v1/namespaces/{kubectl.namespace}/services/oet-api:http/proxy/{kubectl.namespace}/oet/api/v{API_MAJOR}"
    )
    outcome = kubectl.attempt("get", "--raw", base + path)
    return json.loads(outcome.output) if outcome.is_done else None


def test_what_happened_is_read_when_execution_pod_and_server_are_gone(
    deployed: Kubectl, world: Executions, kept: str
) -> None:
    claim = [f"--set=timeline.persistence.{key}" for key in ("enabled=true", f"existingClaim={kept}")]
    run_tool(deployed, "up", "--set=api.replicas=1", *claim, "--timeout=2m")
    for part in ("api", "operator"):
        deployed.run("rollout", "status", f"deployment/oet-{part}", "--timeout=120s")
    world.create("told", TALKATIVE)
    number = world.wait_for("told", State.COMPLETE)["procedureId"]
    wait_until(
        lambda: read_messages(deployed, number) == [str(one) for one in range(MESSAGES)], 30, "not all is stored"
    )
    deployed.run("delete", "scriptexecution", "told", "--wait=true")
    deployed.run("delete", "pod", "--selector=app.kubernetes.io/component=api", "--wait=true")
    deployed.run("rollout", "status", "deployment/oet-api", "--timeout=120s")
    wait_until(lambda: ask_api(deployed, "/procedures/"), 30, "the new server does not answer")
    assert read_messages(deployed, number) == [str(one) for one in range(MESSAGES)]
    assert ask_api(deployed, f"/procedures/{number}")["state"] == State.COMPLETE


def read_messages(kubectl: Kubectl, number: int) -> list[str]:
    """Return what a procedure announced, as the REST server tells it."""
    entries = ask_api(kubectl, f"/procedures/{number}/events?kind={EntryKind.MESSAGE.value}&limit=1000") or []
    return [one["payload"]["msg"] for one in entries if one["topic"] == Topic.ANNOUNCE]
