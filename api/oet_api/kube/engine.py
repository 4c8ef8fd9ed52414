"""The Kubernetes engine: the ports over an API server. What runs there goes on when this server ends."""

from __future__ import annotations

from typing import Any

from oet_api.ingest import Ingest
from oet_api.kube.cache import ExecutionCache
from oet_api.kube.client import KubeClient, build_configuration
from oet_api.kube.informer import Informer, Patience
from oet_api.kube.lease import LeaseWatch
from oet_api.kube.logs import LogKeeper
from oet_api.kube.paths import Paths
from oet_api.kube.store import Chronicle, KubeStore
from oet_api.kube.timeline import KubeTimeline
from oet_api.kube.tokens import TokenReviews
from oet_crds.errors import UnavailableError
from oet_crds.ports import Archive, EntrySink, Health
from oet_crds.settings import Settings

__all__ = ["KubeEngine"]

SYNC_SECONDS = 10.0
"""How long the start waits for the API server. One that is away longer makes the server not ready, and does not end it."""

CATCH_UP_SECONDS = 5.0
"""How long the start waits for what active scripts have printed so far."""

SILENCE_SECONDS = 20.0
"""When the API server has been silent so long, what is shown may be old: each watch ends in order, with a word, after 15 s."""

FAILING_SECONDS = 5.0
"""The same while requests fail: an API server that is replaced is back sooner."""

DRAIN_SECONDS = 8.0
"""How long an ordered end waits for requests that wait for an outcome."""


class KubeEngine:
    """Executions as custom resources of a namespace, scripts in Pods. Implements `oet_crds.ports.ExecutionStore`.

    Attributes:
        timeline: The executions' timeline.
        archive: What was stored of them, also after they are gone; None without a database.
        sink: Where runners' entries go; None: they are read from Pods' logs.
        ingest: The same, and who may post.
    """

    def __init__(
        self,
        settings: Settings,
        configuration: Any = None,
        patience: Patience | None = None,
        sink: EntrySink | None = None,
    ) -> None:
        """Find the cluster; nothing is asked of it yet.

        Args:
            settings: The namespace is the server's; limits as in the local engine.
            configuration: The client's; None: the Pod's account, else the kubeconfig.
            patience: How a watch is made; None: as usual.
            sink: Where runners' entries go; None: where the settings say.

        Raises:
            UnavailableError: It is not known how to reach a cluster.
        """
        self._namespace = settings.server.namespace
        paths = Paths(self._namespace)
        self._client = KubeClient(configuration or build_configuration())
        self.archive: Archive | None = None
        self.sink = sink
        self.timeline: Chronicle
        self.timeline, self._cache = self._build_lasting(settings, paths) or self._build_passing(settings, paths)
        self._informer = Informer(self._client, paths.executions, self._cache, patience)
        self._informer.on_synced = lambda: self._end_initial(self._informer.version)
        self._lease = LeaseWatch(self._client, paths.lease)
        self._store = KubeStore(self._client, paths, self._cache, self._informer, self.timeline)
        self._store.archive = self.archive
        self._store.max_active = settings.engine.max_active
        self.create, self.get, self.list = self._store.create, self._store.get, self._store.list
        self.change, self.release, self.wait = self._store.change, self._store.release, self._store.wait
        self.ingest: Ingest | None = None
        if self.sink is not None:
            self.ingest = Ingest(self.sink, TokenReviews(self._client), self._cache.find_by_uid)
        self._is_stopping = False

    def _build_passing(self, settings: Settings, paths: Paths) -> tuple[Chronicle, ExecutionCache]:
        """Build a timeline in memory, from Pods' logs."""
        timeline = KubeTimeline()
        self._logs = LogKeeper(self._client, paths, timeline, settings.engine.log_limit_bytes)
        timeline.await_log, timeline.on_evicted = self._logs.await_log, self._logs.on_evicted
        timeline.find_log_gap = self._logs.describe_gap

        def end_initial(version: int) -> None:
            timeline.end_initial()
            self._logs.end_initial()

        self._end_initial = end_initial
        return timeline, ExecutionCache((timeline, self._logs))

    def _build_lasting(self, settings: Settings, paths: Paths) -> tuple[Chronicle, ExecutionCache] | None:
        """Build a timeline in a database; None when none is set: then what it needs is not imported."""
        if not settings.timeline.database:
            return None
        try:
            from oet_api.kube.lasting import LastingTimeline
            from oet_api.timeline.store import TimelineStore
        except ImportError as error:
            raise UnavailableError(
                f"[timeline] database needs the Python package {error.name}: pip install 'ska-oso-oet[api]', "
                "or unset OET_TIMELINE_DATABASE"
            ) from error
        limit = settings.engine.log_limit_bytes
        timeline = LastingTimeline(TimelineStore(settings.timeline, self._namespace), limit)
        self._logs = LogKeeper(self._client, paths, timeline, limit)
        timeline.await_log, timeline.find_log_gap = self._logs.await_log, self._logs.describe_gap
        timeline.on_log_wanted, timeline.on_log_unwanted = self._logs.on_execution, self._logs.on_removed
        self._end_initial = timeline.end_initial
        self.archive = timeline
        self.sink = self.sink or timeline
        return timeline, ExecutionCache((timeline,))

    # ---- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to watch, and wait a moment until all is known."""
        self.timeline.start()
        self._logs.start()
        self._lease.start()
        self._informer.start()
        if self._informer.wait_synced(SYNC_SECONDS) and self.archive is None:
            self._logs.wait_initial(CATCH_UP_SECONDS)

    def stop(self) -> None:
        """End. Requests that wait for an outcome have some time to see it; nothing is stopped in the cluster."""
        self._is_stopping = True
        self._store.wait_idle(DRAIN_SECONDS)
        self._informer.stop()
        self._lease.stop()
        self._logs.stop()
        self.timeline.stop()
        self._client.close()

    def observe_health(self) -> Health:
        """Tell whether what this server shows and does is so.

        Without an operator it is ready all the same: stops work, and were all replicas taken out of service, none would.
        """
        if self._is_stopping:
            return Health(False, "the server is shutting down")
        if not self._informer.is_synced:
            problem = self._informer.problem or "the procedures are being read"
            return Health(False, f"no procedures are known yet: {problem}")
        problem, age = self._informer.problem, self._informer.observe_age()
        if age > (FAILING_SECONDS if problem else SILENCE_SECONDS):
            word = f"no word from the API server for {age:.0f} s"
            return Health(
                False, f"{word}{problem and f' ({problem})'}: what is shown is as old, and nothing can be changed"
            )
        # Without its database as well: what runs goes on, is shown, and can be stopped.
        complaint = "; ".join(filter(None, (self._lease.observe_problem(), self.timeline.observe_problem())))
        return Health(True, complaint or f"Kubernetes engine, namespace {self._namespace}")
