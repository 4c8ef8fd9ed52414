"""Tango for scripts: read attributes, execute commands, wait for states. Importing this imports no pytango; using it does.

    from oet.tango import Attribute, Command, execute_and_wait

    subarray = "ska_mid/tm_subarray_node/1"
    execute_and_wait(Command(subarray, "Abort"), Attribute(subarray, "obsState"), "ABORTED")

Waits use events or polling, as the feature flag `read_via_pubsub` says, with the same result. `oet.tango.observing` has the
operations of a subarray. It needs the extra `ska-oso-oet[tango]`.
"""

from __future__ import annotations

from oet.tango.client import Tango
from oet.tango.errors import (
    CommandRefused,
    DatabaseDown,
    DeviceDown,
    DeviceMissing,
    ErrorState,
    NoSuchAttribute,
    NoSuchCommand,
    OutcomeUnknown,
    TangoError,
    TangoMissing,
    WaitTimeout,
    WrongArgument,
)
from oet.tango.executor import (
    SCAN_ID_GENERATOR,
    LocalScanIdGenerator,
    RemoteScanIdGenerator,
    TangoDeviceProxyFactory,
    TangoExecutor,
)
from oet.tango.model import Attribute, Command
from oet.tango.observing import ObsState

__all__ = [
    "Attribute",
    "Command",
    "CommandRefused",
    "DatabaseDown",
    "DeviceDown",
    "DeviceMissing",
    "ErrorState",
    "LocalScanIdGenerator",
    "NoSuchAttribute",
    "NoSuchCommand",
    "ObsState",
    "OutcomeUnknown",
    "RemoteScanIdGenerator",
    "SCAN_ID_GENERATOR",
    "Tango",
    "TangoDeviceProxyFactory",
    "TangoError",
    "TangoExecutor",
    "TangoMissing",
    "WaitTimeout",
    "WrongArgument",
    "execute",
    "execute_and_wait",
    "read",
    "wait",
    "watch",
]

_client = Tango()
execute = _client.execute
read = _client.read
wait = _client.wait
watch = _client.watch
execute_and_wait = _client.execute_and_wait
