"""Procedure ids: small, unique in the namespace, never given twice."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from oet_operator.kube.client import KubeClient
from oet_operator.kube.errors import ApiConflictError, ApiError, ApiMissingError
from oet_operator.kube.paths import Paths

__all__ = ["IDS_NAME", "ProcedureIds"]

IDS_NAME = "oet-procedure-ids"
"""The ConfigMap that holds the next id."""

_KEY = "next"
FIRST_BLOCK, LARGEST_BLOCK = 10, 160
"""Ids taken at a time: a tenth of a write for each execution, and at most a dozen numbers lost by a crash. More under load. What
is left at a clean end is given back."""

SOON_SECONDS = 1.0
"""A block that is used up so soon is followed by one of twice its size."""

LOW_SHARE = 4
"""The next block is reserved when a quarter of the last one is left, so that nobody waits for it."""

_log = logging.getLogger(__name__)


class ProcedureIds:
    """Hands out ids, from blocks that are reserved by compare-and-swap: two operators at once never give the same."""

    def __init__(self, client: KubeClient, paths: Paths) -> None:
        self._client = client
        self._paths = paths
        self._current = range(0)
        self._following: asyncio.Task[range] | None = None
        self._size = FIRST_BLOCK
        self._reserved_at = -SOON_SECONDS
        self._lock = asyncio.Lock()

    async def take(self, highest_seen: int) -> int:
        """Return a new id, above `highest_seen`. Raises ApiError when none can be reserved."""
        async with self._lock:
            self._skip(highest_seen)
            while not self._current:
                following, self._following = self._following, None
                self._current = await (following or self._reserve(highest_seen))
                self._skip(highest_seen)
            number, self._current = self._current[0], self._current[1:]
            if self._following is None and len(self._current) <= self._size // LOW_SHARE:
                self._following = asyncio.create_task(self._reserve(number))
                # Its failure is told to whoever needs the block.
                self._following.add_done_callback(lambda task: task.cancelled() or task.exception())
            return number

    def _skip(self, highest_seen: int) -> None:
        if self._current and self._current[0] <= highest_seen:
            self._current = range(highest_seen + 1, max(highest_seen + 1, self._current.stop))

    async def give_back(self) -> None:
        """Give back the ids that were reserved and not used, unless somebody has reserved after that. Nobody may take any more.

        So numbers do not jump whenever the operator is replaced. Whatever goes wrong costs numbers, nothing else.
        """
        async with self._lock:
            blocks = [self._current]
            with contextlib.suppress(ApiError):
                if self._following is not None:
                    blocks.append(await self._following)
                await self._put_back([block for block in blocks if block])
            self._current, self._following = range(0), None

    async def _put_back(self, blocks: list[range]) -> None:
        """Set the next id back to the first of the blocks that end where it is now. Raises ApiError."""
        path = f"{self._paths.config_maps}/{IDS_NAME}"
        if not blocks:
            return
        stored = await self._client.get(path)
        number = _parse(stored)
        for block in reversed(blocks):
            number = block.start if block.stop == number else number
        if number != _parse(stored):
            stored["data"] = {_KEY: str(number)}
            await self._client.put(path, stored)

    async def _reserve(self, highest_seen: int) -> range:
        """Reserve the next block, by compare-and-swap. Raises ApiError."""
        now = time.monotonic()
        self._size = min(LARGEST_BLOCK, 2 * self._size) if now - self._reserved_at < SOON_SECONDS else FIRST_BLOCK
        self._reserved_at = now
        path = f"{self._paths.config_maps}/{IDS_NAME}"
        while True:
            try:
                stored = await self._client.get(path)
            except ApiMissingError:
                body = {"metadata": {"name": IDS_NAME}, "data": {_KEY: "1"}}
                try:
                    stored = await self._client.post(self._paths.config_maps, body)
                except ApiConflictError:
                    continue
            block = range(max(_parse(stored), highest_seen + 1), max(_parse(stored), highest_seen + 1) + self._size)
            stored["data"] = {_KEY: str(block.stop)}
            try:
                await self._client.put(path, stored)
            except ApiConflictError:
                continue
            return block


def _parse(stored: dict[str, object]) -> int:
    data = stored.get("data")
    try:
        return int(str(data[_KEY])) if isinstance(data, dict) else 1
    except (KeyError, ValueError):
        _log.error("ConfigMap %s holds no number; ids go on above the highest in use", IDS_NAME)
        return 1
