"""Ctrl-C is raised again until somebody took it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from oet_cli.interrupts import raise_pending, raised, take_interrupt, wait_aside


class Forgetful:
    """Interrupts in its finaliser, where Python cannot raise anything."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[type[BaseException]]]:
    """An interruption that Python has forgotten."""
    types: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: types.append(what.exc_type))
    with raised(signal.SIGINT):
        Forgetful()
        yield types
    take_interrupt()


def test_forgotten_interruption_is_raised_before_the_next_request(forgotten: list[type[BaseException]]) -> None:
    assert forgotten == [KeyboardInterrupt]
    asked: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        wait_aside(lambda: asked.append(1))
    assert asked == []


def test_interruption_that_was_taken_is_not_raised_again(forgotten: list[type[BaseException]]) -> None:
    take_interrupt()
    raise_pending()
    assert wait_aside(lambda: 1) == 1


def test_interruption_ends_the_waiting_and_not_the_request() -> None:
    may_end, has_ended = threading.Event(), threading.Event()

    def ask() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        assert may_end.wait(30)
        has_ended.set()

    with raised(signal.SIGINT), pytest.raises(KeyboardInterrupt):
        wait_aside(ask)
    take_interrupt()
    assert not has_ended.is_set()
    may_end.set()
    assert has_ended.wait(30)


def test_error_of_a_request_is_raised_where_it_is_waited_for() -> None:
    with pytest.raises(ZeroDivisionError):
        wait_aside(lambda: 1 // 0)


def test_handler_of_before_is_back_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    with raised(signal.SIGINT):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_signal_that_the_shell_ignores_for_a_job_in_the_background_stays_ignored() -> None:
    code = (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from oet_cli.interrupts import raise_pending, raised\n"
        "with raised(signal.SIGINT): signal.raise_signal(signal.SIGINT); raise_pending()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
