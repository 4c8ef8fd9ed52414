"""The local engine: the ports of `oet_crds.ports` on one machine, with no cluster, no container and no root."""

from __future__ import annotations

import importlib.util
import logging
import os
import sqlite3
import tempfile
import threading
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from oet_crds.aborts import is_armed
from oet_crds.errors import ConflictError, OverloadedError, RequestRefusedError, UnavailableError
from oet_crds.execution import ScriptExecution, ScriptExecutionSpec
from oet_crds.mailbox import CONFINEMENT_VARIABLE, Confinement
from oet_crds.names import RELEASE_ANNOTATION
from oet_crds.ports import Archive, Health, Record, SpecChange, TimelineEntry
from oet_crds.settings import EngineSettings, GitSettings
from oet_crds.specs import validate_change, validate_release
from oet_crds.states import DesiredState, Mode
from oet_crds.topics import EntryKind
from oet_operator.core.aborts import find_arming_problem
from oet_operator.core.snapshot import Presence, RunnerObservation
from oet_operator.local.applier import Effects, Observed, apply_decision, create_execution
from oet_operator.local.database import Database
from oet_operator.local.folder import lock_folder
from oet_operator.local.loop import EngineLoop
from oet_operator.local.processes import ENGINE_VARIABLE, become_subreaper
from oet_operator.local.runner import Isolation, Runner, is_isolation_available
from oet_operator.local.store import LocalStore
from oet_operator.local.traces import Traces, observe_boot_id

__all__ = ["LocalEngine", "LocalTimeline", "compute_state_dir", "find_shipped_scripts"]

_log = logging.getLogger(__name__)

_TRACES = "traces"
"""Folder in the state folder."""

_TANGO_FILES = (Path("/etc/tangorc"), Path.home() / ".tangorc")
"""Where pytango finds the name of its database without TANGO_HOST."""

CHECKPOINT_SECONDS = 30.0
"""Pause between two moves of the write-ahead log into the file: keeps it at some megabytes, and costs one fsync."""

PRUNE_SECONDS = 0.02
"""Pause between two pieces of deleting old entries, so that a stop can pass."""

STOP_TIMEOUT_SECONDS = 8.0
"""How long an ordered shutdown waits for scripts before it kills them: their grace of 5 s, and what the runner needs."""


def compute_state_dir(configured: str, environ: Mapping[str, str], home: Path) -> Path:
    """Return the state folder: the configured one, else `ska-oso-oet` in the XDG state folder.

    See https://specifications.freedesktop.org/basedir-spec/latest/.
    """
    if configured:
        return Path(configured).absolute()
    base = environ.get("XDG_STATE_HOME") or str(home / ".local" / "state")
    return Path(base) / "ska-oso-oet"


def find_shipped_scripts() -> str:
    """Return the folder of the scripts that ship with the script library."""
    # Found, not imported: engine and library are strangers.
    spec = importlib.util.find_spec("oet")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "scripts")


class LocalTimeline:
    """The timeline port over a local store."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store

    def append(self, procedure_id: int, topic: str, payload: Mapping[str, Any]) -> TimelineEntry:
        """Store an action of the API; see `oet_crds.ports.Timeline.append`."""
        with self._store.transaction(durable=False) as transaction:
            return transaction.append(procedure_id, EntryKind.ACTION, topic, payload)

    def read(
        self,
        after: int,
        *,
        limit: int,
        procedure_id: int | None = None,
        kinds: Collection[EntryKind] | None = None,
    ) -> Sequence[TimelineEntry]:
        """Return entries after an id; see `oet_crds.ports.Timeline.read`."""
        return self._store.read_entries(after, limit, procedure_id, kinds)

    def describe_gap(self, procedure_id: int) -> str:
        """Return nothing: what a script printed is stored as it comes."""
        return ""

    def last_id(self) -> int:
        """Return the id of the newest entry, 0 when there is none."""
        return self._store.last_id()

    def wait(self, after: int, timeout_seconds: float) -> bool:
        """Wait until an entry newer than `after` exists. Returns whether one does."""
        return self._store.wait_entries(after, timeout_seconds)


class LocalEngine:
    """Executions in a SQLite file, scripts in child processes. Implements `oet_crds.ports.ExecutionStore`.

    Attributes:
        timeline: The executions' timeline.
        archive: None: with an execution its timeline goes.
    """

    def __init__(self, settings: EngineSettings, git: GitSettings | None = None) -> None:
        """Open the state folder.

        Args:
            settings: Those of the engine.
            git: Those for scripts from git; None: as usual.

        Raises:
            UnavailableError: The folder cannot be used; the text says why and what to do.
        """
        shipped = find_shipped_scripts()
        settings = settings.model_copy(update={"scripts_location": settings.scripts_location or shipped})
        if settings.prearm_abort and (problem := _find_arming_problem(settings, shipped)):
            _log.warning(problem)
            settings = settings.model_copy(update={"prearm_abort": False})
        self._settings = settings
        self._environ = (git or GitSettings()).build_environ()
        self._state_dir = compute_state_dir(settings.state_dir, os.environ, Path.home())
        self._isolation = _decide_isolation(settings.isolation)
        self._lock_file = lock_folder(self._state_dir)
        self._hides_state = settings.confinement != Confinement.NONE and not _is_in_use(self._state_dir)
        try:
            self._database = Database(self._state_dir / "oet.sqlite3")
        except (sqlite3.Error, OSError, RuntimeError, ValueError) as error:
            self._lock_file.close()
            raise UnavailableError(
                f"cannot open the store in {self._state_dir}: {error}; put a copy in its place (docs/how-to/back-up.md), or set "
                "OET_STATE_DIR to another folder"
            ) from error
        self._store = LocalStore(self._database)
        self.timeline = LocalTimeline(self._store)
        self.archive: Archive | None = None
        self._mark = f"{self._database.read_store_id()}:{uuid.uuid4().hex}"
        has_no_namespaces = self._isolation is Isolation.NONE
        self._traces = Traces(self._state_dir / _TRACES, observe_boot_id(), is_wanted=has_no_namespaces)
        self._runner_options = self._build_runner_options()
        self._can_rehearse = False
        self._loop = EngineLoop(self._store, settings, self._start_runner, self._traces)
        self._thread = threading.Thread(target=self._loop.run, name="oet-engine", daemon=True)
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep_house, name="oet-housekeeping", daemon=True)

    def _start_runner(self, mode: Mode) -> Runner:
        """Start a runner. Raises OSError, also when it would be one for a rehearsal that can reach the telescope."""
        isolation = self._isolation
        if mode is Mode.REHEARSAL:
            if problem := self._find_rehearsal_problem():
                raise OSError(problem)
            isolation = Isolation.NETWORK
        environ = {CONFINEMENT_VARIABLE: self._settings.confinement, ENGINE_VARIABLE: self._mark}
        return Runner({**os.environ, **self._environ, **environ}, isolation, self._runner_options)

    def _build_runner_options(self) -> tuple[str, ...]:
        """Return by what a runner's process is known, and how it keeps the state folder from its script."""
        options = ["--mark", f"{ENGINE_VARIABLE}={self._mark}"]
        if self._isolation is Isolation.NONE:
            options += ["--traces", str(self._traces.folder.resolve())]
        if self._hides_state:
            # A mount namespace comes with the PID namespace.
            hiding = "--hide" if self._isolation is Isolation.NONE else "--cover"
            options += [hiding, str(self._state_dir.resolve())]
        return tuple(options)

    def _find_rehearsal_problem(self) -> str:
        """Say why a rehearsal could not be kept away from the telescope here, and what to do; empty: it can."""
        if self._isolation is Isolation.NONE:
            return (
                "a rehearsal needs a network namespace, and this server runs scripts without namespaces: "
                "set [engine] isolation = namespace, or start OET where the kernel allows namespaces"
            )
        # Asked until it is so, by starting two processes: on a machine that is overloaded it may look as if it were not.
        self._can_rehearse = self._can_rehearse or is_isolation_available(Isolation.NETWORK)
        if not self._can_rehearse:
            return (
                "a rehearsal needs a network namespace, and unshare(1) cannot make one here: "
                "start OET as root, or where the kernel lets users make namespaces"
            )
        return ""

    # ---- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take over what an earlier engine left, and begin to work."""
        become_subreaper()
        self._loop.recover(self._database.read_store_id(), self._mark)
        self._thread.start()
        self._keeper.start()

    def stop(self) -> None:
        """Stop all scripts for certain, and close the store. The engine cannot be used again."""
        self._stopping.set()
        self._loop.shut_down(STOP_TIMEOUT_SECONDS)
        self._thread.join()
        self._keeper.join()
        self._database.close()
        self._lock_file.close()

    def _keep_house(self) -> None:
        """Do what nobody waits for: move the write-ahead log, delete entries of removed executions."""
        pause = CHECKPOINT_SECONDS
        while not self._stopping.wait(pause):
            pause = PRUNE_SECONDS if self._store.prune_entries() else CHECKPOINT_SECONDS
            if pause == CHECKPOINT_SECONDS:  # Not between two pieces of deleting: each costs an fsync.
                self._move_log()

    def _move_log(self) -> None:
        try:
            self._database.checkpoint()
        except sqlite3.Error as error:
            _log.warning("cannot move the write-ahead log: %s", error)

    def observe_health(self) -> Health:
        """Tell whether new work would be taken and done."""
        if self._loop.is_shutting_down:
            return Health(False, "the engine is shutting down")
        if not self._thread.is_alive():
            return Health(False, "the engine does not run")
        if problem := self._loop.observe_problem():
            return Health(False, problem)
        isolation = "process groups" if self._isolation is Isolation.NONE else "PID namespaces"
        detail = f"local engine, state in {self._state_dir}, scripts in {isolation}, {self._describe_confinement()}"
        return Health(True, detail)

    def _describe_confinement(self) -> str:
        if self._loop.is_confined is None:
            return "not yet known whether confined"
        if not self._loop.is_confined:
            return "not confined"
        return "confined by Landlock" + (
            "" if self._hides_state else ", but for the state folder: they need what is in it"
        )

    # ---- the store port ----------------------------------------------------------------------------------------------

    def create(self, spec: ScriptExecutionSpec, record: Record | None = None) -> ScriptExecution:
        """Store a new execution; see `oet_crds.ports.ExecutionStore.create`."""
        if self._loop.is_shutting_down:
            raise UnavailableError("OET is shutting down and takes no new scripts")
        if spec.mode is Mode.REHEARSAL and (problem := self._find_rehearsal_problem()):
            raise RequestRefusedError(f"Cannot rehearse: {problem}")
        with self._store.transaction(durable=True) as transaction:
            # An abort script that is held must not keep a script out: it comes and goes by itself.
            active = sum(not is_armed(one) for one in self._store.list_active().values())
            if active >= self._settings.max_active:
                raise OverloadedError(
                    f"{active} executions are active, as many as [engine] max_active allows: stop some, or raise it", 5
                )
            execution = create_execution(transaction, spec)
            procedure_id = execution.procedure_id
            assert procedure_id is not None
            for topic, fields in record(execution) if record else ():
                transaction.append(procedure_id, EntryKind.ACTION, topic, fields)
            # The first decision is always to get a runner: made here, it needs no commit of its own.
            effects, runner = Effects(), RunnerObservation(Presence.NONE)
            observed = Observed(procedure_id, runner, datetime.now(UTC))
            apply_decision(self._store, self._settings, transaction, effects, observed)
            execution = transaction.executions[procedure_id]
        self._loop.submit(effects)
        return execution

    def get(self, procedure_id: int) -> ScriptExecution:
        """Return one execution. Raises NotFoundError."""
        return self._store.get(procedure_id)

    def list(self) -> Sequence[ScriptExecution]:
        """Return all executions, oldest first."""
        return self._store.list()

    def change(
        self, procedure_id: int, change: SpecChange, *, if_resource_version: str | None = None
    ) -> ScriptExecution:
        """Change the spec of an execution; see `oet_crds.ports.ExecutionStore.change`."""
        # A stop must get through even when the disk takes nothing.
        durable = change.desired_state is not DesiredState.STOPPED
        with self._store.transaction(durable=durable) as transaction:
            execution = self._store.get(procedure_id)
            if if_resource_version not in (None, execution.metadata.resource_version):
                raise ConflictError(f"procedure {procedure_id} was changed meanwhile: read it again")
            spec = validate_change(execution, change)
            if spec == execution.spec:
                return execution
            metadata = execution.metadata.model_copy(update={"generation": execution.metadata.generation + 1})
            execution = transaction.put(execution.model_copy(update={"spec": spec, "metadata": metadata}))
        self._loop.wake(procedure_id)
        return execution

    def release(self, procedure_id: int, reason: str) -> ScriptExecution:
        """Note that a person releases a subarray; see `oet_crds.ports.ExecutionStore.release`."""
        with self._store.transaction(durable=True) as transaction:
            execution = self._store.get(procedure_id)
            if not validate_release(execution):
                return execution
            annotations = {**execution.metadata.annotations, RELEASE_ANNOTATION: reason}
            metadata = execution.metadata.model_copy(update={"annotations": annotations})
            execution = transaction.put(execution.model_copy(update={"metadata": metadata}))
        self._loop.wake(procedure_id)
        return execution

    def wait(
        self, procedure_id: int, until: Callable[[ScriptExecution], bool], timeout_seconds: float
    ) -> ScriptExecution:
        """Wait until `until` holds; see `oet_crds.ports.ExecutionStore.wait`."""
        return self._store.wait(procedure_id, until, timeout_seconds)


def _find_arming_problem(settings: EngineSettings, shipped_folder: str) -> str:
    """Return why no abort script can be held READY; empty: one may. Scripts inherit the environment, and pytango's own files."""
    is_shipped = settings.scripts_location == shipped_folder
    has_tango = bool(os.environ.get("TANGO_HOST")) or any(path.exists() for path in _TANGO_FILES)
    return find_arming_problem(settings, is_shipped=is_shipped, has_tango=has_tango)


def _is_in_use(folder: Path) -> bool:
    """Tell whether scripts cannot do without a folder: their home, or where their temporary files are."""
    needed = (Path.home(), Path(tempfile.gettempdir()), Path.cwd())
    return any(one.resolve().is_relative_to(folder.resolve()) for one in needed)


def _decide_isolation(wanted: str) -> Isolation:
    """Return what scripts are kept away from. Raises UnavailableError when it is demanded and cannot be had."""
    if wanted == "none":
        return Isolation.NONE
    available = is_isolation_available()
    if wanted == "namespace" and not available:
        raise UnavailableError("[engine] isolation = namespace, but unshare(1) cannot make a PID namespace here")
    return Isolation.PROCESSES if available else Isolation.NONE
