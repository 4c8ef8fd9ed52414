"""What a script in a Pod, under the container runtime's own seccomp profile, cannot reach of its runner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from oet_cluster.kubectl import Kubectl
from oet_support_cluster import prepare_namespace, running_operator
from oet_support_executions import Executions

from oet_crds.mailbox import CONFINEMENT_VARIABLE, Confinement
from oet_crds.names import SCRIPT_CONTAINER, SERVICE_ACCOUNT_FOLDER
from oet_crds.states import State

pytestmark = pytest.mark.cluster

DOORS = f"""
import ctypes, os

def attempt(name, action):
    try:
        action()
        print("open", name)
    except OSError:
        print("closed", name)

def attach():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, os.getppid(), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")

def take_descriptor():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(438, os.pidfd_open(os.getppid()), 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")

def main():
    attempt("token", lambda: open("{SERVICE_ACCOUNT_FOLDER}/token"))
    attempt("token by its other name", lambda: open("{SERVICE_ACCOUNT_FOLDER}/..data/token"))
    attempt("supervisor's memory", lambda: open(f"/proc/{{os.getppid()}}/mem", "rb"))
    attempt("supervisor's environment", lambda: open(f"/proc/{{os.getppid()}}/environ", "rb").read())
    attempt("supervisor's tokens", lambda: open(f"/proc/{{os.getppid()}}/root{SERVICE_ACCOUNT_FOLDER}/token"))
    attempt("tracing", attach)
    attempt("descriptor", take_descriptor)
    attempt("signal", lambda: os.kill(os.getppid(), 0))
    open("/tmp/new", "w").close()
    os.mkdir("/tmp/folder")
    os.rename("/tmp/new", "/tmp/folder/new")
    print("parent", os.getppid())
"""
COUNT = DOORS.count("    attempt(")


@pytest.fixture(scope="module")
def scripts(executions: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executions]:
    prepare_namespace(executions)
    with running_operator(executions, tmp_path_factory.mktemp("operator") / "log"):
        yield Executions(executions)


def run(scripts: Executions, name: str, **spec: Any) -> tuple[dict[str, Any], list[str]]:
    """Run the script; return the status of its execution and what it printed."""
    execution = scripts.create(name, DOORS, **spec)
    status = scripts.wait_for_end(execution)
    lines = scripts.read_log(execution).splitlines()
    assert status["state"] == State.COMPLETE, (status, lines)
    return status, lines


def test_script_in_a_pod_can_take_neither_its_token_nor_its_supervisor(scripts: Executions) -> None:
    status, lines = run(scripts, "confined")
    assert status["runner"]["confined"] is True
    assert [line for line in lines if not line.startswith("closed")] == ["parent 1"]
    assert len(lines) == COUNT + 1


def test_pod_where_confinement_is_switched_off_does_not_say_that_it_is_confined(scripts: Executions) -> None:
    env = [{"name": CONFINEMENT_VARIABLE, "value": str(Confinement.NONE)}]
    template = {"spec": {"containers": [{"name": SCRIPT_CONTAINER, "env": env}]}}
    status, lines = run(scripts, "open", podTemplate=template)
    assert "confined" not in status["runner"]
    assert "open token" in lines
    assert "closed supervisor's memory" in lines
