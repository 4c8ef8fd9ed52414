"""Executions and runners' words, as a test of a timeline feeds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oet_api.kube.lasting import LastingTimeline
from oet_crds.execution import ScriptExecution, parse_execution
from oet_crds.ports import RunnerEntry
from oet_crds.states import State
from oet_crds.topics import EntryKind, Topic

__all__ = ["SECONDS_2026", "Start", "build_execution", "line", "message", "state"]

Start = Callable[..., LastingTimeline]
"""The fixture that starts a timeline on a database."""

SECONDS_2026 = 1_767_225_600.0


def build_execution(
    uid: str, number: int, *states: State, has_runner: bool = False, version: int = 0, **status: Any
) -> ScriptExecution:
    """Return an execution that has reached states, the first of them CREATING."""
    history = [
        {"seq": seq, "state": str(one), "time": f"2026-01-01T00:00:{seq:02}.000000Z"}
        for seq, one in enumerate(states, 1)
    ]
    if has_runner:
        status["runner"] = {"claim": "x"}
    return parse_execution(
        {
            "apiVersion": "oet.skao.int/v1alpha1",
            "kind": "ScriptExecution",
            "metadata": {
                "name": f"procedure-{number}",
                "uid": uid,
                "resourceVersion": str(version or len(states)),
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {"script": {"file": {"path": "a.py"}}},
            "status": {"procedureId": number, "state": str(states[-1]), "history": history, **status},
        }
    )


def message(seq: int, text: str) -> RunnerEntry:
    """Return what a runner says of an announcement."""
    return RunnerEntry(seq, SECONDS_2026 + seq, EntryKind.MESSAGE, Topic.ANNOUNCE, {"msg": text})


def line(seq: int, text: str) -> RunnerEntry:
    """Return what a runner says of a printed line."""
    return RunnerEntry(seq, SECONDS_2026 + seq, EntryKind.LOG, Topic.LOG, {"stream": "stdout", "line": text})


def state(seq: int, reached: State) -> RunnerEntry:
    """Return what a runner says of a state; of a final one, that it was its last word."""
    return RunnerEntry(seq, SECONDS_2026 + seq, EntryKind.STATE, Topic.STATE_CHANGE, {"new_state": str(reached)})
