"""All executions of the namespace in memory, the newest of each that was ever seen: what the REST server reads and waits on."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import ValidationError

from oet_api.kube.client import Wire
from oet_crds.aborts import is_armed
from oet_crds.ends import with_runner_news
from oet_crds.errors import NotFoundError
from oet_crds.execution import ScriptExecution, parse_execution
from oet_crds.waiters import Waiters

__all__ = ["Birth", "ExecutionCache", "Listener"]

_log = logging.getLogger(__name__)

REMEMBERED_DELETIONS = 10_000
"""Uids of removed executions that are remembered: an answer that was under way must not bring one back."""


class Listener(Protocol):
    """Who is told of every new version, before anybody else can see it. Must be quick, must not call the cache."""

    def on_execution(self, execution: ScriptExecution) -> None:
        """Take in a new version of an execution that has a procedure id."""

    def on_removed(self, procedure_id: int) -> None:
        """Note that an execution is gone."""


@dataclass(slots=True)
class Birth:
    """Waits for the procedure id that the operator gives.

    Attributes:
        is_done: Set when it is there.
        on_born: Called with the first version that has an id, before anybody else sees it.
        execution: That version.
    """

    on_born: Callable[[ScriptExecution], None]
    is_done: threading.Event = field(default_factory=threading.Event)
    execution: ScriptExecution | None = None


class ExecutionCache:
    """Executions by uid and by procedure id. For any thread; readers take no lock.

    Attributes:
        highest_id: The highest procedure id that was ever seen; 0 when none was.
    """

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        self._listeners = listeners
        self._lock = threading.RLock()
        self._by_uid: dict[str, ScriptExecution] = {}
        self._by_id: dict[int, ScriptExecution] = {}
        self._ordered: tuple[ScriptExecution, ...] | None = ()
        self._waiters = Waiters(self._lock)
        self._any_change = threading.Condition(self._lock)
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self._births: dict[str, Birth] = {}
        self._complained_of: set[str] = set()
        self.highest_id = 0

    # ---- reading -------------------------------------------------------------------------------------------------

    def find(self, procedure_id: int) -> ScriptExecution | None:
        """Return an execution, None when there is none."""
        return self._by_id.get(procedure_id)

    def find_by_uid(self, uid: str) -> ScriptExecution | None:
        """Return an execution, None when there is none."""
        return self._by_uid.get(uid)

    def get(self, procedure_id: int) -> ScriptExecution:
        """Return an execution. Raises NotFoundError."""
        execution = self._by_id.get(procedure_id)
        if execution is None:
            raise NotFoundError(f"No information available for PID={procedure_id}")
        return execution

    def list(self) -> Sequence[ScriptExecution]:
        """Return all executions that have a procedure id, oldest first."""
        ordered = self._ordered
        if ordered is None:
            with self._lock:
                ordered = self._ordered = tuple(self._by_id[number] for number in sorted(self._by_id))
        return ordered

    def count_active(self) -> int:
        """Return how many executions are not finished, those that the operator has not seen yet among them.

        Abort scripts that are held do not count: they come and go by themselves.
        """
        with self._lock:
            return sum(not execution.is_finished and not is_armed(execution) for execution in self._by_uid.values())

    def list_versions(self) -> dict[str, int]:
        """Return the resource versions of all that is known, by uid."""
        with self._lock:
            return {uid: int(one.metadata.resource_version) for uid, one in self._by_uid.items()}

    def wait(
        self, procedure_id: int, until: Callable[[ScriptExecution], bool], timeout_seconds: float
    ) -> ScriptExecution:
        """Wait until `until` holds for an execution; see `oet_crds.ports.ExecutionStore.wait`."""
        return self._waiters.wait(procedure_id, self.get, until, timeout_seconds)

    def wait_known(self, procedure_id: int, timeout_seconds: float) -> bool:
        """Wait until there is an execution of this id. Returns whether there is."""
        with self._lock:
            return self._any_change.wait_for(lambda: procedure_id in self._by_id, timeout_seconds)

    # ---- births --------------------------------------------------------------------------------------------------

    def expect(self, name: str, birth: Birth) -> None:
        """Have a birth told of the first version, with a procedure id, of the execution of this name."""
        with self._lock:
            self._births[name] = birth

    def forget_birth(self, name: str) -> None:
        """Tell of no birth any more."""
        with self._lock:
            self._births.pop(name, None)

    # ---- writing -------------------------------------------------------------------------------------------------

    def put(self, wire: Wire) -> ScriptExecution | None:
        """Take in an execution as the API server gives it; older versions than the known one change nothing.

        Returns:
            The newest version that is known; None for what cannot be understood, or is removed.
        """
        metadata = wire["metadata"]
        uid, version = str(metadata["uid"]), int(metadata["resourceVersion"])
        known = self._by_uid.get(uid)
        if known is not None and int(known.metadata.resource_version) >= version:
            return known
        execution = self._parse(wire, uid)
        if execution is None:
            return None
        with self._lock:
            if uid in self._deleted:
                return None
            known = self._by_uid.get(uid)
            if known is not None and int(known.metadata.resource_version) >= version:
                return known
            self._by_uid[uid] = execution
            if execution.procedure_id is not None:
                self._publish(execution, execution.procedure_id)
        return execution

    def _parse(self, wire: Wire, uid: str) -> ScriptExecution | None:
        try:
            # While a release is replaced, a newer operator may write what this server does not know yet.
            return with_runner_news(parse_execution(wire))
        except (ValidationError, ValueError, AssertionError) as error:
            # The CRD is made from the model: only an object that another version's CRD accepted comes here.
            self._complain(
                uid, f"execution {wire['metadata'].get('name')} is left out, it cannot be understood: {error}"
            )
            return None

    def _complain(self, uid: str, text: str) -> None:
        """Log what is wrong with an execution, once."""
        if uid not in self._complained_of:
            self._complained_of.add(uid)
            _log.error("%s", text)

    def _publish(self, execution: ScriptExecution, number: int) -> None:
        holder = self._by_id.get(number)
        if holder is not None and holder.uid != execution.uid:
            self._complain(execution.uid, f"executions {holder.uid} and {execution.uid} have the same id {number}")
            return
        for listener in self._listeners:
            listener.on_execution(execution)
        birth = self._births.pop(execution.metadata.name, None)
        if birth is not None:
            birth.execution = execution
            birth.on_born(execution)
            birth.is_done.set()
        self._by_id[number] = execution
        self._ordered = None
        if holder is None:
            self.highest_id = max(self.highest_id, number)
            self._any_change.notify_all()
        self._waiters.wake(number)

    def drop(self, uid: str) -> None:
        """Forget an execution that is gone, for good."""
        with self._lock:
            self._deleted[uid] = None
            while len(self._deleted) > REMEMBERED_DELETIONS:
                self._deleted.popitem(last=False)
            self._complained_of.discard(uid)
            execution = self._by_uid.pop(uid, None)
            number = execution.procedure_id if execution is not None else None
            if number is None or (holder := self._by_id.get(number)) is None or holder.uid != uid:
                return
            # First: who keeps what is gone has it before it is missing here.
            for listener in self._listeners:
                listener.on_removed(number)
            del self._by_id[number]
            self._ordered = None
            self._waiters.dismiss(number)
