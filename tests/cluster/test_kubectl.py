"""What kubectl alone tells of an execution, and what it is refused, with the operator at work."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from oet_cluster.kubectl import Kubectl
from oet_support import wait_until
from oet_support_chart import CHART, find_helm
from oet_support_cluster import Operator, prepare_namespace, running_operator
from oet_support_executions import Executions

from oet_crds.names import GROUP, KIND, SCRIPT_CONTAINER, VERSION
from oet_crds.reasons import EventReason, Reason
from oet_crds.states import ConditionType, DesiredState, State

pytestmark = pytest.mark.cluster

FINE = "def main(): pass"
LONG = "import time\ndef main(): time.sleep(600)"
READY_LIMIT_SECONDS = 20
"""The other tests start what they hold sooner."""


@pytest.fixture(scope="module")
def operator(executions: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator at work in the module's namespace."""
    prepare_namespace(executions)
    settings = {"OET_READY_LIMIT_SECONDS": str(READY_LIMIT_SECONDS)}
    with running_operator(executions, tmp_path_factory.mktemp("operator") / "log", **settings) as operator:
        yield operator


@pytest.fixture(scope="module")
def world(executions: Kubectl, operator: Operator) -> Executions:
    """The executions that the operator looks after; one of them nobody starts."""
    world = Executions(executions)
    world.create("idle", FINE, desiredState=DesiredState.READY)
    return world


@pytest.fixture
def name() -> str:
    return f"t-{uuid4().hex[:10]}"


def _build(name: str, **spec: Any) -> dict[str, Any]:
    """Build a manifest; `script` is always the same."""
    spec = {"script": {"inline": {"source": FINE}}, **spec}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": {"name": name}, "spec": spec}


def _read_events(world: Executions, name: str) -> list[tuple[str, str, str]]:
    """Return type, reason and message of the Events of an execution, in their order."""
    selector = f"--field-selector=involvedObject.name={name}"
    events = json.loads(world.kubectl.run("get", "events", selector, "--output=json"))["items"]
    found = sorted(events, key=lambda event: str(event["metadata"]["name"]))
    return [(event["type"], event["reason"], event["message"]) for event in found]


def _wait_for_event(world: Executions, name: str, reason: str) -> str:
    """Wait for an Event; return its message."""

    def find() -> list[str]:
        return [message for _, found, message in _read_events(world, name) if found == reason]

    wait_until(find, 10, f"no Event {reason}")
    return find()[0]


def test_usual_life_is_told_turn_by_turn(world: Executions, name: str) -> None:
    kubectl = world.kubectl
    world.create(name, FINE, desiredState=DesiredState.READY, subarray=31)
    pod = world.wait_for(name, State.READY)["podName"]
    _wait_for_event(world, name, EventReason.PLACED)

    def is_image_known() -> bool:
        return '"imageID":"' in kubectl.run("get", "pod", pod, "--output=json").replace(": ", ":").replace('""', "")

    wait_until(is_image_known, 20, "the node does not say which image it runs")
    outcome = kubectl.attempt("patch", "se", name, "--type=merge", '--patch={"spec":{"image":"another"}}')
    assert "image is immutable once its Pod was made" in outcome.complaint
    assert "a new name, or generateName" in outcome.complaint
    world.patch(name, desiredState=DesiredState.RUNNING)
    kubectl.run("wait", f"se/{name}", f"--for=condition={ConditionType.FINISHED}", "--timeout=60s")
    message = _wait_for_event(world, name, EventReason.COMPLETED)
    assert message.startswith(f"{Reason.COMPLETED}: ")
    node = kubectl.run("get", "pod", pod, "--output=jsonpath={.spec.nodeName}")
    assert _read_events(world, name) == [
        ("Normal", EventReason.PLACED, f"Pod {pod} is on node {node}"),
        ("Normal", EventReason.READY, "the script is prepared"),
        ("Normal", EventReason.STARTED, "main has begun on subarray 31"),
        ("Normal", EventReason.COMPLETED, message),
    ]
    described = kubectl.run("describe", "se", name)
    assert EventReason.STARTED in described[described.index("Events:") :]
    assert world.get_status(name)["resolved"]["image"]
    header, row = kubectl.run("get", "se", name, "--output=wide").splitlines()
    assert header.endswith("MESSAGE")
    assert row.rstrip().endswith(world.get_status(name)["message"])


def test_refused_start_names_its_holder_and_is_forgotten_when_it_is_started(world: Executions, name: str) -> None:
    holder = world.create(f"{name}-1", LONG, subarray=32)
    number = world.wait_for(holder, State.RUNNING)["procedureId"]
    refused = world.create(f"{name}-2", FINE, subarray=32, whenBusy="Reject")
    status = world.wait(refused, lambda status: status.get("reason") == Reason.SUBARRAY_BUSY)
    assert f"PID #{number} is RUNNING on subarray 32" in status["message"]
    assert _wait_for_event(world, refused, EventReason.START_REFUSED) == status["message"]
    world.patch(refused, desiredState=DesiredState.READY)
    world.stop(holder)
    assert _wait_for_event(world, holder, EventReason.STOPPING) == "on request"
    world.wait_for(holder, State.STOPPED)
    assert Reason.STOP_REQUESTED in _wait_for_event(world, holder, EventReason.STOPPED)
    assert world.get_status(refused)["state"] == State.READY
    world.patch(refused, desiredState=DesiredState.RUNNING)
    ended = world.wait_for(refused, State.COMPLETE)
    assert (ended["reason"], "refusal" in ended) == (Reason.COMPLETED, False)


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ({"spec": {"nodeSelektor": {"disk": "ssd"}}}, "nodeSelektor"),
        ({"spec": {"containers": [{"name": SCRIPT_CONTAINER, "ressources": {}}]}}, "ressources"),
        ({"nodeSelector": {"disk": "ssd"}}, "nodeSelector"),
    ],
    ids=["in the Pod", "in a container", "at the top"],
)
def test_misspelt_field_of_the_template_is_refused_by_its_name(
    world: Executions, name: str, template: dict[str, Any], word: str
) -> None:
    world.create(name, FINE, podTemplate=template)
    status = world.wait_for(name, State.FAILED)
    assert status["reason"] == Reason.POD_REJECTED
    assert word in status["message"]
    assert word in _wait_for_event(world, name, EventReason.FAILED)


@pytest.mark.parametrize("how", [(), ("--server-side",)], ids=["client-side", "server-side"])
def test_line_that_is_taken_away_does_not_start_main(world: Executions, name: str, how: tuple[str, ...]) -> None:
    kubectl = world.kubectl
    kubectl.run("apply", *how, "--filename=-", manifest=_build(name, desiredState=DesiredState.READY))
    world.wait_for(name, State.READY)
    outcome = kubectl.attempt("apply", *how, "--filename=-", manifest=_build(name))
    assert "desiredState cannot be taken away, for that would mean Running" in outcome.complaint
    kubectl.run("apply", *how, "--filename=-", manifest=_build(name, desiredState=DesiredState.STOPPED))
    states = [entry["state"] for entry in world.wait_for(name, State.STOPPED)["history"]]
    assert State.RUNNING not in states


def test_line_that_was_never_there_means_running(world: Executions, name: str) -> None:
    world.kubectl.run("apply", "--filename=-", manifest=_build(name))
    world.wait_for(name, State.COMPLETE)
    outcome = world.kubectl.attempt("apply", "--filename=-", manifest=_build(name, desiredState=DesiredState.READY))
    assert "it has ended" in outcome.complaint


def _render_budget() -> str:
    """Return the chart's PodDisruptionBudget over script Pods, and nothing else."""
    values = ("--set=scripts.disruptionBudget=true", "--set=operator.replicas=1")
    command = [str(find_helm()), "template", "oet", str(CHART), "--show-only=templates/disruption.yaml", *values]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_budget_of_the_chart_keeps_scripts_from_being_evicted(world: Executions, name: str, tmp_path: Path) -> None:
    kubectl = world.kubectl
    kubectl.run("apply", "--filename=-", manifest=_render_budget())
    world.create(name, LONG)
    pod = world.wait_for(name, State.RUNNING)["podName"]
    # No budget counts for a Pod that its node has not reported running yet, and the script is quicker to say so.
    kubectl.run("wait", "--for=condition=Ready", f"pod/{pod}", "--timeout=60s")
    eviction = tmp_path / "eviction.json"
    metadata = {"name": pod, "namespace": kubectl.namespace}
    eviction.write_text(json.dumps({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}))
    path = f"/api/v1/namespaces/{kubectl.namespace}/pods/{pod}/eviction"  # What kubectl drain asks for.
    outcome = kubectl.attempt("create", f"--raw={path}", f"--filename={eviction}")
    assert "disruption budget" in outcome.complaint
    assert world.get_status(name)["state"] == State.RUNNING
    kubectl.run("delete", "poddisruptionbudget", "--all")
    kubectl.run("create", f"--raw={path}", f"--filename={eviction}")
    assert world.wait_for(name, State.FAILED)["reason"] == Reason.EVICTED


def test_numbers_do_not_jump_when_the_operator_is_replaced(world: Executions, operator: Operator, name: str) -> None:
    before = world.wait(world.create(f"{name}-1", FINE), lambda status: status.get("procedureId"))["procedureId"]
    assert operator.stop() == 0
    operator.start()
    operator.wait_for_lead()
    after = world.wait(world.create(f"{name}-2", FINE), lambda status: status.get("procedureId"))["procedureId"]
    assert after == before + 1


def test_script_that_nobody_starts_ends_and_says_by_which_setting(world: Executions) -> None:
    status = world.wait_for("idle", State.STOPPED)
    assert status["reason"] == Reason.NOT_STARTED
    assert "[engine] ready_limit_seconds" in status["message"]
    assert State.RUNNING not in [entry["state"] for entry in status["history"]]
    assert Reason.NOT_STARTED in _wait_for_event(world, "idle", EventReason.STOPPING)
