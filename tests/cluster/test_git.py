"""Scripts from git on a node whose Pods share a cache, as `kubectl apply` asks for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from oet_cluster.kubectl import Kubectl
from oet_support_cluster import IMAGE, RESOURCE, prepare_namespace, running_operator, serving_in_a_pod
from oet_support_git import Origin, build_project

from oet_crds.git import SHARE_ALWAYS
from oet_crds.names import GROUP, KIND, SCRIPT_CONTAINER, VERSION
from oet_crds.states import State

pytestmark = pytest.mark.cluster

CACHE = "/var/cache/oet"
SCRIPT = "import observing\ndef main():\n    print('value', observing.VALUE)\n"
WRITER = f"""
import os, observing
def main():
    assert observing.VALUE == 1
    for base, folders, files in os.walk("{CACHE}"):
        for path in [os.path.join(base, "planted"), *(os.path.join(base, name) for name in files)]:
            try:
                open(path, "a").close()
            except OSError:
                continue
            raise AssertionError(f"could write {{path}}")
"""
COUNT = 10
MINUTES = "--timeout=240s"


def _run_as_root(kubectl: Kubectl, folder: str, script: str) -> str:
    """Run a script in a Pod that sees a folder of the node at /node, and return what it printed."""
    name = f"root-{uuid4().hex[:8]}"
    container = {
        "name": "root",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", script],
        "securityContext": {"runAsUser": 0},
        "volumeMounts": [{"name": "node", "mountPath": "/node"}],
    }
    volume = {"name": "node", "hostPath": {"path": folder, "type": "DirectoryOrCreate"}}
    spec = {"containers": [container], "volumes": [volume], "restartPolicy": "Never"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    kubectl.run("create", "--filename=-", manifest=pod)
    kubectl.run("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=60s")
    return kubectl.run("logs", name)


@pytest.fixture(scope="module")
def folder(executions: Kubectl) -> Iterator[str]:
    """A folder of the node that belongs to the user of script Pods."""
    folder = f"/var/tmp/oet-test-{uuid4().hex[:8]}"
    _run_as_root(executions, folder, "chown 10001:10001 /node")
    yield folder
    _run_as_root(executions, folder, "rm -rf /node/* /node/.[!.]*")


@pytest.fixture(scope="module")
def namespace(executions: Kubectl, folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """A namespace whose operator gives Pods of scripts from git that folder."""
    place = tmp_path_factory.mktemp("git")
    mounts = [{"name": "oet-git-cache", "mountPath": CACHE}]
    volume = {"name": "oet-git-cache", "hostPath": {"path": folder, "type": "Directory"}}
    template = {"spec": {"volumes": [volume], "containers": [{"name": SCRIPT_CONTAINER, "volumeMounts": mounts}]}}
    (place / "template.json").write_text(json.dumps(template))
    prepare_namespace(executions)
    settings = {"OET_GIT_POD_TEMPLATE_FILE": str(place / "template.json"), "OET_GIT_CACHE_DIR": CACHE}
    settings["OET_GIT_SHARE_ENVIRONMENTS"] = SHARE_ALWAYS
    with running_operator(executions, place / "operator.log", OET_GIT_PROTOCOLS="git", **settings):
        yield executions


def _build(name: str, url: str, **git: Any) -> dict[str, Any]:
    spec = {"script": {"git": {"repository": url, "path": "a.py", "createEnv": True, **git}}}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": {"name": name}, "spec": spec}


def test_ten_at_once_make_one_clone_and_one_environment_for_the_node(
    namespace: Kubectl, folder: str, tmp_path: Path
) -> None:
    origin = Origin(tmp_path / "scripts")
    commit = origin.commit({"a.py": SCRIPT, **build_project()})
    with serving_in_a_pod(namespace, origin) as url:
        for number in range(COUNT):
            namespace.run("create", "--filename=-", manifest=_build(f"e{number}", url))
        complete = f"--for=jsonpath={{.status.state}}={State.COMPLETE}"
        for number in range(COUNT):
            namespace.run("wait", complete, f"{RESOURCE}/e{number}", MINUTES)
        requests = namespace.run("logs", "origin").count("Request upload-pack")
    found = json.loads(namespace.run("get", RESOURCE, "--output=json"))["items"]
    assert {one["status"]["resolved"]["commit"] for one in found} == {commit}
    assert requests == COUNT + 1, "each asked for the branch, and one fetched the commit"
    made = _run_as_root(namespace, folder, "find /node -maxdepth 1 -name 'env-*'").split()
    assert len(made) == 2, "one environment, and the link to it"


def test_script_cannot_change_what_pods_after_it_find_in_the_shared_cache(
    namespace: Kubectl, folder: str, tmp_path: Path
) -> None:
    origin = Origin(tmp_path / "scripts")
    origin.commit({"a.py": WRITER, **build_project()})
    complete = f"--for=jsonpath={{.status.state}}={State.COMPLETE}"
    with serving_in_a_pod(namespace, origin) as url:
        for name in ("first", "second"):
            namespace.run("create", "--filename=-", manifest=_build(name, url))
            namespace.run("wait", complete, f"{RESOURCE}/{name}", MINUTES)
    assert _run_as_root(namespace, folder, "find /node -name planted") == ""
