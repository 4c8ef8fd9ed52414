"""A script with a defect: see what a failure looks like.

Run it:  oet procedure run examples/failing.py; echo "exit code $?"
"""


def main():
    """Fail, two calls deep."""
    point_dish(None)


def point_dish(coordinates):
    """Point nowhere."""
    azimuth, _elevation = coordinates
    return azimuth
