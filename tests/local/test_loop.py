"""The engine's loop, as other threads use it."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oet_crds.settings import EngineSettings
from oet_crds.states import Mode
from oet_operator.local.applier import Effects
from oet_operator.local.database import Database
from oet_operator.local.loop import EngineLoop
from oet_operator.local.runner import Reading, Runner
from oet_operator.local.store import LocalStore
from oet_operator.local.traces import Traces


def _want_none(mode: Mode) -> Runner:
    pytest.fail(f"no runner is wanted, and none in {mode}")


def _build_traces(folder: Path, boot_id: str = "this", *, is_wanted: bool = True) -> Traces:
    return Traces(folder / "traces", boot_id, is_wanted=is_wanted)


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
    loop = EngineLoop(LocalStore(database), EngineSettings(), _want_none, _build_traces(tmp_path))
    decided: list[int] = []
    monkeypatch.setattr(loop, "_decide", lambda _transaction, _effects, number: decided.append(number))
    monkeypatch.setattr(loop, "_dirty", Interrupted([1]))
    nothing: Any = None
    loop._decide_dirty(nothing, Effects())
    database.close()
    assert decided == [1, 2]


def test_effects_that_are_submitted_while_a_wake_up_is_taken_are_done_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are announced by one counter, which is read once."""
    database = Database(tmp_path / "oet.sqlite3")
    loop = EngineLoop(LocalStore(database), EngineSettings(spares=0), _want_none, _build_traces(tmp_path))
    submitted, are_done = Effects(), threading.Event()
    on_readable, apply = loop._on_readable, loop._apply

    def read_and_submit(*about: Any) -> None:
        monkeypatch.setattr(loop, "_on_readable", on_readable)
        loop.submit(submitted)
        on_readable(*about)

    def observe(effects: Effects) -> None:
        apply(effects)
        if effects is submitted:
            are_done.set()

    monkeypatch.setattr(loop, "_on_readable", read_and_submit)
    monkeypatch.setattr(loop, "_apply", observe)
    monkeypatch.setattr(loop, "_decide", lambda *_: None)
    thread = threading.Thread(target=loop.run)
    thread.start()
    loop.wake(1)
    try:
        assert are_done.wait(20)
    finally:
        loop.shut_down(0.0)
        thread.join()
        database.close()


class Endless:
    """A runner that has ended, and whose script has taken its mailbox over and talks on."""

    pid, procedure_id, is_up, is_confined, exit_seen = 1, None, True, False, False

    def __init__(self) -> None:
        self.socket, self.pidfd = socket.socketpair()
        self.is_closed = False

    def read_mail(self) -> tuple[list[dict[str, Any]], Reading]:
        return [{"kind": "noise"}], Reading.SOME

    def reap(self) -> int:
        return -9

    def close(self) -> None:
        self.socket.close()
        self.pidfd.close()
        self.is_closed = True


def test_runner_that_has_ended_and_is_heard_on_does_not_keep_the_engine(tmp_path: Path) -> None:
    database = Database(tmp_path / "oet.sqlite3")
    loop = EngineLoop(LocalStore(database), EngineSettings(spares=0), _want_none, _build_traces(tmp_path))
    runner: Any = Endless()
    loop._runners[runner.pid] = runner
    nothing: Any = None
    loop._on_runner_end(nothing, Effects(), runner)
    database.close()
    assert runner.is_closed
    assert not loop._runners
