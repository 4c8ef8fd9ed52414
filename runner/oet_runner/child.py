"""The script's side of the runner: a process that waits for an assignment, runs the script, and says how it went."""

from __future__ import annotations

import atexit
import gc
import io
import json
import linecache
import os
import signal
import sys
import threading
import time
import traceback
import types

from oet_crds.git import GIT_VARIABLES
from oet_crds.states import State
from oet_crds.topics import MESSAGE_FD_VARIABLE, MESSAGE_INODE_VARIABLE
from oet_runner import pubsub_hook
from oet_runner.confinement import confine, hide_more
from oet_runner.family import set_parent_death_signal
from oet_runner.guard import CacheGuard
from oet_runner.script import ScriptStopped, SourceError, describe_exception, load_module
from oet_runner.verdict import Ending, How, Phase

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, NoReturn

    from oet_runner.confinement import Hidden

__all__ = ["run_child"]

_EXIT_FAILED = 1
_EXIT_TERMINATED = 128 + signal.SIGTERM
"""What a shell reports of a process that SIGTERM ended."""


class _Control:
    """The child's end of the control channel. A fork of the script's process has none."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._inode = os.fstat(fd).st_ino
        self._owner = os.getpid()
        self._incoming = b""

    def is_usable(self) -> bool:
        """Tell whether this is still the script's first process, and the channel is not closed or another file."""
        try:
            return os.getpid() == self._owner and os.fstat(self.fd).st_ino == self._inode
        except OSError:
            return False

    def is_owner(self) -> bool:
        """Tell whether this is the script's first process, none that it forked."""
        return os.getpid() == self._owner

    def send(self, records: list[dict[str, Any]]) -> None:
        if not self.is_usable():
            if self.is_owner():
                print("oet_runner: the script has closed the channel to its supervisor", file=sys.__stderr__)
            return
        # The first newline ends a record that a signal may have cut short.
        data = memoryview(b"\n" + b"".join(json.dumps(record).encode() + b"\n" for record in records))
        try:
            while data:
                data = data[os.write(self.fd, data) :]
        except OSError:
            return  # The supervisor is dead, and this process will be in a moment.

    def receive(self) -> dict[str, Any]:
        """Wait for the next mail. Raises EOFError when none can come any more."""
        while b"\n" not in self._incoming:
            data = os.read(self.fd, 64 * 1024) if self.is_usable() else b""
            if not data:
                raise EOFError("the channel to the supervisor is closed")
            self._incoming += data
        line, self._incoming = self._incoming.split(b"\n", 1)
        mail: dict[str, Any] = json.loads(line)
        return mail

    def drop_in_fork(self) -> None:
        """Close the channel in a process that the script forked."""
        try:
            if os.fstat(self.fd).st_ino == self._inode:
                os.close(self.fd)
        except OSError:
            return  # The script closed it before.


class _Stop:
    """SIGTERM as an exception in the script, and only there: elsewhere it waits until it can be raised."""

    def __init__(self) -> None:
        self._is_open = False
        self._is_pending = False
        signal.signal(signal.SIGTERM, self.on_signal)

    def on_signal(self, number: int, frame: object) -> None:
        if self._is_open:
            raise ScriptStopped("the execution was stopped")
        self._is_pending = True

    def call(self, function: Callable[[], object]) -> None:
        """Call what a stop may interrupt.

        Raises:
            ScriptStopped: The stop came meanwhile, or waited.
            BaseException: What the function raises.
        """
        try:
            self._is_open = True
            if self._is_pending:
                self._is_pending = False
                raise ScriptStopped("the execution was stopped")
            function()
        finally:
            self._is_open = False


def run_child(
    supervisor_pid: int, control_fd: int, message_fd: int, output_fds: tuple[int, int], hidden: Hidden | None
) -> NoReturn:
    """Be the script's process, from the fork to the end.

    Args:
        supervisor_pid: Process that this one was forked from.
        control_fd: Its end of the control channel.
        message_fd: Where messages go.
        output_fds: What becomes standard output and standard error.
        hidden: What is out of the script's reach, as is the supervisor; None: nothing is.
    """
    status = _EXIT_FAILED
    try:
        try:
            _set_up_process(supervisor_pid, {control_fd, message_fd}, output_fds)
            is_confined = confine(hidden)
            control = _Control(control_fd)
            stop = _Stop()
            _set_up_forks(control, stop)
            pubsub_hook.install(message_fd)
            _warm_up()
            guard = CacheGuard(os.environ)
            control.send([{"isUp": True, "isConfined": is_confined}])
            status = _Performance(control, stop, message_fd, hidden if is_confined else None, guard).run()
        except BaseException:  # noqa: BLE001
            traceback.print_exc()  # A fault of ours: it belongs in the script's output, or the runner's log.
        finally:
            os._exit(status)
    finally:
        # Nothing, not even a signal during the line above, may lead this process back into the supervisor's code.
        os._exit(status)


def _set_up_process(supervisor_pid: int, kept_fds: set[int], output_fds: tuple[int, int]) -> None:
    os.setsid()
    set_parent_death_signal()
    if os.getppid() != supervisor_pid:
        os._exit(_EXIT_FAILED)  # It died before the kernel knew that we want to die with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    null_fd = os.open(os.devnull, os.O_RDONLY)
    for target, fd in enumerate((null_fd, *output_fds)):
        os.dup2(fd, target)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept_fds:
            try:
                os.close(int(name))
            except OSError:
                continue  # The one that listed the folder.
    # New objects: the old ones remember what the old files were like, for example that one could seek in them.
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _set_up_forks(control: _Control, stop: _Stop) -> None:
    def _on_fork_in_child() -> None:
        control.drop_in_fork()
        # A worker that the script forks dies of SIGTERM as it does without OET.
        if signal.getsignal(signal.SIGTERM) == stop.on_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    os.register_at_fork(after_in_child=_on_fork_in_child)


def _warm_up() -> None:
    """Do once what is done for every script: the memory pages that it writes are then copied from the parent's already.

    It takes half a millisecond off the time from the assignment to READY.
    """
    arguments = sys.argv
    module = load_module({"inline": {"source": "import os\ndef init(): pass\ndef main(*args): pass\n"}})
    _call(module.main, json.loads(json.dumps({"args": [1, "text"], "kwargs": {}})))
    _flush_output()
    linecache.cache.clear()
    sys.argv = arguments


class _Performance:
    """One run of one script."""

    def __init__(
        self, control: _Control, stop: _Stop, message_fd: int, hidden: Hidden | None, guard: CacheGuard
    ) -> None:
        self._guard = guard
        self._control = control
        self._stop = stop
        self._hidden = hidden
        self._message_fd = message_fd
        self._phase = Phase.START
        self._module: types.ModuleType | None = None

    def run(self) -> int:
        """Run the script and what Python runs at its end; return the exit code."""
        code: object = 0
        try:
            self._stop.call(self._perform)
            ending = Ending(How.RETURNED, self._phase)
        except BaseException as error:  # noqa: BLE001 - whatever a script raises
            ending = describe_exception(error, self._phase)
            code = error.code if isinstance(error, SystemExit) else _EXIT_FAILED
            self._print_in_fork(error)
        is_done = self._phase is Phase.MAIN and (ending.how is How.RETURNED or ending.is_clean_exit)
        self._report([State.READY] if is_done else [], ending)
        self._leave()
        return _compute_exit_status(ending, code)

    def _print_in_fork(self, error: BaseException) -> None:
        """Print what nobody else tells: an exception that left a process which the script forked."""
        if not self._control.is_owner() and not isinstance(error, SystemExit):
            traceback.print_exception(type(error), error, error.__traceback__)

    def _perform(self) -> None:
        assignment = self._control.receive()
        self._adopt(assignment)
        if assignment.get("problem"):
            raise SourceError(assignment["problem"])
        module = self._module = load_module(self._prepare(assignment["script"]))
        init = getattr(module, "init", None)
        if init is not None:
            self._report([State.IDLE, State.INITIALISING])
            self._phase = Phase.INIT
            _call(init, assignment.get("init"))
            self._report([State.READY])
        else:
            self._report([State.IDLE, State.READY])
        self._phase = Phase.WAIT
        grant = self._control.receive()
        self._phase = Phase.MAIN
        self._report([State.RUNNING])
        _call(module.main, grant.get("main"))  # Looked up only now: a script may define it in `init`.

    def _prepare(self, script: dict[str, Any]) -> dict[str, Any]:
        """Go on to LOADING, and return the script in a form that can be loaded."""
        git = script.get("git")
        if git is None:
            self._begin(State.LOADING, Phase.LOAD)
            self._hide_more()
            self._guard.enter()
            return script
        from oet_runner.source import GitSource  # A spare that serves no git script need not have it in its memory.

        wants_environment = git.get("createEnv") is True
        self._begin(*((State.PREP_ENV, Phase.PREPARE) if wants_environment else (State.LOADING, Phase.LOAD)))
        source = GitSource(git, self._guard.has_shared())
        source.fetch(lambda commit: self._control.send([{"commit": commit}]))
        self._hide_more()  # Before the first line of the project runs: building its environment may be that.
        if wants_environment:
            source.prepare_environment()
        self._guard.enter()  # From here on code of the repository runs in this process.
        source.enter_environment()
        if wants_environment:
            self._begin(State.LOADING, Phase.LOAD)
        return {"file": {"path": source.find_file()}}

    def _hide_more(self) -> None:
        """Hide what git fetches with, and what could not be hidden before. Raises SourceError: then nothing is run."""
        if self._hidden is None:
            return
        paths = [*self._hidden.at_load, os.environ.get(GIT_VARIABLES["credentials_dir"], "")]
        try:
            if any(paths):
                hide_more([path for path in paths if path])
        except (OSError, ValueError) as error:
            raise SourceError(f"{' '.join(paths).strip()} cannot be hidden from the script: {error}") from error

    def _begin(self, state: State, phase: Phase) -> None:
        self._report([State.IDLE, state])
        self._phase = phase

    def _adopt(self, assignment: dict[str, Any]) -> None:
        procedure_id = str(assignment.get("procedureId"))
        threading.main_thread().name = procedure_id  # Scripts name themselves by it in what they publish.
        os.environ["OET_PROCEDURE_ID"] = procedure_id
        os.environ["OET_EXECUTION_UID"] = str(assignment.get("uid"))
        os.environ.update(assignment.get("environment") or {})
        os.environ[MESSAGE_FD_VARIABLE] = str(self._message_fd)
        os.environ[MESSAGE_INODE_VARIABLE] = str(os.fstat(self._message_fd).st_ino)

    def _report(self, states: list[State], ending: Ending | None = None) -> None:
        _flush_output()  # What was printed before a state is to be seen before it.
        now = time.time()
        records: list[dict[str, Any]] = [{"state": state, "t": now} for state in states]
        if ending is not None:
            record = {name: getattr(ending, name) for name in ("how", "phase", "text", "stacktrace")}
            record.update(isMemoryError=ending.is_memory_error, isCleanExit=ending.is_clean_exit)
            records.append({"ending": record})
        self._control.send(records)

    def _leave(self) -> None:
        """Do what Python does at its end, but for freeing memory: wait for threads, run exit handlers, write files."""
        # A stop ends the wait for threads; exit handlers run nevertheless.
        for step in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
            try:
                self._stop.call(step)
            except ScriptStopped:
                continue
            except BaseException as error:  # noqa: BLE001 - whatever a script raises
                if step is not atexit._run_exitfuncs:  # That one has printed it.
                    traceback.print_exception(type(error), error, error.__traceback__)
        self._release_module()
        _flush_files()
        _flush_output()

    def _release_module(self) -> None:
        """Free the script's globals, so that their `__del__` methods run; daemon threads would stumble over that."""
        if self._module is not None and threading.active_count() == 1:
            vars(self._module).clear()


def _call(function: Callable[..., object], arguments: dict[str, Any] | None) -> None:
    given = arguments or {}
    function(*given.get("args", ()), **given.get("kwargs", {}))


def _compute_exit_status(ending: Ending, code: object) -> int:
    if ending.how is How.TERMINATED:
        return _EXIT_TERMINATED
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else _EXIT_FAILED


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001
            continue  # The script closed or replaced it.


def _flush_files() -> None:
    """Write what files that were never closed still hold: Python's own end, which is skipped, would do that."""
    for candidate in gc.get_objects():
        if issubclass(type(candidate), io.IOBase):
            try:
                candidate.flush()
            except Exception:  # noqa: BLE001
                continue  # Closed, or nobody reads it any more.
