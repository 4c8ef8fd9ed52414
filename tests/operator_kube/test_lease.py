"""Who may lead, as the Lease says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from oet_operator.kube.client import KubeClient
from oet_operator.kube.errors import ApiMissingError, ApiRefusedError
from oet_operator.kube.lease import LEASE_NAME, Elector
from oet_operator.kube.paths import Paths

SECONDS = 2.0


class _Cluster(KubeClient):
    """Keeps one Lease."""

    def __init__(self, holder: str | None, *, is_allowed: bool = True) -> None:
        spec = {"holderIdentity": holder, "renewTime": "then", "leaseDurationSeconds": int(SECONDS)}
        self.lease = None if holder is None else {"metadata": {"name": LEASE_NAME}, "spec": spec}
        self.is_allowed = is_allowed

    async def get(self, path: str) -> dict[str, Any]:
        if not self.is_allowed:
            raise ApiRefusedError(403, "Forbidden", "no right to leases")
        if self.lease is None:
            raise ApiMissingError(404, "NotFound", "no such Lease")
        return self.lease

    async def put(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.lease = body
        return body

    post = put


def _compete(cluster: _Cluster, seconds: float) -> tuple[bool, str | None]:
    """Return whether the Lease was got in that time, and who was seen to hold it."""

    async def compete() -> tuple[bool, str | None]:
        elector = Elector(cluster, Paths("n"), "me", SECONDS)
        try:
            await asyncio.wait_for(elector.acquire(), seconds)
        except TimeoutError:
            return False, elector.holder
        return True, elector.holder

    return asyncio.run(compete())


@pytest.mark.parametrize("holder", [None, ""])
def test_lease_that_nobody_holds_is_taken_at_once(holder: str | None) -> None:
    cluster = _Cluster(holder)
    assert _compete(cluster, SECONDS / 2) == (True, holder)
    assert cluster.lease is not None
    assert cluster.lease["spec"]["holderIdentity"] == "me"


def test_lease_of_another_is_taken_when_that_one_has_been_silent_for_its_time() -> None:
    cluster = _Cluster("other")
    assert _compete(cluster, SECONDS / 2) == (False, "other")
    assert _compete(cluster, SECONDS * 3) == (True, "other")


def test_operator_that_may_not_read_the_lease_knows_of_no_holder(caplog: pytest.LogCaptureFixture) -> None:
    assert _compete(_Cluster("other", is_allowed=False), SECONDS / 4) == (False, None)
    assert "no right to leases" in caplog.text
