"""A longer script that cleans up after itself: the pattern for everything that moves or switches something on.

Run it:   oet procedure run examples/scan.py --subarray_id=1 --scans=5
Stop it:  Ctrl-C, or `oet procedure stop --run_abort=False` in another terminal. The clean-up runs, then STOPPED is shown.

Only one script at a time runs on a subarray: try a second one on subarray 1 while this one runs, then one on subarray 2.
"""

import time

import oet


def init(subarray_id):
    """Prepare: check everything that can be checked, so that a start does not fail."""
    print(f"resources of subarray {subarray_id} are there")


def main(scans=10, seconds=2.0):
    """Do some scans, each a few seconds long."""
    scans, seconds = int(scans), float(seconds)
    oet.announce("configured")
    try:
        for scan in range(1, scans + 1):
            oet.progress((scan - 1) / scans, f"scan {scan} of {scans}")
            # Any topic will do: words with dots between them. Listeners get the values as JSON.
            oet.publish("example.scan.started", scan=scan, seconds=seconds)
            time.sleep(seconds)
        oet.progress(1.0, "all scans are done")
    finally:
        # A stop raises an exception in main, wherever it is. This block then has the stop's grace period (10 s) to finish;
        # what is left after that is killed. So keep it short, and never swallow the exception (`except BaseException: pass`).
        oet.announce("end of observation: everything is switched off")
