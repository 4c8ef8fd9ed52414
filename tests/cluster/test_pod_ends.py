"""How script Pods end on a real node, whatever else is in them and whoever ends them, and what executions say of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from oet_cluster.kubectl import Kubectl
from oet_support import wait_until
from oet_support_cluster import IMAGE, Operator, prepare_namespace, running_operator
from oet_support_executions import Executions

from oet_crds.names import OPERATOR_MANAGER, SCRIPT_CONTAINER
from oet_crds.reasons import Reason
from oet_crds.states import State

pytestmark = pytest.mark.cluster

FINE = "def main(): print('whole')"
LONG = "import time\ndef main():\n    while True: time.sleep(0.05)"
SHORT = "import time\ndef main(): time.sleep(1)"
TIDY = "import time\ndef main():\n    try:\n        time.sleep(600)\n    finally:\n        time.sleep(2)"
DEAF = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\n" + LONG
FILLING = """
import time
def main():
    with open("/tmp/fill", "wb") as file:
        file.write(bytes(40 << 20))
    time.sleep(600)
"""
# Ends at once when it is told to, so that the tests need not wait for its grace period.
BESIDE = {
    "name": "beside",
    "image": IMAGE,
    "imagePullPolicy": "Never",
    "command": ["sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait"],
}
NATIVE = {**BESIDE, "restartPolicy": "Always"}
CRASHING = {**BESIDE, "command": ["sh", "-c", "kill -9 $$"]}
UNPULLED = {**BESIDE, "image": "LOCALHOST//:"}
SIDECARS: dict[str, dict[str, Any]] = {
    "container": {"containers": [BESIDE]},
    "native": {"initContainers": [NATIVE]},
    "crashing": {"containers": [CRASHING]},
    "no-image": {"containers": [UNPULLED]},
}
SCRIPT = {"name": SCRIPT_CONTAINER}


@pytest.fixture(scope="module")
def operator(executions: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator at work in the module's namespace."""
    prepare_namespace(executions)
    with running_operator(executions, tmp_path_factory.mktemp("operator") / "log") as operator:
        yield operator


@pytest.fixture(scope="module")
def world(executions: Kubectl, operator: Operator) -> Executions:
    """The executions that the operator looks after, among them those that take their time."""
    world = Executions(executions)
    limit = {"resources": {"limits": {"ephemeral-storage": "20Mi"}}}
    world.create("evicted", FILLING, podTemplate={"spec": {"containers": [{**SCRIPT, **limit}]}})
    world.create("pod-deadline", LONG, podTemplate={"spec": {"activeDeadlineSeconds": 4}})
    nowhere = {"spec": {"nodeSelector": {"disk": "square"}}}
    world.create("never-began", LONG, readyTimeoutSeconds=3, podTemplate=nowhere)
    for name, spec in SIDECARS.items():
        world.create(f"beside-{name}", FINE, podTemplate={"spec": spec})
    return world


@pytest.fixture
def name() -> str:
    return f"t-{uuid4().hex[:10]}"


def _find_pod(world: Executions, name: str) -> dict[str, Any] | None:
    pod = world.get_status(name)["podName"]
    found = world.kubectl.attempt("get", "pod", pod, "--output=json")
    return json.loads(found.output) if found.is_done else None


def _wait_until_pod_is_over(world: Executions, name: str) -> None:
    def is_over() -> bool:
        pod = _find_pod(world, name)
        return pod is None or pod["status"]["phase"] in ("Succeeded", "Failed")

    wait_until(is_over, 60, "its Pod goes on")


# ---- containers beside the script --------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", SIDECARS)
def test_container_beside_the_script_neither_spoils_its_end_nor_keeps_its_pod(world: Executions, beside: str) -> None:
    status = world.wait_for_end(f"beside-{beside}")
    assert (status["state"], status["reason"]) == (State.COMPLETE, Reason.COMPLETED), status
    _wait_until_pod_is_over(world, f"beside-{beside}")
    assert "whole" in world.read_log(f"beside-{beside}")


def test_pod_whose_script_ended_while_no_operator_was_there_ends_when_one_is(
    world: Executions, operator: Operator, name: str
) -> None:
    world.create(name, SHORT, podTemplate={"spec": SIDECARS["container"]})
    world.wait_for(name, State.RUNNING)
    operator.kill()
    world.wait(name, lambda status: "exit" in status["runner"])
    operator.start()
    assert world.wait_for_end(name)["state"] == State.COMPLETE
    _wait_until_pod_is_over(world, name)
    operator.wait_for_lead()


# ---- who ends a Pod ----------------------------------------------------------------------------------------------------


def test_deletion_that_leaves_the_script_too_little_time_says_so(world: Executions, name: str) -> None:
    world.create(name, DEAF)
    pod = world.wait_for(name, State.RUNNING)["podName"]
    world.kubectl.run("delete", "pod", pod, "--grace-period=1", "--wait=false")
    status = world.wait_for_end(name)
    assert (status["state"], status["reason"]) == (State.FAILED, Reason.POD_DELETED), status
    assert "signal 9" in status["message"]
    assert "the deletion gave it 1 s" in status["message"]
    assert world.find_processes(name) == []


def test_signal_to_the_supervisor_that_nobody_explains_is_called_one(world: Executions, name: str) -> None:
    world.create(name, LONG)
    world.wait_for(name, State.RUNNING)
    if not world.kill_runner(name, 15):
        pytest.skip("the node is another machine")
    status = world.wait_for_end(name, 20)
    assert (status["state"], status["reason"]) == (State.FAILED, Reason.RUNNER_LOST)
    assert "a signal that OET did not send" in status["message"]


def test_deletion_in_the_foreground_waits_for_the_script(world: Executions, name: str) -> None:
    world.create(name, TIDY)
    pod = world.wait_for(name, State.RUNNING)["podName"]
    (owner,) = world.kubectl.read("pod", pod)["metadata"]["ownerReferences"]
    assert owner["blockOwnerDeletion"] is True
    world.kubectl.run("delete", "se", name, "--cascade=foreground", "--timeout=60s")
    assert not world.kubectl.attempt("get", "pod", pod).is_done


def test_pod_that_reaches_its_own_deadline_says_so_in_the_nodes_words(world: Executions) -> None:
    status = world.wait_for_end("pod-deadline")
    assert (status["state"], status["reason"]) == (State.FAILED, Reason.DEADLINE_EXCEEDED), status
    assert "active on the node longer than the specified deadline" in status["message"]


def test_timeout_names_what_was_waited_for_and_stops_nothing_that_never_began(world: Executions) -> None:
    status = world.wait_for_end("never-began")
    assert (status["state"], status["reason"]) == (State.FAILED, Reason.READY_TIMEOUT), status
    assert "the script never began: no node takes the Pod" in status["message"]


def test_eviction_by_the_node_is_told_in_the_nodes_words(world: Executions) -> None:
    status = world.wait_for_end("evicted")
    assert (status["state"], status["reason"]) == (State.FAILED, Reason.EVICTED), status
    assert "ephemeral" in status["message"]


# ---- what is too large to be told of -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1_400_000, 1_500_000, 1_571_400], ids=["no room", "little room", "hardly any"])
def test_execution_that_leaves_no_room_for_its_status_fails_without_a_pod(
    world: Executions, name: str, size: int
) -> None:
    world.create(name, "def main(data): pass", args={"main": {"args": ["x" * size]}})
    status = world.wait_for_end(name, 20)
    assert (status["state"], status["reason"]) == (State.FAILED, Reason.INVALID_SPEC), status
    assert "ConfigMap" in status["message"]
    assert name not in world.kubectl.run("get", "pods", "--output=name")
    wait_until(lambda: Reason.INVALID_SPEC in world.kubectl.run("get", "events"), 10, "no Event")
    world.delete(name)
    wait_until(lambda: world.get(name) is None, 10, "it is still there")


def test_fields_that_the_operator_wrote_bear_its_name(world: Executions, name: str) -> None:
    world.create(name, FINE)
    world.wait_for_end(name)
    shown = world.kubectl.run("get", "se", name, "--output=json", "--show-managed-fields")
    managers = {one["manager"] for one in json.loads(shown)["metadata"]["managedFields"]}
    assert OPERATOR_MANAGER in managers
