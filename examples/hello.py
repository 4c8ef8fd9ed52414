"""A first script: says hello three times, a second apart.

Run it:  oet procedure run examples/hello.py --name=Telescope
"""

import time

import oet


def init(subarray_id=None):
    """Called once, when the script is prepared. Optional."""
    print(f"getting ready for subarray {subarray_id}")


def main(name="World", times=3):
    """Called when the script is started, with the arguments of the start."""
    for number in range(1, int(times) + 1):
        oet.announce(f"Hello {name}, number {number}")  # goes to everyone who listens: `oet listen`
        print(f"said hello {number} of {times}")  # goes to the script's log: `oet procedure logs`
        time.sleep(1)
