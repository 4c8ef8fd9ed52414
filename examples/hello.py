"""A first script: says hello three times, a second apart.

Run it:  oet procedure run examples/hello.py --name=Telescope
"""

import time

# `oet` is there in every script that OET runs, with nothing to install.
import oet


def init(subarray_id=None):
    """Prepare. OET calls this once, as soon as it has the script; leave it out if there is nothing to prepare."""
    print(f"getting ready for subarray {subarray_id}")


def main(name="World", times=3):
    """Do the work. OET calls this when it is told to start, with the arguments of the start."""
    times = int(times)  # arguments from a command line may come as text
    for number in range(1, times + 1):
        oet.announce(f"Hello {name}, number {number}")  # to everyone who listens: `oet listen`
        print(f"said hello {number} of {times}")  # to the script's log: `oet procedure logs`
        time.sleep(1)
        oet.progress(number / times)  # how far it is, from 0 to 1
