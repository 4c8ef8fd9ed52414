"""What the resources work with, made once for an application."""

from __future__ import annotations

from dataclasses import dataclass

from oet_api.metrics import Metrics
from oet_api.procedures import Procedures
from oet_api.rendering import Renderer
from oet_api.streams import Broadcast, Slots
from oet_crds.names import API_MAJOR
from oet_crds.ports import ExecutionStore, Timeline
from oet_crds.settings import ServerSettings

__all__ = ["Services", "build_services", "compute_base"]

DOWNLOADS = 8
"""Logs that may be read at once without being followed: each holds a thread while its client reads."""


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one application.

    Attributes:
        base: Base path of the API.
        slots: Places for streams.
        downloads: Places for logs that are not followed.
    """

    base: str
    settings: ServerSettings
    store: ExecutionStore
    timeline: Timeline
    procedures: Procedures
    renderer: Renderer
    broadcast: Broadcast
    metrics: Metrics
    slots: Slots
    downloads: Slots


def compute_base(settings: ServerSettings) -> str:
    """Return the base path of the API, without a slash at its end."""
    return f"/{settings.namespace}/oet/api/v{API_MAJOR}"


def build_services(store: ExecutionStore, timeline: Timeline, settings: ServerSettings) -> Services:
    """Build the parts over an engine's ports."""
    base = compute_base(settings)
    renderer = Renderer(base)
    # A stream holds a request thread: some must be left whatever the settings say.
    streams = min(settings.max_streams, max(1, settings.threads - 1))
    return Services(
        base=base,
        settings=settings,
        store=store,
        timeline=timeline,
        procedures=Procedures(store, timeline, settings, renderer.build),
        renderer=renderer,
        broadcast=Broadcast(timeline),
        metrics=Metrics(),
        slots=Slots(streams),
        downloads=Slots(DOWNLOADS),
    )
