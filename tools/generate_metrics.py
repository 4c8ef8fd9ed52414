"""The page on metrics, from what REST server and operator answer to /metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

from prometheus_client.parser import text_string_to_metric_families

from oet_api.metrics import render_metrics
from oet_crds.settings import Settings
from oet_crds.states import State
from oet_operator.kube.client import KubeClient
from oet_operator.kube.health import Vitals
from oet_operator.kube.lease import Elector
from oet_operator.kube.metrics import Metrics
from oet_operator.kube.paths import Paths
from oet_operator.kube.reconciler import Reconciler

__all__ = ["METRICS_HEAD", "list_api_metrics", "list_operator_metrics"]

METRICS_HEAD = ("metric", "type", "labels", "meaning")


def _list_rows(text: str) -> Iterator[Sequence[str]]:
    for family in text_string_to_metric_families(text):
        if family.name.startswith("process_") or family.name.endswith("_created"):
            continue  # The library's, not ours.
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        yield [f"`{name}`", family.type, ", ".join(f"`{label}`" for label in labels), family.documentation]


def list_api_metrics() -> list[Sequence[str]]:
    """Return a row for every metric of the REST server."""
    return list(_list_rows(render_metrics({("GET", 200): 1}, 0, {str(State.READY): 1})))


def list_operator_metrics() -> list[Sequence[str]]:
    """Return a row for every metric of an operator that is at work and has seen one of everything."""
    # Nothing is asked for, so there is no API server behind it.
    client = KubeClient(cast(Any, None))
    client.counts["GET", 200] += 1
    client.writes["POST", "pods"] += 1
    vitals = Vitals(client, Elector(client, Paths("n"), "me", 10.0), resynced_at=time.monotonic())
    metrics = Metrics(vitals)
    vitals.reconciler = Reconciler(client, Paths("n"), Settings(), {}, cast(Any, metrics))
    metrics.events["Pod"] += 1
    metrics.on_answered("GET", 0.0)
    metrics.on_look(0.0, "ApiConflictError")
    return list(_list_rows(metrics.render().decode()))
