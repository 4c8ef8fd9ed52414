"""Ends on a real cluster: a Pod whose script reports its own end, and one whose end nobody has seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from oet_cluster.kubectl import Kubectl
from oet_support_cluster import Operator, prepare_namespace, running_operator
from oet_support_executions import Executions

from oet_crds.mailbox import CONFINEMENT_VARIABLE, Confinement
from oet_crds.names import RELEASE_ANNOTATION, SCRIPT_CONTAINER
from oet_crds.reasons import Reason
from oet_crds.states import ConditionType, State

pytestmark = pytest.mark.cluster

UNCONFINED = {
    "spec": {
        "containers": [
            {"name": SCRIPT_CONTAINER, "env": [{"name": CONFINEMENT_VARIABLE, "value": str(Confinement.NONE)}]}
        ]
    }
}
LIAR = """
import json, os, ssl, time, urllib.request

FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount/"
URL = "https://{0[KUBERNETES_SERVICE_HOST]}:{0[KUBERNETES_SERVICE_PORT]}".format(os.environ)
PATH = "/apis/oet.skao.int/v1alpha1/namespaces/{}/scriptexecutions/LIAR/status".format(os.environ["OET_NAMESPACE"])

def main():
    time.sleep(1)
    end = {"outcome": "Complete", "reason": "Completed", "message": "says the script", "time": "TIME"}
    end["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    body = json.dumps({"status": {"runner": {"exit": end}}}).encode()
    token = open(FOLDER + "token").read()
    headers = {"Authorization": "Bearer " + token, "Content-Type": "application/merge-patch+json"}
    request = urllib.request.Request(URL + PATH, body, headers, method="PATCH")
    urllib.request.urlopen(request, context=ssl.create_default_context(cafile=FOLDER + "ca.crt"))
    time.sleep(600)
"""
LONG = "import time\ndef main(): time.sleep(600)"
SHORT = "def main(): pass"


@pytest.fixture(scope="module")
def operator(executions: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator at work in the module's namespace."""
    prepare_namespace(executions)
    with running_operator(executions, tmp_path_factory.mktemp("operator") / "log") as operator:
        yield operator


@pytest.fixture(scope="module")
def world(executions: Kubectl, operator: Operator) -> Executions:
    """The executions that the operator looks after."""
    return Executions(executions)


def _has_condition(type_: ConditionType, status: str) -> Any:
    def has(found: dict[str, Any]) -> bool:
        return any(one["type"] == type_ and one["status"] == status for one in found.get("conditions", []))

    return has


def test_script_that_reports_its_own_end_keeps_its_subarray_until_its_pod_is_gone(world: Executions) -> None:
    liar = world.create("liar", LIAR.replace("LIAR", "liar"), subarray=31, podTemplate=UNCONFINED)
    world.wait_for(liar, State.RUNNING)
    other = world.create("after-liar", SHORT, subarray=31)
    world.wait(liar, lambda status: "exit" in status["runner"])
    assert "confined" not in world.get_status(liar)["runner"]

    # Read in this order: what is granted was granted before the processes are counted.
    def is_granted(status: dict[str, Any]) -> bool:
        if "grant" not in status:
            assert world.get_status(liar).get("state") in (State.RUNNING, State.FAILED)
            return False
        return True

    world.wait(other, is_granted)
    assert world.find_processes(liar) == []
    ended = world.get_status(liar)
    assert (ended["state"], ended["reason"]) == (State.FAILED, Reason.END_UNCONFIRMED)
    world.wait_for(other, State.COMPLETE)


def test_end_of_an_honest_script_that_is_not_confined_is_said_once_its_container_has_ended(world: Executions) -> None:
    name = world.create("honest", SHORT, podTemplate=UNCONFINED)
    ended = world.wait_for_end(name)
    assert (ended["state"], ended["reason"]) == (State.COMPLETE, Reason.COMPLETED)


def test_what_is_unknown_holds_its_subarray_until_a_person_releases_it(world: Executions) -> None:
    lost = world.create("lost", LONG, subarray=32)
    world.wait_for(lost, State.RUNNING)
    world.kubectl.run("delete", "pod", world.get_status(lost)["podName"], "--force", "--grace-period=0")
    assert world.wait_for_end(lost)["state"] == State.UNKNOWN
    world.wait(lost, _has_condition(ConditionType.RELEASED, "False"))
    waiting = world.create("after-lost", SHORT, subarray=32)
    held = world.wait(waiting, lambda status: status.get("reason") == Reason.SUBARRAY_BUSY)
    assert "is UNKNOWN and may still run on subarray 32" in held["message"]
    world.kubectl.run("annotate", "scriptexecution", lost, f"{RELEASE_ANNOTATION}=seen to be parked")
    world.wait_for(waiting, State.COMPLETE)
    released = world.wait(lost, _has_condition(ConditionType.RELEASED, "True"))
    assert released["state"] == State.UNKNOWN


def test_unknown_is_held_also_by_an_operator_that_comes_after(world: Executions, operator: Operator) -> None:
    lost = world.create("lost-before", LONG, subarray=33)
    world.wait_for(lost, State.RUNNING)
    world.kubectl.run("delete", "pod", world.get_status(lost)["podName"], "--force", "--grace-period=0")
    world.wait(lost, _has_condition(ConditionType.RELEASED, "False"))
    operator.kill()
    operator.start()
    operator.wait_for_lead()
    waiting = world.create("after-lost-before", SHORT, subarray=33)
    world.wait(waiting, lambda status: status.get("reason") == Reason.SUBARRAY_BUSY)
    world.kubectl.run("annotate", "scriptexecution", lost, f"{RELEASE_ANNOTATION}=seen to be parked")
    world.wait_for(waiting, State.COMPLETE)
