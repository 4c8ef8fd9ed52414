"""The ports between the REST API and an engine. Adapters: the local engine, and the Kubernetes store.

The same contract tests run on every adapter (`tests/contract`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from oet_crds.execution import FunctionArgs, ScriptExecution, ScriptExecutionSpec, StopOptions, WhenBusy
from oet_crds.states import DesiredState
from oet_crds.topics import EntryKind

__all__ = [
    "Archive",
    "EntrySink",
    "ExecutionStore",
    "Health",
    "Record",
    "RunnerEntry",
    "SpecChange",
    "Timeline",
    "TimelineEntry",
]


@dataclass(frozen=True, slots=True)
class SpecChange:
    """A change of an execution's spec; None leaves a field as it is."""

    desired_state: DesiredState | None = None
    main: FunctionArgs | None = None
    """Replaces `spec.args.main`."""
    when_busy: WhenBusy | None = None
    stop: StopOptions | None = None
    abort_of: str | None = None
    """Sets `spec.abort_of`: starts an abort script that is held, for this stopped execution."""
    user: str | None = None
    """Who asks for a stop; for people, where an engine can keep it."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether an engine does its work."""

    ready: bool
    detail: str
    """One line for people: what is wrong, or what is in use."""


Record = Callable[[ScriptExecution], Sequence[tuple[str, Mapping[str, Any]]]]
"""Topics and payloads to append to an execution's timeline. Must be quick and pure."""


class ExecutionStore(Protocol):
    """Where executions live. All methods may be called from any thread."""

    def create(self, spec: ScriptExecutionSpec, record: Record | None = None) -> ScriptExecution:
        """Store a new execution and return it, in state CREATING, with its procedure id.

        It is durable when this returns.

        Args:
            spec: What to run.
            record: Says, of the new execution, what to append to its timeline as actions, in the same step; None: nothing.

        Raises:
            OverloadedError: Too many executions are active.
        """
        ...

    def get(self, procedure_id: int) -> ScriptExecution:
        """Return one execution. Raises NotFoundError."""
        ...

    def list(self) -> Sequence[ScriptExecution]:
        """Return all executions, oldest first."""
        ...

    def change(
        self, procedure_id: int, change: SpecChange, *, if_resource_version: str | None = None
    ) -> ScriptExecution:
        """Change the spec of an execution and return the result.

        Durable when this returns; what follows from it is seen by `wait`. An empty change changes nothing.

        Raises:
            NotFoundError: No such execution.
            InvalidTransitionError: The change breaks a rule of the spec (Stopped is final, main immutable once Running
                was asked, the execution is finished).
            ConflictError: `if_resource_version` is given and is not the stored one.
        """
        ...

    def release(self, procedure_id: int, reason: str) -> ScriptExecution:
        """Note that a person releases the subarray of an UNKNOWN execution, and return the result.

        Durable when this returns; that it has let go of the subarray is seen by `wait`. Once it has, nothing is changed.

        Args:
            procedure_id: Whose.
            reason: The person's words.

        Raises:
            NotFoundError: No such execution.
            InvalidTransitionError: It is not UNKNOWN, or holds no subarray.
        """
        ...

    def wait(
        self, procedure_id: int, until: Callable[[ScriptExecution], bool], timeout_seconds: float
    ) -> ScriptExecution:
        """Wait until `until` holds, and return the execution as last seen, whether it holds or not.

        `until` is called at least once, on every version seen, and must be quick and pure. Raises NotFoundError,
        also when the execution is removed meanwhile.
        """
        ...

    def observe_health(self) -> Health:
        """Tell whether new work would be taken and done. Never raises, never blocks longer than a second."""
        ...


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One entry of the timeline.

    Attributes:
        id: Position in the whole timeline: grows by time of storing, never reused. The id of stream events.
        procedure_id: Which procedure it belongs to.
        seq: Number that the runner gave it (per execution), or None when the runner did not send it.
        time: Seconds since the epoch at which it happened.
        kind: What sort of entry it is.
        topic: Dotted topic.
        payload: Fields of the message, JSON-able. Holds `msg_src`. A log entry has `stream` and `line`.
    """

    id: int
    procedure_id: int
    seq: int | None
    time: float
    kind: EntryKind
    topic: str
    payload: Mapping[str, Any]


class Timeline(Protocol):
    """Every execution's numbered timeline. All methods may be called from any thread."""

    def append(self, procedure_id: int, topic: str, payload: Mapping[str, Any]) -> TimelineEntry:
        """Store an action (`EntryKind.ACTION`) that the API itself did, and return it. Durable when this returns."""
        ...

    def read(
        self,
        after: int,
        *,
        limit: int,
        procedure_id: int | None = None,
        kinds: Collection[EntryKind] | None = None,
    ) -> Sequence[TimelineEntry]:
        """Return entries with an id greater than `after`, in order of id, at most `limit` of them.

        None for `procedure_id` or `kinds` means all. No entry with a smaller id appears later.
        """
        ...

    def describe_gap(self, procedure_id: int) -> str:
        """Return in words why `read` does not give all of an execution's entries yet; empty when it does. Does not wait."""
        ...

    def last_id(self) -> int:
        """Return the id of the newest entry, 0 when there is none."""
        ...

    def wait(self, after: int, timeout_seconds: float) -> bool:
        """Wait until an entry newer than `after` exists. Returns whether one does."""
        ...


@dataclass(frozen=True, slots=True)
class RunnerEntry:
    """One entry as a runner numbered it.

    Attributes:
        seq: The runner's number: counts from 1 per execution, in the order in which things happened, without gaps.
        time: Seconds since the epoch at which it happened.
        kind: What sort of entry it is.
        topic: Dotted topic.
        payload: Fields of the message, JSON-able.
    """

    seq: int
    time: float
    kind: EntryKind
    topic: str
    payload: Mapping[str, Any]


class Archive(Protocol):
    """Executions as last seen, for as long as they are to be kept: also after the engine has removed them."""

    def find(self, procedure_id: int) -> ScriptExecution | None:
        """Return an execution, None when there is none. One that is gone without a known end is UNKNOWN.

        Raises:
            UnavailableError: It cannot be read now.
        """
        ...

    def read_archive(self, after: int, limit: int, *, is_backwards: bool = False) -> Sequence[ScriptExecution]:
        """Return executions with greater procedure ids than `after`, at most `limit`, those that the engine has among them.

        In order of their ids, or with `is_backwards` the greatest first. Raises UnavailableError.
        """
        ...


class EntrySink(Protocol):
    """Where runners' entries go. At least once from the runner, stored once: by the execution's uid and `seq`."""

    def ingest(self, execution: ScriptExecution, entries: Sequence[RunnerEntry]) -> int:
        """Store entries of an execution, those that are stored already left as they are; durable when this returns.

        Returns:
            The highest `seq` that is stored for this execution: the runner may forget all up to it.

        Raises:
            UnavailableError: The store takes nothing now; the runner keeps what it has and tries again.
        """
        ...
