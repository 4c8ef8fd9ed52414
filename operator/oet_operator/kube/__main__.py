"""`python -m oet_operator.kube`: the operator, for one namespace."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import sys
import uuid
from pathlib import Path
from typing import Any

import kopf
from aiohttp import web

from oet_crds.settings import Settings, SettingsError, load_settings
from oet_operator.kube.client import KubeClient
from oet_operator.kube.errors import ApiError
from oet_operator.kube.events import EventRecorder
from oet_operator.kube.health import Vitals, running_web
from oet_operator.kube.lease import Elector
from oet_operator.kube.metrics import Metrics
from oet_operator.kube.paths import Paths
from oet_operator.kube.pod_builder import Templates
from oet_operator.kube.reconciler import Reconciler
from oet_operator.kube.watching import build_registry, build_settings, resync

_log = logging.getLogger("oet_operator")

WORKERS = 64
"""Executions that are worked on at once: each waits for the API server most of the time, which may need half a second under load.
With 32 of them events waited for a worker then, at 20 executions a second (`make bench-cluster ARGS=load` measures both)."""


SOON_SECONDS = (1.0, 3.0)
"""Pauses before the first comparisons with the API server: nobody tells of what was deleted after this operator's first list and
before its watches were open, some 0.2 s later."""


def read_credentials() -> kopf.ConnectionInfo:
    """Return how to reach the API server: the Pod's account, else the kubeconfig. Raises SettingsError."""
    context: dict[str, Any] = {"logger": logging.getLogger("kopf.login"), "settings": kopf.OperatorSettings()}
    found = kopf.login_with_service_account(**context) or kopf.login_with_kubeconfig(**context)
    if found is None:
        raise SettingsError("neither a service account nor a kubeconfig: the operator cannot reach a cluster")
    return found


def read_templates(settings: Settings) -> Templates:
    """Return the Pod templates of the deployment. Raises SettingsError."""
    kubernetes = settings.kubernetes
    every = _read_template("pod_template_file", kubernetes.pod_template_file)
    return Templates(every, _read_template("git_template_file", kubernetes.git_template_file))


def _read_template(key: str, path: str) -> dict[str, Any]:
    if not path:
        return {}
    try:
        template = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"[kubernetes] {key} = {path}: {error}") from error
    if not isinstance(template, dict):
        raise SettingsError(f"[kubernetes] {key} = {path}: not a JSON object")
    return template


class _Observer:
    """Passes on what the reconciler does, to the numbers and to the Events."""

    def __init__(self, metrics: Metrics, recorder: EventRecorder) -> None:
        self.on_look = metrics.on_look
        self.on_write = metrics.on_write
        self.on_change = recorder.record
        self.on_place = recorder.record_place


async def _keep_in_step(client: KubeClient, paths: Paths, vitals: Vitals, seconds: float) -> None:
    for number, pause in enumerate(itertools.chain(SOON_SECONDS, itertools.repeat(seconds))):
        await asyncio.sleep(min(pause, seconds))
        try:
            await resync(client, paths, vitals, is_round=number >= len(SOON_SECONDS))
        except ApiError as error:
            _log.warning("cannot compare with the API server: %s", error)


async def _start_web(vitals: Vitals, metrics: Metrics, port: int) -> web.AppRunner:
    try:
        return await running_web(vitals, metrics.render, port)
    except OSError as error:
        raise SettingsError(f"[kubernetes] port = {port} (OET_OPERATOR_PORT) cannot be used: {error}") from error


async def run(settings: Settings) -> None:
    """Run until a signal ends it.

    Raises:
        CancelledError: A signal ended it before it was at work.
        SettingsError: Something is not set, or the port is taken.
        ApiError: The API server cannot be read at the start.
    """
    if not settings.kubernetes.image:
        raise SettingsError("[kubernetes] image (OET_IMAGE) is not set: which image are scripts to run in?")
    paths = Paths(settings.server.namespace)
    client = KubeClient(read_credentials)
    await client.open()
    identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    elector = Elector(client, paths, identity, settings.kubernetes.lease_seconds)
    vitals = Vitals(client, elector)
    metrics = Metrics(vitals)
    server = await _start_web(vitals, metrics, settings.kubernetes.port)
    task = asyncio.current_task()
    assert task is not None
    # Until kopf takes the signal over: the first process of a container ignores what it has no handler for.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await elector.acquire()
        vitals.is_leader = True
        await _lead(settings, client, elector, vitals, metrics)
    finally:
        with contextlib.suppress(ApiError):
            await elector.release()
        await server.cleanup()
        await client.close()


async def _lead(settings: Settings, client: KubeClient, elector: Elector, vitals: Vitals, metrics: Metrics) -> None:
    """Work until a signal ends it, or a part of it has ended that must not: then the process ends, and another takes over."""
    paths = Paths(settings.server.namespace)
    recorder = EventRecorder(client, paths)
    metrics.count_left_out = lambda: recorder.left_out
    reconciler = Reconciler(client, paths, settings, read_templates(settings), _Observer(metrics, recorder))
    vitals.reconciler = reconciler

    def on_event(kind: str, wire: Any) -> None:
        metrics.events[kind] += 1
        vitals.guard.note_watched(wire)

    keeping = asyncio.create_task(elector.keep())
    parts = [keeping]
    try:
        # All that holds a subarray must be known before the first start is granted.
        await resync(client, paths, vitals)
        parts += [asyncio.create_task(reconciler.run_worker()) for _ in range(WORKERS)]
        parts.append(asyncio.create_task(_keep_in_step(client, paths, vitals, settings.kubernetes.resync_seconds)))
        parts.append(asyncio.create_task(recorder.run()))
        engine = kopf.operator(
            registry=build_registry(reconciler, read_credentials, on_event),
            settings=build_settings(),
            namespaces=[settings.server.namespace],
            standalone=True,
        )
        parts.append(asyncio.create_task(engine))
        ended, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        for part in ended:
            part.result()
    finally:
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        await reconciler.close()


def main() -> None:
    """Run the operator; exit with 1 if it cannot run."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(run(load_settings(os.environ)))
    except asyncio.CancelledError:
        return
    except (SettingsError, ApiError) as error:
        print(f"oet-operator: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
