"""One operator at a time: a Lease says who, and whoever cannot renew it in time ends at once.

Clocks are not compared between machines: how long a holder has been silent is measured here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from datetime import UTC, datetime
from typing import Any

from oet_operator.kube.client import KubeClient
from oet_operator.kube.errors import ApiConflictError, ApiError, ApiMissingError
from oet_operator.kube.paths import Paths

__all__ = ["LEASE_NAME", "Elector"]

LEASE_NAME = "oet-operator"

_RENEWALS = 5
"""Renewals in the time of a lease: some may fail before it is lost."""

_SAFE_SHARE = 0.7
"""A leader that has not renewed for this share of its lease ends: what it has sent is answered (5 s) or lost before another one
begins, as long as a lease is 10 s or longer."""

_log = logging.getLogger(__name__)


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Elector:
    """Competes for the Lease. For one event loop.

    Attributes:
        holder: Who held the Lease when it was read last, empty for nobody; None: it never was.
    """

    def __init__(self, client: KubeClient, paths: Paths, identity: str, lease_seconds: float) -> None:
        self._client = client
        self._paths = paths
        self._identity = identity
        self._seconds = lease_seconds
        self.holder: str | None = None
        self._observed: tuple[object, object] | None = None
        self._observed_at = 0.0
        self._renewed_at = 0.0

    async def acquire(self) -> None:
        """Wait until this process is the leader."""
        while not await self._try():
            await asyncio.sleep(self._seconds / _RENEWALS)
        _log.info("this operator is the leader")

    async def keep(self) -> None:
        """Renew for ever; end the process at once when the Lease is lost, so that two never work."""
        while True:
            await asyncio.sleep(self._seconds / _RENEWALS)
            asked_at = time.monotonic()
            is_kept = await self._try()
            silence = time.monotonic() - self._renewed_at
            if silence > self._seconds * _SAFE_SHARE or (not is_kept and self._is_taken(asked_at)):
                _log.critical("the Lease could not be renewed for %.1f s: this operator ends", silence)
                os._exit(1)

    def _is_taken(self, since: float) -> bool:
        return self._observed is not None and self._observed[0] != self._identity and self._observed_at >= since

    async def _try(self) -> bool:
        """Take the Lease or renew it; tell whether that was done."""
        asked_at = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds / 3):
                is_ours = await self._write()
        except (ApiError, TimeoutError) as error:
            _log.warning("the Lease cannot be written: %s", error)
            return False
        if is_ours:
            self._renewed_at = asked_at
        return is_ours

    async def _write(self) -> bool:
        fields: dict[str, Any] = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, int(self._seconds)),
            "renewTime": _stamp(),
        }
        path = f"{self._paths.leases}/{LEASE_NAME}"
        try:
            lease = await self._client.get(path)
        except ApiMissingError:
            lease = None
        try:
            if lease is None:
                body = {"metadata": {"name": LEASE_NAME}, "spec": {**fields, "acquireTime": fields["renewTime"]}}
                await self._client.post(self._paths.leases, body)
                return True
            spec = lease.setdefault("spec", {})
            if not self._may_take(spec):
                return False
            if spec.get("holderIdentity") != self._identity:
                spec.update(
                    acquireTime=fields["renewTime"], leaseTransitions=int(spec.get("leaseTransitions") or 0) + 1
                )
            spec.update(fields)
            await self._client.put(path, lease)
        except ApiConflictError:
            return False
        return True

    def _may_take(self, spec: dict[str, Any]) -> bool:
        holder = spec.get("holderIdentity")
        seen = (holder, spec.get("renewTime"))
        now = time.monotonic()
        self.holder = holder or ""
        if seen != self._observed:
            self._observed, self._observed_at = seen, now
        if not holder or holder == self._identity:
            return True
        duration = float(spec.get("leaseDurationSeconds") or self._seconds)
        return now - self._observed_at > duration

    async def release(self) -> None:
        """Give the Lease back, so that another operator need not wait for its end. Raises ApiError."""
        path = f"{self._paths.leases}/{LEASE_NAME}"
        lease = await self._client.get(path)
        if lease.get("spec", {}).get("holderIdentity") == self._identity:
            lease["spec"]["holderIdentity"] = ""
            await self._client.put(path, lease)
