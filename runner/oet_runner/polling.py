"""Waiting for file descriptors."""

from __future__ import annotations

import select

__all__ = ["Poller"]

MAX_WAIT_SECONDS = 3600.0
"""A longer wait is done in pieces: poll(2) counts milliseconds in 32 bits."""


class Poller:
    """poll(2) with an idempotent way to say what is waited for."""

    __slots__ = ("_masks", "_poll")

    def __init__(self) -> None:
        self._poll = select.poll()
        self._masks: dict[int, int] = {}

    def set(self, fd: int, *, readable: bool = False, writable: bool = False) -> None:
        """Wait for this of `fd` from now on; for neither: do not even hear of its end."""
        mask = (select.POLLIN if readable else 0) | (select.POLLOUT if writable else 0)
        if mask == self._masks.get(fd, 0):
            return
        if mask:
            self._poll.register(fd, mask)
        else:
            self._poll.unregister(fd)
        self._masks[fd] = mask

    def wait(self, timeout_seconds: float | None) -> dict[int, bool]:
        """Wait until something happens or the time is over; None waits for ever.

        Returns:
            The file descriptors with something to do, and whether the other end was closed.
        """
        # Rounded up: a wait that ends a moment too early would be followed by a busy one.
        timeout_ms = None if timeout_seconds is None else int(min(timeout_seconds, MAX_WAIT_SECONDS) * 1000 + 0.999)
        return {fd: bool(events & (select.POLLHUP | select.POLLERR)) for fd, events in self._poll.poll(timeout_ms)}
