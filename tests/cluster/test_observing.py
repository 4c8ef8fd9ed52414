"""The shipped scripts in Pods, on a real Tango control system with simulated devices that runs in another Pod."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from oet_cluster.kubectl import Kubectl
from oet_support import wait_until
from oet_support_cluster import IMAGE, prepare_namespace, running_operator
from oet_support_executions import Executions

from oet_crds.names import RUNNER_HOME, SCRIPT_CONTAINER
from oet_crds.states import State

pytestmark = pytest.mark.cluster

TELESCOPE = "telescope"
PORT = 10000
OBSERVE = {"file": {"path": "/scripts/observe.py"}}


@pytest.fixture(scope="module")
def telescope(executions: Kubectl) -> str:
    """The TANGO_HOST of a simulated telescope in a Pod of its own."""
    prepare_namespace(executions)
    command = ["python3", "-m", "oet.simulation", "--host=$(POD_IP)", f"--port={PORT}", "--subarrays=3", "--speed=5"]
    address = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    container = {
        "name": TELESCOPE,
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "env": [address, {"name": "PYTHONPATH", "value": RUNNER_HOME}],
        "securityContext": {"readOnlyRootFilesystem": True},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    spec = {"containers": [container], "volumes": [{"name": "tmp", "emptyDir": {}}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": TELESCOPE}, "spec": spec}
    executions.run("apply", "-f", "-", manifest=pod)
    wait_until(lambda: "TANGO_HOST=" in executions.attempt("logs", TELESCOPE).output, 60, "no simulated telescope")
    address_of = executions.run("get", "pod", TELESCOPE, "-o", "jsonpath={.status.podIP}")
    return f"{address_of.strip()}:{PORT}"


@pytest.fixture(scope="module", params=["True", "False"], ids=["events", "polling"])
def scripts(
    request: pytest.FixtureRequest, executions: Kubectl, telescope: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Executions]:
    """Executions whose Pods know the telescope; abort scripts, too, so a template of the deployment names it."""
    folder = tmp_path_factory.mktemp("operator")
    env = [{"name": "TANGO_HOST", "value": telescope}, {"name": "OET_READ_VIA_PUBSUB", "value": request.param}]
    template = folder / "template.json"
    template.write_text(json.dumps({"spec": {"containers": [{"name": SCRIPT_CONTAINER, "env": env}]}}))
    with running_operator(executions, folder / "log", OET_POD_TEMPLATE_FILE=str(template)):
        yield Executions(executions)


def build_args(subarray: int) -> dict[str, Any]:
    return {"init": {"kwargs": {"subarray_id": subarray}}, "main": {"kwargs": {"scans": 1}}}


def test_example_observes_from_resources_to_release(scripts: Executions, request: pytest.FixtureRequest) -> None:
    name = scripts.create(f"observe-{request.node.callspec.id}", OBSERVE, args=build_args(1))
    status = scripts.wait_for_end(name)
    assert status["state"] == State.COMPLETE, status


def test_stop_with_abort_aborts_the_subarray(scripts: Executions, request: pytest.FixtureRequest) -> None:
    mode = request.node.callspec.id
    source = (
        "from oet.tango.observing import *\n"
        "def init(subarray_id):\n"
        "    if get_obs_state(2) is ObsState.ABORTED: restart(2)\n"
        "    allocate(2); configure(2, {})\n"
        "def main(**_):\n    while True: scan(2)\n"
    )
    name = scripts.create(f"long-{mode}", source, args=build_args(2))
    scripts.wait_for(name, State.RUNNING)
    scripts.stop(name, abort=True)
    assert scripts.wait_for_end(name)["state"] == State.STOPPED
    status = scripts.wait(name, lambda status: (status.get("abort") or {}).get("procedureId"))
    abort = next(
        one
        for one in scripts.list().values()
        if (one.get("status") or {}).get("procedureId") == status["abort"]["procedureId"]
    )
    ended = scripts.wait_for_end(abort["metadata"]["name"])
    assert ended["state"] == State.COMPLETE, ended
    look = "from oet.tango.observing import *\ndef main():\n    assert get_obs_state(2) is ObsState.ABORTED"
    assert scripts.wait_for_end(scripts.create(f"look-{mode}", look))["state"] == State.COMPLETE
