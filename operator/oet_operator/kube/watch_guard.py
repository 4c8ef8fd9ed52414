"""Notices a watch that is dead: it says nothing, and nothing tells that from a quiet night but a list beside it.

kopf ends a watch that is silent for 70 s. This is the second net, for whatever else keeps events from coming here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["WatchGuard", "get_version"]


def get_version(wire: Mapping[str, Any]) -> int:
    """Return the resource version of an object as a number."""
    return int(wire["metadata"]["resourceVersion"])


@dataclass(frozen=True, slots=True)
class _Untold:
    """What a list told before the watch did: the version of an object, and in which round."""

    version: int
    number: int


class WatchGuard:
    """Remembers what a list told before the watch did, until the watch has told it too, or the object is gone.

    A round is a list of everything. One that was broken off, because the API server is away, makes nothing overdue: a restart
    would not help.
    """

    def __init__(self) -> None:
        self._round = 0
        self._listed: set[str] = set()
        self._untold: dict[str, _Untold] = {}

    @property
    def overdue(self) -> int:
        """Of how many changes the watch has said nothing from one round to the end of the next."""
        return sum(one.number + 1 < self._round for one in self._untold.values())

    def begin_round(self) -> None:
        """Note that everything is going to be listed."""
        self._listed = set()

    def note_listed(self, wire: Mapping[str, Any], *, is_news: bool) -> None:
        """Note that a list told of an object, and whether that was news."""
        uid = wire["metadata"]["uid"]
        self._listed.add(uid)
        if is_news:
            # What changes again and again without a word of the watch is overdue since the first time.
            self._untold.setdefault(uid, _Untold(get_version(wire), self._round))

    def note_watched(self, wire: Mapping[str, Any]) -> None:
        """Note that the watch told of an object."""
        untold = self._untold.get(wire["metadata"]["uid"])
        if untold is not None and untold.version <= get_version(wire):
            del self._untold[wire["metadata"]["uid"]]

    def end_round(self) -> None:
        """Note that everything was listed: of what is not there any more nothing will be told."""
        self._round += 1
        self._untold = {uid: one for uid, one in self._untold.items() if uid in self._listed}
        self._listed = set()
