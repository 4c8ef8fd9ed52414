"""The life of a subarray: allocate, configure, scan, end, release; abort, restart, obsreset. Each waits until it is done.

    from oet.tango.observing import allocate, configure, scan, end, release

    allocate(1, {"dish": {"receptor_ids": ["0001"]}})

Devices are SKA-Mid's, unless CENTRALNODE_FQDN and SUBARRAYNODE_FQDN_PREFIX say otherwise. By events or polling, as the flag says.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from oet.tango.client import Tango
from oet.tango.executor import SCAN_ID_GENERATOR
from oet.tango.model import Attribute, Command
from oet.tango.telescope import CENTRAL_NODE, SUBARRAY_PREFIX, ObsState

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ObsState",
    "abort",
    "allocate",
    "configure",
    "end",
    "get_obs_state",
    "obsreset",
    "release",
    "restart",
    "scan",
    "standby",
    "startup",
    "wait_for",
]

CENTRAL_NODE_VARIABLE = "CENTRALNODE_FQDN"
SUBARRAY_PREFIX_VARIABLE = "SUBARRAYNODE_FQDN_PREFIX"
"""The names that the existing OET's deployments set."""

TIMEOUT_SECONDS = 300.0
"""How long an operation may take unless the script says otherwise: a dish slews across the sky in three minutes."""


_BROKEN_OFF = (ObsState.FAULT, ObsState.ABORTING, ObsState.ABORTED)
"""States that end a wait for another: somebody aborted, or something broke."""

_client = Tango()


def _get_subarray(subarray_id: int) -> str:
    return f"{os.environ.get(SUBARRAY_PREFIX_VARIABLE) or SUBARRAY_PREFIX}/{subarray_id}"


def _get_central_node() -> str:
    return os.environ.get(CENTRAL_NODE_VARIABLE) or CENTRAL_NODE


def _get_attribute(subarray_id: int) -> Attribute:
    return Attribute(_get_subarray(subarray_id), "obsState")


def _to_json(argument: Mapping[str, Any] | str) -> str:
    return argument if isinstance(argument, str) else json.dumps(argument)


def get_obs_state(subarray_id: int) -> ObsState:
    """Return what a subarray is at. Raises TangoError."""
    return ObsState[_client.read(_get_attribute(subarray_id))]


def wait_for(subarray_id: int, target: ObsState, timeout: float = TIMEOUT_SECONDS) -> None:
    """Wait until a subarray is at something, which it may be already.

    Args:
        subarray_id: Number of the subarray.
        target: What to wait for.
        timeout: How long to wait, in seconds.

    Raises:
        ErrorState: It went to FAULT.
        WaitTimeout: It did not happen in time.
        TangoError: The device is away.
    """
    _client.wait(_get_attribute(subarray_id), target, ObsState.FAULT, timeout)


def allocate(subarray_id: int, resources: Mapping[str, Any] | str = "{}", timeout: float = TIMEOUT_SECONDS) -> None:
    """Give resources to a subarray: it becomes IDLE.

    Args:
        subarray_id: Number of the subarray.
        resources: AssignResources' argument, as an object or as JSON; an object gets the subarray_id if it has none.
        timeout: How long to wait, in seconds.

    Raises:
        ErrorState: It went to FAULT.
        WaitTimeout: It did not become IDLE in time.
        TangoError: The command was refused, or a device is away.
    """
    _call_central(subarray_id, "AssignResources", resources, ObsState.IDLE, timeout)


def release(subarray_id: int, resources: Mapping[str, Any] | str = "{}", timeout: float = TIMEOUT_SECONDS) -> None:
    """Take the resources of a subarray back: it becomes EMPTY. Arguments and errors as in `allocate`."""
    request = {"release_all": True} if resources == "{}" else resources
    _call_central(subarray_id, "ReleaseResources", request, ObsState.EMPTY, timeout)


def _call_central(
    subarray_id: int, name: str, argument: Mapping[str, Any] | str, target: ObsState, timeout: float
) -> None:
    request = json.loads(argument) if isinstance(argument, str) else dict(argument)
    if "subarrayID" not in request:
        request.setdefault("subarray_id", subarray_id)
    command = Command(_get_central_node(), name, json.dumps(request))
    _client.execute_and_wait(command, _get_attribute(subarray_id), target, ObsState.FAULT, timeout)


def configure(subarray_id: int, configuration: Mapping[str, Any] | str, timeout: float = TIMEOUT_SECONDS) -> None:
    """Prepare a subarray for scans: it becomes READY.

    Args:
        subarray_id: Number of the subarray.
        configuration: Configure's argument, as an object or as JSON.
        timeout: How long to wait, in seconds.

    Raises:
        ErrorState: It went to FAULT, ABORTING or ABORTED.
        WaitTimeout: It did not become READY in time.
        TangoError: The command was refused, or the device is away.
    """
    _call(subarray_id, "Configure", (_to_json(configuration),), (ObsState.READY, _BROKEN_OFF), timeout)


def scan(subarray_id: int, scan_id: int | None = None, timeout: float = TIMEOUT_SECONDS) -> int:
    """Observe: the subarray is SCANNING, then READY again.

    Args:
        subarray_id: Number of the subarray.
        scan_id: Number of the scan; None: a new one, from the service that SKUID_URL names.
        timeout: How long to wait, in seconds.

    Returns:
        The number of the scan.

    Raises:
        ErrorState: It went to FAULT, ABORTING or ABORTED.
        WaitTimeout: It did not become READY in time.
        TangoError: The command was refused, or the device is away.
    """
    number = SCAN_ID_GENERATOR.next() if scan_id is None else scan_id
    argument = json.dumps({"scan_id": number, "id": number})
    _call(subarray_id, "Scan", (argument,), (ObsState.READY, _BROKEN_OFF), timeout)
    return number


def end(subarray_id: int, timeout: float = TIMEOUT_SECONDS) -> None:
    """Leave the configuration: the subarray becomes IDLE. Errors as in `configure`."""
    _call(subarray_id, "End", (), (ObsState.IDLE, _BROKEN_OFF), timeout)


def abort(subarray_id: int, timeout: float = TIMEOUT_SECONDS) -> None:
    """Break off what a subarray does: it becomes ABORTED. Errors as in `allocate`."""
    _call(subarray_id, "Abort", (), (ObsState.ABORTED, (ObsState.FAULT,)), timeout)


def obsreset(subarray_id: int, timeout: float = TIMEOUT_SECONDS) -> None:
    """Return a subarray to IDLE after an abort or a fault. Errors as in `allocate`."""
    _call(subarray_id, "ObsReset", (), (ObsState.IDLE, (ObsState.FAULT,)), timeout)


def restart(subarray_id: int, timeout: float = TIMEOUT_SECONDS) -> None:
    """Return a subarray to EMPTY after an abort or a fault. Errors as in `allocate`."""
    _call(subarray_id, "Restart", (), (ObsState.EMPTY, (ObsState.FAULT,)), timeout)


def startup() -> None:
    """Bring the telescope out of standby; returns when the command is accepted. Raises TangoError."""
    _client.execute(Command(_get_central_node(), "StartUpTelescope"))


def standby() -> None:
    """Bring the telescope into standby; returns when the command is accepted. Raises TangoError."""
    _client.execute(Command(_get_central_node(), "StandByTelescope"))


def _call(
    subarray_id: int,
    name: str,
    arguments: tuple[str, ...],
    outcome: tuple[ObsState, tuple[ObsState, ...]],
    timeout: float,
) -> None:
    """Send a command to a subarray, and wait for its target (the outcome's first) or an error."""
    device = _get_subarray(subarray_id)
    _client.execute_and_wait(Command(device, name, *arguments), Attribute(device, "obsState"), *outcome, timeout)
