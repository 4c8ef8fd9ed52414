"""Compose the runner: `python -m oet_runner --mailbox-in FD --mailbox-out FD` (equal numbers: a socket), or `--kube`."""

from __future__ import annotations

import gc
import os
import signal
import sys

from oet_runner.channels import fork_child
from oet_runner.family import Family, become_subreaper, hide_process
from oet_runner.mailbox import PipeMailbox
from oet_runner.memory import observe_oom_kills
from oet_runner.supervisor import Supervisor, catch_signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from oet_runner.mailbox import Mailbox

SIGNAL_BASE = 128
"""Exit status of who was told to end by a signal, as shells have it. A kubelet that ends a Pod and finds 0 says that it has
succeeded, and forgets why it ended it."""

_KUBE = "--kube"
_USAGE = "usage: python -m oet_runner --mailbox-in FD --mailbox-out FD | --kube"


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


def _choose_mailbox(arguments: list[str]) -> Callable[[], Mailbox]:
    """Return what makes the mailbox once the child was forked: a process that has threads must not fork.

    Raises:
        ValueError: The arguments or the environment are wrong.
        OSError: A file descriptor is not open.
    """
    if arguments != [_KUBE]:
        mailbox = PipeMailbox(*parse_arguments(arguments))
        return lambda: mailbox
    from oet_runner.kube_client import observe_api_server  # The local engine's runners have no use for these.
    from oet_runner.kube_mailbox import KubeMailbox
    from oet_runner.poster import observe_timeline_server

    server = observe_api_server(os.environ)
    timeline = observe_timeline_server(os.environ)

    def _start() -> Mailbox:
        kube_mailbox = KubeMailbox(server, timeline=timeline)
        kube_mailbox.start()
        hide_process()  # The script runs as the same user.
        os.set_blocking(2, False)  # A container's log that nobody reads must not hold the supervisor up.
        return kube_mailbox

    return _start


def _flush_errors() -> None:
    try:
        sys.stderr.flush()
    except OSError:
        return  # Nobody reads them.


def main() -> int:
    """Run as supervisor until the script has ended; return the exit status."""
    _set_up_process()
    try:
        start_mailbox = _choose_mailbox(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"oet_runner: {error}; {_USAGE}", file=sys.stderr)
        return 2
    become_subreaper()
    gc.collect()
    gc.freeze()  # What both processes share stays shared: a collection in one would copy the pages.
    channels = fork_child()
    wakeup_fd = catch_signals()  # First: a stop may come as soon as the driver can see that the runner is there.
    mailbox = start_mailbox()
    supervisor = Supervisor(mailbox, channels, Family(channels.child_pid), wakeup_fd, observe_oom_kills)
    supervisor.run()
    is_signalled = supervisor.stop_signal and sys.argv[1:] == [_KUBE]
    return SIGNAL_BASE + supervisor.stop_signal if is_signalled else 0


if __name__ == "__main__":
    _status = main()
    _flush_errors()
    os._exit(_status)  # Nothing is left to tidy up; the interpreter's own end costs a millisecond.
