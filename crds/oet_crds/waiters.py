"""Waiting for one execution to change, for stores whose adapters keep what they know in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oet_crds.execution import ScriptExecution

__all__ = ["Waiters"]


class Waiters:
    """Who waits for which execution. Each is woken for its own alone: a change of one of thousands wakes no crowd."""

    def __init__(self, lock: threading.RLock) -> None:
        """Share a store's lock, which it holds whenever it calls `wake` or `dismiss`."""
        self._lock = lock
        self._changed: dict[int, threading.Condition] = {}

    def wait(
        self,
        procedure_id: int,
        get: Callable[[int], ScriptExecution],
        until: Callable[[ScriptExecution], bool],
        timeout_seconds: float,
    ) -> ScriptExecution:
        """Wait until `until` holds for an execution; see `oet_crds.ports.ExecutionStore.wait`.

        Args:
            procedure_id: Of the execution.
            get: Returns the execution of an id as the store knows it; what it raises ends the waiting.
            until: What is waited for.
            timeout_seconds: For how long.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._lock:
            while True:
                execution = get(procedure_id)
                left = deadline - time.monotonic()
                if until(execution) or left <= 0:
                    return execution
                self._changed.setdefault(procedure_id, threading.Condition(self._lock)).wait(left)

    def wake(self, procedure_id: int) -> None:
        """Have those look again who wait for an execution."""
        if condition := self._changed.get(procedure_id):
            condition.notify_all()

    def dismiss(self, procedure_id: int) -> None:
        """Have those look a last time who wait for an execution that is removed."""
        self.wake(procedure_id)
        self._changed.pop(procedure_id, None)
