"""What the simulated system is called, and what its parts tell each other. Standard library of Python 3.8 only."""

from __future__ import annotations

from oet.tango.telescope import SUBARRAY_PREFIX

__all__ = [
    "HOST_VARIABLE",
    "MARK_VARIABLE",
    "READY_LINE",
    "SPEED_VARIABLE",
    "SUBARRAYS_VARIABLE",
    "compute_subarray_name",
]

HOST_VARIABLE = "OET_SIMULATION_HOST"
SUBARRAYS_VARIABLE = "OET_SIMULATION_SUBARRAYS"
SPEED_VARIABLE = "OET_SIMULATION_SPEED"

MARK_VARIABLE = "OET_SIMULATION_MARK"
"""In the environment of everything that a simulation starts, and of all that those start: so nothing of it can hide."""

READY_LINE = "simulated devices are ready"


def compute_subarray_name(number: int) -> str:
    """Return the name of a subarray's device. Pure."""
    return f"{SUBARRAY_PREFIX}/{number}"
