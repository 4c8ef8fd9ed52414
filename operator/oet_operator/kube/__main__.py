"""`python -m oet_operator.kube`: the operator, for one namespace."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import uuid
from pathlib import Path
from typing import Any

import kopf

from oet_crds.settings import Settings, SettingsError, load_settings
from oet_operator.kube.client import KubeClient
from oet_operator.kube.errors import ApiError
from oet_operator.kube.lease import Elector
from oet_operator.kube.paths import Paths
from oet_operator.kube.reconciler import Reconciler
from oet_operator.kube.watching import build_registry, build_settings, resync

_log = logging.getLogger("oet_operator")

WORKERS = 32
"""Executions that are worked on at once: each waits for the API server most of the time."""


def read_credentials() -> kopf.ConnectionInfo:
    """Return how to reach the API server: the Pod's account, else the kubeconfig. Raises SettingsError."""
    context: dict[str, Any] = {"logger": logging.getLogger("kopf.login"), "settings": kopf.OperatorSettings()}
    found = kopf.login_with_service_account(**context) or kopf.login_with_kubeconfig(**context)
    if found is None:
        raise SettingsError("neither a service account nor a kubeconfig: the operator cannot reach a cluster")
    return found


def read_template(settings: Settings) -> dict[str, Any]:
    """Return the Pod template of the deployment. Raises SettingsError."""
    path = settings.kubernetes.pod_template_file
    if not path:
        return {}
    try:
        template = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"[kubernetes] pod_template_file = {path}: {error}") from error
    if not isinstance(template, dict):
        raise SettingsError(f"[kubernetes] pod_template_file = {path}: not a JSON object")
    return template


async def _keep_in_step(client: KubeClient, paths: Paths, reconciler: Reconciler, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await resync(client, paths, reconciler)
        except ApiError as error:
            _log.warning("cannot compare with the API server: %s", error)


async def run(settings: Settings) -> None:
    """Run until a signal ends it. Raises ApiError when the API server cannot be read at the start."""
    if not settings.kubernetes.image:
        raise SettingsError("[kubernetes] image (OET_IMAGE) is not set: which image are scripts to run in?")
    paths = Paths(settings.server.namespace)
    client = KubeClient(read_credentials)
    await client.open()
    identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    elector = Elector(client, paths, identity, settings.kubernetes.lease_seconds)
    await elector.acquire()
    tasks = [asyncio.create_task(elector.keep())]
    reconciler = Reconciler(client, paths, settings, read_template(settings))
    # All that holds a subarray must be known before the first start is granted.
    await resync(client, paths, reconciler)
    tasks += [asyncio.create_task(reconciler.run_worker()) for _ in range(WORKERS)]
    tasks.append(asyncio.create_task(_keep_in_step(client, paths, reconciler, settings.kubernetes.resync_seconds)))
    try:
        await kopf.operator(
            registry=build_registry(reconciler, read_credentials),
            settings=build_settings(),
            namespaces=[settings.server.namespace],
            standalone=True,
        )
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(ApiError):
            await elector.release()
        await client.close()


def main() -> None:
    """Run the operator; exit with 1 if it cannot run."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(run(load_settings(os.environ)))
    except (SettingsError, ApiError) as error:
        print(f"oet-operator: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
