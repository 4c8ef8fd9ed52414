"""Wait for the thing itself, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from oet_cluster.errors import ClusterError

__all__ = ["wait_for"]

T = TypeVar("T")


def wait_for(observe: Callable[[], T | None], seconds: float, complaint: str, every_seconds: float = 0.05) -> T:
    """Observe until there is something true, and return it.

    Raises:
        ClusterError: It did not come in time; the message is the complaint.
    """
    deadline = time.monotonic() + seconds
    while True:
        seen = observe()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise ClusterError(f"{complaint} (waited {seconds:g} s)")
        time.sleep(every_seconds)
