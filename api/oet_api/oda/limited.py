"""An archive that at most so many requests ask at once: one that does not answer must not hold all threads of the server."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from oet_api.oda.port import Oda, Sbd
from oet_crds.errors import OverloadedError

__all__ = ["LimitedOda"]


class LimitedOda:
    """Implements `oet_api.oda.port.Oda` over another one. All methods raise OverloadedError as well."""

    def __init__(self, oda: Oda, limit: int) -> None:
        """Let `limit` requests in at once."""
        self._oda = oda
        self._limit = limit
        self._places = threading.BoundedSemaphore(limit)

    def get_sbd(self, sbd_id: str) -> Sbd:
        """Return the latest version of a definition; see `oet_api.oda.port.Oda.get_sbd`."""
        with self._place():
            return self._oda.get_sbd(sbd_id)

    def add_sbi(self, sbi: Mapping[str, Any]) -> None:
        """Store a new instance; see `oet_api.oda.port.Oda.add_sbi`."""
        with self._place():
            self._oda.add_sbi(sbi)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise OverloadedError(f"{self._limit} requests wait for the archive already; try again", 1)
        try:
            yield
        finally:
            self._places.release()
