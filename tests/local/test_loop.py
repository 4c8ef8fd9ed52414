"""The engine's loop, as other threads use it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oet_crds.settings import EngineSettings
from oet_operator.local.applier import Effects
from oet_operator.local.database import Database
from oet_operator.local.loop import EngineLoop
from oet_operator.local.store import LocalStore


class Interrupted(deque[int]):
    """Another thread wakes execution 2 while the loop takes execution 1 from here, however it does that."""

    def __iter__(self) -> Iterator[int]:
        yield from list(super().__iter__())
        self.append(2)

    def popleft(self) -> int:
        taken = super().popleft()
        if taken == 1:
            self.append(2)
        return taken


def test_execution_that_is_woken_meanwhile_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wake-up that gets lost leaves an execution as it is for ever."""
    database = Database(tmp_path / "oet.sqlite3")
    loop = EngineLoop(LocalStore(database), EngineSettings(), lambda: pytest.fail("no runner is wanted"))
    decided: list[int] = []
    monkeypatch.setattr(loop, "_decide", lambda _transaction, _effects, number: decided.append(number))
    monkeypatch.setattr(loop, "_dirty", Interrupted([1]))
    nothing: Any = None
    loop._decide_dirty(nothing, Effects())
    database.close()
    assert decided == [1, 2]
