"""A script with a defect: see what a failure looks like, and where to find its stack trace.

Run it:  oet procedure run examples/failing.py; echo "exit code $?"
Then:    oet procedure describe
"""


def main():
    """Fail, two calls deep: FAILED, with the whole stack trace."""
    point_dish(None)


def point_dish(coordinates):
    """Point nowhere."""
    azimuth, _elevation = coordinates
    return azimuth
