"""The script as Python sees it: its module, and what is told of the exceptions that leave it."""

from __future__ import annotations

import linecache
import os
import stat
import sys
import tokenize
import traceback
import types

from oet_crds.names import USER_MODULE
from oet_runner.verdict import Ending, How, Phase

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["ScriptStopped", "SourceError", "UnsupportedSourceError", "describe_exception", "load_module"]

_FILE_PREFIX = "file://"
_INLINE_NAME = "<inline script>"
_HEADER = "Traceback (most recent call last):\n"
_RUNNER_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep

MAX_CHAIN = 1000
"""Exceptions of a chain that are looked at, from the last one back: what is kept of a stack trace has room for some hundred, and
20,000 took 18 s."""


class ScriptStopped(BaseException):
    """Raised in the script by SIGTERM. Not an `Exception`, so that `except Exception` does not swallow a stop."""


class SourceError(Exception):
    """The script cannot be had as it was asked for; the text says why.

    Attributes:
        how: In which way that ends it.
        log: The end of what a program printed that failed; empty where none did.
    """

    how = How.UNFETCHED

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class UnsupportedSourceError(SourceError):
    """The script comes from a source that this engine cannot fetch."""

    how = How.UNSUPPORTED


def load_module(script: dict[str, Any]) -> types.ModuleType:
    """Load the script and run its module level code.

    Args:
        script: `spec.script` in its wire form.

    Returns:
        The module. It is in `sys.modules`, because dataclasses and pickle look their module up there.

    Raises:
        UnsupportedSourceError: The script is neither a file nor inline.
        BaseException: What reading, compiling or running the script raises.
    """
    path, source = _read_source(script)
    code = compile(source, path, "exec", dont_inherit=True)
    # Trace backs show what was loaded, also after the file was changed, and of scripts that are no file.
    lines = _decode_source(source).splitlines(keepends=True)
    linecache.cache[path] = (len(source), None, lines, path)
    module = types.ModuleType(USER_MODULE)
    module.__file__ = path
    sys.argv = [path]
    sys.modules[USER_MODULE] = module
    exec(code, module.__dict__)
    return module


def _read_source(script: dict[str, Any]) -> tuple[str, bytes]:
    if "file" in script:
        path = script["file"]["path"]
        path = path[len(_FILE_PREFIX) :] if path.startswith(_FILE_PREFIX) else path
        return path, _read_file(path)
    if "inline" in script:
        # A coding comment in text that was decoded already must not decode it again: BOM and UTF-8 rule it out.
        return _INLINE_NAME, script["inline"]["source"].encode("utf-8", "backslashreplace")
    kinds = ", ".join(sorted(script)) or "nothing"
    raise UnsupportedSourceError(f"this engine cannot fetch scripts from {kinds}: it runs files and inline scripts")


def _read_file(path: str) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(f"the script is not a regular file: {path!r}")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        if error.errno is None:
            raise
        # The whole URI and no cause: the text that users of OET know.
        raise type(error)(error.errno, error.strerror, _FILE_PREFIX + path) from None


def _decode_source(source: bytes) -> str:
    buffered = iter(source.splitlines(keepends=True))
    try:
        encoding, _ = tokenize.detect_encoding(lambda: next(buffered, b""))
        return source.decode(encoding, "replace")
    except (SyntaxError, LookupError):
        return source.decode("utf-8", "replace")


def describe_exception(error: BaseException, phase: Phase) -> Ending:
    """Build the ending of a script that an exception left. Never raises because of what the exception is like."""
    if isinstance(error, ScriptStopped):
        return Ending(How.TERMINATED, phase)
    if isinstance(error, SourceError):
        return Ending(error.how, phase, str(error), error.log or None)
    text, stacktrace = _format(error)
    if isinstance(error, SystemExit):
        ending = Ending(How.EXITED, phase, _describe_code(error.code), stacktrace)
        ending.is_clean_exit = error.code is None or error.code == 0
        return ending
    ending = Ending(How.RAISED, phase, text, stacktrace)
    ending.is_memory_error = isinstance(error, MemoryError)
    return ending


def _describe_code(code: object) -> str:
    try:
        return str(code)
    except ScriptStopped:
        raise
    except BaseException:  # noqa: BLE001 - `__str__` may raise anything
        return f"<{type(code).__name__} without text>"


def _cut_chain(error: BaseException) -> None:
    """Forget what no stack trace has room for, of a chain of exceptions that has ended a script."""
    for _ in range(MAX_CHAIN):
        following = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if following is None:
            return
        error = following
    error.__cause__ = error.__context__ = None


def _format(error: BaseException) -> tuple[str, str]:
    """Return the exception in one line, and with its trace back."""
    name = type(error).__name__
    try:
        _cut_chain(error)
        frames = error.__traceback__
        while frames and frames.tb_frame.f_code.co_filename.startswith(_RUNNER_FOLDER):
            frames = frames.tb_next
        stacktrace = "".join(traceback.format_exception(type(error), error, frames))
        if not frames:
            stacktrace = _HEADER + stacktrace
    except ScriptStopped:
        raise
    except BaseException as failure:  # noqa: BLE001 - a chain of exceptions runs code of the script
        # A chain of thousands of exceptions, or no memory left: say as much as can be said.
        stacktrace = f"{_HEADER}  (the trace back cannot be shown: {type(failure).__name__})\n{name}\n"
    try:
        text = str(error)
        text = f"{name}: {text}" if text else name
    except ScriptStopped:
        raise
    except BaseException:  # noqa: BLE001 - `__str__` may raise anything
        text = name
    # Characters that UTF-8 does not know must not make trouble further on.
    return _clean(text), _clean(stacktrace)


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
