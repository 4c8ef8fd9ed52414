"""Make sure that a rehearsal is out of the real telescope's reach: knock there until nobody opens.

A Pod's network policies may come into force a moment after its start, or never, where nobody enforces them; no cluster says
so. So it is tried out. Standard library of Python 3.8 only.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Sequence, Tuple

__all__ = ["Address", "SeclusionError", "parse_addresses", "wait_until_secluded"]

SECLUSION_SECONDS = 30.0
"""How long a network plug-in may take: kube-router's rules follow a Pod within a second or two, a busy node's later."""

KNOCK_SECONDS = 2.0
"""Within a cluster a name is resolved and a connection made in some milliseconds; a policy that drops packets answers never."""

PAUSE_SECONDS = 0.1

REFUSALS = 3
"""In a row: one alone could have met a moment between two sets of rules, or a network that was just coming up."""

Address = Tuple[str, int]
"""Host and port."""


class SeclusionError(RuntimeError):
    """The real telescope can be reached. The text says which, and what to do."""


def parse_addresses(text: str) -> list[Address]:
    """Return the databases of a TANGO_HOST, HOST:PORT with commas between them. Pure.

    Raises:
        ValueError: It is not of that form.
    """
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        host, _, port = part.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"{part!r} is not HOST:PORT")
        found.append((host.strip("[]"), int(port)))
    return found


def wait_until_secluded(addresses: Sequence[Address], seconds: float = SECLUSION_SECONDS) -> None:
    """Wait until none of some addresses can be reached from here.

    Args:
        addresses: Of the real telescope.
        seconds: How long to try.

    Raises:
        SeclusionError: One can be reached all that time.
    """
    deadline = time.monotonic() + seconds
    for host, port in addresses:
        refusals = 0
        while refusals < REFUSALS:
            if not has_answered(host, port):
                refusals += 1
            elif time.monotonic() < deadline:
                refusals = 0
            else:
                raise SeclusionError(
                    f"the real telescope at {host}:{port} can be reached from this rehearsal, after {seconds:g} s still: "
                    "nothing enforces the network policy that should keep it away. Use a network plug-in that does, or "
                    "take rehearsals back in this deployment"
                )
            time.sleep(PAUSE_SECONDS)


def has_answered(host: str, port: int) -> bool:
    """Tell whether an address accepts a connection in time."""
    answers: list[bool] = []

    def knock() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), timeout=KNOCK_SECONDS).close()
            answers.append(True)

    # A thread, since nothing else bounds the resolving of a name where the policy keeps its packets.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(KNOCK_SECONDS)
    return bool(answers)
