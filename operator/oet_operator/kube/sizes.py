"""Objects that are too large for the API server's store: seen before anything of them runs, and told in what still fits. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from oet_crds.ends import with_final
from oet_crds.execution import ScriptExecution, ScriptExecutionStatus
from oet_crds.reasons import Reason
from oet_crds.states import State, is_final
from oet_operator.kube.verdicts import has_claim

__all__ = ["MAX_OBJECT_BYTES", "compute_size", "describe_excess", "iter_shorter"]

STORE_BYTES = 1536 * 1024
"""What etcd takes in one request as it is released (--max-request-bytes); an API server gives no way to ask for it."""

STATUS_BYTES = 256 * 1024
"""What a status may need in the end: two stack traces of 32 Ki characters, 64 entries of history twice, messages, and who manages
which field."""

MAX_OBJECT_BYTES = STORE_BYTES - STATUS_BYTES

ESCAPED_BYTES = 5
"""The API server stores <, > and & as six characters each."""

CUT_STACKTRACE_CHARS = 1024
CUT_MESSAGE_CHARS = 200
"""What is left of them when the API server finds a status too large."""

_TOO_LARGE = "the execution is too large to be run: nothing of it ran; put large data into a file or a ConfigMap"


def compute_size(wire: Mapping[str, Any]) -> int:
    """Return how many bytes an object takes in the API server's store, without what is added to it there."""
    data = orjson.dumps(wire)
    return len(data) + ESCAPED_BYTES * sum(data.count(sign) for sign in (b"<", b">", b"&"))


def describe_excess(wire: Mapping[str, Any]) -> str:
    """Say that an execution leaves no room for what is to be told of it; empty when it does."""
    size = compute_size(wire)
    if size <= MAX_OBJECT_BYTES:
        return ""
    return (
        f"the execution takes {size:,} bytes, more than the {MAX_OBJECT_BYTES:,} that leave room for its status, and so was not "
        "begun: put large data into a file or a ConfigMap"
    )


def iter_shorter(execution: ScriptExecution, status: ScriptExecutionStatus) -> Iterator[ScriptExecutionStatus]:
    """Yield what can be said instead of a status that the API server finds too large, the most first.

    Of an execution that no runner has taken nothing has run: it ends. What a runner has taken is only told in fewer words.
    """
    if not is_final(status.state) and not has_claim(execution) and status.history:
        when = status.history[-1].time
        status = with_final(status, State.FAILED, Reason.INVALID_SPEC, _TOO_LARGE, when)
        yield status
    message = (status.message or "")[:CUT_MESSAGE_CHARS] or None
    trace = (status.stacktrace or "")[-CUT_STACKTRACE_CHARS:] or None
    yield status.model_copy(update={"message": message, "stacktrace": trace})
    least = {"message": message, "stacktrace": None, "script": None, "resolved": None, "refusal": None}
    yield status.model_copy(update={**least, "conditions": [], "history": status.history[-1:]})
