"""The smallest script: it tells everyone who listens that it runs.

oet procedure run file:///scripts/hello_world.py --name=Telescope
"""

import oet


def init(subarray_id=None):
    """Called when the script is prepared."""
    oet.announce("hello_world is ready" if subarray_id is None else f"hello_world is ready for subarray {subarray_id}")


def main(name="World"):
    """Called when the script is started."""
    oet.announce(f"Hello, {name}!")
