"""Abort scripts that are held READY, on a real Kubernetes: an abort starts no Pod, and needs no operator."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from oet_cluster.kubectl import Kubectl
from oet_support import Client, Server, wait_until
from oet_support_cluster import RESOURCE, Operator, prepare_namespace, running_operator
from oet_support_executions import Executions

from oet_crds.names import API_MAJOR, SCRIPT_CONTAINER
from oet_crds.reasons import Reason
from oet_crds.states import ConditionType, DesiredState, Purpose, State

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

LONG = "import time\ndef main(**_):\n    time.sleep(600)"
ABORT = """
def init(subarray_id):
    print('abort', subarray_id)
    global number
    number = subarray_id
def main():
    print('aborted')
    assert number < 50, 'the subarray refused'
"""
SECONDS = 120.0
SCRIPTS = "scripts"
TEMPLATE = {
    "spec": {
        "volumes": [{"name": SCRIPTS, "configMap": {"name": SCRIPTS}}],
        "containers": [{"name": SCRIPT_CONTAINER, "volumeMounts": [{"name": SCRIPTS, "mountPath": "/scripts"}]}],
    }
}


@pytest.fixture(scope="module")
def operator(executions: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """An operator that holds abort scripts READY."""
    folder = tmp_path_factory.mktemp("operator")
    template = folder / "template.json"
    template.write_text(json.dumps(TEMPLATE))
    prepare_namespace(executions)
    executions.run("create", "configmap", SCRIPTS, f"--from-literal=abort.py={ABORT}")
    settings = {"OET_POD_TEMPLATE_FILE": str(template), "OET_PREARM_ABORT": "true", "SCRIPTS_LOCATION": "/scripts"}
    with running_operator(executions, folder / "log", **settings) as operator:
        yield operator


@pytest.fixture(scope="module")
def world(executions: Kubectl, operator: Operator) -> Executions:
    return Executions(executions)


@pytest.fixture(scope="module")
def client(executions: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    settings = {"OET_ENGINE": "kubernetes", "KUBECONFIG": str(executions.kubeconfig)}
    server = Server(tmp_path_factory.mktemp("server"), KUBE_NAMESPACE=str(executions.namespace), **settings)
    server.start()
    client = Client(server.port, f"/{executions.namespace}/oet/api/v{API_MAJOR}")
    yield client
    client.close()
    server.stop()


def _start(client: Client, subarray: int) -> int:
    number = client.prepare(LONG, None)
    client.ask(
        "PUT",
        f"/procedures/{number}",
        {"state": "RUNNING", "script_args": {"main": {"args": [], "kwargs": {"subarray_id": subarray}}}},
    )
    client.wait_for(number, State.RUNNING)
    return number


def _find(world: Executions, number: int) -> dict[str, Any]:
    found = [one for one in world.list().values() if (one.get("status") or {}).get("procedureId") == number]
    return found[0]


def _find_armed(world: Executions, subarray: int) -> list[str]:
    return [
        name
        for name, one in world.list().items()
        if one["spec"]["purpose"] == Purpose.ABORT
        and one["spec"]["subarray"] == subarray
        and (one.get("status") or {}).get("grant", {}).get("standing")
        and "abortOf" not in one["spec"]
    ]


def _wait_armed(world: Executions, subarray: int) -> str:
    wait_until(lambda: _find_armed(world, subarray), SECONDS, "no abort script is held")
    return _find_armed(world, subarray)[0]


def _find_condition(status: dict[str, Any], type_: ConditionType) -> dict[str, Any] | None:
    return next((one for one in status.get("conditions", []) if one["type"] == type_), None)


def _find_time(status: dict[str, Any], state: State) -> str:
    return str(next(entry["time"] for entry in status["history"] if entry["state"] == state))


def test_abort_without_an_operator_runs_and_nobody_slips_in(
    world: Executions, client: Client, operator: Operator
) -> None:
    target = _start(client, 1)
    waiter = world.create(f"waiter-{uuid4().hex[:8]}", LONG, subarray=1, desiredState=DesiredState.RUNNING)
    world.wait(waiter, lambda status: status.get("reason") == Reason.SUBARRAY_BUSY, SECONDS)
    armed = _wait_armed(world, 1)
    operator.kill()
    try:
        begun = time.monotonic()
        answer = client.ask("PUT", f"/procedures/{target}", {"state": "STOPPED", "abort": True})
        print(f"stop and abort without an operator took {time.monotonic() - begun:.3f} s")
        assert "aborted subarray activity" in answer["abort_message"]
        assert "abort 1\naborted" in world.read_log(armed)
        assert "grant" not in world.get_status(waiter)
        assert "abort" not in world.get_status(_find(world, target)["metadata"]["name"])
    finally:
        operator.start()
        operator.wait_for_lead()
    stopped = _find(world, target)
    status = world.wait(
        stopped["metadata"]["name"], lambda status: _find_condition(status, ConditionType.ABORTED), SECONDS
    )
    aborted = world.wait_for(armed, State.COMPLETE)
    assert status["abort"]["procedureId"] == aborted["procedureId"]
    served = [one for one in world.list().values() if one["spec"].get("abortOf") == stopped["metadata"]["uid"]]
    assert [one["metadata"]["name"] for one in served] == [armed]
    following = world.wait_for(waiter, State.RUNNING)
    assert _find_time(following, State.RUNNING) > _find_time(aborted, State.COMPLETE)
    world.stop(waiter)
    world.wait_for(waiter, State.STOPPED)


def test_stop_by_kubectl_uses_the_abort_script_that_is_held_and_the_operator_arms_anew(
    world: Executions, client: Client
) -> None:
    target, other = _start(client, 2), client.prepare(LONG, 2)
    armed = _wait_armed(world, 2)
    name = _find(world, target)["metadata"]["name"]
    world.stop(name, abort=True)
    status = world.wait(name, lambda status: _find_condition(status, ConditionType.ABORTED), SECONDS)
    assert status["abort"]["procedureId"] == world.get_status(armed)["procedureId"]
    assert world.wait_for(armed, State.COMPLETE)["grant"]["abortOf"] == _find(world, target)["metadata"]["uid"]
    assert _wait_armed(world, 2) != armed
    client.stop(other)


def test_failing_abort_is_an_alarm_in_status_and_an_event(
    world: Executions, client: Client, executions: Kubectl
) -> None:
    target = _start(client, 51)
    _wait_armed(world, 51)
    name = _find(world, target)["metadata"]["name"]
    world.stop(name, abort=True)
    status = world.wait(name, lambda status: _find_condition(status, ConditionType.ABORTED), SECONDS)
    condition = _find_condition(status, ConditionType.ABORTED)
    assert condition is not None
    assert (status["state"], condition["status"], condition["reason"]) == (
        State.STOPPED,
        "False",
        Reason.ABORT_FAILED,
    )
    assert "the subarray refused" in status["message"]
    wait_until(
        lambda: Reason.ABORT_FAILED in executions.run("describe", RESOURCE, name).partition("Events:")[2],
        SECONDS,
        "there is no Event",
    )


def test_abort_script_that_is_held_is_not_started_by_hand(
    world: Executions, client: Client, executions: Kubectl
) -> None:
    target = _start(client, 4)
    armed = _wait_armed(world, 4)
    patch = json.dumps({"spec": {"desiredState": DesiredState.RUNNING}})
    refused = executions.attempt("patch", RESOURCE, armed, "--type=merge", f"--patch={patch}")
    assert not refused.is_done
    assert "never by hand" in refused.complaint
    client.stop(target)


def test_abort_script_that_cannot_be_heard_is_replaced_before_and_after_it_is_needed(
    world: Executions, client: Client, executions: Kubectl
) -> None:
    target, other, idle = _start(client, 5), _start(client, 6), client.prepare(LONG, None)
    deaf, other_deaf = _wait_armed(world, 5), _wait_armed(world, 6)
    # As a new installation does: from here on the API server knows the tokens of all these Pods no more.
    executions.run("delete", "serviceaccount", "oet-runner")
    executions.run("create", "serviceaccount", "oet-runner")
    wait_until(lambda: _is_refused(world, deaf), 30, "the token is still good")
    begun = time.monotonic()
    answer = client.ask("PUT", f"/procedures/{target}", {"state": "STOPPED", "abort": True})
    seconds = time.monotonic() - begun
    print(f"stop and abort by another than the deaf abort script took {seconds:.3f} s")
    assert "aborted subarray activity" in answer["abort_message"]
    given_up = world.get_status(deaf)
    assert (given_up["state"], given_up["reason"]) == (State.FAILED, Reason.ABORT_NOT_BEGUN)
    assert world.find_processes(deaf) == []
    stopped = _find(world, target)["metadata"]["name"]
    status = world.wait(stopped, lambda status: _find_condition(status, ConditionType.ABORTED), SECONDS)
    assert _find_condition(status, ConditionType.ABORTED)["status"] == "True"  # type: ignore[index]
    assert status["abort"]["procedureId"] != given_up["procedureId"]
    # What was merely READY ends by itself: a user's with words, the abort script so that another one takes its place.
    ended = world.wait_for_end(_find(world, idle)["metadata"]["name"])
    assert (ended["state"], ended["reason"]) == (State.FAILED, Reason.RUNNER_CUT_OFF)
    assert "main had not begun" in ended["message"]
    wait_until(lambda: set(_find_armed(world, 6)) - {other_deaf}, SECONDS, "it is not replaced")
    client.stop(other)


ASK = """
import os
from oet_runner.kube_client import Connection, observe_api_server
server = observe_api_server(os.environ)
print(Connection(server).request("GET", server.path).status)
"""


def _is_refused(world: Executions, name: str) -> bool:
    """Tell whether the token in the Pod of an execution is refused."""
    pod = world.get_status(name)["podName"]
    return world.kubectl.run("exec", pod, "--", "python3", "-c", ASK).strip() == "401"
