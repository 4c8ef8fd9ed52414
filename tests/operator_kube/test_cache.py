"""What the operator remembers: whoever may still run holds its subarray, and what is over costs little."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from oet_crds.execution import (
    AbortStatus,
    Condition,
    Grant,
    HistoryEntry,
    InlineScript,
    Metadata,
    ScriptExecution,
    ScriptExecutionSpec,
    ScriptExecutionStatus,
    ScriptSource,
)
from oet_crds.names import EXECUTION_UID_LABEL, NO_SUBARRAY, PROCEDURE_LABEL, SCRIPT_CONTAINER, SUBARRAY_LABEL
from oet_crds.reasons import Reason
from oet_crds.states import DesiredState, State
from oet_operator.kube.cache import Cache
from oet_operator.kube.sizes import MAX_OBJECT_BYTES

NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)


def _wire(uid: str = "u1", version: int = 1, subarray: int | None = 1, **status: Any) -> dict[str, Any]:
    number = int(uid[1:])
    state = status.get("state", State.RUNNING)
    status = {"procedure_id": number, "state": state, **status}
    status.setdefault("history", [HistoryEntry(seq=1, state=State.CREATING, time=NOW)])
    return ScriptExecution(
        metadata=Metadata(name=f"e-{uid}", uid=uid, resource_version=str(version), creation_timestamp=NOW),
        spec=ScriptExecutionSpec(
            script=ScriptSource(inline=InlineScript(source="def main(): pass")), subarray=subarray
        ),
        status=ScriptExecutionStatus(**status),
    ).to_wire()


def _pod(uid: str = "u1", version: int = 1, status: dict[str, Any] | None = None, **labels: str) -> dict[str, Any]:
    labels = {EXECUTION_UID_LABEL: uid, PROCEDURE_LABEL: uid[1:], **labels}
    metadata = {"name": f"p-{uid}", "uid": f"pod-{uid}", "resourceVersion": str(version), "labels": labels}
    return {"metadata": metadata, "status": status or {"phase": "Running"}}


ENDED = {
    "phase": "Failed",
    "containerStatuses": [{"name": SCRIPT_CONTAINER, "state": {"terminated": {"exitCode": 137}}}],
}
LINGERING = {**ENDED, "phase": "Running"}
"""The script has ended, and what others put beside it goes on."""
GRANT = Grant(time=NOW, subarray=1)


def test_deleted_execution_holds_its_subarray_until_its_pod_has_ended() -> None:
    cache = Cache()
    cache.put_execution(_wire(grant=GRANT))
    cache.put_pod(_pod())
    cache.drop_execution("u1")
    holder = cache.build_locks(1).find_holder(1, "u2")
    assert holder is not None
    assert holder.procedure_id == 1
    assert cache.build_locks(2).find_holder(2, "u2") is None
    assert cache.put_pod(_pod(version=2, status=ENDED)) == "u1"
    cache.forget_leftover("u1")
    assert cache.build_locks(1).find_holder(1, "u2") is None


@pytest.mark.parametrize(
    ("status", "pod"),
    [
        ({"grant": None}, _pod()),
        ({"grant": GRANT, "state": State.STOPPED}, _pod()),
        ({"grant": GRANT}, _pod(status=ENDED)),
        ({"grant": GRANT}, None),
    ],
    ids=["never granted", "finished", "Pod ended", "no Pod"],
)
def test_deleted_execution_that_runs_nothing_holds_nothing(status: dict[str, Any], pod: Any) -> None:
    cache = Cache()
    cache.put_execution(_wire(**status))
    if pod:
        cache.put_pod(pod)
    cache.drop_execution("u1")
    assert cache.build_locks(1).find_holder(1, "u2") is None


@pytest.mark.parametrize(
    ("labels", "held"),
    [({SUBARRAY_LABEL: "1"}, (1,)), ({SUBARRAY_LABEL: NO_SUBARRAY}, ()), ({}, (1, 2)), ({SUBARRAY_LABEL: "x"}, (1, 2))],
    ids=["named", "none", "not known", "nonsense"],
)
def test_pod_without_its_execution_holds_what_it_may_use(labels: dict[str, str], held: tuple[int, ...]) -> None:
    cache = Cache()
    assert cache.put_pod(_pod(**labels)) == "u1"
    assert tuple(subarray for subarray in (1, 2) if cache.build_locks(subarray).find_holder(subarray, "u2")) == held
    cache.put_execution(_wire())
    assert not cache.leftovers


@pytest.mark.parametrize(
    ("labels", "words"), [({SUBARRAY_LABEL: "1"}, "on subarray 1"), ({}, "is not known: subarray 1")]
)
def test_holder_without_its_execution_is_told_as_what_it_is(labels: dict[str, str], words: str) -> None:
    cache = Cache()
    cache.put_pod(_pod(**labels))
    holder = cache.build_locks(1).find_holder(1, "u2")
    assert holder is not None
    assert words in holder.describe(1)
    assert "PID #1 was deleted, and its Pod may still run" in holder.describe(1)
    assert "RUNNING" not in holder.describe(1)


@pytest.mark.parametrize("is_gone", [True, False])
def test_pod_that_is_over_without_its_execution_holds_nothing(is_gone: bool) -> None:
    cache = Cache()
    assert cache.put_pod(_pod(status={"phase": "Running"} if is_gone else ENDED), is_gone=is_gone) is None
    assert cache.leftovers == {}
    assert set(cache.list_pods().values()) == (set() if is_gone else {"u1"})
    cache.mark_pod_gone("u1")
    assert cache.list_pods() == {}
    assert cache.get_sighting("u1").pod is None


def test_end_of_a_pod_that_is_listed_before_its_execution_is_known_with_it() -> None:
    cache = Cache()
    cache.put_pod(_pod(status=ENDED))
    assert cache.put_execution(_wire()) == "u1"
    assert cache.get_sighting("u1").pod is not None
    cache.put_execution(_wire(version=2, state=State.COMPLETE))
    assert cache.get_sighting("u1").pod is None


def test_older_news_of_an_execution_or_a_pod_are_none() -> None:
    cache = Cache()
    assert cache.put_execution(_wire(version=10)) == "u1"
    assert cache.put_execution(_wire(version=9)) is None
    assert cache.put_pod(_pod(version=10)) == "u1"
    assert cache.put_pod(_pod(version=9)) is None
    assert cache.put_pod(_pod(version=11), is_gone=True) == "u1"
    assert cache.put_pod(_pod(version=12)) is None


def test_execution_that_cannot_be_understood_is_left_alone() -> None:
    cache = Cache()
    wire = _wire()
    wire["spec"]["desiredState"] = "Hovering"
    assert cache.put_execution(wire) is None
    assert not cache.executions


@pytest.mark.parametrize(
    ("spec", "pod", "is_kept"),
    [
        ({}, None, False),
        ({}, ENDED, False),
        ({}, {"phase": "Running"}, True),
        ({"ttlSecondsAfterFinished": 5}, None, True),
        ({"desiredState": "Stopped", "stop": {"abort": True}}, None, True),
    ],
    ids=["nothing to do", "Pod ended", "Pod runs", "time to live", "abort due"],
)
def test_execution_that_is_over_is_kept_while_something_is_to_be_done(spec: Any, pod: Any, is_kept: bool) -> None:
    cache = Cache()
    if pod:
        cache.put_pod(_pod(status=pod))
    wire = _wire(state=State.STOPPED, grant=GRANT)
    wire["spec"] |= spec
    assert cache.put_execution(wire) == ("u1" if is_kept else None)
    assert (set(cache.executions), set(cache.settled)) == (({"u1"}, set()) if is_kept else (set(), {"u1"}))
    assert cache.put_execution(wire) is None
    cache.settle("u1")
    assert cache.list_uids() == {"u1"}
    cache.drop_execution("u1")
    assert cache.list_uids() == set()


def test_pod_that_runs_although_its_execution_is_over_is_news() -> None:
    cache = Cache()
    cache.put_execution(_wire(state=State.COMPLETE))
    assert cache.put_pod(_pod(status=ENDED)) is None
    assert cache.put_pod(_pod(version=2)) == "u1"
    assert not cache.leftovers


def test_history_beyond_the_limit_is_the_oldest_of_what_is_over() -> None:
    cache = Cache()
    for number in (5, 3, 9, 1):
        cache.put_execution(_wire(f"u{number}", state=State.COMPLETE))
    cache.put_execution(_wire("u2"))
    assert [one.procedure_id for one in cache.list_excess(2)] == [1, 3]
    assert cache.list_excess(4) == []
    cache.drop_execution("u1")
    assert [one.procedure_id for one in cache.list_excess(2)] == [3]


def test_lock_table_follows_an_execution_whose_start_names_the_subarray() -> None:
    cache = Cache()
    cache.put_execution(_wire(subarray=None, state=State.READY, version=1))
    assert cache.list_sharing() == []
    started = _wire(subarray=None, state=State.READY, version=2)
    started["spec"] |= {"desiredState": DesiredState.RUNNING, "args": {"main": {"kwargs": {"subarray_id": 4}}}}
    cache.put_execution(started)
    assert cache.build_locks(4).is_first(4, "u1")
    assert not cache.build_locks(4).is_first(4, "u9")
    cache.put_execution(_wire(subarray=None, state=State.COMPLETE, version=3))
    assert cache.list_sharing() == []


def _wire_abort(uid: str, version: int, **fields: Any) -> dict[str, Any]:
    wire = _wire(uid, version, **fields.pop("status", {}))
    wire["spec"] |= {"purpose": "Abort", "desiredState": "Ready", **fields}
    return wire


def test_execution_that_aborts_is_found_by_whom_it_aborts_for_also_when_it_is_over() -> None:
    cache = Cache()
    cache.put_execution(_wire_abort("u2", 2, abortOf="u1", status={"state": State.COMPLETE}))
    assert cache.serving["u1"].uid == "u2"
    assert "u2" in cache.settled
    cache.drop_execution("u2")
    assert cache.serving == {}


def test_abort_script_that_is_held_is_known_for_its_subarray_also_when_it_failed_and_holds_nothing() -> None:
    cache = Cache()
    standing = GRANT.model_copy(update={"standing": True})
    cache.put_execution(_wire_abort("u2", 2, status={"state": State.READY, "grant": standing}))
    assert cache.build_locks(1).find_holder(1, "u9") is None
    cache.put_execution(_wire_abort("u2", 3, status={"state": State.FAILED, "grant": standing}))
    assert [one.uid for one in cache.list_sharing((1,))] == ["u2"]
    assert cache.build_locks(1).find_holder(1, "u9") is None


def test_stopped_execution_is_kept_until_it_is_known_how_its_abort_ended() -> None:
    cache = Cache()
    wire = _wire(state=State.STOPPED, grant=GRANT, abort=AbortStatus(procedure_id=2))
    assert cache.put_execution(wire) == "u1"


# ---- Pods that go on without their script ------------------------------------------------------------------------------


def test_pod_that_goes_on_without_its_script_keeps_its_execution_and_no_subarray() -> None:
    cache = Cache()
    cache.put_pod(_pod(status=LINGERING))
    assert cache.put_execution(_wire(state=State.COMPLETE, grant=GRANT)) == "u1"
    assert (cache.has_pod("u1"), cache.has_rest("u1")) == (False, True)
    cache.drop_execution("u1")
    assert set(cache.leftovers) == {"u1"}
    assert cache.build_locks(1).find_holder(1, "u2") is None
    cache.put_pod(_pod(version=2, status=ENDED))
    assert not cache.has_rest("u1")


def test_pod_that_goes_on_without_script_and_execution_is_news() -> None:
    cache = Cache()
    assert cache.put_pod(_pod(status=LINGERING)) == "u1"
    assert cache.build_locks(1).find_holder(1, "u2") is None


def test_execution_that_is_over_is_taken_up_again_for_a_pod_that_goes_on() -> None:
    cache = Cache()
    cache.put_execution(_wire(state=State.COMPLETE))
    assert cache.put_pod(_pod(status=LINGERING)) == "u1"


# ---- executions that are too large -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [("x" * 100, False), ("x" * MAX_OBJECT_BYTES, True), ("<" * (MAX_OBJECT_BYTES // 6), True)],
    ids=["small", "large", "escaped"],
)
def test_execution_that_leaves_no_room_for_its_status_is_never_begun(text: str, is_refused: bool) -> None:
    cache = Cache()
    wire = _wire(state=State.CREATING)
    wire["spec"]["args"] = {"main": {"args": [text]}}
    cache.put_execution(wire)
    sighting = cache.get_sighting("u1")
    assert (bool(sighting.refusal), sighting.is_refusal_final) == (is_refused, is_refused)
    assert not is_refused or sighting.refusal_reason == Reason.INVALID_SPEC


def test_execution_that_was_set_aside_is_news_when_it_is_changed() -> None:
    cache = Cache()
    cache.put_execution(_wire(version=4))
    cache.set_aside("u1")
    assert (cache.executions, cache.list_uids(), cache.list_sharing()) == ({}, {"u1"}, [])
    assert cache.put_execution(_wire(version=4)) is None
    assert cache.put_execution(_wire(version=5)) == "u1"


def test_abort_that_was_given_up_serves_until_another_one_takes_its_place() -> None:
    cache = Cache()
    given_up = [Condition(type="Stopping", status="True", reason=Reason.ABORT_NOT_BEGUN, last_transition_time=NOW)]
    deaf = Grant(time=NOW, subarray=1, standing=False, abort_of="u1")
    cache.put_execution(_wire("u2", 1, grant=deaf))
    cache.put_execution(_wire("u2", 2, grant=deaf, conditions=given_up))
    assert cache.serving["u1"].metadata.resource_version == "2"
    cache.put_execution(_wire("u3", 3, grant=deaf))
    cache.put_execution(_wire("u2", 4, grant=deaf, conditions=given_up))
    assert cache.serving["u1"].uid == "u3"


# ---- refusals ------------------------------------------------------------------------------------------------------------


def test_refused_pod_is_forgotten_when_it_comes_or_its_execution_goes() -> None:
    cache = Cache()
    for uid in ("u1", "u2", "u3"):
        cache.put_execution(_wire(uid))
        cache.put_refusal(uid, "quota", 100.0)
    cache.put_pod(_pod("u1"))
    cache.drop_execution("u2")
    assert cache.refused == {"u3"}
    cache.put_refusal("u1", "quota", 100.0)
    assert cache.has_pod("u1"), "the answer to an earlier request was lost, and it is there"
    cache.settle("u3")
    assert cache.refused == set()
    cache.put_refusal("u9", "quota", 100.0)
    assert cache.refused == set()


def test_refusals_are_counted_and_the_oldest_are_tried_sooner() -> None:
    cache = Cache()
    for uid in ("u3", "u1", "u2"):
        cache.put_execution(_wire(uid))
        cache.put_refusal(uid, "quota", 100.0)
        cache.put_refusal(uid, "quota", 200.0)
    assert cache.get_sighting("u1").refusals == 2
    assert cache.hasten_refused(2, 50.0) == ["u1", "u2"]
    assert [cache.get_sighting(uid).retry_at for uid in ("u1", "u2", "u3")] == [50.0, 50.0, 200.0]
    cache.put_refusal("u1", "podTemplate is wrong", None)
    assert cache.get_sighting("u1").is_refusal_final


def test_execution_whose_runner_reported_nonsense_is_looked_at_without_that() -> None:
    cache = Cache()
    wire = _wire(grant=GRANT)
    wire["status"]["runner"] = {"claim": "x", "exit": {"outcome": "Complete", "time": "2026-01-01T00:00:00+99:99"}}
    assert cache.put_execution(wire) == "u1"
    runner = cache.executions["u1"].status.runner
    assert runner is not None
    assert (runner.claim, runner.exit) == ("x", None)
    assert cache.build_locks(1).find_holder(1, "u2") is not None


def test_execution_that_is_set_aside_while_its_pod_is_refused_is_not_hastened() -> None:
    cache = Cache()
    cache.put_execution(_wire(state=State.CREATING, pod_name="p-u1"))
    cache.put_refusal("u1", "exceeded quota", 0.0)
    assert cache.refused == {"u1"}
    cache.set_aside("u1")
    assert not cache.refused
