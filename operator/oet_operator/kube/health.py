"""What the operator says of itself, for Kubernetes and for people: /healthz, /readyz and /metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from aiohttp import web

from oet_operator.kube.client import KubeClient
from oet_operator.kube.lease import Elector
from oet_operator.kube.reconciler import Reconciler
from oet_operator.kube.watch_guard import WatchGuard

__all__ = ["MAX_QUEUE_AGE_SECONDS", "Vitals", "running_web"]

MAX_QUEUE_AGE_SECONDS = 120.0
"""An execution that waits longer to be looked at: the workers do not come back. Each gives up on the API server after 5 s."""


@dataclass(slots=True)
class Vitals:
    """How the operator is.

    Attributes:
        client: What asks the API server, and counts.
        elector: What competes for the Lease.
        guard: Whether the watches tell what the lists tell.
        is_leader: It holds the Lease.
        reconciler: What works; None before this operator was leader.
        resynced_at: When all was last compared with the API server, monotonic seconds; None: never.
    """

    client: KubeClient
    elector: Elector
    guard: WatchGuard = field(default_factory=WatchGuard)
    is_leader: bool = False
    reconciler: Reconciler | None = None
    resynced_at: float | None = None

    def compute_resync_age(self) -> float | None:
        """Return for how many seconds nothing was compared with the API server; None: it never was."""
        return None if self.resynced_at is None else time.monotonic() - self.resynced_at

    def find_problem(self) -> str | None:
        """Return what a restart would cure, None when there is nothing.

        An API server that is away is no such thing; and a standby is healthy.
        """
        if overdue := self.guard.overdue:
            return f"a watch is dead: it has said nothing of {overdue} changes"
        age = self.reconciler.queue.compute_oldest_age() if self.reconciler else 0.0
        if age > MAX_QUEUE_AGE_SECONDS:
            return f"the workers are stuck: an execution has waited for {age:.0f} s to be looked at"
        return None

    def describe_readiness(self) -> tuple[bool, str]:
        """Tell whether the operator does its part, and which that is. To stand by is one: a rollout need not wait for more.

        Who has never read the Lease does not stand by: it may have no right to, and nobody would ever lead.
        """
        if not self.is_leader and self.elector.holder is None:
            return False, "starting: the Lease was not read yet; the log says why if this lasts"
        if not self.is_leader:
            return True, f"standby: {self.elector.holder or 'nobody'} holds the Lease"
        if self.resynced_at is None:
            return False, "leader: reading what there is"
        return True, "leader"


async def running_web(vitals: Vitals, render_metrics: Callable[[], bytes], port: int) -> web.AppRunner:
    """Serve the three paths on all addresses; the caller ends it with `cleanup()`. Raises OSError when the port is taken."""

    async def on_health(_: web.Request) -> web.Response:
        problem = vitals.find_problem()
        return _answer(problem is None, problem or "ok")

    async def on_readiness(_: web.Request) -> web.Response:
        return _answer(*vitals.describe_readiness())

    async def on_metrics(_: web.Request) -> web.Response:
        return web.Response(body=render_metrics(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    app = web.Application()
    app.add_routes([web.get("/healthz", on_health), web.get("/readyz", on_readiness), web.get("/metrics", on_metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner


def _answer(is_fine: bool, text: str) -> web.Response:
    return web.Response(text=text + "\n", status=HTTPStatus.OK if is_fine else HTTPStatus.SERVICE_UNAVAILABLE)
