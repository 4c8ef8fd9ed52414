"""What the resources work with, made once for an application."""

from __future__ import annotations

from dataclasses import dataclass

from oet_api.activities import Activities
from oet_api.activity_wire import build_activity
from oet_api.ingest import Ingest
from oet_api.metrics import Metrics
from oet_api.oda.choose import build_oda
from oet_api.oda.limited import LimitedOda
from oet_api.procedures import Procedures
from oet_api.rendering import Renderer
from oet_api.streams import Broadcast, Slots
from oet_crds.names import API_MAJOR
from oet_crds.ports import Archive, ExecutionStore, Timeline
from oet_crds.settings import GitSettings, OdaSettings, ServerSettings

__all__ = ["Services", "build_services", "compute_base"]

ARCHIVE_SHARE = 10
"""One in so many request threads may wait for the archive of scheduling blocks: stops need the others."""

DOWNLOADS = 8
"""Logs that may be read at once without being followed: each holds a thread while its client reads."""


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one application.

    Attributes:
        base: Base path of the API.
        archive: Procedures that the engine has removed already; None: there is no such thing.
        slots: Places for streams.
        downloads: Places for logs that are not followed.
        ingest: What takes runners' entries; None: nothing does.
    """

    base: str
    settings: ServerSettings
    git: GitSettings
    oda: OdaSettings
    store: ExecutionStore
    timeline: Timeline
    archive: Archive | None
    procedures: Procedures
    activities: Activities
    renderer: Renderer
    broadcast: Broadcast
    metrics: Metrics
    slots: Slots
    downloads: Slots
    ingest: Ingest | None = None


def compute_base(settings: ServerSettings) -> str:
    """Return the base path of the API, without a slash at its end."""
    return f"/{settings.namespace}/oet/api/v{API_MAJOR}"


def build_services(
    store: ExecutionStore,
    timeline: Timeline,
    settings: ServerSettings,
    git: GitSettings | None = None,
    oda: OdaSettings | None = None,
) -> Services:
    """Build the parts over an engine's ports; without settings of git and archive with the usual ones.

    Raises:
        UnavailableError: The archive needs a package that is not installed.
    """
    git, oda = git or GitSettings(), oda or OdaSettings()
    base = compute_base(settings)
    renderer = Renderer(base)
    # A stream holds a request thread: some must be left whatever the settings say.
    streams = min(settings.max_streams, max(1, settings.threads - 1))
    return Services(
        base=base,
        settings=settings,
        git=git,
        oda=oda,
        store=store,
        timeline=timeline,
        archive=None,
        procedures=Procedures(store, timeline, settings, renderer.build),
        activities=Activities(
            store,
            LimitedOda(build_oda(oda), max(1, settings.threads // ARCHIVE_SHARE)),
            git,
            renderer.build,
            lambda one: build_activity(one, base, oda.activity_states),
        ),
        renderer=renderer,
        broadcast=Broadcast(timeline),
        metrics=Metrics(),
        slots=Slots(streams),
        downloads=Slots(DOWNLOADS),
    )
