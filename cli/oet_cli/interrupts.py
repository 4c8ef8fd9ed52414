"""Ctrl-C that is not lost: an interruption counts until somebody has taken it.

Python raises KeyboardInterrupt between any two instructions of the main thread. Raised in a finaliser it is printed and
forgotten (https://docs.python.org/3/library/signal.html#note-on-signal-handlers-and-exceptions); raised in urllib3's pool of
connections it may leave a lock taken, for which closing the pool then waits for ever. Both happened to about one Ctrl-C in a
hundred that came while a start was answered. So the HTTP library works in another thread, and what was forgotten is raised again.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["raise_pending", "raised", "take_interrupt", "wait_aside"]

_Answer = TypeVar("_Answer")

TELL_SECONDS = 0.2
"""How often somebody who waits is told so: the seconds on a terminal go on evenly."""

_pending = False


@contextmanager
def raised(number: signal.Signals) -> Iterator[None]:
    """Raise KeyboardInterrupt for a signal, for as long as the context lasts. A signal that is ignored stays so."""
    before = signal.getsignal(number)
    if before is signal.SIG_IGN:
        yield
        return
    signal.signal(number, _on_signal)
    try:
        yield
    finally:
        signal.signal(number, before)


def take_interrupt() -> None:
    """Say that the interruption was noticed: only a new one is raised from here on."""
    global _pending
    _pending = False


def raise_pending() -> None:
    """Raise KeyboardInterrupt if one was raised that nobody has taken."""
    if _pending:
        raise KeyboardInterrupt


def wait_aside(ask: Callable[[], _Answer], tell: Callable[[float], None] | None = None) -> _Answer:
    """Run a function in a thread of its own, so that Ctrl-C interrupts nothing but the waiting for it.

    Args:
        ask: What to run. After an interruption it goes on alone, until its own end or that of the process.
        tell: Called several times a second while it runs, with how many seconds it has; None: nobody is told.

    Returns:
        What it returned; what it raised is raised here.
    """
    from concurrent.futures import Future, wait

    raise_pending()
    begun = time.monotonic()
    outcome: Future[_Answer] = Future()

    def work() -> None:
        try:
            outcome.set_result(ask())
        except BaseException as error:  # noqa: BLE001 -- it is raised where the outcome is asked for
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    while tell is not None and not wait([outcome], TELL_SECONDS).done:
        tell(time.monotonic() - begun)
    return outcome.result()


def _on_signal(_number: int, _frame: Any) -> None:
    global _pending
    _pending = True
    raise KeyboardInterrupt
