"""A few numbers for Prometheus, in its text format, without its library."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

import falcon

__all__ = ["Metrics", "render_metrics"]


class Metrics:
    """Counts answers. Falcon middleware."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: Counter[tuple[str, int]] = Counter()

    def process_response(
        self, req: falcon.Request, resp: falcon.Response, resource: object, req_succeeded: bool
    ) -> None:
        """Count one answer."""
        method = req.method if req.method in falcon.HTTP_METHODS else "OTHER"
        with self._lock:
            self._answers[method, resp.status_code] += 1

    def observe_answers(self) -> Mapping[tuple[str, int], int]:
        """Return how many answers there were, by method and status."""
        with self._lock:
            return dict(self._answers)


def render_metrics(answers: Mapping[tuple[str, int], int], streams: int, states: Mapping[str, int]) -> str:
    """Return the numbers in Prometheus' text format.

    Args:
        answers: Count by method and status.
        streams: Open streams.
        states: Executions by state.
    """
    lines = _begin("oet_http_answers_total", "counter", "Answers by method and status.")
    for (method, status), count in sorted(answers.items()):
        lines.append(f'oet_http_answers_total{{method="{method}",status="{status}"}} {count}')
    lines += [
        *_begin("oet_open_streams", "gauge", "Open streams: events, followed logs."),
        f"oet_open_streams {streams}",
    ]
    lines += _begin("oet_executions", "gauge", "Executions by state.")
    lines += [f'oet_executions{{state="{state}"}} {count}' for state, count in sorted(states.items())]
    return "\n".join(lines) + "\n"


def _begin(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
