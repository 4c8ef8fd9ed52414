"""Rehearsals in Pods: the simulated telescope is in the script's own Pod. (Enforcing policies is the cluster's.)"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from oet_cluster.kubectl import Kubectl
from oet_support_cluster import prepare_namespace, running_operator
from oet_support_executions import Executions

from oet_crds.names import MODE_LABEL, NO_SUBARRAY, REHEARSAL_VALUE, SCRIPT_CONTAINER, SUBARRAY_LABEL
from oet_crds.reasons import Reason
from oet_crds.states import Mode, State

pytestmark = pytest.mark.cluster

OBSERVE = {"file": {"path": "/scripts/observe.py"}}
ARGS = {"init": {"kwargs": {"subarray_id": 1}}, "main": {"kwargs": {"scans": 1}}}
HOLDER = "import time\ndef init(subarray_id): pass\ndef main(**_): time.sleep(600)"


@pytest.fixture(scope="module")
def prepared(executions: Kubectl) -> Kubectl:
    prepare_namespace(executions)
    return executions


@pytest.fixture
def rehearsals(prepared: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executions]:
    """Executions where rehearsals are allowed, and where the deployment names the real telescope."""
    folder = tmp_path_factory.mktemp("operator")
    env = [{"name": "TANGO_HOST", "value": "203.0.113.1:10000"}]
    template = folder / "template.json"
    template.write_text(json.dumps({"spec": {"containers": [{"name": SCRIPT_CONTAINER, "env": env}]}}))
    settings = {"OET_POD_TEMPLATE_FILE": str(template), "OET_REHEARSALS": "true"}
    with running_operator(prepared, folder / "log", **settings):
        yield Executions(prepared)


def test_two_rehearsals_observe_on_a_subarray_that_an_operation_holds(rehearsals: Executions) -> None:
    holder = rehearsals.create("holder", HOLDER, args=ARGS)
    rehearsals.wait_for(holder, State.RUNNING)
    template = {"metadata": {"labels": {MODE_LABEL: "operation"}}, "spec": {"hostNetwork": True}}
    names = [
        rehearsals.create(name, OBSERVE, args=ARGS, mode=Mode.REHEARSAL, podTemplate=template)
        for name in ("first", "second")
    ]
    ends = {name: rehearsals.wait_for_end(name) for name in names}
    log = rehearsals.kubectl.run("logs", ends["first"]["podName"])
    assert [status["state"] for status in ends.values()] == [State.COMPLETE] * 2, (ends, log)
    assert "TANGO_HOST=127.0.0.1:" in log
    pod = json.loads(rehearsals.kubectl.run("get", "pod", ends["first"]["podName"], "--output=json"))
    assert pod["metadata"]["labels"][MODE_LABEL] == REHEARSAL_VALUE
    assert pod["metadata"]["labels"][SUBARRAY_LABEL] == NO_SUBARRAY
    assert not pod["spec"].get("hostNetwork")
    assert rehearsals.get_status(holder)["state"] == State.RUNNING
    rehearsals.stop(holder)
    rehearsals.wait_for_end(holder)


def test_stopped_rehearsal_is_followed_by_no_abort(rehearsals: Executions) -> None:
    name = rehearsals.create("stopped", HOLDER, args=ARGS, mode=Mode.REHEARSAL)
    rehearsals.wait_for(name, State.RUNNING)
    known = set(rehearsals.list())
    rehearsals.stop(name, abort=True)
    status = rehearsals.wait_for_end(name)
    assert (status["state"], status["reason"]) == (State.STOPPED, Reason.STOP_REQUESTED)
    assert set(rehearsals.list()) == known
    assert "abort" not in rehearsals.get_status(name)


def test_rehearsal_fails_with_the_words_of_a_simulation_that_does_not_start(rehearsals: Executions) -> None:
    nowhere_to_write = [{"name": "oet-tmp", "mountPath": "/tmp", "readOnly": True}]
    template = {"spec": {"containers": [{"name": SCRIPT_CONTAINER, "volumeMounts": nowhere_to_write}]}}
    name = rehearsals.create("broken", HOLDER, args=ARGS, mode=Mode.REHEARSAL, podTemplate=template)
    status = rehearsals.wait_for_end(name)
    assert (status["state"], status["reason"]) == (State.FAILED, Reason.SIMULATION_FAILED), status


def test_rehearsal_where_nothing_keeps_it_from_the_telescope_is_not_begun(
    prepared: Kubectl, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running_operator(prepared, tmp_path_factory.mktemp("operator") / "log"):
        executions = Executions(prepared)
        name = executions.create("forbidden", HOLDER, args=ARGS, mode=Mode.REHEARSAL)
        status = executions.wait_for_end(name)
    assert (status["state"], status["reason"]) == (State.FAILED, Reason.REHEARSAL_UNAVAILABLE)
    assert "rehearsal.enabled" in status["message"]
    assert "runner" not in status
