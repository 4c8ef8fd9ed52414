"""A store of runners' entries in memory: keeps the contract of `oet_crds.ports.EntrySink`, and fails on demand."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from oet_crds.errors import UnavailableError
from oet_crds.execution import ScriptExecution
from oet_crds.ports import RunnerEntry

__all__ = ["MemorySink"]


class MemorySink:
    """Keeps what it is given, each once.

    Attributes:
        stored: Entries by the execution's uid and their number.
        is_away: It takes nothing.
        gate: While it is not set, storing takes for ever.
    """

    def __init__(self) -> None:
        self.stored: dict[str, dict[int, RunnerEntry]] = {}
        self.is_away = False
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()

    def ingest(self, execution: ScriptExecution, entries: Sequence[RunnerEntry]) -> int:
        """Store entries; see the port."""
        self.gate.wait()
        if self.is_away:
            raise UnavailableError("the timeline's store is away")
        with self._lock:
            known = self.stored.setdefault(execution.uid, {})
            for entry in entries:
                known.setdefault(entry.seq, entry)
            return max(known, default=0)

    def of(self, uid: str) -> list[RunnerEntry]:
        """Return what is stored of an execution, in order."""
        with self._lock:
            known = self.stored.get(uid, {})
            return [known[seq] for seq in sorted(known)]
