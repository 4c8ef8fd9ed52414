"""Compose the runner: `python -m oet_runner --mailbox-in FD --mailbox-out FD` (equal numbers: a socket)."""

from __future__ import annotations

import gc
import os
import signal
import sys

from oet_runner.channels import fork_child
from oet_runner.family import Family, become_subreaper
from oet_runner.mailbox import PipeMailbox
from oet_runner.memory import observe_oom_kills
from oet_runner.supervisor import Supervisor, catch_signals

_USAGE = "usage: python -m oet_runner --mailbox-in FD --mailbox-out FD"


def parse_arguments(arguments: list[str]) -> tuple[int, int]:
    """Return the mailbox's two file descriptors.

    Raises:
        ValueError: The arguments are not the two options with a number each.
    """
    values = dict(zip(arguments[::2], arguments[1::2]))
    if len(arguments) != 4 or set(values) != {"--mailbox-in", "--mailbox-out"}:
        raise ValueError(_USAGE)
    return int(values["--mailbox-in"]), int(values["--mailbox-out"])


def _set_up_process() -> None:
    # Whoever started us may have closed standard files, blocked signals or ignored the end of children.
    while os.open(os.devnull, os.O_RDWR) <= 2:
        continue
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def main() -> int:
    """Run as supervisor until the script has ended; return the exit status."""
    _set_up_process()
    try:
        mailbox = PipeMailbox(*parse_arguments(sys.argv[1:]))
    except (ValueError, OSError) as error:
        print(f"oet_runner: {error}; {_USAGE}", file=sys.stderr)
        return 2
    become_subreaper()
    gc.collect()
    gc.freeze()  # What both processes share stays shared: a collection in one would copy the pages.
    channels = fork_child()
    wakeup_fd = catch_signals()
    Supervisor(mailbox, channels, Family(channels.child_pid), wakeup_fd, observe_oom_kills).run()
    return 0


if __name__ == "__main__":
    _status = main()
    sys.stderr.flush()
    os._exit(_status)  # Nothing is left to tidy up; the interpreter's own end costs a millisecond.
