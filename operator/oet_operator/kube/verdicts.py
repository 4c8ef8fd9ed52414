"""What a Pod, or its absence, means for its execution. Pure.

Two facts carry all verdicts. A runner writes its claim into the execution, in a race that only one can win, before any line of
the script runs: an execution without a claim never ran. And a container's end is told by its node, which knows: a Pod that is
said to have failed by anybody else may still run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from oet_crds.execution import ScriptExecution
from oet_crds.reasons import Reason
from oet_crds.settings import KubernetesSettings
from oet_crds.states import DesiredState, Mode
from oet_operator.core.snapshot import Presence, RunnerObservation
from oet_operator.kube.pod_facts import Container, PodFacts

__all__ = ["NODE_PATIENCE_SECONDS", "Sighting", "compute_patience", "has_claim", "observe_runner"]

NODE_PATIENCE_SECONDS = 30.0
"""How long after the end of its grace period a deleted Pod may still be there: a kubelet that lives needs two seconds."""

_PULL_REASONS = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "SignatureValidationFailed")
_HOPELESS_REASONS = ("InvalidImageName", "ErrImageNeverPull")
_NO_REHEARSALS = (
    "nothing keeps rehearsals away from the telescope in this deployment: where the cluster enforces network policies, set "
    "rehearsal.enabled in the chart's values (without the chart: a policy of your own, and [kubernetes] rehearsals)"
)
_SIGNAL_BASE = 128
"""A container that signal n ended has the exit code 128 + n, as in a shell."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """What is known of an execution's Pod.

    Attributes:
        pod: As last seen; None: it was never seen.
        is_gone: It was deleted since.
        refusal: Why the API server refused to create it; empty: it did not.
        is_refusal_final: Trying again cannot help.
    """

    pod: PodFacts | None = None
    is_gone: bool = False
    refusal: str = ""
    is_refusal_final: bool = False


def compute_patience(deleted: datetime, now: datetime) -> float:
    """Return for how many seconds more the end of a Pod is waited for that was to be gone at `deleted`. Pure."""
    return (deleted + timedelta(seconds=NODE_PATIENCE_SECONDS) - now).total_seconds()


def has_claim(execution: ScriptExecution) -> bool:
    """Tell whether a runner has taken the execution: without a claim no line of its script ever ran."""
    return execution.status.runner is not None and execution.status.runner.claim is not None


def observe_runner(
    execution: ScriptExecution, sighting: Sighting, settings: KubernetesSettings, now: datetime
) -> tuple[RunnerObservation, float | None]:
    """Say what a Pod, or its absence, means. Pure.

    Returns:
        The observation, and after how many seconds it may be another although nothing happens; None: never.
    """
    observation, again = _observe(execution, sighting, settings, now)
    image = sighting.pod.image if sighting.pod else ""
    return (replace(observation, image=image) if image else observation), again


def _observe(
    execution: ScriptExecution, sighting: Sighting, settings: KubernetesSettings, now: datetime
) -> tuple[RunnerObservation, float | None]:
    if sighting.pod is None:
        if execution.spec.mode is Mode.REHEARSAL and not settings.rehearsals and not has_claim(execution):
            return RunnerObservation(Presence.STUCK, Reason.REHEARSAL_UNAVAILABLE, _NO_REHEARSALS), None
        return _observe_unseen(execution, sighting)
    if sighting.is_gone:
        return _observe_vanished(execution, sighting.pod), None
    if sighting.pod.ended is not None or sighting.pod.is_finished:
        return _observe_ended(execution, sighting.pod), None
    if sighting.pod.deleted is not None:
        return _observe_deleted(execution, sighting.pod, now)
    if has_claim(execution):
        return RunnerObservation(Presence.ALIVE), None
    return _observe_pending(sighting.pod, settings, now)


def _observe_unseen(execution: ScriptExecution, sighting: Sighting) -> tuple[RunnerObservation, float | None]:
    if sighting.refusal and not sighting.is_refusal_final:
        return RunnerObservation(Presence.PENDING, Reason.POD_REJECTED, sighting.refusal), None
    if sighting.refusal:
        return RunnerObservation(Presence.STUCK, Reason.POD_REJECTED, sighting.refusal), None
    if execution.status.pod_name is None:
        return RunnerObservation(Presence.NONE), None
    if has_claim(execution):
        message = "its Pod vanished while nobody watched; whether the script still runs is not known"
        return RunnerObservation(Presence.LOST, Reason.POD_LOST, message), None
    wants_stop = execution.spec.desired_state is DesiredState.STOPPED
    return RunnerObservation(Presence.GONE if wants_stop else Presence.NONE), None


def _observe_vanished(execution: ScriptExecution, pod: PodFacts) -> RunnerObservation:
    if not has_claim(execution):
        message = f"Pod {pod.name} was deleted before the script began"
        return RunnerObservation(Presence.STUCK, Reason.POD_DELETED, message)
    if pod.ended is not None:
        return _observe_ended(execution, pod)
    message = (
        f"Pod {pod.name} was removed before its node had confirmed the end of its processes; "
        "whether the script still runs is not known"
    )
    return RunnerObservation(Presence.LOST, Reason.POD_LOST, message)


def _observe_ended(execution: ScriptExecution, pod: PodFacts) -> RunnerObservation:
    if not has_claim(execution):
        return _observe_useless(pod)
    if pod.ended is None:
        # Said to have failed by somebody who is not its node.
        message = f"Pod {pod.name} was given up ({_join(pod.disruption or pod.reason, pod.message)}); its node did not confirm"
        return RunnerObservation(Presence.LOST, Reason.NODE_LOST, message)
    if pod.ended.reason == "OOMKilled":
        message = f"the kernel ended the script's Pod {pod.name}: it needed more memory than its limit allows"
        return RunnerObservation(Presence.GONE, Reason.OUT_OF_MEMORY, message)
    if pod.reason == Reason.EVICTED or pod.disruption:
        message = f"Pod {pod.name} was evicted: {_join(pod.reason or pod.disruption, pod.message)}"
        return RunnerObservation(Presence.GONE, Reason.EVICTED, message)
    message = (
        f"the supervisor in Pod {pod.name} {_describe_exit(pod.ended)} without a report; nothing of the script is left"
    )
    return RunnerObservation(Presence.GONE, Reason.RUNNER_LOST, message)


def _observe_useless(pod: PodFacts) -> RunnerObservation:
    """Say why a Pod ended before its runner had taken the execution."""
    if pod.reason == Reason.EVICTED or pod.disruption:
        message = (
            f"Pod {pod.name} was evicted before the script began: {_join(pod.reason or pod.disruption, pod.message)}"
        )
        return RunnerObservation(Presence.STUCK, Reason.EVICTED, message)
    if pod.ended is None:
        message = f"Pod {pod.name} failed before the script began: {_join(pod.reason, pod.message)}"
        return RunnerObservation(Presence.STUCK, Reason.POD_START_FAILED, message)
    message = (
        f"the runner in Pod {pod.name} {_describe_exit(pod.ended)} before the script began; "
        f"`kubectl logs {pod.name}` may say more"
    )
    return RunnerObservation(Presence.STUCK, Reason.POD_START_FAILED, message)


def _observe_deleted(
    execution: ScriptExecution, pod: PodFacts, now: datetime
) -> tuple[RunnerObservation, float | None]:
    """A Pod that is being deleted: by a person, by a drained node, by OET itself."""
    assert pod.deleted is not None
    left = compute_patience(pod.deleted, now)
    presence = Presence.ALIVE if has_claim(execution) else Presence.PENDING
    if left <= 0:
        message = f"Pod {pod.name} was deleted and its node does not confirm its end: is the node up?"
        presence = Presence.LOST if has_claim(execution) else Presence.STUCK
        return RunnerObservation(presence, Reason.NODE_LOST, message), None
    if pod.disruption:
        message = f"Pod {pod.name} was evicted ({pod.disruption}), and the script was stopped"
        return RunnerObservation(presence, Reason.EVICTED, message), left
    message = f"Pod {pod.name} was deleted, and the script was stopped"
    return RunnerObservation(presence, Reason.POD_DELETED, message), left


def _observe_pending(
    pod: PodFacts, settings: KubernetesSettings, now: datetime
) -> tuple[RunnerObservation, float | None]:
    """A Pod in which the runner has not begun yet: it may be on its way, or never come."""
    reason, message, limit = _describe_wait(pod, settings)
    left = limit - (now - pod.created).total_seconds()
    if left <= 0:
        message = f"{message or 'its container was not started: is an image still being pulled, or a volume missing?'}"
        message += f" ({f'after {limit:g} s; ' if limit else ''}`kubectl describe pod {pod.name}` says more)"
        return RunnerObservation(Presence.STUCK, reason or Reason.POD_START_FAILED, message), None
    return RunnerObservation(Presence.PENDING, reason, message), left


def _describe_wait(pod: PodFacts, settings: KubernetesSettings) -> tuple[Reason | None, str, float]:
    """Return why a Pod does not run, in a word and in words, and how many seconds it may."""
    if pod.unschedulable and not pod.node:
        return Reason.UNSCHEDULABLE, f"no node takes the Pod: {pod.unschedulable}", settings.pod_start_timeout_seconds
    if pod.waiting is None:
        return None, "", settings.pod_start_timeout_seconds
    text = _join(pod.waiting.reason, pod.waiting.message)
    if pod.waiting.reason in _HOPELESS_REASONS:
        return Reason.IMAGE_PULL_FAILED, f"the image cannot be used: {text}", 0.0
    if pod.waiting.reason in _PULL_REASONS:
        return Reason.IMAGE_PULL_FAILED, f"the image cannot be pulled: {text}", settings.image_pull_timeout_seconds
    return Reason.POD_START_FAILED, f"the container cannot be started: {text}", settings.image_pull_timeout_seconds


def _describe_exit(ended: Container) -> str:
    code = ended.exit_code or 0
    how = f"was killed by signal {code - _SIGNAL_BASE}" if code > _SIGNAL_BASE else f"ended with exit code {code}"
    detail = _join("" if ended.reason in ("Error", Reason.COMPLETED) else ended.reason, ended.message)
    return f"{how} ({detail})" if detail else how


def _join(reason: str, message: str) -> str:
    return f"{reason}: {message}" if reason and message else reason or message
