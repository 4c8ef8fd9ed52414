"""What a Pod, or its absence, means for its execution. Pure.

Two facts carry all verdicts. A runner writes its claim into the execution, in a race that only one can win, before any line of
the script runs: an execution without a claim never ran. And a container's end is told by its node, which knows: a Pod that is
said to have failed by anybody else may still run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from oet_crds.ends import is_unexplained
from oet_crds.execution import ScriptExecution
from oet_crds.mailbox import CUT_OFF_EXIT_CODE
from oet_crds.reasons import Reason
from oet_crds.settings import KubernetesSettings
from oet_crds.states import DesiredState, Mode
from oet_operator.core.decide import BACKSTOP_SECONDS
from oet_operator.core.locks import may_begin
from oet_operator.core.snapshot import Presence, RunnerObservation
from oet_operator.kube.pod_facts import Container, PodFacts

__all__ = [
    "LINGER_SECONDS",
    "NODE_PATIENCE_SECONDS",
    "WORD_SECONDS",
    "Sighting",
    "compute_linger",
    "compute_patience",
    "compute_pod_grace",
    "has_claim",
    "observe_runner",
]

NODE_PATIENCE_SECONDS = 30.0
"""How long after the end of its grace period a deleted Pod may still be there: a kubelet that lives needs two seconds."""

MAX_SKEW_SECONDS = 60.0
"""How far the clocks of a node and of the operator may be apart: less than a second where NTP runs."""

WORD_SECONDS = 5.0
"""How long a node may take to say why it has ended a container: the kubelet tells of an eviction, a shutdown or a deadline one to
two seconds after it, when all containers of the Pod have ended."""

LINGER_SECONDS = 5.0
"""How long the other containers of a Pod may go on after the script's. Those that notice by themselves need two seconds, and the
kubelet ends native sidecars on its own."""

_PULL_REASONS = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "SignatureValidationFailed")
_HOPELESS_REASONS = ("InvalidImageName", "ErrImageNeverPull")
_NO_REHEARSALS = (
    "nothing keeps rehearsals away from the telescope in this deployment: where the cluster enforces network policies, set "
    "rehearsal.enabled in the chart's values (without the chart: a policy of your own, and [kubernetes] rehearsals)"
)
_NOT_STARTED = "its container was not started: is an image still being pulled, or a volume missing?"
_SIGNAL_BASE = 128
"""A container that signal n ended has the exit code 128 + n, as in a shell."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """What is known of an execution's Pod.

    Attributes:
        pod: As last seen; None: it was never seen.
        is_gone: It was deleted since.
        refusal: Why there is none: the API server refused it, or it is not even asked for one; empty: neither.
        is_refusal_final: Trying again cannot help.
        refusal_reason: The same in one word.
        refusals: How often in a row it was refused.
        retry_at: Not before then it is tried again, in monotonic seconds.
    """

    pod: PodFacts | None = None
    is_gone: bool = False
    refusal: str = ""
    is_refusal_final: bool = False
    refusal_reason: Reason = Reason.POD_REJECTED
    refusals: int = 0
    retry_at: float = 0.0


def compute_patience(deleted: datetime, now: datetime) -> float:
    """Return for how many seconds more the end of a Pod is waited for that was to be gone at `deleted`. Pure."""
    return (deleted + timedelta(seconds=NODE_PATIENCE_SECONDS) - now).total_seconds()


def compute_pod_grace(execution: ScriptExecution) -> int:
    """Return the grace period of an execution's Pod, in seconds: its runner's own, and time for the report. Pure."""
    return math.ceil(execution.spec.stop.grace_period_seconds + BACKSTOP_SECONDS)


def compute_linger(pod: PodFacts, now: datetime) -> float:
    """Return for how many seconds more a Pod may go on without its script; not above 0: it has to end. Pure."""
    if pod.ended is None or pod.ended.finished is None:
        return 0.0
    return (pod.ended.finished + timedelta(seconds=LINGER_SECONDS) - now).total_seconds()


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
        left = _compute_wait_for_phase(execution, sighting.pod, now)
        if left > 0:
            return RunnerObservation(Presence.GONE, awaits_word=True), left
        return replace(_observe_ended(execution, sighting.pod), is_lingering=sighting.pod.is_lingering), None
    if sighting.pod.deleted is not None:
        return _observe_deleted(execution, sighting.pod, now)
    if has_claim(execution):
        left = _compute_wait_for_end(execution, now)
        return RunnerObservation(Presence.ALIVE, awaits_word=left > 0), left if left > 0 else None
    return _observe_pending(sighting.pod, settings, now)


def _observe_unseen(execution: ScriptExecution, sighting: Sighting) -> tuple[RunnerObservation, float | None]:
    if sighting.refusal and not has_claim(execution):
        presence = Presence.STUCK if sighting.is_refusal_final else Presence.REFUSED
        return RunnerObservation(presence, sighting.refusal_reason, sighting.refusal), None
    if execution.status.pod_name is None:
        return RunnerObservation(Presence.NONE), None
    if has_claim(execution):
        message = "its Pod vanished while nobody watched; whether the script still runs is not known"
        return RunnerObservation(Presence.LOST, Reason.POD_LOST, message), None
    wants_stop = execution.spec.desired_state is DesiredState.STOPPED
    return RunnerObservation(Presence.GONE if wants_stop else Presence.NONE), None


def _compute_wait_for_end(execution: ScriptExecution, now: datetime) -> float:
    """Return for how many seconds more a node may still be ending a Pod whose runner only knows of a signal."""
    end = execution.status.runner.exit if execution.status.runner else None
    if end is None or not is_unexplained(execution):
        return 0.0
    limit = compute_pod_grace(execution) + WORD_SECONDS
    left = (end.time - now).total_seconds() + limit
    # A later time than that was not written by a runner of ours, and is waited for by nobody.
    return left if left <= limit + MAX_SKEW_SECONDS else 0.0


def _compute_wait_for_phase(execution: ScriptExecution, pod: PodFacts, now: datetime) -> float:
    """Return for how many seconds more a node may tell why it ended a script.

    It tells the end of a container before it tells the end of the Pod, and why with that only.
    """
    is_told = pod.is_finished or pod.deleted is not None or bool(pod.disruption)
    if is_told or pod.ended is None or pod.ended.finished is None:
        return 0.0
    if not has_claim(execution) or not is_unexplained(execution):
        return 0.0
    return (pod.ended.finished + timedelta(seconds=WORD_SECONDS) - now).total_seconds()


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
    has_report = execution.status.runner is not None and execution.status.runner.exit is not None
    if pod.ended.exit_code == CUT_OFF_EXIT_CODE and not has_report:
        message = _describe_cut_off(pod, has_grant=may_begin(execution))
        return RunnerObservation(Presence.GONE, Reason.RUNNER_CUT_OFF, message)
    # The kubelet gives this reason also when the kernel killed but one process of the container: a report knows more.
    if pod.ended.reason == "OOMKilled" and not has_report:
        message = f"the kernel ended the script's Pod {pod.name}: it needed more memory than its limit allows"
        return RunnerObservation(Presence.GONE, Reason.OUT_OF_MEMORY, message)
    if pod.reason == Reason.EVICTED or pod.disruption:
        message = f"Pod {pod.name} was evicted: {_describe_eviction(pod)}"
        return RunnerObservation(Presence.GONE, Reason.EVICTED, message)
    if pod.reason == Reason.DEADLINE_EXCEEDED:
        message = f"Pod {pod.name} reached the activeDeadlineSeconds of its podTemplate: {pod.message}"
        return RunnerObservation(Presence.GONE, Reason.DEADLINE_EXCEEDED, message)
    if pod.deleted is not None:
        return RunnerObservation(Presence.GONE, Reason.POD_DELETED, _describe_deletion(execution, pod, has_report))
    if has_report:
        return RunnerObservation(Presence.GONE)
    message = (
        f"the supervisor in Pod {pod.name} {_describe_exit(pod.ended)} without a report; nothing of the script is left"
    )
    return RunnerObservation(Presence.GONE, Reason.RUNNER_LOST, message)


def _describe_eviction(pod: PodFacts) -> str:
    return _join(pod.reason or pod.disruption, pod.message or pod.disruption_message)


def _describe_deletion(execution: ScriptExecution, pod: PodFacts, has_report: bool) -> str:
    needed = compute_pod_grace(execution)
    given = needed if pod.deletion_grace_seconds is None else pod.deletion_grace_seconds
    if has_report:
        return f"Pod {pod.name} was deleted, and the script was stopped"
    assert pod.ended is not None
    how = f"Pod {pod.name} was deleted, and the script's supervisor {_describe_exit(pod.ended)} before it had reported"
    short = f" (of the Pod's {needed:g} s the deletion gave it {given:g} s)" if given < needed else ""
    return f"{how}{short}; nothing of the script is left"


def _describe_cut_off(pod: PodFacts, *, has_grant: bool) -> str:
    text = f"the runner in Pod {pod.name} was not let near the API server any more (was its ServiceAccount made anew?) and ended"
    if not has_grant:
        return f"{text}; main had not begun"
    return f"{text}; whether main ran, and how it ended, could not be reported; nothing of the script is left"


def _observe_useless(pod: PodFacts) -> RunnerObservation:
    """Say why a Pod ended before its runner had taken the execution. It is kept, as is its log."""
    if pod.reason == Reason.EVICTED or pod.disruption:
        message = f"Pod {pod.name} was evicted before the script began: {_describe_eviction(pod)}"
        return RunnerObservation(Presence.GONE, Reason.EVICTED, message)
    if pod.reason == Reason.DEADLINE_EXCEEDED:
        message = f"Pod {pod.name} reached the activeDeadlineSeconds of its podTemplate before the script began: {pod.message}"
        return RunnerObservation(Presence.GONE, Reason.DEADLINE_EXCEEDED, message)
    if pod.ended is None:
        message = f"Pod {pod.name} failed before the script began: {_join(pod.reason, pod.message)}"
        return RunnerObservation(Presence.GONE, Reason.POD_START_FAILED, message)
    if pod.ended.exit_code == CUT_OFF_EXIT_CODE:
        message = _describe_cut_off(pod, has_grant=False)
        return RunnerObservation(Presence.GONE, Reason.RUNNER_CUT_OFF, message)
    message = (
        f"the runner in Pod {pod.name} {_describe_exit(pod.ended)} before the script began; "
        f"`kubectl logs {pod.name}` may say more"
    )
    return RunnerObservation(Presence.GONE, Reason.POD_START_FAILED, message)


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
        message = f"Pod {pod.name} was evicted ({_describe_eviction(pod)}), and the script was stopped"
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
        message = f"{message or _NOT_STARTED}"
        message += f" ({f'after {limit:g} s; ' if limit else ''}`kubectl describe pod {pod.name}` says more)"
        return RunnerObservation(Presence.STUCK, reason or Reason.POD_START_FAILED, message), None
    return RunnerObservation(Presence.PENDING, reason, message), left


def _describe_wait(pod: PodFacts, settings: KubernetesSettings) -> tuple[Reason | None, str, float]:
    """Return why a Pod does not run, in a word and in words, and how many seconds it may."""
    if pod.unschedulable and not pod.node:
        return Reason.UNSCHEDULABLE, f"no node takes the Pod: {pod.unschedulable}", settings.pod_start_timeout_seconds
    if pod.waiting is None:
        return None, "" if pod.is_running else _NOT_STARTED, settings.pod_start_timeout_seconds
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
