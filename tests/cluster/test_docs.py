"""The commands of the documentation that want a cluster, as a reader types them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from oet_cluster.kubectl import Kubectl
from oet_support_cluster import prepare_namespace, running_operator
from oet_support_docs import ROOT, list_blocks, read_blocks

pytestmark = pytest.mark.cluster

PAGES = sorted({block.page for block in list_blocks() if block.where == "cluster"})


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_work_one_after_the_other(executions: Kubectl, tmp_path: Path, page: str) -> None:
    prepare_namespace(executions)
    commands = [block.text for block in read_blocks(ROOT / page) if block.where == "cluster"]
    words = f'--kubeconfig="{executions.kubeconfig}" --namespace={executions.namespace}'
    kubectl = f'kubectl() {{ command {executions.program} {words} "$@"; }}'
    with running_operator(executions, tmp_path / "log"):
        done = subprocess.run(
            ["bash", "-eu"],
            input="\n".join([kubectl, *commands]),
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
