"""The child process and the channels to it, as the supervisor holds them."""

from __future__ import annotations

import os
import socket

from oet_runner.child import run_child
from oet_runner.mailbox import Outbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from oet_runner.confinement import Hidden

__all__ = ["Channels", "fork_child"]


class Channels:
    """The supervisor's ends.

    Attributes:
        child_pid: The script's process.
        control_fd: JSON lines both ways between supervisor and child.
        to_child: Writes to the child over `control_fd`.
        stdout_fd: What the script and its processes print.
        stderr_fd: The same for standard error.
        message_fd: Datagrams with the messages that the script publishes.
    """

    __slots__ = ("child_pid", "control_fd", "message_fd", "stderr_fd", "stdout_fd", "to_child")

    def __init__(self, control_fd: int, stdout_fd: int, stderr_fd: int, message_fd: int) -> None:
        self.child_pid = 0
        self.control_fd = control_fd
        self.stdout_fd = stdout_fd
        self.stderr_fd = stderr_fd
        self.message_fd = message_fd
        self.to_child = Outbox(control_fd)
        for fd in (stdout_fd, stderr_fd, message_fd):
            os.set_blocking(fd, False)


def fork_child(hidden: Hidden | None) -> Channels:
    """Fork the script's process; it waits for an assignment.

    The caller must have one thread only. In the child this does not return.

    Args:
        hidden: What is out of the script's reach, as is the caller; None: nothing is.
    """
    control, child_control = socket.socketpair()
    messages, child_messages = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stdout_fd, child_stdout_fd = os.pipe()
    stderr_fd, child_stderr_fd = os.pipe()
    supervisor_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        output_fds = (child_stdout_fd, child_stderr_fd)
        run_child(supervisor_pid, child_control.detach(), child_messages.detach(), output_fds, hidden)
    for fd in (child_control.detach(), child_messages.detach(), child_stdout_fd, child_stderr_fd):
        os.close(fd)
    channels = Channels(control.detach(), stdout_fd, stderr_fd, messages.detach())
    channels.child_pid = pid
    return channels
