"""The REST server with a door for what runners post, without their tokens: for tests of what comes after it."""

from __future__ import annotations

import logging
import os
from typing import Any

import falcon

import oet_api.server
from oet_api.__main__ import build_engine
from oet_api.app import build_application
from oet_api.services import Services
from oet_crds.ports import RunnerEntry
from oet_crds.settings import load_settings
from oet_crds.topics import EntryKind

engine: Any = None


class IntakeResource:
    """Takes entries of one execution, and answers how far they are stored."""

    def on_post(self, req: falcon.Request, resp: falcon.Response, uid: str) -> None:
        found = [one for one in engine.list() if one.uid == uid]
        if not found:
            raise falcon.HTTPNotFound
        entries = [
            RunnerEntry(one["seq"], one["time"], EntryKind(one["kind"]), one["topic"], one["payload"])
            for one in req.get_media()["entries"]
        ]
        resp.media = {"stored": engine.sink.ingest(found[0], entries)}


def build(services: Services) -> Any:
    application = build_application(services)
    application.add_route(f"{services.base}/internal/executions/{{uid}}/entries", IntakeResource())
    return application


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = load_settings(os.environ)

    def make_engine() -> Any:
        global engine
        engine = build_engine(settings)
        return engine

    oet_api.server.build_application = build
    oet_api.server.run_server(settings.server, make_engine, lambda host, port: None, settings.git)


if __name__ == "__main__":
    main()
