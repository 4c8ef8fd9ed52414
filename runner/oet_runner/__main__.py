"""Compose the runner: `python -m oet_runner --mailbox-in FD --mailbox-out FD` (equal numbers: a socket), or `--kube`.

More options beside a mailbox: `--cover FOLDER` puts an empty folder over one, in the runner's own mount namespace;
`--hide FOLDER` keeps the script alone from it; `--mark TEXT` is for whoever looks for this process; `--traces FOLDER` holds a
link that is named after the execution, and removed once nothing of its script is left.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

from oet_runner.channels import fork_child
from oet_runner.confinement import Hidden, cover_folder, drop_rights, forget_working_folder, is_wanted
from oet_runner.family import Family, become_subreaper, hide_process
from oet_runner.mailbox import PipeMailbox, log
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
_USAGE = (
    "usage: python -m oet_runner --mailbox-in FD --mailbox-out FD [--cover FOLDER | --hide FOLDER] [--mark TEXT] "
    "[--traces FOLDER] | --kube"
)


class Options:
    """What the runner was told to do.

    Attributes:
        mailbox_fds: Descriptors of the mailbox, in and out; None: it is in the API server.
        cover: Folder to put an empty one over; empty: none.
        hide: Folder that the script cannot reach; empty: none.
        traces: Folder with a link that is named after the execution; empty: none.
    """

    def __init__(self, arguments: list[str]) -> None:
        """Read the command line.

        Raises:
            ValueError: It is not as `_USAGE` says.
        """
        values = dict(zip(arguments[::2], arguments[1::2]))
        mailbox = {"--mailbox-in", "--mailbox-out"}
        is_kube = arguments == [_KUBE]
        is_known = mailbox <= set(values) <= mailbox | {"--cover", "--hide", "--mark", "--traces"}
        if not is_kube and (len(arguments) != 2 * len(values) or not is_known):
            raise ValueError(_USAGE)
        self.mailbox_fds = None if is_kube else (int(values["--mailbox-in"]), int(values["--mailbox-out"]))
        self.cover = values.get("--cover", "")
        self.hide = values.get("--hide", "")
        self.traces = values.get("--traces", "")


def _set_up_process() -> None:
    # Whoever started us may have closed standard files, blocked signals or ignored the end of children.
    while os.open(os.devnull, os.O_RDWR) <= 2:
        continue
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _choose_mailbox(options: Options) -> tuple[Callable[[], Mailbox], Hidden]:
    """Return what makes the mailbox once the child was forked: a process that has threads must not fork; and what to hide.

    Raises:
        ValueError: The environment is wrong.
        OSError: A file descriptor is not open.
    """
    if options.mailbox_fds is not None:
        mailbox = PipeMailbox(*options.mailbox_fds)
        return lambda: mailbox, Hidden(at_load=[options.hide] if options.hide else [])
    from oet_runner.kube_client import observe_api_server  # The local engine's runners have no use for these.
    from oet_runner.kube_mailbox import KubeMailbox
    from oet_runner.poster import observe_timeline_server

    server = observe_api_server(os.environ)
    timeline = observe_timeline_server(os.environ)

    def _start() -> Mailbox:
        kube_mailbox = KubeMailbox(server, timeline=timeline)
        kube_mailbox.start()
        os.set_blocking(2, False)  # A container's log that nobody reads must not hold the supervisor up.
        return kube_mailbox

    return _start, Hidden(at_once=[server.folder, *([timeline.token_folder] if timeline is not None else [])])


def _cover(options: Options) -> None:
    """Put the cover on; where that is refused, the folder is hidden from the script alone."""
    try:
        if options.cover:
            cover_folder(options.cover)
    except OSError as error:
        log(f"cannot put an empty folder over {options.cover}: {error}")
        options.hide = options.cover
    drop_rights()


def _remove_trace(path: str) -> None:
    """Say to an engine that comes later that nothing of the script is left."""
    try:
        os.unlink(path)
    except OSError:
        return  # The engine did.


def _flush_errors() -> None:
    try:
        sys.stderr.flush()
    except OSError:
        return  # Nobody reads them.


def main() -> int:
    """Run as supervisor until the script has ended; return the exit status."""
    _set_up_process()
    try:
        options = Options(sys.argv[1:])
        _cover(options)
        start_mailbox, hidden = _choose_mailbox(options)
    except (ValueError, OSError) as error:
        print(f"oet_runner: {error}; {_USAGE}", file=sys.stderr)
        return 2
    become_subreaper()
    gc.collect()
    gc.freeze()  # What both processes share stays shared: a collection in one would copy the pages.
    channels = fork_child(hidden if is_wanted(os.environ) else None)
    hide_process()  # The script runs as the same user.
    forget_working_folder(sys.path)
    wakeup_fd = catch_signals()  # First: a stop may come as soon as the driver can see that the runner is there.
    mailbox = start_mailbox()
    supervisor = Supervisor(mailbox, channels, Family(channels.child_pid), wakeup_fd, observe_oom_kills)
    supervisor.run()
    if options.traces and mailbox.desired.assignment is not None:
        _remove_trace(os.path.join(options.traces, str(mailbox.desired.assignment.get("uid"))))
    is_signalled = supervisor.stop_signal and sys.argv[1:] == [_KUBE]
    code = mailbox.find_exit_code()
    if code:
        return code
    return SIGNAL_BASE + supervisor.stop_signal if is_signalled else 0


if __name__ == "__main__":
    _status = main()
    _flush_errors()
    os._exit(_status)  # Nothing is left to tidy up; the interpreter's own end costs a millisecond.
