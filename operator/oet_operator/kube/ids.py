"""Procedure ids: small, unique in the namespace, never given twice."""

from __future__ import annotations

import asyncio
import logging

from oet_operator.kube.client import KubeClient
from oet_operator.kube.errors import ApiConflictError, ApiMissingError
from oet_operator.kube.paths import Paths

__all__ = ["IDS_NAME", "ProcedureIds"]

IDS_NAME = "oet-procedure-ids"
"""The ConfigMap that holds the next id."""

_KEY = "next"
_BLOCK = 10
"""Ids taken at a time: a tenth of a write for each execution, and at most nine numbers lost by a crash."""

_log = logging.getLogger(__name__)


class ProcedureIds:
    """Hands out ids, from blocks that are reserved by compare-and-swap: two operators at once never give the same."""

    def __init__(self, client: KubeClient, paths: Paths) -> None:
        self._client = client
        self._paths = paths
        self._next = 0
        self._end = 0
        self._lock = asyncio.Lock()

    async def take(self, highest_seen: int) -> int:
        """Return a new id, above `highest_seen`. Raises ApiError when none can be reserved."""
        async with self._lock:
            if max(self._next, highest_seen + 1) >= self._end:
                await self._reserve(highest_seen)
            number = max(self._next, highest_seen + 1)
            self._next = number + 1
            return number

    async def _reserve(self, highest_seen: int) -> None:
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
            first = max(_parse(stored), highest_seen + 1, self._next)
            stored["data"] = {_KEY: str(first + _BLOCK)}
            try:
                await self._client.put(path, stored)
            except ApiConflictError:
                continue
            self._next, self._end = first, first + _BLOCK
            return


def _parse(stored: dict[str, object]) -> int:
    data = stored.get("data")
    try:
        return int(str(data[_KEY])) if isinstance(data, dict) else 1
    except (KeyError, ValueError):
        _log.error("ConfigMap %s holds no number; ids go on above the highest in use", IDS_NAME)
        return 1
