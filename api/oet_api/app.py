"""The WSGI application: routes, and nothing else."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import falcon
import falcon.media

from oet_api.errors import install_error_handlers
from oet_api.guard import Guard
from oet_api.openapi import build_document
from oet_api.resources.activities import ActivitiesResource, ActivityResource
from oet_api.resources.docs import DocumentResource, PageResource, RedirectResource, StaticResource
from oet_api.resources.entries import EntriesResource
from oet_api.resources.health import LiveResource, MetricsResource, ReadyResource
from oet_api.resources.logs import LogsResource
from oet_api.resources.procedures import EventsResource, ProcedureResource, ProceduresResource, ReleaseResource
from oet_api.resources.stream import StreamResource
from oet_api.services import Services, build_services
from oet_crds.names import ENTRIES_PATH
from oet_crds.ports import ExecutionStore, Timeline
from oet_crds.settings import ServerSettings

__all__ = ["Application", "build_application", "create_app", "observe_version"]

Application = falcon.App[falcon.Request, falcon.Response]


class _Ports:
    """Middleware that serves runners on a port of their own, where there is one, and nobody else there.

    So a network policy can let scripts reach that port, without letting them start and stop other scripts.
    """

    def __init__(self, entries_port: int) -> None:
        self._port = str(entries_port)

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Know nothing of what belongs to the other port."""
        is_internal = req.path.startswith(ENTRIES_PATH.partition("{")[0])
        # gunicorn takes it from the socket, not from the header Host.
        if is_internal != (req.env.get("SERVER_PORT") == self._port):
            raise falcon.HTTPNotFound


class _RequestLimits:
    """Middleware that tells the checks what this server takes."""

    def __init__(self, settings: ServerSettings) -> None:
        self._max_body_bytes = settings.max_body_bytes

    def process_request(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Leave the limits where `oet_api.openapi.read_body` finds them."""
        req.context.max_body_bytes = self._max_body_bytes


def observe_version() -> str:
    """Return the version of OET; `0` when it runs without having been installed."""
    try:
        return version("ska-oso-oet")
    except PackageNotFoundError:
        return "0"


def create_app(store: ExecutionStore, timeline: Timeline, settings: ServerSettings) -> Application:
    """Return the application over an engine's ports."""
    return build_application(build_services(store, timeline, settings))


def build_application(services: Services) -> Application:
    """Return the application over its parts."""
    ports = [_Ports(services.settings.entries_port)] if services.settings.entries_port else []
    guard, limits = Guard(services.settings), _RequestLimits(services.settings)
    app: Application = falcon.App(middleware=[guard, *ports, limits, services.metrics])
    app.req_options.strip_url_path_trailing_slash = True
    app.resp_options.media_handlers["application/json"] = falcon.media.JSONHandler(dumps=_dumps)
    install_error_handlers(app)
    base = services.base
    routes: list[tuple[str, object]] = [
        (f"{base}/procedures/", ProceduresResource(services)),
        (f"{base}/procedures/{{procedure_id}}", ProcedureResource(services)),
        (f"{base}/procedures/{{procedure_id}}/release", ReleaseResource(services)),
        (f"{base}/procedures/{{procedure_id}}/events", EventsResource(services)),
        (f"{base}/procedures/{{procedure_id}}/logs", LogsResource(services)),
        (f"{base}/activities/", ActivitiesResource(services)),
        (f"{base}/activities/{{activity_id}}", ActivityResource(services)),
        (f"{base}/stream", StreamResource(services)),
    ]
    documented = build_document(observe_version(), routes)
    routes += [
        (f"{base}/openapi.json", DocumentResource(documented)),
        (f"{base}/ui", PageResource(base)),
        (f"{base}/ui/{{name}}", StaticResource(base)),
        ("/", RedirectResource(f"{base}/ui")),
    ]
    for prefix in ("", base):
        routes += [
            (f"{prefix}/healthz", LiveResource()),
            (f"{prefix}/readyz", ReadyResource(services)),
            (f"{prefix}/metrics", MetricsResource(services)),
        ]
    if services.ingest is not None:
        routes.append((ENTRIES_PATH, EntriesResource(services.ingest)))
    for path, resource in routes:
        _allow_head(resource)
        app.add_route(path if path == "/" else path.rstrip("/"), resource)
    return app


def _allow_head(resource: Any) -> None:
    """Answer HEAD wherever GET is answered; the server leaves the body away."""
    if hasattr(resource, "on_get") and not hasattr(resource, "on_head"):
        resource.on_head = resource.on_get


def _dumps(value: object) -> str:
    return json.dumps(value)
