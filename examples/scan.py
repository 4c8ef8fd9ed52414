"""A longer script that cleans up after itself: the pattern for everything that moves or switches something on.

Run it:   oet procedure run examples/scan.py --subarray_id=1 --scans=5
Stop it:  Ctrl-C, or `oet procedure stop --run_abort=False` in another terminal: the clean-up runs, then STOPPED is shown.
"""

import time

import oet


def main(scans=10, seconds=2.0):
    """Do some scans, each a few seconds long."""
    oet.announce("configured")
    try:
        for scan in range(1, scans + 1):
            oet.announce(f"scan {scan} of {scans} started")
            time.sleep(seconds)
            oet.announce(f"scan {scan} of {scans} complete")
    finally:
        # A stop raises an exception here, wherever the script is. This block has the stop's grace period (10 s) to finish.
        oet.announce("end of observation: everything is switched off")
