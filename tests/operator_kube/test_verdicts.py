"""What a Pod, or its absence, means: each case as Kubernetes shows it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from oet_crds.execution import (
    InlineScript,
    Metadata,
    RunnerExit,
    RunnerStatus,
    ScriptExecution,
    ScriptExecutionSpec,
    ScriptExecutionStatus,
    ScriptSource,
)
from oet_crds.names import EXECUTION_UID_LABEL, SCRIPT_CONTAINER
from oet_crds.reasons import Outcome, Reason
from oet_crds.settings import KubernetesSettings
from oet_crds.states import DesiredState, Mode
from oet_operator.core.snapshot import Presence, RunnerObservation
from oet_operator.kube.pod_facts import parse_pod
from oet_operator.kube.verdicts import (
    LINGER_SECONDS,
    NODE_PATIENCE_SECONDS,
    WORD_SECONDS,
    Sighting,
    compute_linger,
    observe_runner,
)

NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
SETTINGS = KubernetesSettings()


def _execution(*, claimed: bool, pod_name: str | None = "p", stop: bool = False) -> ScriptExecution:
    return ScriptExecution(
        metadata=Metadata(name="e", uid="u", creation_timestamp=NOW),
        spec=ScriptExecutionSpec(
            script=ScriptSource(inline=InlineScript(source="def main(): pass")),
            desired_state=DesiredState.STOPPED if stop else DesiredState.RUNNING,
        ),
        status=ScriptExecutionStatus(pod_name=pod_name, runner=RunnerStatus(claim="me") if claimed else None),
    )


def _stamp(age_seconds: float) -> str:
    return (NOW - timedelta(seconds=age_seconds)).isoformat()


def _pod(
    *, age_seconds: float = 5.0, deleted_ago: float | None = None, grace: int | None = None, **status: Any
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "p", "uid": "pu", "resourceVersion": "7", "labels": {EXECUTION_UID_LABEL: "u"}}
    metadata["creationTimestamp"] = _stamp(age_seconds)
    if deleted_ago is not None:
        metadata["deletionTimestamp"] = _stamp(deleted_ago)
        metadata["deletionGracePeriodSeconds"] = grace
    return {"metadata": metadata, "spec": {"nodeName": status.pop("node", "n")}, "status": status}


def _container(kind: str, **detail: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": SCRIPT_CONTAINER, "state": {kind: detail}}]}


def _observe(pod: dict[str, Any] | None, *, claimed: bool, **sighting: Any) -> tuple[RunnerObservation, float | None]:
    facts = None if pod is None else parse_pod(pod)
    return observe_runner(_execution(claimed=claimed), Sighting(facts, **sighting), SETTINGS, NOW)


@pytest.mark.parametrize(
    ("pod", "claimed", "presence", "reason", "words"),
    [
        pytest.param(_pod(**_container("running")), True, Presence.ALIVE, None, "", id="runs"),
        pytest.param(_pod(**_container("running")), False, Presence.PENDING, None, "", id="runner_begins"),
        pytest.param(
            _pod(phase="Failed", **_container("terminated", reason="OOMKilled", exitCode=137)),
            True,
            Presence.GONE,
            Reason.OUT_OF_MEMORY,
            "more memory than its limit",
            id="out_of_memory",
        ),
        pytest.param(
            _pod(phase="Failed", **_container("terminated", reason="Error", exitCode=137)),
            True,
            Presence.GONE,
            Reason.RUNNER_LOST,
            "was killed by signal 9",
            id="supervisor_killed",
        ),
        pytest.param(
            _pod(phase="Failed", **_container("terminated", reason="Error", exitCode=2)),
            False,
            Presence.GONE,
            Reason.POD_START_FAILED,
            "exit code 2 before the script began",
            id="runner_does_not_start",
        ),
        pytest.param(
            _pod(phase="Failed", reason="Evicted", message="disk", **_container("terminated", exitCode=143)),
            True,
            Presence.GONE,
            Reason.EVICTED,
            "Evicted: disk",
            id="evicted",
        ),
        pytest.param(
            _pod(phase="Failed", reason="Evicted", message="disk"),
            False,
            Presence.GONE,
            Reason.EVICTED,
            "before the script began",
            id="evicted_before_it_began",
        ),
        pytest.param(
            _pod(
                phase="Failed", conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"}]
            ),
            True,
            Presence.LOST,
            Reason.NODE_LOST,
            "DeletionByPodGC",
            id="given_up_by_somebody_else",
        ),
        pytest.param(
            _pod(phase="Failed", reason="UnexpectedAdmissionError", message="no"),
            False,
            Presence.GONE,
            Reason.POD_START_FAILED,
            "UnexpectedAdmissionError: no",
            id="refused_by_the_node",
        ),
        pytest.param(
            _pod(
                phase="Failed",
                initContainerStatuses=[{"name": "i", "state": {"terminated": {"exitCode": 1, "message": "no cp"}}}],
            ),
            False,
            Presence.GONE,
            Reason.POD_START_FAILED,
            "no cp",
            id="init_container_failed",
        ),
        pytest.param(
            _pod(deleted_ago=-5.0), True, Presence.ALIVE, Reason.POD_DELETED, "was deleted", id="deleted_by_hand"
        ),
        pytest.param(
            _pod(
                deleted_ago=-5.0,
                conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}],
            ),
            True,
            Presence.ALIVE,
            Reason.EVICTED,
            "EvictionByEvictionAPI",
            id="drained",
        ),
        pytest.param(
            _pod(
                deleted_ago=-5.0,
                conditions=[
                    {
                        "type": "DisruptionTarget",
                        "status": "True",
                        "reason": "PreemptionByScheduler",
                        "message": "more important",
                    }
                ],
            ),
            True,
            Presence.ALIVE,
            Reason.EVICTED,
            "PreemptionByScheduler: more important",
            id="preempted",
        ),
        pytest.param(
            _pod(
                phase="Failed",
                reason="Terminated",
                message="imminent node shutdown",
                conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}],
                **_container("terminated", exitCode=143),
            ),
            True,
            Presence.GONE,
            Reason.EVICTED,
            "Terminated: imminent node shutdown",
            id="node_shut_down",
        ),
        pytest.param(
            _pod(phase="Failed", reason="DeadlineExceeded", message="longer", **_container("terminated", exitCode=143)),
            True,
            Presence.GONE,
            Reason.DEADLINE_EXCEEDED,
            "podTemplate: longer",
            id="pods_own_deadline",
        ),
        pytest.param(
            _pod(phase="Failed", reason="DeadlineExceeded", message="longer"),
            False,
            Presence.GONE,
            Reason.DEADLINE_EXCEEDED,
            "before the script began: longer",
            id="pods_own_deadline_before_it_began",
        ),
        pytest.param(
            _pod(deleted_ago=1.0, grace=1, **_container("terminated", reason="Error", exitCode=137)),
            True,
            Presence.GONE,
            Reason.POD_DELETED,
            "was killed by signal 9 before it had reported (of the Pod's 15 s the deletion gave it 1 s)",
            id="deleted_with_too_little_grace",
        ),
        pytest.param(
            _pod(deleted_ago=1.0, grace=15, **_container("terminated", reason="Error", exitCode=137)),
            True,
            Presence.GONE,
            Reason.POD_DELETED,
            "before it had reported; nothing",
            id="deleted_and_killed",
        ),
        pytest.param(
            _pod(deleted_ago=NODE_PATIENCE_SECONDS + 1),
            True,
            Presence.LOST,
            Reason.NODE_LOST,
            "node up",
            id="node_lost",
        ),
        pytest.param(
            _pod(deleted_ago=NODE_PATIENCE_SECONDS + 1),
            False,
            Presence.STUCK,
            Reason.NODE_LOST,
            "node up",
            id="node_lost_before_it_began",
        ),
        pytest.param(
            _pod(
                node="",
                conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1"}],
            ),
            False,
            Presence.PENDING,
            Reason.UNSCHEDULABLE,
            "0/1",
            id="unschedulable",
        ),
        pytest.param(
            _pod(
                age_seconds=SETTINGS.pod_start_timeout_seconds,
                node="",
                conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1"}],
            ),
            False,
            Presence.STUCK,
            Reason.UNSCHEDULABLE,
            "after 300 s",
            id="unschedulable_for_too_long",
        ),
        pytest.param(
            _pod(**_container("waiting", reason="ImagePullBackOff", message="not found")),
            False,
            Presence.PENDING,
            Reason.IMAGE_PULL_FAILED,
            "not found",
            id="image_is_tried_again",
        ),
        pytest.param(
            _pod(
                age_seconds=SETTINGS.image_pull_timeout_seconds,
                **_container("waiting", reason="ErrImagePull", message="not found"),
            ),
            False,
            Presence.STUCK,
            Reason.IMAGE_PULL_FAILED,
            "not found",
            id="image_cannot_be_pulled",
        ),
        pytest.param(
            _pod(**_container("waiting", reason="InvalidImageName", message="a b")),
            False,
            Presence.STUCK,
            Reason.IMAGE_PULL_FAILED,
            "a b",
            id="image_name_is_nonsense",
        ),
        pytest.param(
            _pod(**_container("waiting", reason="CreateContainerConfigError", message="no secret")),
            False,
            Presence.PENDING,
            Reason.POD_START_FAILED,
            "no secret",
            id="container_cannot_be_made_yet",
        ),
        pytest.param(
            _pod(age_seconds=301.0, **_container("waiting", reason="ContainerCreating")),
            False,
            Presence.STUCK,
            Reason.POD_START_FAILED,
            "volume missing",
            id="volume_never_comes",
        ),
    ],
)
def test_pod_as_kubernetes_shows_it_has_one_meaning(
    pod: dict[str, Any], claimed: bool, presence: Presence, reason: Reason | None, words: str
) -> None:
    observation, _ = _observe(pod, claimed=claimed)
    assert (observation.presence, observation.reason) == (presence, reason)
    assert words in observation.message


@pytest.mark.parametrize(
    ("pod", "claimed", "presence"),
    [
        pytest.param(
            _pod(phase="Failed", **_container("terminated", exitCode=143)), True, Presence.GONE, id="node_confirmed"
        ),
        pytest.param(_pod(**_container("running")), True, Presence.LOST, id="forced"),
        pytest.param(_pod(**_container("running")), False, Presence.STUCK, id="before_it_began"),
    ],
)
def test_pod_that_vanished_is_known_to_be_gone_only_if_its_node_said_so(
    pod: dict[str, Any], claimed: bool, presence: Presence
) -> None:
    observation, again = _observe(pod, claimed=claimed, is_gone=True)
    assert (observation.presence, again) == (presence, None)


@pytest.mark.parametrize(
    ("execution", "sighting", "presence"),
    [
        pytest.param(_execution(claimed=False, pod_name=None), Sighting(), Presence.NONE, id="new"),
        pytest.param(_execution(claimed=False), Sighting(), Presence.NONE, id="crash_before_the_pod"),
        pytest.param(_execution(claimed=False, stop=True), Sighting(), Presence.GONE, id="stopped_before_the_pod"),
        pytest.param(_execution(claimed=True), Sighting(), Presence.LOST, id="vanished_unseen"),
        pytest.param(_execution(claimed=False), Sighting(refusal="quota"), Presence.REFUSED, id="refused_for_now"),
        pytest.param(
            _execution(claimed=False), Sighting(refusal="422", is_refusal_final=True), Presence.STUCK, id="refused"
        ),
    ],
)
def test_execution_without_a_pod_is_judged_by_its_claim(
    execution: ScriptExecution, sighting: Sighting, presence: Presence
) -> None:
    observation, _ = observe_runner(execution, sighting, SETTINGS, NOW)
    assert observation.presence is presence


def test_pending_pod_is_looked_at_again_when_its_time_is_over() -> None:
    _, again = _observe(_pod(age_seconds=100.0, **_container("waiting", reason="ContainerCreating")), claimed=False)
    assert again == SETTINGS.pod_start_timeout_seconds - 100.0


@pytest.mark.parametrize(
    "pod", [{}, {"metadata": [], "status": "x"}, {"status": {"conditions": [1], "containerStatuses": {}}}]
)
def test_pod_of_nonsense_gives_facts_without_an_error(pod: dict[str, Any]) -> None:
    assert parse_pod(pod).ended is None


@pytest.mark.parametrize(
    ("claimed", "allowed", "expected"),
    [
        pytest.param(False, False, (Presence.STUCK, Reason.REHEARSAL_UNAVAILABLE), id="it is not begun"),
        pytest.param(False, True, (Presence.NONE, None), id="it is begun where policies are enforced"),
        pytest.param(True, False, (Presence.LOST, Reason.POD_LOST), id="one that ran is not said to have never begun"),
    ],
)
def test_rehearsal_is_begun_only_where_something_keeps_it_from_the_telescope(
    claimed: bool, allowed: bool, expected: tuple[Presence, Reason | None]
) -> None:
    execution = _execution(claimed=claimed)
    execution = execution.model_copy(update={"spec": execution.spec.model_copy(update={"mode": Mode.REHEARSAL})})
    seen, _ = observe_runner(execution, Sighting(), KubernetesSettings(rehearsals=allowed), NOW)
    assert (seen.presence, seen.reason) == expected


# ---- containers that others put beside the script ----------------------------------------------------------------------


def _beside(kind: str, name: str = "beside", **detail: Any) -> dict[str, Any]:
    return {"name": name, "state": {kind: detail}}


SCRIPT_RUNS = {"name": SCRIPT_CONTAINER, "state": {"running": {}}}
SCRIPT_WAITS = {"name": SCRIPT_CONTAINER, "state": {"waiting": {"reason": "PodInitializing"}}}


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize(
    "beside",
    [
        _beside("terminated", reason="OOMKilled", exitCode=137),
        _beside("terminated", reason="Error", exitCode=1),
        _beside("waiting", reason="InvalidImageName"),
        _beside("waiting", reason="CrashLoopBackOff"),
        _beside("running"),
    ],
    ids=["out of memory", "crashed", "no image", "crash loop", "runs"],
)
@pytest.mark.parametrize("claimed", [True, False])
def test_container_beside_the_script_says_nothing_of_the_script(
    beside: dict[str, Any], is_first: bool, claimed: bool
) -> None:
    containers = [beside, SCRIPT_RUNS] if is_first else [SCRIPT_RUNS, beside]
    observation, _ = _observe(_pod(phase="Running", containerStatuses=containers), claimed=claimed)
    assert observation == RunnerObservation(Presence.ALIVE if claimed else Presence.PENDING)


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "last"])
def test_pod_goes_on_without_its_script_and_is_over_when_all_in_it_is(is_first: bool) -> None:
    ended = {"name": SCRIPT_CONTAINER, "state": {"terminated": {"exitCode": 0, "finishedAt": _stamp(2.0)}}}
    containers = [_beside("running"), ended] if is_first else [ended, _beside("running")]
    pod = _pod(phase="Running", containerStatuses=containers)
    execution = _reporting(Outcome.COMPLETE, 2.0)
    observation, _ = observe_runner(execution, Sighting(parse_pod(pod)), SETTINGS, NOW)
    assert (observation.presence, observation.is_lingering) == (Presence.GONE, True)
    assert compute_linger(parse_pod(pod), NOW) == LINGER_SECONDS - 2.0
    pod = _pod(phase="Succeeded", containerStatuses=containers)
    observation, _ = observe_runner(execution, Sighting(parse_pod(pod)), SETTINGS, NOW)
    assert (observation.presence, observation.is_lingering) == (Presence.GONE, False)


def test_pod_whose_node_does_not_say_when_the_script_ended_need_not_be_waited_for() -> None:
    assert compute_linger(parse_pod(_pod(**_container("terminated", exitCode=0))), NOW) == 0.0


@pytest.mark.parametrize(
    ("script", "presence"),
    [
        pytest.param(SCRIPT_RUNS, Presence.LOST, id="the node did not confirm the end of the script"),
        pytest.param(SCRIPT_WAITS, Presence.LOST, id="nor that of the sidecar's Pod"),
    ],
)
def test_native_sidecar_that_ended_is_not_the_end_of_the_script(script: dict[str, Any], presence: Presence) -> None:
    ended = _beside("terminated", exitCode=137)
    pod = _pod(phase="Failed", reason="NodeLost", containerStatuses=[script], initContainerStatuses=[ended])
    pod["spec"]["initContainers"] = [{"name": "beside", "restartPolicy": "Always"}]
    assert parse_pod(pod).ended is None
    assert _observe(pod, claimed=True)[0].presence is presence


def test_native_sidecar_that_does_not_come_up_is_what_the_script_waits_for() -> None:
    waiting = _beside("waiting", reason="CrashLoopBackOff", message="back-off")
    observation, _ = _observe(_pod(containerStatuses=[SCRIPT_WAITS], initContainerStatuses=[waiting]), claimed=False)
    assert (observation.presence, observation.reason) == (Presence.PENDING, Reason.POD_START_FAILED)


# ---- an end that its runner cannot explain -----------------------------------------------------------------------------


def _reporting(outcome: Outcome, seconds_ago: float, reason: Reason = Reason.STOP_REQUESTED, **fields: Any) -> Any:
    end = RunnerExit(outcome=outcome, reason=reason, message="m", time=NOW - timedelta(seconds=seconds_ago))
    execution = _execution(claimed=True, **fields)
    runner = RunnerStatus(claim="me", exit=end)
    return execution.model_copy(update={"status": execution.status.model_copy(update={"runner": runner})})


@pytest.mark.parametrize(
    ("execution", "is_awaited"),
    [
        pytest.param(_reporting(Outcome.STOPPED, 1.0), True, id="a signal"),
        pytest.param(_reporting(Outcome.STOPPED, 15.0 + WORD_SECONDS), False, id="a signal long ago"),
        pytest.param(_reporting(Outcome.STOPPED, 1.0, stop=True), False, id="a user's stop"),
        pytest.param(_reporting(Outcome.STOPPED, 1.0, Reason.ENGINE_SHUTDOWN), False, id="a shutdown"),
        pytest.param(_reporting(Outcome.FAILED, 1.0), False, id="a failure"),
        pytest.param(_execution(claimed=True), False, id="no end"),
    ],
)
def test_node_is_given_time_to_say_why_it_stopped_a_script(execution: ScriptExecution, is_awaited: bool) -> None:
    facts = parse_pod(_pod(**_container("running")))
    observation, again = observe_runner(execution, Sighting(facts), SETTINGS, NOW)
    assert (observation.presence, observation.awaits_word) == (Presence.ALIVE, is_awaited)
    assert again == (14.0 + WORD_SECONDS if is_awaited else None)


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        pytest.param(_pod(**_container("terminated", exitCode=0)), None, "", id="nobody explains it"),
        pytest.param(
            _pod(**_container("terminated", reason="OOMKilled", exitCode=0)), None, "", id="a child ran out of memory"
        ),
        pytest.param(
            _pod(phase="Failed", reason="Evicted", message="disk", **_container("terminated", exitCode=0)),
            Reason.EVICTED,
            "disk",
            id="evicted",
        ),
        pytest.param(
            _pod(deleted_ago=1.0, grace=15, **_container("terminated", exitCode=0)),
            Reason.POD_DELETED,
            "the script was stopped",
            id="deleted",
        ),
    ],
)
def test_signal_is_explained_by_the_end_of_its_pod(pod: dict[str, Any], reason: Reason | None, words: str) -> None:
    execution = _reporting(Outcome.STOPPED, 1.0)
    observation, _ = observe_runner(execution, Sighting(parse_pod(pod)), SETTINGS, NOW)
    assert (observation.presence, observation.reason, observation.awaits_word) == (Presence.GONE, reason, False)
    assert words in observation.message


@pytest.mark.parametrize("report", [_reporting(Outcome.STOPPED, 1.0), _execution(claimed=True)], ids=["signal", "none"])
def test_node_that_told_the_end_of_the_script_is_given_time_to_tell_why(report: ScriptExecution) -> None:
    def observe(seconds_ago: float, **status: Any) -> tuple[RunnerObservation, float | None]:
        ended = _container("terminated", reason="Error", exitCode=137, finishedAt=_stamp(seconds_ago))
        return observe_runner(report, Sighting(parse_pod(_pod(**ended, **status))), SETTINGS, NOW)

    observation, again = observe(1.0, phase="Running")
    assert (observation.presence, observation.awaits_word, again) == (Presence.GONE, True, WORD_SECONDS - 1.0)
    assert not observe(WORD_SECONDS, phase="Running")[0].awaits_word
    assert observe(1.0, phase="Failed", reason="Evicted")[0].reason is Reason.EVICTED
    assert not observe(1.0, phase="Failed")[0].awaits_word
