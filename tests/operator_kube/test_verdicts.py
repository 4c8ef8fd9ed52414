"""What a Pod, or its absence, means: each case as Kubernetes shows it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from oet_crds.execution import (
    InlineScript,
    Metadata,
    RunnerStatus,
    ScriptExecution,
    ScriptExecutionSpec,
    ScriptExecutionStatus,
    ScriptSource,
)
from oet_crds.names import EXECUTION_UID_LABEL, SCRIPT_CONTAINER
from oet_crds.reasons import Reason
from oet_crds.settings import KubernetesSettings
from oet_crds.states import DesiredState, Mode
from oet_operator.core.snapshot import Presence, RunnerObservation
from oet_operator.kube.pod_facts import parse_pod
from oet_operator.kube.verdicts import NODE_PATIENCE_SECONDS, Sighting, observe_runner

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


def _pod(*, age_seconds: float = 5.0, deleted_ago: float | None = None, **status: Any) -> dict[str, Any]:
    metadata = {"name": "p", "uid": "pu", "resourceVersion": "7", "labels": {EXECUTION_UID_LABEL: "u"}}
    metadata["creationTimestamp"] = _stamp(age_seconds)
    if deleted_ago is not None:
        metadata["deletionTimestamp"] = _stamp(deleted_ago)
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
            Presence.STUCK,
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
            Presence.STUCK,
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
            Presence.STUCK,
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
            Presence.STUCK,
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
        pytest.param(_execution(claimed=False), Sighting(refusal="quota"), Presence.PENDING, id="refused_for_now"),
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
