"""What can go wrong between a script and a Tango device, by who must act. Standard library of Python 3.8 only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CommandRefused",
    "DatabaseDown",
    "DeviceDown",
    "DeviceMissing",
    "ErrorState",
    "NoSuchAttribute",
    "NoSuchCommand",
    "OutcomeUnknown",
    "TangoError",
    "TangoMissing",
    "WaitTimeout",
    "WrongArgument",
]


class TangoError(RuntimeError):
    """Something went wrong with a device.

    Attributes:
        reasons: Tango's own codes, the deepest cause first; empty when Tango was not the one who complained.
    """

    def __init__(self, message: str, reasons: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.reasons = list(reasons)


class DatabaseDown(TangoError):
    """The Tango database does not answer, or TANGO_HOST is not set. Operations must act; nothing was done."""


class DeviceDown(TangoError):
    """The device is known, but its server does not run or does not answer. Operations must act; nothing was done."""


class DeviceMissing(TangoError):
    """The database does not know the device. Who wrote the script or set up the telescope must act."""


class NoSuchAttribute(TangoError):
    """The device has no such attribute. Who wrote the script must act."""


class NoSuchCommand(TangoError):
    """The device has no such command. Who wrote the script must act."""


class WrongArgument(TangoError):
    """The command does not take such an argument. Who wrote the script must act."""


class CommandRefused(TangoError):
    """The device refused the command, or failed in it, and says why. The script decides."""


class OutcomeUnknown(TangoError):
    """The device did not answer in time. The command may still go on: look at the device, never just send it again."""


class ErrorState(TangoError):
    """A state came that the script calls an error, while it waited for another.

    Attributes:
        value: That state.
    """

    def __init__(self, message: str, value: object) -> None:
        super().__init__(message)
        self.value = value


class WaitTimeout(TangoError):
    """The state did not come in time.

    Attributes:
        value: The last one that was seen; None when none was.
    """

    def __init__(self, message: str, value: object) -> None:
        super().__init__(message)
        self.value = value


class TangoMissing(TangoError, ImportError):
    """This Python has no pytango. Who made the environment must act."""
