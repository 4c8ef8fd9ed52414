"""Whether an operator is at work: its Lease is renewed all the time."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus

from oet_api.kube.client import KubeClient, Wire
from oet_api.kube.errors import ApiError

__all__ = ["LeaseWatch", "Renewal", "describe_silence"]

_log = logging.getLogger(__name__)

LOOK_SECONDS = 3.0

DURATIONS = 3
"""So many times its duration a Lease may go without renewal: a new operator has long taken over by then."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """A renewal of the Lease, and when it was first seen.

    Attributes:
        stamp: What the holder wrote. Only compared with other stamps: clocks of machines differ.
        duration_seconds: For how long it holds the Lease.
        seen_at: When this stamp was first seen, in monotonic seconds.
    """

    stamp: str
    duration_seconds: float
    seen_at: float


def describe_silence(renewal: Renewal | None, now: float) -> str | None:
    """Say what is wrong with the operator; None when nothing is, or nothing is known. Pure.

    Args:
        renewal: The last one; an empty stamp for a Lease that is not there or that nobody holds; None when none was read yet.
        now: Monotonic seconds.
    """
    if renewal is None:
        return None
    silence = now - renewal.seen_at
    if not renewal.stamp:
        return "no operator is at work: new procedures cannot begin; stops still work"
    if silence > DURATIONS * renewal.duration_seconds:
        return f"the operator is silent for {silence:.0f} s: new procedures cannot begin; stops still work"
    return None


class LeaseWatch:
    """A thread that reads the Lease every few seconds."""

    def __init__(self, client: KubeClient, path: str) -> None:
        self._client = client
        self._path = path
        self._renewal: Renewal | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="oet-lease", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopping.set()
        self._thread.join()

    def observe_problem(self) -> str | None:
        """Say what is wrong with the operator; None when nothing is, or nothing is known."""
        return describe_silence(self._renewal, time.monotonic())

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._accept(self._client.request("GET", self._path))
            except ApiError as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    self._accept({})
                else:
                    _log.debug("cannot read the operator's Lease: %s", error)
            except Exception:  # noqa: BLE001 - a strange Lease must not end the thread
                _log.exception("cannot understand the operator's Lease")
            self._stopping.wait(LOOK_SECONDS)

    def _accept(self, lease: Wire) -> None:
        spec = lease.get("spec") or {}
        stamp = str(spec.get("renewTime") or "") if spec.get("holderIdentity") else ""
        known = self._renewal
        if known is None or known.stamp != stamp:
            self._renewal = Renewal(stamp, float(spec.get("leaseDurationSeconds") or 10), time.monotonic())
