"""Feature flags: switches that change how scripts' libraries work.

Standard library of Python 3.8 only: the script library carries this module into any image.
"""

from __future__ import annotations

from typing import NamedTuple

from oet_crds.ini import SettingsError

__all__ = ["FALSE_WORDS", "READ_VIA_PUBSUB", "TANGO_SECTION", "TRUE_WORDS", "Flag", "parse_flag"]

TANGO_SECTION = "tango"

TRUE_WORDS = ("true", "yes", "on", "1", "t", "y")
FALSE_WORDS = ("false", "no", "off", "0", "f", "n")
"""The words of both sources that the existing OET takes them from; upper and lower case are the same."""


class Flag(NamedTuple):
    """A switch, and where it is set."""

    section: str
    key: str
    variable: str
    """Environment variable."""
    default: bool
    meaning: str


READ_VIA_PUBSUB = Flag(
    TANGO_SECTION,
    "read_via_pubsub",
    "OET_READ_VIA_PUBSUB",
    False,
    "Scripts wait for Tango attributes by events (publish and subscribe) instead of by polling.",
)


def parse_flag(text: str) -> bool:
    """Return what a word says. Pure.

    Raises:
        SettingsError: It is none of the allowed words.
    """
    word = text.strip().lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise SettingsError(f"{text!r} is neither {', '.join(TRUE_WORDS)} nor {', '.join(FALSE_WORDS)}")
