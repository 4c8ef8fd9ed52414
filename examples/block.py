"""A script for an activity: it reads the scheduling block that it is run for.

Run it:  docs/how-to/activities.md tells how
"""

import json

import oet


def init(subarray_id=None):
    """Prepare, as in every script."""
    print(f"getting ready for subarray {subarray_id}")


def main(sb_json, sbi_id, scans=1):
    """Observe. `sb_json` is the path of the scheduling block definition, `sbi_id` names this carrying out of it."""
    with open(sb_json) as file:
        block = json.load(file)
    for number in range(1, scans + 1):
        oet.announce(f"{sbi_id}: scan {number} of {scans} of {block['sbd_id']} on {block['telescope']}")
