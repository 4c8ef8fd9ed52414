"""The operator's numbers, for Prometheus."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from oet_crds.states import State
from oet_operator.kube.health import Vitals

__all__ = ["Metrics"]

BUCKETS_SECONDS = (0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Around 25 ms, the time within which 99 of 100 events are to be answered by a write."""


class Metrics:
    """Counts and measures. For one event loop."""

    def __init__(self, vitals: Vitals) -> None:
        self._registry = CollectorRegistry()
        self._vitals = vitals
        self.events = Counter[str]()
        self.count_left_out: Callable[[], int] = lambda: 0
        self._failures = Counter[str]()
        self._reaction = self._build_histogram(
            "oet_operator_reaction_seconds", "From an event to the sending of the write it causes."
        )
        self._look = self._build_histogram(
            "oet_operator_look_seconds", "One look at one execution, its writes included."
        )
        self._requests = self._build_histogram(
            "oet_operator_request_seconds", "From a request to the API server's answer.", "verb"
        )
        vitals.client.on_answered = self.on_answered
        self._registry.register(_Live(self))
        ProcessCollector(registry=self._registry)

    def _build_histogram(self, name: str, about: str, *labels: str) -> Histogram:
        return Histogram(name, about, labels, registry=self._registry, buckets=BUCKETS_SECONDS)

    def on_look(self, seconds: float, failure: str = "") -> None:
        """Note a look at an execution, and the kind of its failure if it failed."""
        self._look.observe(seconds)
        if failure:
            self._failures[failure] += 1

    def on_write(self, since: float) -> None:
        """Note that what was seen at `since` (monotonic seconds) leads to a write, which is sent now."""
        self._reaction.observe(time.monotonic() - since)

    def on_answered(self, verb: str, seconds: float) -> None:
        """Note how long a request took."""
        self._requests.labels(verb).observe(seconds)

    def render(self) -> bytes:
        """Return all numbers in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Read the numbers that are kept elsewhere."""
        vitals = self._vitals
        yield GaugeMetricFamily(
            "oet_operator_leader", "1: this operator is at work; 0: it stands by.", vitals.is_leader
        )
        yield GaugeMetricFamily(
            "oet_operator_overdue_events", "Changes that the watch has not told of.", vitals.guard.overdue
        )
        requests = CounterMetricFamily(
            "oet_operator_requests", "Requests to the API server; status 0: no answer.", labels=("verb", "status")
        )
        for (verb, status), count in vitals.client.counts.items():
            requests.add_metric((verb, str(status)), count)
        yield requests
        writes = CounterMetricFamily(
            "oet_operator_writes", "Writes that the API server took.", labels=("verb", "resource")
        )
        for labels, count in vitals.client.writes.items():
            writes.add_metric(labels, count)
        yield writes
        yield CounterMetricFamily(
            "oet_operator_left_out_events",
            "Events of Kubernetes that were not written: too many.",
            self.count_left_out(),
        )
        yield self._build_counter("oet_operator_watch_events", "Events of the watches.", "kind", self.events)
        yield self._build_counter(
            "oet_operator_failures", "Looks that failed, and are repeated.", "error", self._failures
        )
        yield from self._collect_work()

    def _collect_work(self) -> Iterator[Metric]:
        reconciler = self._vitals.reconciler
        if reconciler is None:
            return
        executions = GaugeMetricFamily("oet_operator_executions", "Executions by state.", labels=("state",))
        counts = reconciler.cache.count_states()
        for state in State:  # Also those of which there are none: 0 is not "unknown".
            executions.add_metric((str(state),), counts[state])
        yield executions
        queue = reconciler.queue
        yield GaugeMetricFamily("oet_operator_queue_depth", "Executions that wait to be looked at.", len(queue))
        yield GaugeMetricFamily(
            "oet_operator_queue_age_seconds", "How long the oldest of them waits.", queue.compute_oldest_age()
        )
        age = self._vitals.compute_resync_age()
        if age is not None:
            yield GaugeMetricFamily(
                "oet_operator_resync_age_seconds", "Since all was last compared with the API server.", age
            )

    @staticmethod
    def _build_counter(name: str, about: str, label: str, counts: Counter[str]) -> Metric:
        family = CounterMetricFamily(name, about, labels=(label,))
        for value, count in counts.items():
            family.add_metric((value,), count)
        return family


class _Live(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return self._metrics.collect()
