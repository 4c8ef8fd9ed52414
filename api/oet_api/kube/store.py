"""Executions as custom resources: reads from the cache, writes to the API server and, with its answer, into the cache."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Protocol

from oet_api.kube.cache import Birth, ExecutionCache
from oet_api.kube.client import JSON_PATCH, MERGE_PATCH, KubeClient, Wire
from oet_api.kube.errors import (
    NO_ANSWER,
    ApiError,
    build_create_error,
    build_unavailable,
    describe_refusal,
)
from oet_api.kube.informer import Informer
from oet_api.kube.paths import Paths
from oet_crds.errors import (
    ConflictError,
    InvalidTransitionError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from oet_crds.execution import ScriptExecution, ScriptExecutionSpec
from oet_crds.names import GROUP, KIND, RELEASE_ANNOTATION, STOPPED_BY_ANNOTATION, VERSION
from oet_crds.ports import Archive, Record, SpecChange, Timeline
from oet_crds.specs import validate_change, validate_release
from oet_crds.states import DesiredState

__all__ = ["Chronicle", "KubeStore", "build_manifest", "build_spec_patch"]

_log = logging.getLogger(__name__)

NAME_CHARS = "abcdefghijklmnopqrstuvwxyz234567"
"""Base 32 in lower case, RFC 4648: ten of them are 50 random bits."""

BIRTH_SECONDS = 5.0
"""How long the operator has to give a new execution its procedure id; it takes some 10 ms."""

PERSISTENCE_SECONDS = 5.0
"""For how long a write that got no answer is tried again: an API server that is replaced is back sooner."""

SECOND_TRY_SECONDS = 0.5
"""The same for a change that nobody is in danger without: it passes over a connection that was just closed."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 0.8

LEARN_SECONDS = 0.3
"""How long a read waits for an execution that may just have been created through another server."""

LEARN_IDS = 100
"""How far above the highest known id such an execution may be."""

RELIST_SECONDS = 1.0
"""Least time between two lists for an execution that is not known."""

_ANSWERED = (HTTPStatus.CONFLICT, HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
"""What the API server says to a change that does not fit the object as it is: it may be another one of the same name by now."""

_STRICT = {"fieldValidation": "Strict"}
"""An older CRD, which Helm leaves in place, would drop what it does not know, and make an operation of a rehearsal."""

Patch = tuple[str, Wire | list[Wire]]
"""Content type and body of a patch."""

_LABELS = {"app.kubernetes.io/managed-by": "oet-api"}

_SPEC_FIELDS = {"desired_state": "desiredState", "when_busy": "whenBusy", "stop": "stop", "abort_of": "abortOf"}


def build_manifest(spec: ScriptExecutionSpec) -> Wire:
    """Return a new custom resource, under a name of its own."""
    name = "procedure-" + "".join(secrets.choice(NAME_CHARS) for _ in range(10))
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {"name": name, "labels": dict(_LABELS)},
        "spec": spec.to_wire(),
    }


def build_spec_patch(
    before: ScriptExecution, after: ScriptExecutionSpec, resource_version: str | None, user: str | None = None
) -> Patch:
    """Return content type and body of the patch that makes a spec another one, of this very execution. Pure.

    Arguments of `main` are replaced, which a merge patch cannot do: it would keep old keywords, and drop those that are null.

    Args:
        before: The execution as known.
        after: What its spec is to be.
        resource_version: The only version to change; None for any.
        user: Who asks for a stop; None: it is no stop, or not known.
    """
    wire = after.to_wire()
    fields = {
        name: wire[name] for key, name in _SPEC_FIELDS.items() if getattr(after, key) != getattr(before.spec, key)
    }
    metadata = {"uid": before.uid, **({"resourceVersion": resource_version} if resource_version else {})}
    notes = {"annotations": {STOPPED_BY_ANNOTATION: user}} if user else {}
    if after.args.main == before.spec.args.main or after.args.main is None:
        return MERGE_PATCH, {"metadata": {**metadata, **notes}, "spec": fields}
    operations = [_replace(f"/metadata/{name}", value) for name, value in metadata.items()]
    # `add` replaces what is there. What is absent, because kubectl created it so, cannot be replaced.
    operations += [{"op": "add", "path": f"/spec/{name}", "value": value} for name, value in fields.items()]
    operations.append({"op": "add", "path": "/spec/args/main", "value": after.args.main.to_wire()})
    return JSON_PATCH, operations


def _replace(path: str, value: object) -> Wire:
    return {"op": "replace", "path": path, "value": value}


class _Attempts:
    """Repeats a request until there is an answer that means something, or the time is over."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._pause = FIRST_PAUSE_SECONDS
        self.had_no_answer = False

    def may_go_on(self, error: ApiError) -> bool:
        """Wait a moment after a failure. Returns whether to try again."""
        self.had_no_answer |= error.status == NO_ANSWER or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        if time.monotonic() + self._pause > self._deadline:
            return False
        time.sleep(self._pause)
        self._pause = min(LONGEST_PAUSE_SECONDS, self._pause * 2)
        return True


class Chronicle(Timeline, Protocol):
    """The timeline as this engine uses it."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End."""

    def note(self, procedure_id: int, topic: str, payload: Mapping[str, Any]) -> None:
        """Store an action as `append` does, without waiting for anything."""

    def flush(self) -> None:
        """Wait a moment until all is stored that was noted."""

    def observe_problem(self) -> str:
        """Return what is wrong, for people; empty for nothing."""
        ...


class KubeStore:
    """The executions of one namespace. Implements `oet_crds.ports.ExecutionStore` but for its health.

    Attributes:
        max_active: Executions that may be active at once.
        archive: What was stored of those that are gone; None: nothing was.
    """

    def __init__(
        self,
        client: KubeClient,
        paths: Paths,
        cache: ExecutionCache,
        informer: Informer,
        timeline: Chronicle,
    ) -> None:
        self._client = client
        self._paths = paths
        self._cache = cache
        self._informer = informer
        self._timeline = timeline
        self._lock = threading.Condition()
        self._creating = 0
        self._busy = 0
        self._relist = threading.Lock()
        self._relisted_at = -RELIST_SECONDS
        self.max_active = 128
        self.archive: Archive | None = None

    # ---- reading -------------------------------------------------------------------------------------------------

    def get(self, procedure_id: int) -> ScriptExecution:
        """Return one execution, also one that was removed while it can be told. Raises NotFoundError, UnavailableError."""
        self._check_synced()
        if self._cache.find(procedure_id) is None:
            self._learn(procedure_id)
        return self._cache.find(procedure_id) or self._find_archived(procedure_id) or self._cache.get(procedure_id)

    def _find_archived(self, procedure_id: int) -> ScriptExecution | None:
        return None if self.archive is None else self.archive.find(procedure_id)

    def list(self) -> Sequence[ScriptExecution]:
        """Return all executions that have a procedure id, oldest first."""
        self._check_synced()
        return self._cache.list()

    def wait(
        self, procedure_id: int, until: Callable[[ScriptExecution], bool], timeout_seconds: float
    ) -> ScriptExecution:
        """Wait until `until` holds; see `oet_crds.ports.ExecutionStore.wait`."""
        with self._under_way():
            execution = self.get(procedure_id)
            if self._cache.find(procedure_id) is None:
                until(execution)
                return execution
            return self._cache.wait(procedure_id, until, timeout_seconds)

    def _check_synced(self) -> None:
        if not self._informer.is_synced:
            raise UnavailableError(
                f"The procedures are not known yet: {self._informer.problem or 'they are being read'}. Try again"
            )

    def _learn(self, procedure_id: int) -> None:
        """Give an execution that was created elsewhere a moment ago the time to become known."""
        highest = self._cache.highest_id
        if not highest < procedure_id <= highest + LEARN_IDS:
            return
        if self._informer.is_watching:
            self._cache.wait_known(procedure_id, LEARN_SECONDS)
            return
        with self._relist:
            if self._cache.find(procedure_id) is None and time.monotonic() - self._relisted_at >= RELIST_SECONDS:
                try:
                    self._informer.list_all()
                except Exception as error:  # noqa: BLE001 - whatever it is: what is not known is not known
                    _log.info("cannot look for procedure %d: %s", procedure_id, error)
                self._relisted_at = time.monotonic()

    # ---- creating ------------------------------------------------------------------------------------------------

    def create(self, spec: ScriptExecutionSpec, record: Record | None = None) -> ScriptExecution:
        """Store a new execution and wait for its procedure id; see `oet_crds.ports.ExecutionStore.create`.

        Raises:
            OverloadedError: Too many executions are active.
            UnavailableError: API server or operator do not answer; the text says what is left.
            BadRequestError: Kubernetes refuses the spec.
        """
        self._check_synced()

        def on_born(execution: ScriptExecution) -> None:
            assert execution.procedure_id is not None
            for topic, fields in record(execution) if record else ():
                self._timeline.note(execution.procedure_id, topic, fields)

        birth, manifest = Birth(on_born), build_manifest(spec)
        name = manifest["metadata"]["name"]
        with self._under_way():
            self._cache.expect(name, birth)
            try:
                with self._place():
                    wire = self._post(manifest)
                if not birth.is_done.wait(BIRTH_SECONDS):
                    self._give_up(name, wire["metadata"], birth)
            finally:
                self._cache.forget_birth(name)
        self._timeline.flush()
        assert birth.execution is not None
        return birth.execution

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Hold a place among the active executions until the new one is counted there."""
        with self._lock:
            active = self._cache.count_active() + self._creating
            if active >= self.max_active:
                raise OverloadedError(
                    f"{active} executions are active, as many as [engine] max_active allows: stop some, or raise it", 5
                )
            self._creating += 1
        try:
            yield
        finally:
            with self._lock:
                self._creating -= 1

    def _post(self, manifest: Wire) -> Wire:
        """Create the object, once, whatever becomes of the answers. Raises OetError."""
        attempts = _Attempts(PERSISTENCE_SECONDS)
        name = manifest["metadata"]["name"]
        while True:
            try:
                wire = self._client.request("POST", self._paths.executions, manifest, query=_STRICT)
                self._cache.put(wire)
                return wire
            except ApiError as error:
                if error.status == HTTPStatus.CONFLICT and attempts.had_no_answer:
                    # The name is random: it is ours, from an attempt whose answer was lost.
                    if (found := self._find(name)) is not None:
                        return found
                elif not error.is_retriable:
                    raise build_create_error(error) from error
                if not attempts.may_go_on(error):
                    self._delete_in_doubt(name, attempts)
                    raise build_create_error(error) from error

    def _find(self, name: str) -> Wire | None:
        """Return the object of a name; None when there is none, or it cannot be read."""
        try:
            wire = self._client.request("GET", self._paths.execution(name))
        except ApiError:
            return None
        self._cache.put(wire)
        return wire

    def _delete_in_doubt(self, name: str, attempts: _Attempts) -> None:
        """Remove what an attempt without an answer may have created: its caller is told that it was not."""
        if not attempts.had_no_answer:
            return
        try:
            self._client.request("DELETE", self._paths.execution(name), {"propagationPolicy": "Background"})
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise UnavailableError(
                    f"The Kubernetes API server does not answer: {error}. Whether the procedure was created is not known; "
                    f"if so, it is ScriptExecution {name}: delete it, or look for it in the list of procedures"
                ) from error

    def _give_up(self, name: str, metadata: Mapping[str, Any], birth: Birth) -> None:
        """Remove an execution that the operator did not look at. Returns if it did at the last moment.

        Raises:
            UnavailableError: The operator does not answer.
        """
        version = str(metadata["resourceVersion"])
        what = f"The operator did not answer within {BIRTH_SECONDS:g} s"
        attempts = _Attempts(PERSISTENCE_SECONDS)
        while True:
            # Not a version that the operator has written to: that one has an id, and goes on.
            preconditions = {"uid": metadata["uid"], "resourceVersion": version}
            options = {"preconditions": preconditions, "propagationPolicy": "Background"}
            try:
                self._client.request("DELETE", self._paths.execution(name), options)
                break
            except ApiError as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    break
                if error.status == HTTPStatus.CONFLICT and (wire := self._find(name)) is not None:
                    version = str(wire["metadata"]["resourceVersion"])
                    if birth.is_done.is_set():
                        return
                if not attempts.may_go_on(error):
                    raise UnavailableError(
                        f"{what}, and the procedure could not be taken back: {error}. It is ScriptExecution {name}, and "
                        "begins when the operator is back unless it is deleted"
                    ) from error
        self._cache.drop(str(metadata["uid"]))
        raise UnavailableError(f"{what}: nothing was created. See whether oet-operator runs, then try again")

    # ---- changing ------------------------------------------------------------------------------------------------

    def change(
        self, procedure_id: int, change: SpecChange, *, if_resource_version: str | None = None
    ) -> ScriptExecution:
        """Change the spec of an execution; see `oet_crds.ports.ExecutionStore.change`.

        Raises:
            UnavailableError: The API server does not answer; for a stop, after some seconds of trying.
        """
        execution = self.get(procedure_id)
        if if_resource_version not in (None, execution.metadata.resource_version):
            raise ConflictError(f"procedure {procedure_id} was changed meanwhile: read it again")
        spec = validate_change(execution, change)
        if spec == execution.spec:
            return execution
        is_stop = change.desired_state is DesiredState.STOPPED
        user = change.user if is_stop else None
        patch = build_spec_patch(execution, spec, if_resource_version, user)
        seconds = PERSISTENCE_SECONDS if is_stop else SECOND_TRY_SECONDS
        return self._patch(execution, patch, seconds, if_resource_version)

    def _patch(
        self,
        execution: ScriptExecution,
        patch: Patch,
        seconds: float,
        if_resource_version: str | None = None,
    ) -> ScriptExecution:
        """Patch an execution, again and again for some seconds while there is no answer that means something. Raises OetError."""
        (content_type, body), attempts = patch, _Attempts(seconds)
        path = self._paths.execution(execution.metadata.name)
        with self._under_way():
            while True:
                try:
                    wire = self._client.request("PATCH", path, body, content_type=content_type)
                    return self._cache.put(wire) or self.get(execution.procedure_id or 0)
                except ApiError as error:
                    self._judge(error, execution, if_resource_version)
                    if not attempts.may_go_on(error):
                        raise build_unavailable(error) from error

    def release(self, procedure_id: int, reason: str) -> ScriptExecution:
        """Note that a person releases a subarray; see `oet_crds.ports.ExecutionStore.release`.

        Raises:
            UnavailableError: The API server does not answer.
        """
        execution = self.get(procedure_id)
        if not validate_release(execution):
            return execution
        metadata = {"uid": execution.uid, "annotations": {RELEASE_ANNOTATION: reason}}
        return self._patch(execution, (MERGE_PATCH, {"metadata": metadata}), PERSISTENCE_SECONDS)

    def _judge(self, error: ApiError, execution: ScriptExecution, if_resource_version: str | None) -> None:
        """Return when the same change may be tried again, or nothing is known. Raises what a refusal means."""
        number, name = execution.procedure_id, execution.metadata.name
        gone = NotFoundError(f"No information available for PID={number}: it was removed")
        if error.status == HTTPStatus.NOT_FOUND and error.details.get("name") == name:
            self._cache.drop(execution.uid)
            raise gone from error
        if error.status in _ANSWERED:
            found = self._find(name)
            if found is not None and found["metadata"]["uid"] != execution.uid:
                self._cache.drop(execution.uid)
                raise gone from error
            if error.status == HTTPStatus.CONFLICT and if_resource_version is None:
                return
            if error.status == HTTPStatus.CONFLICT:
                raise ConflictError(f"procedure {number} was changed meanwhile: read it again") from error
            known = self._cache.find(number or 0) or execution
            text = f"Kubernetes refuses the change of procedure {number}: {describe_refusal(error)}"
            raise InvalidTransitionError(text, known.status.state) from error
        if not error.is_retriable:
            raise build_unavailable(error) from error

    # ---- the end -------------------------------------------------------------------------------------------------

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        with self._lock:
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
                self._lock.notify_all()

    def wait_idle(self, timeout_seconds: float) -> bool:
        """Wait until no request waits for anything. Returns whether that is so."""
        with self._lock:
            return self._lock.wait_for(lambda: self._busy == 0, timeout_seconds)
