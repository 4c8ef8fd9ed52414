"""The values of one attribute, one after the other: by events while they work, by reading when they do not.

Three ways of losing Tango's events give no error at all (an endpoint on `localhost`, a fork of a subscribed process, a device
that does not push), and a dead server is told of only after ten seconds: so a watch that hears nothing reads now and then.
"""

from __future__ import annotations

import logging
import queue
import time
from typing import TYPE_CHECKING, Any

from oet.tango.errors import DeviceDown, ErrorState, OutcomeUnknown, TangoError, WaitTimeout
from oet.tango.library import NO_EVENTS, calling

if TYPE_CHECKING:
    from types import TracebackType

    from oet.tango.client import Tango
    from oet.tango.model import Attribute

__all__ = ["Watch", "get_plain", "get_plain_set"]

_log = logging.getLogger(__name__)

GRACE_SECONDS = 0.25
"""How much later than a reading an event may be that says the same: three hundred times what one takes (0.7 ms)."""

EAGER_SECONDS = 2.0
EAGER_POLL_SECONDS = 0.01
"""For how long, and how often, a command's effect is read at first (costs 1.4 % of a core): a short state must be seen. Beside
events, too: between two Pods a wait has missed one, whose events came before the subscription's connection was made."""


def get_plain(value: Any) -> Any:
    """Return the name of an enumeration's member, everything else as it is."""
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else value


def get_plain_set(values: Any) -> list[Any]:
    """Return one or several values as a list of plain ones."""
    is_single = isinstance(values, str) or not hasattr(values, "__iter__")
    return [get_plain(value) for value in ([values] if is_single else values)]


class Watch:
    """A context manager; see `oet.tango.Tango.watch`. Used by one thread."""

    def __init__(self, client: Tango, attribute: Attribute) -> None:
        self._client = client
        self._attribute = attribute
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._subscription: int | None = None
        self._uses_events = False
        self._down_since: float | None = None
        self._eager_until = 0.0
        self.last: Any = None
        """The last value that was seen; None: none yet."""

    def __enter__(self) -> Watch:
        """Subscribe, if events are wanted. Raises TangoError when the attribute could not be read either."""
        if self._client.pubsub:
            self._subscribe()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unsubscribe. What goes wrong with that is logged: it must not hide the script's own error."""
        if self._subscription is not None:
            try:
                proxy = self._client.get_proxy(self._attribute.device)
                with calling(self._attribute):
                    proxy.unsubscribe_event(self._subscription)
            except Exception as trouble:  # noqa: BLE001
                _log.warning("%s: cannot unsubscribe: %s", self._attribute, trouble)

    def _subscribe(self) -> None:
        proxy = self._client.get_proxy(self._attribute.device)
        try:
            with calling(self._attribute) as tango:
                # The callback does nothing but put: one thread of Tango's serves all subscriptions of the process. The current
                # value comes as the first event, before this returns.
                self._subscription = proxy.subscribe_event(
                    self._attribute.name, tango.EventType.CHANGE_EVENT, self._events.put
                )
                self._uses_events = True
        except TangoError as error:
            if not NO_EVENTS.intersection(error.reasons):
                raise
            _log.warning("%s sends no events (%s): it is polled instead", self._attribute, error.reasons[0])

    def next(self, timeout: float) -> Any:
        """Return the next value: with events each in turn, else what is read then. None when there was none in time.

        Args:
            timeout: How long to wait, in seconds; a reading that has begun may take 3 s more.

        Raises:
            DeviceDown: The device has not answered for longer than the client's patience.
            TangoError: The attribute cannot be read.
        """
        try:
            event = self._events.get(timeout=max(0.0, min(self._get_pause(), timeout)))
        except queue.Empty:
            return self._check_silence() if self._uses_events else self._read()
        return self._take(event)

    def _get_pause(self) -> float:
        """Return how long an event is waited for before the value is read, in seconds."""
        if time.monotonic() < self._eager_until:
            return min(EAGER_POLL_SECONDS, self._client.poll_seconds)
        if self._uses_events:
            return self._client.safety_seconds
        return 0.0 if self.last is None and self._down_since is None else self._client.poll_seconds

    def _take(self, event: Any) -> Any:
        """Return the value of an event; None when it has none."""
        if event.err:
            # The server is away, or Tango thinks so: read until a good event comes.
            self._poll_from_now(event.errors[0].reason)
            return self._read()
        if not self._uses_events:
            _log.info("%s: events are back", self._attribute)
        self._uses_events, self._down_since = True, None
        value = None if event.attr_value is None else event.attr_value.value
        if value is None:  # quality INVALID: the device does not know it itself
            return None
        self.last = self._client.name_value(self._attribute, value)
        return self.last

    def _check_silence(self) -> Any:
        """Read, since no event came; return the value if it is a new one, None otherwise."""
        value = self._read()
        if value is None or value == self.last:
            return None
        try:
            event = self._events.get(timeout=GRACE_SECONDS)
        except queue.Empty:
            self._poll_from_now("the value changed without an event")
            self.last = value
            return value
        return self._take(event)

    def _poll_from_now(self, why: str) -> None:
        if self._uses_events:
            _log.warning("%s: no events any more (%s): it is polled", self._attribute, why)
        self._uses_events = False

    def _read(self) -> Any:
        """Return the value as it is read; None while the device does not answer. Raises TangoError when patience is over."""
        try:
            value = self._client.read(self._attribute)
        except (DeviceDown, OutcomeUnknown) as error:
            now = time.monotonic()
            self._down_since = self._down_since or now
            if now - self._down_since > self._client.patience_seconds:
                text = f"{self._attribute}: no answer for {now - self._down_since:.1f} s: {error}"
                raise DeviceDown(text, error.reasons) from error
            return None
        self._down_since = None
        if not self._uses_events:
            self.last = value
        return value

    def until(self, targets: Any, errors: Any = (), timeout: float = 60.0, left: Any = None) -> Any:
        """Wait for one of some values, which may be there already; return it.

        Args:
            targets: As in `Tango.wait`.
            errors: As in `Tango.wait`.
            timeout: As in `Tango.wait`.
            left: The value before a command was sent; None: no matter. A target that was there before is no effect of the
                command: something else must be seen in between.

        Raises:
            ErrorState: As in `Tango.wait`.
            WaitTimeout: As in `Tango.wait`.
            TangoError: As in `next`.
        """
        wanted, bad = get_plain_set(targets), get_plain_set(errors)
        begin = time.monotonic()
        value = self.last if left is None else None
        is_left = left is None
        if not is_left:
            self._eager_until = begin + EAGER_SECONDS
        while True:
            if value is not None:
                if not is_left and value != left:
                    is_left, self._eager_until = True, 0.0
                if is_left and value in wanted:
                    return value
                if is_left and value in bad:
                    raise ErrorState(f"{self._attribute} became {value}, not {_list(wanted)}", value)
            remaining = timeout - (time.monotonic() - begin)
            if remaining <= 0:
                raise WaitTimeout(self._describe_timeout(timeout, wanted, is_left), self.last)
            value = self.next(remaining)

    def _describe_timeout(self, timeout: float, wanted: list[Any], is_left: bool) -> str:
        if is_left or self.last not in wanted:
            return f"{self._attribute} is {self.last} after {timeout:g} s, not {_list(wanted)}"
        return (
            f"{self._attribute} is {self.last}, as it was before the command, and nothing else was seen for {timeout:g} s: "
            f"whether the command had an effect cannot be told"
        )


def _list(values: list[Any]) -> str:
    return " or ".join(str(value) for value in values)
