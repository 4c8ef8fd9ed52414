"""Ask Tango devices, command them, and wait for what they do; by events or by polling, with the same result."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from oet import features
from oet.tango.errors import DatabaseDown, WrongArgument
from oet.tango.library import calling
from oet.tango.watch import Watch, get_plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from oet.tango.model import Attribute, Command

__all__ = ["Tango"]

READ_TIMEOUT_SECONDS = 3.0
"""How long a device may take to tell an attribute: Tango's own default. No stop can interrupt it."""

COMMAND_TIMEOUT_SECONDS = 10.0
"""How long a device may take to accept a command: what the existing OET allows."""

CONTACT_SECONDS = 5.0
"""How long a script that has reached nothing yet bears a database that it does not reach: with some network plug-ins the policies
that let a Pod reach it are in force a second or two after the Pod has begun. Nothing was done yet, so nothing is done twice."""

_NO_HOST = "API_TangoHostNotSet"
"""Waiting does not set it."""

CONTACT_PAUSE_SECONDS = 0.1
"""Between two attempts: each costs a refused connection."""


class Tango:
    """A script's access to Tango devices. One serves a whole script; proxies are made once a device.

    Attributes:
        poll_seconds: Pause between two readings while it polls.
        safety_seconds: Silence after which a value is read though events should tell it: some ways of losing them are silent.
        patience_seconds: How long a wait bears a device that does not answer, as while its server restarts.
        contact_seconds: How long the first device is tried while the database is not reached.
    """

    def __init__(
        self,
        pubsub: bool | None = None,
        poll_seconds: float = 0.1,
        safety_seconds: float = 1.0,
        patience_seconds: float = 15.0,
        proxy_factory: Callable[[str], Any] | None = None,
    ) -> None:
        """Remember how to work; nothing is asked yet.

        Args:
            pubsub: Wait by events; None: as the feature flag says at that time.
            poll_seconds: See the attributes. 0.1 s costs 0.3 % of a core.
            safety_seconds: See the attributes. A lost event then costs about this much time.
            patience_seconds: See the attributes. A device server needs some seconds to restart.
            proxy_factory: Makes a proxy of a device's name; None for `tango.DeviceProxy`.
        """
        self._pubsub = pubsub
        self._factory = proxy_factory
        self._proxies: dict[tuple[str, float], Any] = {}
        self._labels: dict[Attribute, list[str]] = {}
        self.poll_seconds = poll_seconds
        self.safety_seconds = safety_seconds
        self.patience_seconds = patience_seconds
        self.contact_seconds = CONTACT_SECONDS

    @property
    def pubsub(self) -> bool:
        """Whether waits use events. Raises oet.features.SettingsError when the flag is set to nonsense."""
        return features.FEATURES.read_via_pubsub if self._pubsub is None else self._pubsub

    def get_proxy(self, device: str, timeout_seconds: float = READ_TIMEOUT_SECONDS) -> Any:
        """Return the proxy of a device. Raises TangoError."""
        # One for each timeout: changing that of a proxy would change it for another thread's call as well.
        key = (device, timeout_seconds)
        if key not in self._proxies:
            self._proxies[key] = self._make_proxy(device, timeout_seconds)
        return self._proxies[key]

    def _make_proxy(self, device: str, timeout_seconds: float) -> Any:
        deadline = time.monotonic() + (0.0 if self._proxies else self.contact_seconds)
        while True:
            try:
                with calling(device) as tango:
                    proxy = (self._factory or tango.DeviceProxy)(device)
                    proxy.set_timeout_millis(round(timeout_seconds * 1000))
                    return proxy
            except DatabaseDown as error:
                if time.monotonic() >= deadline or _NO_HOST in error.reasons:
                    raise
            time.sleep(CONTACT_PAUSE_SECONDS)

    def execute(self, command: Command, timeout: float = COMMAND_TIMEOUT_SECONDS) -> Any:
        """Send a command and return its answer.

        Args:
            command: What to send.
            timeout: How long the device may take to answer, in seconds.

        Raises:
            OutcomeUnknown: It did not answer in time; the command may still go on.
            CommandRefused: It refused, and says why.
            TangoError: One of the other kinds.
        """
        proxy = self.get_proxy(command.device, timeout)
        arguments = [command.args[0] if len(command.args) == 1 else list(command.args)] if command.args else []
        try:
            with calling(command):
                return proxy.command_inout(command.command_name, *arguments)
        except (TypeError, ValueError) as error:  # pytango's own words for an argument that it cannot convert
            raise WrongArgument(f"{command}: {error}") from error

    def read(self, attribute: Attribute) -> Any:
        """Return an attribute's value: an enumeration's as its label, everything else as Tango has it. Raises TangoError."""
        proxy = self.get_proxy(attribute.device)
        with calling(attribute):
            # Not `proxy.name`: that turns every failure into an AttributeError.
            value = proxy.read_attribute(attribute.name).value
        return self.name_value(attribute, value)

    def name_value(self, attribute: Attribute, value: Any) -> Any:
        """Return a value so that events and readings of it compare alike: labels for enumerations. Raises TangoError."""
        if not isinstance(value, int) or isinstance(value, bool):
            return get_plain(value)
        if attribute not in self._labels:
            proxy = self.get_proxy(attribute.device)
            with calling(attribute):
                config = proxy.get_attribute_config(attribute.name)
            self._labels[attribute] = list(config.enum_labels)
        labels = self._labels[attribute]
        return labels[value] if labels else get_plain(value)

    def watch(self, attribute: Attribute) -> Watch:
        """Return a context manager that tells an attribute's values one after the other."""
        return Watch(self, attribute)

    def wait(self, attribute: Attribute, targets: Any, errors: Any = (), timeout: float = 60.0) -> Any:
        """Wait until an attribute has one of some values, which it may have already; return it.

        Args:
            attribute: What to watch.
            targets: A value or several: labels, enumeration members or plain values.
            errors: Values that end the wait, unless they are targets.
            timeout: How long to wait, in seconds.

        Raises:
            ErrorState: One of the errors came.
            WaitTimeout: None of them came in time.
            TangoError: The attribute cannot be watched.
        """
        with self.watch(attribute) as watch:
            return watch.until(targets, errors, timeout)

    def execute_and_wait(
        self, command: Command, attribute: Attribute, targets: Any, errors: Any = (), timeout: float = 60.0
    ) -> Any:
        """Send a command, and wait until an attribute has gone to one of some values because of it; return that.

        An attribute that has such a value before must leave it first, so that what was there is not taken for the effect.

        Args:
            command: What to send.
            attribute: What to watch; it is watched before the command is sent, so that no short state is missed.
            targets: As in `wait`.
            errors: As in `wait`.
            timeout: How long to wait after the command was accepted, in seconds.

        Raises:
            CommandRefused: The command was refused, or another TangoError.
            ErrorState: As in `wait`.
            WaitTimeout: As in `wait`.
        """
        with self.watch(attribute) as watch:
            before = watch.next(READ_TIMEOUT_SECONDS)
            self.execute(command)
            return watch.until(targets, errors, timeout, left=before)
