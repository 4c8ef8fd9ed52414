"""Break off what a subarray does. OET runs this when a script is stopped with abort, after every process of that script is gone.

It is COMPLETE when the subarray is ABORTED, or has nothing to abort; everything else is FAILED, so that somebody looks.
"""

import oet
from oet.tango import CommandRefused, TangoError
from oet.tango.observing import ObsState, abort, get_obs_state, wait_for

TIMEOUT_SECONDS = 60.0
"""How long the subarray may take to become ABORTED."""

subarray = None


def init(subarray_id):
    """Remember the subarray, and connect to it: an abort that is prepared then costs no time."""
    global subarray
    subarray = int(subarray_id)
    try:
        oet.announce(f"subarray {subarray} is {get_obs_state(subarray).name}: ready to abort")
    except TangoError as error:
        # No reason not to try when it counts.
        oet.announce(f"subarray {subarray} cannot be read yet: {error}")


def main():
    """Send the command first and look afterwards: what the state is must not keep an abort from being sent."""
    try:
        abort(subarray, timeout=TIMEOUT_SECONDS)
    except CommandRefused as refusal:
        state = get_obs_state(subarray)
        if state is ObsState.ABORTING:
            wait_for(subarray, ObsState.ABORTED, timeout=TIMEOUT_SECONDS)
        elif state not in (ObsState.ABORTED, ObsState.EMPTY):
            raise RuntimeError(f"subarray {subarray} is {state.name} and refused the abort: {refusal}") from refusal
    oet.announce(f"subarray {subarray} is {get_obs_state(subarray).name}")
