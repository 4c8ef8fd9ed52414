"""Programs that the runner needs for a while: bounded in time and output, and nothing of them is left."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time

from oet_crds.git import mask_credentials
from oet_runner.script import SourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO, Callable, Mapping, Sequence

__all__ = ["Tool", "ToolError", "run_tool"]

OUTPUT_LIMIT_BYTES = 64 * 1024
"""What is kept of an output: its end. A failed build tells the cause in its last lines."""


class ToolError(SourceError):
    """A program failed, was not there, or took too long."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(mask_credentials(message), mask_credentials(log))


class Tool:
    """A program to run.

    Attributes:
        command: The program and its arguments.
        folder: Where it runs.
        environ: Its environment.
        timeout_seconds: After so long it is killed.
        output: File that its standard output goes to; None: `run_tool` returns the end of it.
        prepare: Is called in the new process before it becomes the program; None: nothing is.
    """

    __slots__ = ("command", "environ", "folder", "output", "prepare", "timeout_seconds")

    def __init__(
        self,
        command: Sequence[str],
        folder: str,
        environ: Mapping[str, str],
        timeout_seconds: float,
        output: BinaryIO | None = None,
    ) -> None:
        self.command = list(command)
        self.folder = folder
        self.environ = dict(environ)
        self.timeout_seconds = timeout_seconds
        self.output = output
        self.prepare: Callable[[], object] | None = None


def run_tool(tool: Tool, echo: Callable[[str], object] | None = None) -> str:
    """Run a program to its end and return what it wrote to its standard output, at most the last `OUTPUT_LIMIT_BYTES`.

    Whatever ends the wait (a stop, for one) kills the program and all that it has started.

    Args:
        tool: What to run.
        echo: Is given each piece of output as it comes, without credentials; None: nobody is.

    Raises:
        ToolError: It failed. The text holds the end of its output, or the words of the operating system.
    """
    try:
        # A session of its own: it has no terminal to ask anybody on, and can be killed as a whole.
        process = subprocess.Popen(
            tool.command,
            cwd=tool.folder,
            env=tool.environ,
            stdin=subprocess.DEVNULL,
            stdout=tool.output or subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=tool.prepare,  # This process has one thread.
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolError(f"cannot run {tool.command[0]}: {error}") from error
    try:
        printed, output = _read(process, tool, echo)
        code = process.wait()
    except BaseException:
        _kill(process)
        raise
    finally:
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()
    if code != 0:
        what = " ".join(_select_words(tool.command))
        raise ToolError(f"{what} ended with {code}: {_compute_tail(printed)}", printed)
    return output


def _read(process: subprocess.Popen[bytes], tool: Tool, echo: Callable[[str], object] | None) -> tuple[str, str]:
    """Read until both outputs are closed; return the end of all that was printed, and of standard output alone."""
    assert process.stderr
    stdout_fd = process.stdout.fileno() if process.stdout else None
    printed = output = b""
    deadline = time.monotonic() + tool.timeout_seconds
    poller = select.poll()
    open_fds = {fd for fd in (stdout_fd, process.stderr.fileno()) if fd is not None}
    for fd in open_fds:
        poller.register(fd, select.POLLIN)
    while open_fds:
        left = deadline - time.monotonic()
        if left <= 0:
            text, words = _decode(printed), " ".join(_select_words(tool.command))
            raise ToolError(f"{words} took longer than {tool.timeout_seconds:g} s: {_compute_tail(text)}", text)
        for fd, _ in poller.poll(left * 1000):
            data = os.read(fd, OUTPUT_LIMIT_BYTES)
            if not data:
                open_fds.discard(fd)
                poller.unregister(fd)
            printed = (printed + data)[-OUTPUT_LIMIT_BYTES:]
            if fd == stdout_fd:
                output = (output + data)[-OUTPUT_LIMIT_BYTES:]
            if echo is not None:
                echo(mask_credentials(_decode(data)))
    return _decode(printed), _decode(output)


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and its group; not yet reaped, its number cannot have become another's."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _select_words(command: Sequence[str]) -> list[str]:
    """Return the program's name and its first word that is no option nor an option's value."""
    words = iter(command[1:])
    for word in words:
        if word in ("-c", "-C", "-m"):
            value = next(words, "")
            if word == "-m":
                return [os.path.basename(command[0]), word, value]
        elif not word.startswith("-"):
            return [os.path.basename(command[0]), word]
    return [os.path.basename(command[0])]


def _compute_tail(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return "; ".join(lines[-8:])[-700:] or "it said nothing"
