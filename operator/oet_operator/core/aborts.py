"""What an abort runs."""

from __future__ import annotations

from oet_crds.execution import ExecutionArgs, FileScript, FunctionArgs, ScriptExecutionSpec, ScriptSource, WhenBusy
from oet_crds.states import DesiredState
from oet_crds.subarrays import SUBARRAY_KEY

__all__ = ["build_abort_spec"]

ABORT_SCRIPT = "abort.py"
"""Name of the abort script in the folder of the shipped scripts (upstream's name)."""


def build_abort_spec(scripts_location: str, subarray: int) -> ScriptExecutionSpec:
    """Build the request that runs the abort script on a subarray. Pure."""
    return ScriptExecutionSpec(
        script=ScriptSource(file=FileScript(path=f"{scripts_location}/{ABORT_SCRIPT}")),
        args=ExecutionArgs(init=FunctionArgs(kwargs={SUBARRAY_KEY: subarray})),
        subarray=subarray,
        desired_state=DesiredState.RUNNING,
        when_busy=WhenBusy.WAIT,
    )
