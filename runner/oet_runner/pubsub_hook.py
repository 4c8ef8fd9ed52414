"""pypubsub messages of a script become messages of its execution, without a change in the script.

When the script imports `pubsub.pub`, a listener to all topics is subscribed. Nothing that goes wrong here reaches the script.
"""

from __future__ import annotations

import importlib.util
import os
import sys

from oet_runner.messages import build_message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

__all__ = ["install"]

_MODULE = "pubsub.pub"


def install(message_fd: int) -> None:
    """Have messages of pypubsub, should the script ever import it, written to `message_fd`."""
    sys.meta_path.insert(0, _Finder(message_fd))


class _Finder:
    """Finds pypubsub by the other finders, and has its loader tell when it was loaded."""

    def __init__(self, message_fd: int) -> None:
        self._message_fd = message_fd

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _MODULE or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)  # Once is enough, and the search below must not come here again.
        spec = importlib.util.find_spec(name)
        if spec is None or not hasattr(spec.loader, "exec_module"):
            return spec
        inner: Any = spec.loader
        run_module = inner.exec_module

        def _exec_module(module: ModuleType) -> None:
            run_module(module)
            try:
                _subscribe(module, self._message_fd)
            except Exception as error:  # noqa: BLE001
                print(f"oet_runner: messages of pypubsub will not be seen: {error!r}", file=sys.stderr)

        # The loader belongs to this one module: its other methods stay as they are.
        inner.exec_module = _exec_module
        return spec


def _subscribe(pub: Any, message_fd: int) -> None:
    inode = os.fstat(message_fd).st_ino

    def _on_message(topic: Any = pub.AUTO_TOPIC, **data: Any) -> None:
        try:
            if os.fstat(message_fd).st_ino == inode:  # Else the script has closed it, and it is something else now.
                os.write(message_fd, build_message(topic.getName(), data))
        except Exception as error:  # noqa: BLE001
            print(f"oet_runner: a message of pypubsub is lost: {error!r}", file=sys.stderr)

    pub.subscribe(_on_message, pub.ALL_TOPICS)
    pub.oet_listener = _on_message  # pypubsub holds listeners by weak references only.
