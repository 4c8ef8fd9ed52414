"""An observation from its resources to their release: allocate, configure, scan, end, release.

    oet procedure run file:///scripts/observe.py --subarray_id=1 --scans=2

Try it without a telescope: `make interactive` starts a simulated one.
"""

import oet
from oet.tango.observing import allocate, configure, end, get_obs_state, release, scan

subarray = None


def init(subarray_id):
    """Remember the subarray, and see that it is there before the telescope's time is used."""
    global subarray
    subarray = int(subarray_id)
    oet.announce(f"subarray {subarray} is {get_obs_state(subarray).name}")


def main(scans=2, dishes=("0001", "0002")):
    """Observe.

    Args:
        scans: How many scans to do.
        dishes: Receptors to use.
    """
    allocate(subarray, {"dish": {"receptor_ids": list(dishes)}})
    oet.announce(f"subarray {subarray} has its resources")
    for number in range(1, scans + 1):
        configure(subarray, {"dish": {"receiver_band": "1"}})
        scan_id = scan(subarray)
        oet.announce(f"scan {number} of {scans} is done (id {scan_id})")
        oet.progress(number / scans)
    end(subarray)
    release(subarray)
    oet.announce(f"subarray {subarray} is {get_obs_state(subarray).name}")
