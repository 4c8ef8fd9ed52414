"""The pool of spare runners: interpreters that are up before anybody needs them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from oet_operator.local.runner import Runner

__all__ = ["SparePool"]

_log = logging.getLogger(__name__)

QUIET_SECONDS = 0.05
"""A used spare is replaced this long after the last use: starting an interpreter costs a core about 30 ms, which the
script that is just being prepared must not pay for."""

HELLO_TIMEOUT_SECONDS = 30.0
"""A runner that has not said hello by then never will: it needs 0.1 s, and 3 s on a machine that swaps."""

_MAX_BACKOFF_SECONDS = 30.0
"""Longest pause between two tries to start a spare when starting fails."""


class SparePool:
    """Spare runners, replaced after use. For the engine's thread only."""

    def __init__(self, size: int, start_runner: Callable[[], Runner]) -> None:
        self._size = size
        self._start_runner = start_runner
        self._spares: dict[Runner, float] = {}
        self._next_start = 0.0
        self._failures = 0

    def __iter__(self) -> Iterator[Runner]:
        return iter(list(self._spares))

    def take(self) -> Runner:
        """Return a spare, the readiest one, or start a runner when there is none. Raises OSError."""
        self._next_start = max(self._next_start, time.monotonic() + QUIET_SECONDS)
        for runner in sorted(self._spares, key=lambda spare: not spare.is_up):
            del self._spares[runner]
            return runner
        return self._start_runner()

    def on_hello(self) -> None:
        """Note that starting works."""
        self._failures = 0

    def discard(self, runner: Runner) -> None:
        """Forget a spare that died, and wait longer before the next try."""
        if self._spares.pop(runner, None) is not None and self._size:
            self._back_off()

    def _back_off(self) -> None:
        self._failures += 1
        pause = min(_MAX_BACKOFF_SECONDS, 0.1 * 2**self._failures)
        self._next_start = time.monotonic() + pause
        _log.warning("a spare runner could not be started or died; next try in %.1f s", pause)

    def refill(self) -> float | None:
        """Start at most one missing spare, and kill those that never came up.

        Returns:
            Seconds until the pool wants to be called again, None when it is full.
        """
        now = time.monotonic()
        for runner, started in self._spares.items():
            if not runner.is_up and now - started > HELLO_TIMEOUT_SECONDS:
                runner.kill()  # It is discarded when its end is seen.
        if len(self._spares) >= self._size:
            return None if all(runner.is_up for runner in self._spares) else HELLO_TIMEOUT_SECONDS
        if now < self._next_start:
            return self._next_start - now
        try:
            self._spares[self._start_runner()] = now
        except OSError as error:
            _log.error("cannot start a spare runner: %s", error)
            self._back_off()
        return 0.0

    def close(self) -> None:
        """Kill all spares; they serve nobody."""
        self._size = 0
        for runner in self._spares:
            runner.kill()
