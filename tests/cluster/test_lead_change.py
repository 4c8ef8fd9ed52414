"""What is deleted while the operator's lead changes hands: nobody tells the new one of it, and it keeps nothing from anybody."""

from __future__ import annotations

import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
from oet_cluster.kubectl import Kubectl
from oet_support import wait_until
from oet_support_cluster import Operator, prepare_namespace, running_operator
from oet_support_executions import Executions

from oet_crds.states import DesiredState, State

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

FINE = "def main(): pass"
COUNT = 6
"""So many are deleted one after the other, from the end of one lead into the next one: some fall between its first list and the
opening of its watches."""

FREE_SECONDS = 4.0
"""A start is granted so soon after the last Pod is gone: a Pod that nobody tells of is looked for every second."""


@pytest.fixture(scope="module")
def operator(executions: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    prepare_namespace(executions)
    # It is ended in order, and gives its Lease back: a short one would be lost on a busy machine.
    with running_operator(executions, tmp_path_factory.mktemp("operator") / "log", OET_LEASE_SECONDS="10") as operator:
        yield operator


def test_ready_executions_deleted_while_the_lead_changes_block_no_subarray(
    executions: Kubectl, operator: Operator
) -> None:
    world, name = Executions(executions), f"t-{uuid4().hex[:10]}"
    # Their main may name a subarray yet, so each might use any of them.
    open_ones = [
        world.create(f"{name}-{number}", FINE, desiredState=DesiredState.READY, stop={"gracePeriodSeconds": 2})
        for number in range(COUNT)
    ]
    waiting = world.create(f"{name}-x", FINE, desiredState=DesiredState.READY, subarray=77)
    for one in (*open_ones, waiting):
        world.wait_for(one, State.READY)
    pods = [world.get_status(one)["podName"] for one in open_ones]
    operator.stop()
    operator.start()
    for one in open_ones:
        world.delete(one)
        time.sleep(0.15)  # The pace of the deletions is what is tried.
    operator.wait_for_lead()
    world.patch(waiting, desiredState=DesiredState.RUNNING)

    def is_gone() -> bool:
        left = executions.run("get", "pods", "--output=name")
        return not any(pod in left for pod in pods)

    wait_until(is_gone, 60, "Pods of deleted executions are left")
    world.wait_for(waiting, State.COMPLETE, FREE_SECONDS)
