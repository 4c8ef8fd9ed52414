"""What a script asks of a device: to tell an attribute, or to execute a command. Standard library of Python 3.8 only."""

from __future__ import annotations

__all__ = ["Attribute", "Command"]


class Attribute:
    """An attribute of a device. Two with the same device and name are equal."""

    def __init__(self, device: str, name: str) -> None:
        self.device = device
        self.name = name

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Attribute):
            return NotImplemented
        return (self.device, self.name) == (other.device, other.name)

    def __hash__(self) -> int:
        return hash((self.device, self.name))

    def __repr__(self) -> str:
        return f"<Attribute({self.device!r}, {self.name!r})>"


class Command:
    """A command of a device, with its arguments: none, one as it is, several as a list.

    Keyword arguments are part of its identity and nothing else, as in the existing OET: Tango has none.
    """

    def __init__(self, device: str, command_name: str, *args: object, **kwargs: object) -> None:
        self.device = device
        self.command_name = command_name
        self.args = args
        self.kwargs = kwargs

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Command):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash((self.device, self.command_name))

    def __repr__(self) -> str:
        words = [repr(each) for each in (self.device, self.command_name, *self.args)]
        words += [f"{name}={value!r}" for name, value in self.kwargs.items()]
        return f"<Command({', '.join(words)})>"

    def _key(self) -> tuple[object, ...]:
        return self.device, self.command_name, self.args, self.kwargs
