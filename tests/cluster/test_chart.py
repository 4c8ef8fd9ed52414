"""The chart in a real cluster, installed and removed with tools/chart.py. What its Pods do is not looked at here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from uuid import uuid4

import pytest
from oet_cluster.kubectl import Kubectl
from oet_cluster.waiting import wait_for
from oet_support_chart import CHART, find_helm

from oet_crds.names import GROUP, KIND, PLURAL, VERSION

pytestmark = pytest.mark.cluster

RESOURCE = f"{PLURAL}.{GROUP}"
TOOL = CHART.parents[1] / "tools" / "chart.py"
IMAGE = "localhost/no-such-image:1"
"""Pods are made, and wait for it for ever: what is tested is that Kubernetes takes them."""


@pytest.fixture(scope="module")
def namespace(executions: Kubectl) -> Iterator[Kubectl]:
    """Kubectl in a namespace that is not there yet, and is gone afterwards with all that the chart put elsewhere."""
    find_helm()
    name = f"oet-test-{uuid4().hex[:12]}"
    yield executions.within(name)
    kinds = "validatingadmissionpolicybinding,validatingadmissionpolicy"
    executions.run("delete", kinds, f"{name}.oet.status", f"{name}.oet.pods", "--ignore-not-found")
    executions.run("delete", "namespace", name, "--ignore-not-found", "--wait=false")


def run_tool(kubectl: Kubectl, *arguments: str, release: str = "oet") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *arguments, f"--namespace={kubectl.namespace}", f"--release={release}"]
    environ = {
        **os.environ,
        "KUBECONFIG": str(kubectl.kubeconfig),
        "OET_IMAGE": IMAGE,
        "NO_PROXY": "*",
        "no_proxy": "*",
    }
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=200)


@pytest.fixture(scope="module")
def installed(namespace: Kubectl) -> Kubectl:
    done = run_tool(namespace, "up", "--no-wait", "--set=api.replicas=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"namespace: {namespace.namespace}; release: oet" in done.stdout
    assert "First steps:" in done.stdout
    return namespace


def create_execution(kubectl: Kubectl, name: str) -> None:
    spec = {"script": {"file": {"path": "a.py"}}}
    manifest = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": {"name": name}, "spec": spec}
    kubectl.run("create", "--filename=-", manifest=manifest)


def test_restricted_namespace_takes_all_pods_of_the_chart(installed: Kubectl) -> None:
    labels = json.loads(installed.run("get", "namespace", str(installed.namespace), "--output=json"))["metadata"][
        "labels"
    ]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"

    def list_pods() -> list[str]:
        pods = json.loads(installed.run("get", "pods", "--output=json"))["items"]
        parts = sorted(each["metadata"]["labels"]["app.kubernetes.io/component"] for each in pods)
        return parts if len(parts) >= 4 else []

    assert wait_for(list_pods, 30, "not all Pods are made", 0.2) == ["api", "api", "operator", "operator"]


def test_second_release_in_the_namespace_is_refused(installed: Kubectl) -> None:
    done = run_tool(installed, "up", "--no-wait", release="another")
    assert done.returncode == 1
    assert "oet-one-in-a-namespace" in done.stderr


def test_upgrade_changes_the_release_and_brings_the_definition_up_to_date(installed: Kubectl) -> None:
    patch = json.dumps({"metadata": {"annotations": {"oet-test/old": "true"}}})
    installed.run("patch", "crd", RESOURCE, "--type=merge", f"--patch={patch}")
    short = json.dumps([{"op": "replace", "path": "/spec/names/shortNames", "value": ["se", "oldname"]}])
    installed.run("patch", "crd", RESOURCE, "--type=json", f"--patch={short}")
    done = run_tool(installed, "up", "--no-wait", "--set=api.replicas=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed.read("deployment", "oet-api")["spec"]["replicas"] == 1
    assert installed.read("crd", RESOURCE)["spec"]["names"]["shortNames"] == ["se"]
    installed.run("annotate", "crd", RESOURCE, "oet-test/old-")


def test_upgrade_gets_through_after_a_scale_by_hand(installed: Kubectl) -> None:
    installed.run("scale", "deployment", "oet-api", "oet-operator", "--replicas=3")
    done = run_tool(installed, "up", "--no-wait", "--set=api.replicas=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [installed.read("deployment", f"oet-{part}")["spec"]["replicas"] for part in ("api", "operator")] == [1, 2]


def test_removal_keeps_executions_and_asks_about_active_ones(installed: Kubectl, executions: Kubectl) -> None:
    create_execution(installed, "active")
    create_execution(executions, "elsewhere")
    refused = run_tool(installed, "down")
    assert refused.returncode == 1
    assert "active" in refused.stderr
    assert installed.attempt("get", "deployment", "oet-api").is_done
    done = run_tool(installed, "down", "--force")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not installed.attempt("get", "deployment", "oet-api").is_done
    assert installed.attempt("get", RESOURCE, "active").is_done
    again = run_tool(installed, "down", "--force", "--all")
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"left: the definition {RESOURCE}" in again.stdout
    assert not installed.attempt("get", "namespace", str(installed.namespace)).is_done
    assert executions.attempt("get", RESOURCE, "elsewhere").is_done
    for kind in ("validatingadmissionpolicy", "validatingadmissionpolicybinding"):
        assert f"{installed.namespace}." not in installed.run("get", kind, "--output=name")


def test_tool_says_what_to_do_where_no_cluster_answers(executions: Kubectl, tmp_path: os.PathLike[str]) -> None:
    empty = os.path.join(tmp_path, "kubeconfig")
    with open(empty, "w", encoding="utf-8"):
        pass
    environ = {**os.environ, "KUBECONFIG": empty}
    done = subprocess.run(
        [sys.executable, str(TOOL), "up"], env=environ, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "no current context" in done.stderr
