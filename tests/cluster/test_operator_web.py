"""What the operator tells of itself while it works on a real cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from oet_cluster.kubectl import Kubectl
from oet_support import wait_until
from oet_support_cluster import Operator, prepare_namespace, running_operator
from oet_support_executions import Executions
from prometheus_client.parser import text_string_to_metric_families

from oet_crds.names import PLURAL
from oet_crds.states import State
from oet_operator.kube.lease import LEASE_NAME

pytestmark = pytest.mark.cluster

FINE = "def main(): pass"


@pytest.fixture(scope="module")
def operator(executions: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    prepare_namespace(executions)
    log = tmp_path_factory.mktemp("operator") / "log"
    with running_operator(executions, log, OET_IMAGE_PULL_POLICY="Never") as operator:
        yield operator


def _read_numbers(operator: Operator, metric: str, *labels: str) -> dict[str, float]:
    """Return the values of a metric by the values of some of its labels."""
    families = text_string_to_metric_families(operator.read("/metrics"))
    samples = [sample for family in families for sample in family.samples if sample.name == metric]
    return {" ".join(sample.labels[label] for label in labels): sample.value for sample in samples}


def _read_writes(operator: Operator) -> dict[str, float]:
    writes = _read_numbers(operator, "oet_operator_writes_total", "verb", "resource")
    return {what: count for what, count in writes.items() if not what.endswith(" leases")}


def test_usual_life_is_counted_and_costs_a_pod_its_statuses_and_its_events(
    executions: Kubectl, operator: Operator
) -> None:
    world = Executions(executions)
    # The first needs the counter of procedure ids as well, and takes numbers for those that follow.
    for name in ("first", "second"):
        before = _read_writes(operator)
        world.create(name, FINE)
        world.wait_for(name, State.COMPLETE)
    after = _read_writes(operator)
    caused = {what: count - before.get(what, 0) for what, count in after.items() if count != before.get(what, 0)}
    # Events follow when there is time.
    assert caused.keys() - {"POST events"} == {"POST pods", f"PATCH {PLURAL}/status"}
    assert caused["POST pods"] == 1
    assert _read_numbers(operator, "oet_operator_executions", "state")[State.COMPLETE] == 2
    assert _read_numbers(operator, "oet_operator_reaction_seconds_count")[""] > 0
    assert _read_numbers(operator, "oet_operator_failures_total", "error").keys() <= {"ApiConflictError"}


def test_standby_tells_who_leads_and_ends_when_told(executions: Kubectl, operator: Operator, tmp_path: Path) -> None:
    standby = Operator(executions, tmp_path / "log")
    standby.start()
    holder = executions.run("get", "lease", LEASE_NAME, "--output=jsonpath={.spec.holderIdentity}")
    wait_until(lambda: standby.read("/readyz") == f"standby: {holder} holds the Lease\n", 20, "no standby")
    assert standby.read("/healthz") == "ok\n"
    assert _read_numbers(standby, "oet_operator_leader") == {"": 0}
    told_at = time.monotonic()
    assert standby.stop() == 0, standby.read_log()
    assert time.monotonic() - told_at < 5
    assert operator.read("/readyz") == "leader\n"
    assert _read_numbers(operator, "oet_operator_leader") == {"": 1}


def test_operator_that_may_not_read_the_lease_lives_and_is_never_ready(executions: Kubectl, tmp_path: Path) -> None:
    account = f"nobody-{uuid4().hex[:8]}"
    executions.run("create", "serviceaccount", account)
    config = json.loads(executions.run("config", "view", "--raw", "--minify", "--flatten", "--output=json"))
    config["users"][0]["user"] = {"token": executions.run("create", "token", account).strip()}
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    operator = Operator(executions, tmp_path / "log", KUBECONFIG=str(kubeconfig))
    operator.start()
    wait_until(lambda: "cannot be written" in operator.read_log(), 20, "nothing in the log")
    assert operator.read("/readyz").startswith("starting")
    assert operator.read("/healthz") == "ok\n"
    assert operator.stop() == 0, operator.read_log()
