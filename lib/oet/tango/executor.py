"""What scripts of the existing OET use of `oet.command`: TangoExecutor, and the ids of scans.

A script moves over with its import changed to `from oet.tango import ...`. New scripts use `oet.tango.Tango`.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import time
from typing import TYPE_CHECKING, Any

from oet.tango.client import COMMAND_TIMEOUT_SECONDS, Tango
from oet.tango.errors import TangoError, WaitTimeout
from oet.tango.library import calling

if TYPE_CHECKING:
    from collections.abc import Callable

    from oet.tango.model import Attribute, Command

__all__ = [
    "LocalScanIdGenerator",
    "RemoteScanIdGenerator",
    "SCAN_ID_GENERATOR",
    "TangoDeviceProxyFactory",
    "TangoExecutor",
    "build_scan_id_generator",
]

EVENT_SECONDS = 60.0
"""How long `read_event` waits unless it is told otherwise: the existing OET waits for ever."""

SKUID_SECONDS = 10.0
"""How long the service of scan ids may take."""


class TangoDeviceProxyFactory:
    """Makes proxies with the time limit of the existing OET."""

    def __call__(self, device_name: str) -> Any:
        """Return a proxy of a device. Raises TangoError."""
        return Tango().get_proxy(device_name, COMMAND_TIMEOUT_SECONDS)


class TangoExecutor:
    """Executes commands, reads attributes and hands out events, one queue for each attribute."""

    def __init__(self, proxy_factory: Callable[[str], Any] | None = None) -> None:
        self._client = Tango(proxy_factory=proxy_factory)
        self._events: dict[Attribute, queue.SimpleQueue[Any]] = {}

    def execute(self, command: Command) -> Any:
        """Send a command and return its answer. Raises TangoError."""
        return self._client.execute(command)

    def read(self, attribute: Attribute) -> Any:
        """Return an attribute's value as pytango has it, an enumeration's as a member. Raises TangoError."""
        # It makes a plain number of an enumeration, and tells failures by their real name.
        self._client.read(attribute)
        proxy = self._client.get_proxy(attribute.device)
        with calling(attribute):
            return getattr(proxy, attribute.name)

    def subscribe_event(self, attribute: Attribute) -> int:
        """Ask for the events of an attribute; the first tells its value. Returns the subscription's id. Raises TangoError."""
        proxy = self._client.get_proxy(attribute.device)
        events = self._events.setdefault(attribute, queue.SimpleQueue())
        with calling(attribute) as tango:
            return int(proxy.subscribe_event(attribute.name, tango.EventType.CHANGE_EVENT, events.put))

    def read_event(self, attribute: Attribute | None = None, timeout: float = EVENT_SECONDS) -> Any:
        """Return the next event of an attribute, a `tango.EventData`, which may tell of an error.

        Args:
            attribute: Which one; None: the only one that is subscribed to.
            timeout: How long to wait, in seconds.

        Raises:
            WaitTimeout: There was none in time.
            TangoError: It is not subscribed to.
        """
        wanted = attribute or (next(iter(self._events)) if len(self._events) == 1 else None)
        if wanted is None or wanted not in self._events:
            raise TangoError(f"subscribe to an attribute first, and name it when there are several: {attribute}")
        try:
            return self._events[wanted].get(timeout=timeout)
        except queue.Empty:
            raise WaitTimeout(f"{wanted}: no event for {timeout:g} s", None) from None

    def unsubscribe_event(self, attribute: Attribute, event_id: int) -> None:
        """End a subscription, and forget the events that nobody has read. Raises TangoError."""
        self._events.pop(attribute, None)
        proxy = self._client.get_proxy(attribute.device)
        with calling(attribute):
            proxy.unsubscribe_event(event_id)


class LocalScanIdGenerator:
    """Numbers that rise by one, in this process alone."""

    def __init__(self, start: int = 1) -> None:
        self._numbers = itertools.count(start + 1)
        self.value = start
        """The number that comes next."""

    def next(self) -> int:
        """Return a number that was not given before."""
        value, self.value = self.value, next(self._numbers)
        return value


class RemoteScanIdGenerator:
    """Numbers from the observatory's service of unique ids (SKUID)."""

    def __init__(self, hostname: str) -> None:
        """Remember the service.

        Args:
            hostname: HOST:PORT of it.
        """
        self._url = f"http://{hostname}/skuid/ska_id/scan"
        self._value = -1

    @property
    def value(self) -> int:
        """The last number, a new one when there is none yet. Raises OSError when the service does not answer."""
        return self._value if self._value >= 0 else self.next()

    def next(self) -> int:
        """Return a new number. Raises OSError when the service does not answer, ValueError when it answers nonsense."""
        from urllib.request import urlopen  # 20 ms, which only scans need

        with urlopen(self._url, timeout=SKUID_SECONDS) as answer:
            self._value = int(_find_scan_id(answer.read()))
        return self._value


def _find_scan_id(body: bytes) -> Any:
    answer = json.loads(json.loads(body)) if body.startswith(b'"') else json.loads(body)
    return answer["scan_id"]


def build_scan_id_generator() -> LocalScanIdGenerator | RemoteScanIdGenerator:
    """Return the service that SKUID_URL names, else numbers of this process.

    Those begin with the time in seconds: a script's process is a new one each time, and counting from 1 would repeat ids.
    """
    host = os.environ.get("SKUID_URL")
    return RemoteScanIdGenerator(host) if host else LocalScanIdGenerator(int(time.time()))


SCAN_ID_GENERATOR = build_scan_id_generator()
"""The ids of this process's scans."""
