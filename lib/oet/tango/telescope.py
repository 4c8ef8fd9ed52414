"""What SKA's control system calls its devices and the states of a subarray. Standard library of Python 3.8 only."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["CENTRAL_NODE", "SUBARRAY_PREFIX", "ObsState"]

CENTRAL_NODE = "ska_mid/tm_central/central_node"
SUBARRAY_PREFIX = "ska_mid/tm_subarray_node"
"""The names that the existing OET's scripts expect of SKA-Mid; a subarray's number follows the prefix."""


class ObsState(IntEnum):
    """What a subarray is at, numbered as SKA's control system numbers it."""

    EMPTY = 0
    RESOURCING = 1
    IDLE = 2
    CONFIGURING = 3
    READY = 4
    SCANNING = 5
    ABORTING = 6
    ABORTED = 7
    RESETTING = 8
    FAULT = 9
    RESTARTING = 10
