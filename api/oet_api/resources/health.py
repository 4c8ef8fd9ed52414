"""/healthz, /readyz and /metrics: for machines that watch the server."""

from __future__ import annotations

from collections import Counter

import falcon

from oet_api.guard import is_loopback_address
from oet_api.metrics import render_metrics
from oet_api.services import Services

__all__ = ["LiveResource", "MetricsResource", "ReadyResource"]


class LiveResource:
    """Tells that the server answers."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer 200."""
        resp.media = {"status": "ok"}


class ReadyResource:
    """Tells whether new work would be taken and done."""

    def __init__(self, services: Services) -> None:
        self._services = services
        host = services.settings.host
        self._reach = "" if is_loopback_address(host) else f"; whoever reaches it at {host} can run Python"

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer 200, or 503 with the reason."""
        health = self._services.store.observe_health()
        is_ready = health.ready and not self._services.broadcast.is_stopping
        resp.status = falcon.HTTP_200 if is_ready else falcon.HTTP_503
        resp.media = {"ready": is_ready, "detail": health.detail + self._reach}


class MetricsResource:
    """Numbers for Prometheus."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with the numbers as text."""
        services = self._services
        states = Counter(str(execution.status.state) for execution in services.store.list())
        resp.content_type = "text/plain; version=0.0.4; charset=utf-8"
        resp.text = render_metrics(services.metrics.observe_answers(), services.slots.taken, states)
