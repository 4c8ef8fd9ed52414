"""The simulated devices: subarrays that go through the states of an observation, and a central node that assigns resources.

`python -m oet.simulation.devices` registers and serves them in the database of TANGO_HOST, and prints one line when they answer.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import ClassVar, List, Tuple

import tango
from tango.server import Device, attribute, command, run

from oet.simulation.names import (
    HOST_VARIABLE,
    READY_LINE,
    SPEED_VARIABLE,
    SUBARRAYS_VARIABLE,
    compute_subarray_name,
)
from oet.tango.telescope import CENTRAL_NODE, ObsState

__all__ = ["CentralNode", "SubarrayNode"]

SERVER, INSTANCE = "OetSimulation", "1"


SECONDS = {
    ObsState.RESOURCING: 0.5,
    ObsState.CONFIGURING: 0.5,
    ObsState.SCANNING: 1.0,
    ObsState.ABORTING: 0.2,
    ObsState.RESETTING: 0.2,
    ObsState.RESTARTING: 0.2,
}
"""How long a subarray is in a passing state, at speed 1: short enough to wait for, long enough to be seen by a person."""

ABORTABLE = frozenset(
    {
        ObsState.RESOURCING,
        ObsState.IDLE,
        ObsState.CONFIGURING,
        ObsState.READY,
        ObsState.SCANNING,
        ObsState.RESETTING,
    }
)

Started = Tuple[List[int], List[str]]
"""A result code and a word, as SKA's long running commands answer: ([0], ["Scan started"])."""


class SubarrayNode(Device):  # type: ignore[misc]
    """One subarray. It refuses a command that its state does not allow, and says why."""

    nodes: ClassVar[dict[str, SubarrayNode]] = {}
    """Those of this server, by their names in lower case, for the central node."""

    def init_device(self) -> None:
        """Begin EMPTY. Events are pushed by the device itself: no server-side filter and no polling is in between."""
        super().init_device()
        self._lock = threading.Lock()
        self._obs_state = ObsState.EMPTY
        self._job = 0
        self._speed = float(os.environ.get(SPEED_VARIABLE, "1"))
        self.set_change_event("obsState", True, False)
        self.set_state(tango.DevState.ON)
        self.nodes[self.get_name().lower()] = self

    obsState = attribute(dtype=ObsState, doc="State of the observation; sends change events")

    def read_obsState(self) -> ObsState:
        """Return the state."""
        return self._obs_state

    silent = attribute(dtype=ObsState, doc="The same state, without any event")

    def read_silent(self) -> ObsState:
        """Return the state."""
        return self._obs_state

    # ---- transitions -------------------------------------------------------------------------------------------------

    def begin(self, name: str, allowed: frozenset[ObsState], passing: ObsState, target: ObsState) -> Started:
        """Go into a passing state, and from there to a target when its time is over. Raises DevFailed in a wrong state."""
        with self._lock:
            self._require(name, allowed)
            self._job += 1
            self._set(passing)
            threading.Thread(target=self._finish, args=(self._job, passing, target), daemon=True).start()
        return [0], [f"{name} started"]

    def _require(self, name: str, allowed: frozenset[ObsState]) -> None:
        """Refuse a command in a wrong state. Raises DevFailed."""
        if self._obs_state not in allowed:
            words = ", ".join(sorted(state.name for state in allowed))
            reason = f"{name} is not allowed in obsState {self._obs_state.name}, only in {words}"
            tango.Except.throw_exception("CommandNotAllowed", reason, name)

    def _finish(self, job: int, passing: ObsState, target: ObsState) -> None:
        with tango.EnsureOmniThread():
            time.sleep(SECONDS[passing] / self._speed)
            with self._lock:
                if job == self._job:
                    self._set(target)

    def _set(self, state: ObsState) -> None:
        self._obs_state = state
        self.push_change_event("obsState", state)

    def assign(self) -> Started:
        """Take resources."""
        return self.begin(
            "AssignResources", frozenset({ObsState.EMPTY, ObsState.IDLE}), ObsState.RESOURCING, ObsState.IDLE
        )

    def release(self, name: str) -> Started:
        """Give all resources back."""
        return self.begin(name, frozenset({ObsState.IDLE}), ObsState.RESOURCING, ObsState.EMPTY)

    # ---- commands ----------------------------------------------------------------------------------------------------

    @command(dtype_in=str, dtype_out="DevVarLongStringArray")  # type: ignore[untyped-decorator]
    def AssignResources(self, _argument: str) -> Started:
        """Take resources."""
        return self.assign()

    @command(dtype_out="DevVarLongStringArray")  # type: ignore[untyped-decorator]
    def ReleaseAllResources(self) -> Started:
        """Give all resources back."""
        return self.release("ReleaseAllResources")

    @command(dtype_in=str, dtype_out="DevVarLongStringArray")  # type: ignore[untyped-decorator]
    def Configure(self, _argument: str) -> Started:
        """Prepare for scans."""
        return self.begin("Configure", frozenset({ObsState.IDLE, ObsState.READY}), ObsState.CONFIGURING, ObsState.READY)

    @command(dtype_in=str, dtype_out="DevVarLongStringArray")  # type: ignore[untyped-decorator]
    def Scan(self, _argument: str) -> Started:
        """Observe for a while."""
        return self.begin("Scan", frozenset({ObsState.READY}), ObsState.SCANNING, ObsState.READY)

    @command(dtype_out="DevVarLongStringArray")  # type: ignore[untyped-decorator]
    def EndScan(self) -> Started:
        """End a scan before its time."""
        return self._jump("EndScan", frozenset({ObsState.SCANNING}), ObsState.READY)

    @command(dtype_out="DevVarLongStringArray")  # type: ignore[untyped-decorator]
    def End(self) -> Started:
        """Leave the configuration."""
        return self._jump("End", frozenset({ObsState.READY}), ObsState.IDLE)

    @command(dtype_out="DevVarLongStringArray")  # type: ignore[untyped-decorator]
    def Abort(self) -> Started:
        """Break off whatever goes on."""
        return self.begin("Abort", ABORTABLE, ObsState.ABORTING, ObsState.ABORTED)

    @command(dtype_out="DevVarLongStringArray")  # type: ignore[untyped-decorator]
    def ObsReset(self) -> Started:
        """Return to IDLE after an abort or a fault."""
        return self.begin("ObsReset", frozenset({ObsState.ABORTED, ObsState.FAULT}), ObsState.RESETTING, ObsState.IDLE)

    @command(dtype_out="DevVarLongStringArray")  # type: ignore[untyped-decorator]
    def Restart(self) -> Started:
        """Return to EMPTY after an abort or a fault."""
        return self.begin("Restart", frozenset({ObsState.ABORTED, ObsState.FAULT}), ObsState.RESTARTING, ObsState.EMPTY)

    def _jump(self, name: str, allowed: frozenset[ObsState], target: ObsState) -> Started:
        with self._lock:
            self._require(name, allowed)
            self._job += 1
            self._set(target)
        return [0], [f"{name} done"]

    # ---- for tests: what goes wrong in a real telescope ----------------------------------------------------------------

    @command(dtype_in=str)  # type: ignore[untyped-decorator]
    def ForceState(self, name: str) -> None:
        """Be in a state at once."""
        with self._lock:
            self._job += 1
            self._set(ObsState[name])

    @command(dtype_in=str)  # type: ignore[untyped-decorator]
    def ForceStateSilently(self, name: str) -> None:
        """Be in a state at once, without the event that should tell of it."""
        with self._lock:
            self._job += 1
            self._obs_state = ObsState[name]

    @command(dtype_in=float)  # type: ignore[untyped-decorator]
    def Hang(self, seconds: float) -> None:
        """Answer late, and nobody else meanwhile."""
        time.sleep(seconds)


class CentralNode(Device):  # type: ignore[misc]
    """Assigns resources to subarrays."""

    def init_device(self) -> None:
        """Begin in standby."""
        super().init_device()
        self.set_state(tango.DevState.STANDBY)

    @command(dtype_in=str, dtype_out="DevVarLongStringArray")  # type: ignore[untyped-decorator]
    def AssignResources(self, argument: str) -> Started:
        """Give resources to the subarray that the JSON argument names."""
        return _find_node(argument, "AssignResources").assign()

    @command(dtype_in=str, dtype_out="DevVarLongStringArray")  # type: ignore[untyped-decorator]
    def ReleaseResources(self, argument: str) -> Started:
        """Take all resources from the subarray that the JSON argument names."""
        name = "ReleaseResources"
        return _find_node(argument, name).release(name)

    @command  # type: ignore[untyped-decorator]
    def StartUpTelescope(self) -> None:
        """Leave standby."""
        self.set_state(tango.DevState.ON)

    @command  # type: ignore[untyped-decorator]
    def StandByTelescope(self) -> None:
        """Go into standby."""
        self.set_state(tango.DevState.STANDBY)


def _find_node(argument: str, name: str) -> SubarrayNode:
    """Return the subarray that a JSON argument names, by the old or the new key. Raises DevFailed."""
    try:
        wanted = json.loads(argument)
        number = int(wanted["subarray_id"] if "subarray_id" in wanted else wanted["subarrayID"])
        return SubarrayNode.nodes[compute_subarray_name(number)]
    except (ValueError, TypeError, KeyError):
        text = f"{name} takes a JSON object with the subarray_id of a subarray that there is, not {argument[:200]!r}"
        tango.Except.throw_exception("InvalidArgument", text, name)
        raise


def main() -> None:
    """Register the devices, serve them until a signal, and tell when they answer."""
    database = tango.Database()
    names = {compute_subarray_name(1 + at): SubarrayNode for at in range(int(os.environ[SUBARRAYS_VARIABLE]))}
    for name, device in {**names, CENTRAL_NODE: CentralNode}.items():
        info = tango.DbDevInfo()
        info.server, info._class, info.name = f"{SERVER}/{INSTANCE}", device.__name__, name
        database.add_device(info)
    # The address itself, never a host's name: with `localhost` every event is lost, without an error.
    words = [SERVER, INSTANCE, "-ORBendPoint", f"giop:tcp:{os.environ[HOST_VARIABLE]}:0"]
    run((SubarrayNode, CentralNode), args=words, post_init_callback=lambda: print(READY_LINE, flush=True))


if __name__ == "__main__":
    main()
