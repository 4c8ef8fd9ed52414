"""Brings what comes over two channels, states and printed lines, into the order of time. Pure: `now` is an argument."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

from oet_api.kube.entries import Draft
from oet_crds.topics import EntryKind

__all__ = ["FINAL_HOLD_SECONDS", "HOLD_SECONDS", "Merger"]

HOLD_SECONDS = 0.05
"""How long a line that is newer than the newest state waits for a state that may be older than the line."""

FRESH_SECONDS = 1.0
"""A line that comes later than this after it was printed waits for no state: that had its time."""

FINAL_HOLD_SECONDS = 2.0
"""How long the end of an execution waits for the rest of its log; a read of a log takes some 20 ms."""


@dataclass(slots=True)
class _Held:
    key: tuple[float, int, int]
    due: float
    draft: Draft


class Merger:
    """What of one execution waits to be told."""

    def __init__(self) -> None:
        self._held: list[_Held] = []
        self._state_time = -math.inf
        self._line_time = -math.inf
        self._count = 0
        self._is_settled = False

    def offer_states(self, drafts: Sequence[Draft], now: float) -> None:
        """Take states. One is told at once, after what was printed before it; the end waits for the rest of the log."""
        for draft in drafts:
            self._state_time = max(self._state_time, draft.time)
            if draft.is_final:
                # No script prints after its end: what has a later time has it from the runtime that wrote it down.
                self._hold(math.inf, draft, now if self._is_settled else now + FINAL_HOLD_SECONDS)
            else:
                self._hold(self._state_time, draft, now)

    def offer_lines(self, drafts: Sequence[Draft], now: float, clock: float) -> None:
        """Take printed lines and messages, in order.

        Args:
            drafts: What came.
            now: Monotonic seconds.
            clock: Seconds since the epoch.
        """
        for draft in drafts:
            self._line_time = max(self._line_time, draft.time)
            waits = self._line_time > self._state_time and abs(clock - draft.time) < FRESH_SECONDS
            self._hold(self._line_time, draft, now + HOLD_SECONDS if waits else now)

    def _hold(self, when: float, draft: Draft, due: float) -> None:
        self._count += 1
        # What is told of a state comes with it, and before what the script said at the same time.
        rank = 1 if draft.kind in (EntryKind.LOG, EntryKind.MESSAGE) else 0
        insort(self._held, _Held((when, rank, self._count), due, draft), key=lambda held: held.key)

    def settle(self) -> None:
        """Note that the whole log was read: nothing is to be waited for any more."""
        self._is_settled = True
        for held in self._held:
            held.due = -math.inf

    def release(self, now: float) -> list[Draft]:
        """Return what is due, and all that comes before it."""
        last = max((index for index, held in enumerate(self._held) if held.due <= now), default=-1)
        released = [held.draft for held in self._held[: last + 1]]
        del self._held[: last + 1]
        return released

    def release_all(self) -> list[Draft]:
        """Return all that waits: nothing will come that could come before it."""
        return self.release(math.inf)

    def compute_next_due(self) -> float:
        """Return when, in monotonic seconds, something is due; infinity for never."""
        return min((held.due for held in self._held), default=math.inf)
