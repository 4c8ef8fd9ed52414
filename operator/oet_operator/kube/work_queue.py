"""What is to be looked at: each key once, one worker at a time for each key, later where asked, with a back-off after failures.

The semantics of client-go's work queue (https://pkg.go.dev/k8s.io/client-go/util/workqueue).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from typing import Generic, TypeVar

__all__ = ["WorkQueue"]

FIRST_BACKOFF_SECONDS = 0.02
MAX_BACKOFF_SECONDS = 10.0
"""A failing key is tried at least this often: an operator who frees the way does not want to wait for a minute."""

Key = TypeVar("Key")


class WorkQueue(Generic[Key]):
    """Keys to work on. For one event loop."""

    def __init__(self) -> None:
        self._ready: deque[Key] = deque()
        self._dirty: dict[Key, float] = {}
        self._busy: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._wakeup = asyncio.Event()

    def __len__(self) -> int:
        return len(self._dirty)

    def add(self, key: Key) -> None:
        """Have a key looked at now, or again after the look that is under way."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._dirty:
            return
        self._dirty[key] = time.monotonic()
        if key not in self._busy:
            self._make_ready(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Have a key looked at later; the sooner of two times counts."""
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0.0, seconds)
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= when:
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_at(when, self.add, key)

    def add_failed(self, key: Key) -> None:
        """Have a key looked at after a back-off that doubles with each failure in a row."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        seconds = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 20))
        self.add_after(key, seconds * random.uniform(0.5, 1.0))

    def forget(self, key: Key) -> None:
        """Forget the failures of a key."""
        self._failures.pop(key, None)

    def drop(self, key: Key) -> None:
        """Forget a key that nobody needs any more."""
        self.forget(key)
        if timer := self._timers.pop(key, None):
            timer.cancel()

    def compute_oldest_age(self) -> float:
        """Return for how many seconds the oldest key has been waiting; 0 when none is."""
        return time.monotonic() - min(self._dirty.values()) if self._dirty else 0.0

    async def take(self) -> tuple[Key, float]:
        """Wait for a key and take it; returns it and since when (monotonic seconds) it waits. `done` must follow."""
        while not self._ready:
            self._wakeup.clear()
            await self._wakeup.wait()
        key = self._ready.popleft()
        self._busy.add(key)
        return key, self._dirty.pop(key)

    def done(self, key: Key) -> None:
        """Give a key back after the look."""
        self._busy.discard(key)
        if key in self._dirty:
            self._make_ready(key)

    def _make_ready(self, key: Key) -> None:
        self._ready.append(key)
        self._wakeup.set()
