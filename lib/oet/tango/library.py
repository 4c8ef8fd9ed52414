"""The only place that imports pytango, and that tells what its errors mean."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from oet.tango.errors import (
    CommandRefused,
    DatabaseDown,
    DeviceDown,
    DeviceMissing,
    NoSuchAttribute,
    NoSuchCommand,
    OutcomeUnknown,
    TangoError,
    TangoMissing,
    WrongArgument,
)
from oet.tango.model import Command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, ModuleType

__all__ = ["NO_EVENTS", "calling", "load_tango", "translate"]

NO_EVENTS = frozenset(
    {
        "API_AttributePollingNotStarted",
        "API_EventPropertiesNotSet",
        "API_EventSupplierNotConstructed",
        "API_EventTimeout",
        "API_NotificationServiceFailed",
        "API_ZmqFailed",
    }
)
"""Reasons why a subscription fails though the attribute can be read."""

_MEANINGS: list[tuple[frozenset[str], type[TangoError]]] = [
    (frozenset({"API_CantConnectToDatabase", "API_TangoHostNotSet"}), DatabaseDown),
    (frozenset({"API_DeviceTimedOut"}), OutcomeUnknown),
    (frozenset({"DB_DeviceNotDefined", "API_DeviceNotDefined"}), DeviceMissing),
    (frozenset({"API_AttrNotFound"}), NoSuchAttribute),
    (frozenset({"API_CommandNotFound"}), NoSuchCommand),
    (frozenset({"API_IncompatibleCmdArgumentType"}), WrongArgument),
    (
        frozenset({"API_DeviceNotExported", "API_CantConnectToDevice", "API_CorbaException", "API_ServerNotRunning"}),
        DeviceDown,
    ),
]
"""Tango's reasons and what they mean; the first that fits, since a database that is away looks like a device that is, too."""

_DATABASE_DEVICE = "device sys/database/"
"""In the text, not in the reasons, when the database died after it had been used."""


def load_tango() -> ModuleType:
    """Return pytango. It is imported now: that takes 0.15 s and 60 MB, and most scripts need none.

    Raises:
        TangoMissing: This Python has none.
    """
    try:
        with _postponed_stop():
            import tango
    except ImportError as error:
        text = f"{sys.executable} has no pytango ({error}): install the extra `ska-oso-oet[tango]` there"
        raise TangoMissing(text) from error
    module: ModuleType = tango
    return module


@contextlib.contextmanager
def calling(what: object) -> Iterator[ModuleType]:
    """Yield pytango for one short call; what goes wrong with it is a TangoError, and a stop comes after it, never within.

    Args:
        what: The Attribute, Command or device that the call is about.
    """
    tango = load_tango()
    with _postponed_stop():
        try:
            yield tango
        except tango.DevFailed as error:
            raise translate(error, what) from error


@contextlib.contextmanager
def _postponed_stop() -> Iterator[None]:
    """Raise a stop when this is left, not within.

    An exception that a signal raises in Python code which C++ has called is printed and lost, and numpy loses one that is raised
    while it is imported (seen with 2.4): the script would go on until it is killed, and its `finally` never come.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGTERM, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        if came:
            handler(*came[0])


def translate(error: Any, what: object) -> TangoError:
    """Return what a `tango.DevFailed` means.

    Args:
        error: The error; its `args` are Tango's DevErrors, the deepest cause first.
        what: The Attribute, Command or device that it happened with.
    """
    reasons = [each.reason for each in error.args]
    words = error.args[0].desc.strip().splitlines()[0] if error.args else str(error)
    kind = next((kind for codes, kind in _MEANINGS if codes.intersection(reasons)), None)
    if _DATABASE_DEVICE in words:
        kind = DatabaseDown
    if kind is None:
        kind = CommandRefused if isinstance(what, Command) else TangoError
    hint = ". It may still go on: look at the device before you send it again" if kind is OutcomeUnknown else ""
    return kind(f"{what}: {words}{hint} {reasons}", reasons)
