"""kopf as the engine that watches, and nothing else: it writes nothing and decides nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import kopf

from oet_crds.names import GROUP, KIND, MANAGED_LABEL, MANAGED_VALUE, PLURAL, VERSION
from oet_operator.kube.client import KubeClient
from oet_operator.kube.health import Vitals
from oet_operator.kube.paths import Paths
from oet_operator.kube.pod_facts import parse_pod
from oet_operator.kube.reconciler import Reconciler
from oet_operator.kube.watch_guard import WatchGuard, get_version

__all__ = ["build_registry", "build_settings", "resync"]

ERROR_BACKOFFS_SECONDS = (0.1, 0.2, 0.5, *(1.0 for _ in range(3600)))
"""kopf gives up after the last one and ends the process; an API server may be down for an hour."""


LIST_CHUNK = 100
"""Objects that kopf asks for at once when it lists: with all at once, 5,000 executions would cost 100 MiB."""


class _NoDiffs(kopf.DiffBaseStorage):
    """No memory of earlier versions: nothing here asks what changed."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return {}

    def store(self, **_: Any) -> None:
        return


class _NoProgress(kopf.ProgressStorage):
    """No notes on objects: handlers of events are not retried, the work queue is."""

    def fetch(self, **_: Any) -> None:
        return

    def store(self, **_: Any) -> None:
        return

    def purge(self, **_: Any) -> None:
        return

    def touch(self, **_: Any) -> None:
        return

    def clear(self, *, essence: Any) -> Any:
        return essence


def build_settings() -> kopf.OperatorSettings:
    """Return kopf's settings: no writes, dead connections noticed, patience with an API server that is away."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.persistence.progress_storage = _NoProgress()
    settings.queueing.idle_timeout = 0.1
    settings.watching.chunk_size = LIST_CHUNK
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 5
    settings.watching.label_selectors["v1", "pods"] = f"{MANAGED_LABEL}={MANAGED_VALUE}"
    settings.networking.error_backoffs = list(ERROR_BACKOFFS_SECONDS)
    settings.networking.request_timeout = 15
    settings.process.ultimate_exiting_timeout = None
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    return settings


def build_registry(
    reconciler: Reconciler, read_credentials: Callable[[], kopf.ConnectionInfo], on_event: Callable[[str, Any], None]
) -> kopf.OperatorRegistry:
    """Return the handlers: every event goes to the reconciler, after `on_event` was told its kind and object."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry, id="login")
    async def _on_login(**_: Any) -> kopf.ConnectionInfo:
        return read_credentials()

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry, id="execution")
    async def _on_execution(event: Any, **_: Any) -> None:
        on_event(KIND, event["object"])
        reconciler.on_execution(event["type"], event["object"])

    @kopf.on.event("v1", "pods", registry=registry, id="pod")
    async def _on_pod(event: Any, **_: Any) -> None:
        on_event("Pod", event["object"])
        reconciler.on_pod(event["type"], event["object"])

    return registry


async def resync(client: KubeClient, paths: Paths, vitals: Vitals, *, is_round: bool = True) -> None:
    """Compare all that is known with the API server: kopf never tells of what was deleted while a watch was down.

    What was known before a list was made and is not in it has been deleted. Pods come first: executions that are over and have
    none are not kept in memory.

    Args:
        client: Asks.
        paths: Where.
        vitals: Whose reconciler is told.
        is_round: Whether the watches should have told of it all by the next one, or are dead.

    Raises:
        ApiError: The API server did not answer; what it said before that was taken in.
    """
    reconciler, guard = vitals.reconciler, vitals.guard if is_round else WatchGuard()
    assert reconciler is not None
    cache = reconciler.cache
    guard.begin_round()
    pods = cache.list_pods()
    async for wire, _ in client.iter_list(paths.pods, labelSelector=f"{MANAGED_LABEL}={MANAGED_VALUE}"):
        pods.pop(wire["metadata"]["uid"], None)
        before = cache.get_pod_version(owner := parse_pod(wire).execution_uid)
        reconciler.on_pod(None, wire)
        guard.note_listed(wire, is_news=before < cache.get_pod_version(owner))
    known = cache.list_uids()
    async for wire, _ in client.iter_list(paths.executions):
        uid = wire["metadata"]["uid"]
        known.discard(uid)
        guard.note_listed(wire, is_news=cache.get_version(uid) < get_version(wire))
        reconciler.on_execution(None, wire)
    for uid in pods.values():
        reconciler.on_pod_gone(uid)
    for uid in known:
        reconciler.on_execution_gone(uid)
    guard.end_round()
    vitals.resynced_at = time.monotonic()
