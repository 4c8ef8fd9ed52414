"""The operator and the runner on a real cluster: whatever becomes of a script or its Pod, the execution tells what is so."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from oet_cluster.kubectl import Kubectl
from oet_support import wait_until
from oet_support_cluster import IMAGE, Operator, prepare_namespace, running_operator
from oet_support_executions import Executions, find_processes

from oet_crds.names import EXECUTION_UID_LABEL, SCRIPT_CONTAINER, SUBARRAY_LABEL
from oet_crds.reasons import Reason
from oet_crds.states import ConditionType, DesiredState, State

pytestmark = pytest.mark.cluster

SCRIPTS = "scripts"
ABORT = "def init(subarray_id): print('abort', subarray_id)\ndef main(): print('aborted')"
TEMPLATE = {
    "spec": {
        "volumes": [{"name": SCRIPTS, "configMap": {"name": SCRIPTS}}],
        "containers": [{"name": SCRIPT_CONTAINER, "volumeMounts": [{"name": SCRIPTS, "mountPath": "/scripts"}]}],
    }
}
SETTINGS = {
    "OET_IMAGE_PULL_POLICY": "IfNotPresent",
    "OET_IMAGE_PULL_TIMEOUT_SECONDS": "2",
    # Some twenty Pods begin at once: a node that is busy with them must not be taken for one that has no place.
    "OET_POD_START_TIMEOUT_SECONDS": "60",
    "SCRIPTS_LOCATION": "/scripts",
}
FINE = "def main(): pass"
LONG = "import time\ndef main():\n    while True: time.sleep(0.05)"
TIDY = "import time\ndef main():\n    try:\n        time.sleep(600)\n    finally:\n        time.sleep(3)"
STUBBORN = """
import signal, time
def main():
    signal.signal(15, signal.SIG_IGN)
    print('deaf')
    while True: time.sleep(1)
"""
USUAL = [State.CREATING, State.IDLE, State.LOADING, State.IDLE, State.READY, State.RUNNING, State.READY, State.COMPLETE]


@pytest.fixture(scope="module")
def operator(executions: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator at work in the module's namespace."""
    folder = tmp_path_factory.mktemp("operator")
    template = folder / "template.json"
    template.write_text(json.dumps(TEMPLATE))
    prepare_namespace(executions)
    executions.run("create", "configmap", SCRIPTS, f"--from-literal=abort.py={ABORT}", f"--from-literal=fine.py={FINE}")
    with running_operator(executions, folder / "log", OET_POD_TEMPLATE_FILE=str(template), **SETTINGS) as operator:
        yield operator


@pytest.fixture(scope="module")
def world(executions: Kubectl, operator: Operator) -> Executions:
    """The executions that the operator looks after."""
    return Executions(executions)


@pytest.fixture
def name() -> str:
    return f"t-{uuid4().hex[:10]}"


def _build_template(**container: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": SCRIPT_CONTAINER, **container}]}}


def _inline(source: str) -> dict[str, Any]:
    return {"inline": {"source": source}}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], State, Reason]] = {
    "complete": (_inline(FINE), {}, State.COMPLETE, Reason.COMPLETED),
    "file": ({"file": {"path": "/scripts/fine.py"}}, {}, State.COMPLETE, Reason.COMPLETED),
    "config-map": ({"configMap": {"name": SCRIPTS, "key": "fine.py"}}, {}, State.COMPLETE, Reason.COMPLETED),
    "config-map-missing": ({"configMap": {"name": "none", "key": "a.py"}}, {}, State.FAILED, Reason.LOAD_FAILED),
    "file-missing": ({"file": {"path": "/scripts/none.py"}}, {}, State.FAILED, Reason.LOAD_FAILED),
    "no-python": (_inline("def main(:"), {}, State.FAILED, Reason.LOAD_FAILED),
    "init-raises": (_inline("def init(): 1/0\n" + FINE), {}, State.FAILED, Reason.INIT_FAILED),
    "main-raises": (_inline("def main(): 1/0"), {}, State.FAILED, Reason.MAIN_FAILED),
    "exit-code": (_inline("import sys\ndef main(): sys.exit(3)"), {}, State.FAILED, Reason.SCRIPT_EXITED),
    "process-exit": (_inline("import os\ndef main(): os._exit(3)"), {}, State.FAILED, Reason.PROCESS_EXITED),
    "kills-itself": (_inline("import os\ndef main(): os.kill(0, 9)"), {}, State.FAILED, Reason.PROCESS_KILLED),
    "deadline": (_inline(LONG), {"activeDeadlineSeconds": 4}, State.FAILED, Reason.DEADLINE_EXCEEDED),
    "never-ready": (
        _inline("import time\ntime.sleep(99)"),
        {"readyTimeoutSeconds": 4},
        State.FAILED,
        Reason.READY_TIMEOUT,
    ),
    "two-subarrays": (
        _inline(FINE),
        {"subarray": 1, "args": {"main": {"kwargs": {"subarray_id": 2}}}},
        State.FAILED,
        Reason.INVALID_SPEC,
    ),
    "environment": (
        _inline("import os\ndef main(): assert os.environ['COLOUR'] == 'blue'"),
        {"podTemplate": _build_template(env=[{"name": "COLOUR", "value": "blue"}])},
        State.COMPLETE,
        Reason.COMPLETED,
    ),
    "memory": (
        _inline("def main():\n    kept = []\n    while True: kept.append(bytearray(1 << 20))"),
        {"podTemplate": _build_template(resources={"limits": {"memory": "64Mi"}})},
        State.FAILED,
        Reason.OUT_OF_MEMORY,
    ),
    "image-missing": (_inline(FINE), {"image": "localhost/none:1"}, State.FAILED, Reason.IMAGE_PULL_FAILED),
    "image-no-name": (_inline(FINE), {"image": "LOCALHOST//:"}, State.FAILED, Reason.IMAGE_PULL_FAILED),
    "no-node": (
        _inline(FINE),
        {"podTemplate": {"spec": {"nodeSelector": {"disk": "square"}}}},
        State.FAILED,
        Reason.UNSCHEDULABLE,
    ),
    "template-no-object": (_inline(FINE), {"podTemplate": {"spec": 5}}, State.FAILED, Reason.POD_REJECTED),
    "template-no-list": (
        _inline(FINE),
        {"podTemplate": {"spec": {"containers": 5}}},
        State.FAILED,
        Reason.POD_REJECTED,
    ),
    "template-no-container": (
        _inline(FINE),
        {"podTemplate": {"spec": {"containers": [5]}}},
        State.FAILED,
        Reason.POD_REJECTED,
    ),
    "template-wrong-type": (
        _inline(FINE),
        {"podTemplate": {"spec": {"hostNetwork": "perhaps"}}},
        State.FAILED,
        Reason.POD_REJECTED,
    ),
    "template-bad-quantity": (
        _inline(FINE),
        {"podTemplate": _build_template(resources={"limits": {"memory": "much"}})},
        State.FAILED,
        Reason.POD_REJECTED,
    ),
    "template-bad-labels": (
        _inline(FINE),
        {"podTemplate": {"metadata": {"labels": 5}}},
        State.FAILED,
        Reason.POD_REJECTED,
    ),
}


@pytest.fixture(scope="module")
def all_cases(world: Executions) -> Executions:
    """All cases, created at once."""
    for case, (source, spec, _, _) in CASES.items():
        world.create(case, source, **spec)
    return world


@pytest.mark.parametrize("case", CASES)
def test_execution_ends_with_state_reason_and_words(all_cases: Executions, operator: Operator, case: str) -> None:
    _, _, state, reason = CASES[case]
    status = all_cases.wait_for_end(case)
    assert (status["state"], status["reason"]) == (state, reason), status
    assert status["message"]
    assert [entry["seq"] for entry in status["history"]] == list(range(1, len(status["history"]) + 1))
    assert all(one["time"] <= other["time"] for one, other in pairwise(status["history"]))
    raised = (Reason.LOAD_FAILED, Reason.INIT_FAILED, Reason.MAIN_FAILED, Reason.SCRIPT_EXITED)
    assert ("stacktrace" in status) == (reason in raised)
    assert operator.read("/healthz") == "ok\n"


def test_complete_run_is_told_in_all_of_kubernetes_ways(all_cases: Executions) -> None:
    kubectl = all_cases.kubectl
    kubectl.run("wait", "se/complete", f"--for=condition={ConditionType.COMPLETE}", "--timeout=60s")
    status = all_cases.get_status("complete")
    assert [entry["state"] for entry in status["history"]] == USUAL
    _, row = kubectl.run("get", "se", "complete").splitlines()
    assert row.split()[:4] == ["complete", str(status["procedureId"]), "inline", State.COMPLETE]
    assert "Events:" in kubectl.run("describe", "se", "complete")
    assert Reason.IMAGE_PULL_FAILED.value in kubectl.run(
        "explain", "se.status.reason"
    ) or "Why it is in this state" in kubectl.run("explain", "se.status.reason")


def test_failure_is_told_in_an_event(all_cases: Executions) -> None:
    all_cases.wait_for_end("image-missing")
    wait_until(
        lambda: Reason.IMAGE_PULL_FAILED in all_cases.kubectl.run("describe", "se", "image-missing"), 10, "no Event"
    )


def test_time_to_live_removes_what_is_over(world: Executions, name: str) -> None:
    world.create(name, FINE, ttlSecondsAfterFinished=1)
    world.wait_for_end(name)
    wait_until(lambda: world.get(name) is None, 10, "it is still there")


def test_image_that_is_not_oets_own_gets_the_runner(world: Executions, name: str) -> None:
    nodes = json.loads(world.kubectl.run("get", "nodes", "--output=json"))["items"]
    repository = IMAGE.rsplit(":", 1)[0]
    names = {tag for node in nodes for image in node["status"]["images"] for tag in image["names"] or []}
    others = sorted(tag for tag in names if tag.startswith(f"{repository}:") and tag != IMAGE)
    if not others:
        pytest.skip("the nodes have one image only")
    world.create(name, FINE, image=others[0])
    assert world.wait_for_end(name)["state"] == State.COMPLETE
    pod = world.kubectl.read("pod", world.get_status(name)["podName"])
    assert pod["spec"]["initContainers"]


# ---- stops -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "at", "options"),
    [
        (LONG, State.CREATING, {}),
        (LONG, State.READY, {}),
        (LONG, State.RUNNING, {}),
        (TIDY, State.RUNNING, {}),
        (STUBBORN, State.RUNNING, {"gracePeriodSeconds": 0.5}),
    ],
    ids=["creating", "ready", "running", "tidy", "stubborn"],
)
def test_stop_leaves_no_process(world: Executions, name: str, source: str, at: State, options: dict[str, Any]) -> None:
    desired = DesiredState.READY if at is State.READY else DesiredState.RUNNING
    world.create(name, source, desiredState=desired)
    if at is State.CREATING:
        world.wait(name, lambda status: "podName" in status)
    else:
        world.wait_for(name, at)
    if source is STUBBORN:
        wait_until(lambda: "deaf" in world.read_log(name), 20, "main does not begin")
    world.stop(name, **options)
    status = world.wait_for(name, State.STOPPED)
    assert world.find_processes(name) == []
    assert status["reason"] == Reason.STOP_REQUESTED


def test_stop_works_without_the_operator(world: Executions, operator: Operator, name: str) -> None:
    world.create(name, LONG)
    world.wait_for(name, State.RUNNING)
    operator.kill()
    world.stop(name)
    status = world.wait(name, lambda status: "exit" in status["runner"])
    # The supervisor itself may take a moment to leave after its report; the script is gone.
    assert len(world.find_processes(name)) <= 1
    assert status["state"] == State.RUNNING
    operator.start()
    assert world.wait_for(name, State.STOPPED)["runner"] == status["runner"]
    operator.wait_for_lead()


# ---- what happens to Pods ----------------------------------------------------------------------------------------------


def test_pod_deleted_by_hand_stops_the_script_and_nothing_runs_twice(world: Executions, name: str) -> None:
    world.create(name, TIDY)
    pod = world.wait_for(name, State.RUNNING)["podName"]
    world.kubectl.run("delete", "pod", pod, "--wait=false")
    status = world.wait_for_end(name)
    assert (status["state"], status["reason"]) == (State.FAILED, Reason.POD_DELETED)
    assert world.find_processes(name) == []
    world.kubectl.run("wait", f"pod/{pod}", "--for=delete", "--timeout=30s")


def test_pod_deleted_by_force_leaves_what_is_so_unknown(world: Executions, name: str) -> None:
    world.create(name, LONG)
    pod = world.wait_for(name, State.RUNNING)["podName"]
    world.kubectl.run("delete", "pod", pod, "--force", "--grace-period=0", "--wait=false")
    status = world.wait_for_end(name)
    # Whichever was first: the runner's report of its signal, or the object's end.
    assert (status["state"], status["reason"]) in {
        (State.UNKNOWN, Reason.POD_LOST),
        (State.FAILED, Reason.POD_DELETED),
        (State.FAILED, Reason.POD_LOST),
        (State.FAILED, Reason.RUNNER_LOST),
    }
    assert status["state"] == State.UNKNOWN or "exit" in status["runner"]


def test_runner_killed_from_outside_is_not_replaced(world: Executions, name: str) -> None:
    world.create(name, LONG)
    world.wait_for(name, State.RUNNING)
    if not world.kill_runner(name, signal.SIGKILL):
        pytest.skip("the node is another machine")
    status = world.wait_for_end(name)
    assert (status["state"], status["reason"]) == (State.FAILED, Reason.RUNNER_LOST)
    assert world.find_processes(name) == []
    pods = world.kubectl.run(
        "get", "pods", f"--selector={EXECUTION_UID_LABEL}={(world.get(name) or {})['metadata']['uid']}"
    )
    assert len(pods.splitlines()) <= 2


# ---- subarrays ---------------------------------------------------------------------------------------------------------


def test_sixteen_subarrays_run_at_once_and_do_not_meet(world: Executions, name: str) -> None:
    names = [f"{name}-{subarray}" for subarray in range(1, 17)]
    for subarray, one in enumerate(names, 1):
        world.create(one, LONG, subarray=subarray, desiredState=DesiredState.READY)
    for one in names:
        world.wait_for(one, State.READY)
    for one in names:
        world.patch(one, desiredState=DesiredState.RUNNING)
    for one in names:
        world.wait_for(one, State.RUNNING)
    assert {world.get_status(one)["state"] for one in names} == {State.RUNNING}
    world.stop(names[0])
    world.wait_for(names[0], State.STOPPED)
    assert {world.get_status(one)["state"] for one in names[1:]} == {State.RUNNING}
    for one in names[1:]:
        world.stop(one)
    for one in names[1:]:
        assert world.wait_for(one, State.STOPPED)["grant"]["subarray"] == int(one.rsplit("-", 1)[1])


def test_busy_subarray_is_waited_for_or_refused_and_taken_in_turn(world: Executions, name: str) -> None:
    holder = world.create(f"{name}-1", LONG, subarray=21)
    world.wait_for(holder, State.RUNNING)
    waiting = world.create(f"{name}-2", FINE, subarray=21)
    refused = world.create(f"{name}-3", FINE, subarray=21, whenBusy="Reject")
    status = world.wait(waiting, lambda status: status.get("reason") == Reason.SUBARRAY_BUSY)
    assert str(world.get_status(holder)["procedureId"]) in status["message"]
    world.wait(refused, lambda status: "refusal" in status)
    world.stop(holder)
    world.wait_for(waiting, State.COMPLETE)
    assert world.get_status(refused)["state"] == State.READY
    world.stop(refused)
    world.wait_for(refused, State.STOPPED)


def test_abort_runs_next_whoever_waits(world: Executions, name: str) -> None:
    holder = world.create(f"{name}-0", TIDY, subarray=22)
    world.wait_for(holder, State.RUNNING)
    waiting = [world.create(f"{name}-{number}", FINE, subarray=22) for number in range(1, 5)]
    for one in waiting:
        world.wait(one, lambda status: status.get("reason") == Reason.SUBARRAY_BUSY)
    world.stop(holder, abort=True)
    status = world.wait(holder, lambda status: "abort" in status)
    number = status["abort"]["procedureId"]
    abort = next(one for one, found in world.list().items() if found.get("status", {}).get("procedureId") == number)
    ended = world.wait_for(abort, State.COMPLETE)
    assert "abort 22\naborted" in world.read_log(abort)
    for one in waiting:
        assert world.wait_for(one, State.COMPLETE)["grant"]["time"] > ended["runner"]["exit"]["time"]


@pytest.mark.parametrize("cascade", ["background", "orphan", "foreground"])
@pytest.mark.parametrize("is_operator_killed", [False, True], ids=["", "operator killed"])
def test_deleted_execution_holds_its_subarray_until_its_script_is_gone(
    world: Executions, operator: Operator, name: str, cascade: str, is_operator_killed: bool
) -> None:
    subarray = 30 + hash((cascade, is_operator_killed)) % 1000
    holder = world.create(f"{name}-1", TIDY, subarray=subarray)
    pod = world.wait_for(holder, State.RUNNING)["podName"]
    labels = world.kubectl.read("pod", pod)["metadata"]["labels"]
    assert labels[SUBARRAY_LABEL] == str(subarray)
    following = world.create(f"{name}-2", LONG, subarray=subarray)
    world.wait(following, lambda status: status.get("reason") == Reason.SUBARRAY_BUSY)
    if is_operator_killed:
        operator.kill()
    world.kubectl.run("delete", "se", holder, f"--cascade={cascade}", "--wait=false")
    if is_operator_killed:
        operator.start()
    granted = world.wait(following, lambda status: "grant" in status)
    assert granted
    assert find_processes(pod, world.namespace) == []
    world.stop(following)
    world.wait_for(following, State.STOPPED)
    operator.wait_for_lead()


# ---- the operator itself -----------------------------------------------------------------------------------------------


def test_standby_takes_over_from_a_killed_leader_and_ids_go_on(
    world: Executions, operator: Operator, name: str, tmp_path: Path
) -> None:
    template = tmp_path / "template.json"
    template.write_text(json.dumps(TEMPLATE))
    settings = {**SETTINGS, "OET_POD_TEMPLATE_FILE": str(template)}
    standby = Operator(world.kubectl, tmp_path / "log", **settings)
    standby.start()
    wait_until(lambda: "standby" in standby.read("/readyz"), 20, "no standby")
    before = [world.create(f"{name}-{number}", FINE) for number in range(3)]
    for one in before:
        world.wait(one, lambda status: "procedureId" in status)
    begun = time.monotonic()
    operator.kill()
    after = [world.create(f"{name}-{number}", FINE) for number in range(3, 15)]
    for one in before + after:
        world.wait_for(one, State.COMPLETE)
    assert time.monotonic() - begun < 30
    numbers = [world.get_status(one)["procedureId"] for one in before + after]
    assert len(set(numbers)) == len(numbers)
    assert max(numbers[:3]) < min(numbers[3:])
    assert standby.read("/readyz") == "leader\n"
    assert 'oet_operator_executions{state="COMPLETE"}' in standby.read("/metrics")
    assert standby.stop() == 0
    operator.start()
    operator.wait_for_lead()
