"""How a script's arguments name the subarray it uses. One reading for all: what a request may say is what is locked.

Standard library only: the command line client uses the name too.
"""

from __future__ import annotations

__all__ = ["MAX_SUBARRAY", "SUBARRAY_KEY", "parse_subarray"]

SUBARRAY_KEY = "subarray_id"
"""The keyword argument that names the subarray, by convention of the observing scripts."""

MAX_SUBARRAY = 65535
"""Largest subarray that can be asked for: far above the telescopes' 16, and small enough for any integer type."""


def parse_subarray(value: object) -> int | None:
    """Return the subarray that a `subarray_id` argument names, None when it names none. Pure.

    Scripts are called from notebooks and shells, so `1`, `1.0` and `"1"` all mean subarray 1: were one of them not understood,
    two scripts could run on it. Whether the number may be asked for is another question (`MAX_SUBARRAY`).
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        text = value.strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
    return None
