"""Pods that Kubernetes refuses, with the real causes: tried again while they are wanted, stopped at once, and never silent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from oet_cluster.kubectl import Kubectl
from oet_support import Server, wait_until
from oet_support_cluster import Operator, prepare_namespace, running_operator
from oet_support_executions import Executions

from oet_cli.exits import Exit
from oet_crds.names import API_MAJOR, SCRIPT_CONTAINER
from oet_crds.reasons import Reason
from oet_crds.states import ConditionType, DesiredState, State

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

FINE = "def main(): pass"
LONG = "import time\ndef main():\n    while True: time.sleep(0.05)"
ABORT = "def init(subarray_id): pass\ndef main(): print('aborted')"
SCRIPTS = "scripts"
TEMPLATE = {
    "spec": {
        "volumes": [{"name": SCRIPTS, "configMap": {"name": SCRIPTS}}],
        "containers": [
            {
                "name": SCRIPT_CONTAINER,
                "volumeMounts": [{"name": SCRIPTS, "mountPath": "/scripts"}],
                "resources": {"limits": {"memory": "128Mi"}},
            }
        ],
    }
}
QUOTA = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "none-left"},
    "spec": {"hard": {"pods": "0"}},
}
LIMITS = {
    "apiVersion": "v1",
    "kind": "LimitRange",
    "metadata": {"name": "too-small"},
    "spec": {"limits": [{"type": "Container", "max": {"memory": "64Mi"}}]},
}
NOTICED_SECONDS = 10.0
"""Within this time it is to be noticed that a Pod may come now."""


@pytest.fixture(scope="module")
def operator(executions: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    folder = tmp_path_factory.mktemp("operator")
    template = folder / "template.json"
    template.write_text(json.dumps(TEMPLATE))
    prepare_namespace(executions)
    executions.run("create", "configmap", SCRIPTS, f"--from-literal=abort.py={ABORT}")
    settings = {"OET_POD_TEMPLATE_FILE": str(template), "SCRIPTS_LOCATION": "/scripts"}
    with running_operator(executions, folder / "log", **settings) as operator:
        yield operator


@pytest.fixture(scope="module")
def world(executions: Kubectl, operator: Operator) -> Executions:
    return Executions(executions)


@pytest.fixture(scope="module")
def server_url(executions: Kubectl, operator: Operator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = {"OET_ENGINE": "kubernetes", "KUBECONFIG": str(executions.kubeconfig)}
    server = Server(tmp_path_factory.mktemp("server"), KUBE_NAMESPACE=str(executions.namespace), **settings)
    server.start()
    yield f"http://localhost:{server.port}/{executions.namespace}/oet/api/v{API_MAJOR}"
    server.stop()


@pytest.fixture
def name() -> str:
    return f"t-{uuid4().hex[:10]}"


# ---- causes --------------------------------------------------------------------------------------------------------------


def _apply(kubectl: Kubectl, manifest: dict[str, Any]) -> Callable[[], object]:
    kubectl.run("create", "--filename=-", manifest=manifest)
    return lambda: kubectl.run("delete", manifest["kind"], manifest["metadata"]["name"], "--wait=true")


def _forbid_by_quota(kubectl: Kubectl) -> Callable[[], object]:
    undo = _apply(kubectl, QUOTA)
    # Until its controller has counted, the quota refuses with other words.
    wait_until(lambda: "used" in kubectl.read("resourcequota", "none-left").get("status", {}), 20, "nothing is counted")
    return undo


def _forbid_by_limits(kubectl: Kubectl) -> Callable[[], object]:
    return _apply(kubectl, LIMITS)


def _forbid_by_policy(kubectl: Kubectl) -> Callable[[], object]:
    name = f"no-pods-{kubectl.namespace}"
    here = {"matchLabels": {"kubernetes.io/metadata.name": str(kubectl.namespace)}}
    rules = [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]
    policy = {
        "matchConstraints": {"resourceRules": rules},
        "validations": [{"expression": "false", "message": "no Pods today"}],
    }
    binding = {"policyName": name, "validationActions": ["Deny"], "matchResources": {"namespaceSelector": here}}
    undo = []
    for kind, spec in (("ValidatingAdmissionPolicy", policy), ("ValidatingAdmissionPolicyBinding", binding)):
        manifest = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}}
        undo.append(_apply(kubectl, {**manifest, "spec": spec}))
    probe = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}}
    probe["spec"] = {"containers": [{"name": "c", "image": "none"}]}  # type: ignore[assignment]
    dry = ("create", "--dry-run=server", "--filename=-")
    wait_until(lambda: not kubectl.attempt(*dry, manifest=probe).is_done, 20, "the policy is not in force")
    return lambda: [step() for step in reversed(undo)]


def _forbid_by_account(kubectl: Kubectl) -> Callable[[], object]:
    kubectl.run("delete", "serviceaccount", "oet-runner")
    return lambda: kubectl.run("create", "serviceaccount", "oet-runner")


CAUSES = {
    "quota": (_forbid_by_quota, "exceeded quota"),
    "limits": (_forbid_by_limits, "maximum memory usage per Container is 64Mi"),
    "policy": (_forbid_by_policy, "no Pods today"),
    "account": (_forbid_by_account, 'serviceaccount "oet-runner" not found'),
}


@pytest.fixture(params=CAUSES)
def cause(request: pytest.FixtureRequest) -> Any:
    return CAUSES[request.param]


# ---- tests ---------------------------------------------------------------------------------------------------------------


def test_refused_pod_is_told_stopped_at_once_and_tried_until_it_may_come(
    world: Executions, name: str, cause: tuple[Callable[[Kubectl], Callable[[], object]], str]
) -> None:
    forbid, words = cause
    undo = forbid(world.kubectl)
    try:
        wanted, unwanted, hasty = (
            world.create(f"{name}-{part}", FINE, **spec)
            for part, spec in {"wanted": {}, "unwanted": {}, "hasty": {"readyTimeoutSeconds": 3}}.items()
        )
        for one in (wanted, unwanted):
            status = world.wait(one, lambda status: status.get("reason") == Reason.POD_REJECTED)
            assert status["state"] == State.CREATING
            assert words in status["message"]
        world.stop(unwanted)
        status = world.wait_for(unwanted, State.STOPPED, 2.0)
        assert status["reason"] == Reason.STOP_REQUESTED
        late = world.wait_for(hasty, State.FAILED)
        assert late["reason"] == Reason.READY_TIMEOUT
        assert words in late["message"]
        assert world.get_status(wanted)["state"] == State.CREATING
    finally:
        undo()
    world.wait_for(wanted, State.COMPLETE, NOTICED_SECONDS)
    assert world.get_status(unwanted)["state"] == State.STOPPED


def test_refused_pod_follows_soon_when_another_one_has_ended(world: Executions, name: str) -> None:
    first = world.create(f"{name}-1", LONG)
    world.wait_for(first, State.RUNNING)
    quota = {**QUOTA, "metadata": {"name": "one"}, "spec": {"hard": {"pods": "1"}}}
    undo = _apply(world.kubectl, quota)
    try:
        wait_until(
            lambda: world.kubectl.read("resourcequota", "one").get("status", {}).get("used"), 20, "nothing is counted"
        )
        second = world.create(f"{name}-2", FINE)
        world.wait(second, lambda status: status.get("reason") == Reason.POD_REJECTED)
        time.sleep(6)  # It waits for its longest pause by now.
        world.stop(first)
        world.wait_for(first, State.STOPPED)
        world.wait_for(second, State.COMPLETE, NOTICED_SECONDS)
    finally:
        undo()


def test_refused_pod_keeps_the_turn_of_its_execution(world: Executions, name: str) -> None:
    holder = world.create(f"{name}-0", LONG, subarray=31)
    world.wait_for(holder, State.RUNNING)
    undo = _forbid_by_quota(world.kubectl)
    try:
        refused = world.create(f"{name}-1", FINE, subarray=31)
        world.wait(refused, lambda status: status.get("reason") == Reason.POD_REJECTED)
    finally:
        undo()
    following = world.create(f"{name}-2", FINE, subarray=31)
    for one in (refused, following):
        world.wait(one, lambda status: status.get("reason") == Reason.SUBARRAY_BUSY)
    world.stop(holder)
    ends = [world.wait_for(one, State.COMPLETE) for one in (refused, following)]
    assert ends[0]["grant"]["time"] < ends[1]["grant"]["time"]


def test_abort_that_is_refused_is_an_alarm_and_runs_when_it_may(
    world: Executions, server_url: str, executions: Kubectl, name: str
) -> None:
    target = world.create(name, LONG, subarray=32)
    number = world.wait_for(target, State.RUNNING)["procedureId"]
    undo = _forbid_by_quota(executions)
    try:
        begun = time.monotonic()
        words = [sys.executable, "-m", "oet_cli", f"--server-url={server_url}", "procedure", "stop", f"--pid={number}"]
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "NO_PROXY": "*"}
        )
        seconds = time.monotonic() - begun
        assert done.returncode == Exit.ABORT_FAILED, done
        assert "exceeded quota" in done.stderr
        assert seconds < 15, seconds
        status = world.wait(target, lambda status: _find_aborted(status), 5)
        assert _find_aborted(status)["reason"] == Reason.ABORT_NOT_BEGUN
        assert "exceeded quota" in status["message"]
    finally:
        undo()
    status = world.wait(target, lambda status: _find_aborted(status).get("status") == "True", 15)
    assert "ALARM" not in status["message"]


def _find_aborted(status: dict[str, Any]) -> dict[str, Any]:
    found = [one for one in status.get("conditions", []) if one["type"] == ConditionType.ABORTED]
    return found[0] if found else {}


def test_template_that_is_no_pod_is_final(world: Executions, name: str) -> None:
    template = {"spec": {"containers": [{"name": SCRIPT_CONTAINER, "ports": [{"containerPort": 0}]}]}}
    world.create(name, FINE, podTemplate=template, desiredState=DesiredState.RUNNING)
    status = world.wait_for(name, State.FAILED)
    assert status["reason"] == Reason.POD_REJECTED
    assert "containerPort" in status["message"]
