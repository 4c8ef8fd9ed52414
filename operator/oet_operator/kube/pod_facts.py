"""What matters of a Pod, taken out of its object: small, because thousands are kept, and tolerant of whatever is in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from oet_crds.names import (
    EXECUTION_NAME_ANNOTATION,
    EXECUTION_UID_LABEL,
    PROCEDURE_LABEL,
    SCRIPT_CONTAINER,
    SUBARRAY_LABEL,
)
from oet_crds.reasons import Reason

__all__ = ["Container", "PodFacts", "parse_pod", "parse_time"]

_FINISHED_PHASES = ("Succeeded", "Failed")
_FIRST = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Container:
    """How the container of the script ended, or why a container does not start.

    Attributes:
        reason: Kubernetes' word, for example `OOMKilled` or `ImagePullBackOff`.
        message: Its text; may be empty.
        exit_code: None while it has not ended.
        finished: When it ended, by its node's clock; None: it has not, or the node does not say.
    """

    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    finished: datetime | None = None


@dataclass(frozen=True, slots=True)
class PodFacts:
    """One script Pod.

    Attributes:
        name: Its name.
        uid: Its identity.
        version: Resource version as a number: which of two observations is the newer one.
        execution_uid: The execution that it is for.
        execution_name: Its name; empty: not known.
        procedure_id: Its number; 0: not known.
        subarray: The subarray that it locks; `NO_SUBARRAY`: none; empty: not known.
        created: When it was created.
        deleted: When it is to be gone, grace period included; None: nobody deletes it.
        deletion_grace_seconds: The grace period that whoever deletes it gives it; None: nobody deletes it.
        is_finished: Its phase is Succeeded or Failed.
        reason: Why, of the Pod as a whole, for example `Evicted`; may be empty.
        message: The same in words; may be empty.
        node: Where it runs, or will; empty: it has no node yet.
        image: The image of the script's container by its digest, as the node says; empty: not known.
        unschedulable: The scheduler's complaint; empty when there is none.
        disruption: Why the cluster ends it, for example `DeletionByPodGC`; empty: it does not.
        disruption_message: The same in words; may be empty.
        is_running: The script's container runs, as far as its node said.
        ended: How the script's container ended; None: it has not, as far as the node said.
        waiting: What keeps the script's container, or one before it, from starting; None: nothing but the usual.
        active_deadline_seconds: How long its node lets it run; None: as long as it does.
    """

    name: str
    uid: str
    version: int
    execution_uid: str
    created: datetime
    execution_name: str = ""
    procedure_id: int = 0
    subarray: str = ""
    deleted: datetime | None = None
    deletion_grace_seconds: float | None = None
    is_finished: bool = False
    reason: str = ""
    message: str = ""
    node: str = ""
    image: str = ""
    unschedulable: str = ""
    disruption: str = ""
    disruption_message: str = ""
    is_running: bool = False
    ended: Container | None = None
    waiting: Container | None = None
    active_deadline_seconds: float | None = None

    @property
    def is_over(self) -> bool:
        """Tell whether its node, or who gave the node up, says that nothing of the script runs."""
        return self.ended is not None or self.is_finished

    @property
    def is_lingering(self) -> bool:
        """Tell whether it goes on after its script's container, for what others have put beside it."""
        return self.ended is not None and not self.is_finished


def parse_time(text: object) -> datetime | None:
    """Return the time that Kubernetes wrote, None when it is not one."""
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Iterator[Mapping[str, Any]]:
    return (item for item in (value if isinstance(value, list) else []) if isinstance(item, Mapping))


def _text(mapping: Mapping[str, Any], key: str) -> str:
    return str(mapping.get(key) or "")


def parse_pod(pod: Mapping[str, Any]) -> PodFacts:
    """Take the facts out of a Pod object. Pure."""
    metadata, status = _mapping(pod.get("metadata")), _mapping(pod.get("status"))
    labels, annotations = _mapping(metadata.get("labels")), _mapping(metadata.get("annotations"))
    number = _text(labels, PROCEDURE_LABEL)
    spec = _mapping(pod.get("spec"))
    conditions = {_text(one, "type"): one for one in _list(status.get("conditions"))}
    scheduled = conditions.get("PodScheduled", {})
    disruption = conditions.get("DisruptionTarget", {})
    return PodFacts(
        name=_text(metadata, "name"),
        uid=_text(metadata, "uid"),
        version=int(metadata.get("resourceVersion") or 0),
        execution_uid=_text(labels, EXECUTION_UID_LABEL),
        execution_name=_text(annotations, EXECUTION_NAME_ANNOTATION),
        procedure_id=int(number) if number.isdecimal() else 0,
        subarray=_text(labels, SUBARRAY_LABEL),
        created=parse_time(metadata.get("creationTimestamp")) or _FIRST,
        deleted=parse_time(metadata["deletionTimestamp"]) if metadata.get("deletionTimestamp") else None,
        deletion_grace_seconds=_number(metadata.get("deletionGracePeriodSeconds")),
        is_finished=status.get("phase") in _FINISHED_PHASES,
        reason=_text(status, "reason"),
        message=_text(status, "message"),
        node=_text(spec, "nodeName"),
        image=_find_image(status),
        unschedulable=_text(scheduled, "message") if scheduled.get("reason") == Reason.UNSCHEDULABLE else "",
        disruption=_text(disruption, "reason") if disruption.get("status") == "True" else "",
        disruption_message=_text(disruption, "message") if disruption.get("status") == "True" else "",
        is_running="running" in _find_script(status),
        ended=_find_end(spec, status),
        waiting=_find_waiting(status),
        active_deadline_seconds=_number(spec.get("activeDeadlineSeconds")),
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int) else None


def _find_script(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state of the script's container, wherever others were put into the list; empty: none is told."""
    containers = _list(status.get("containerStatuses"))
    return next((_mapping(one.get("state")) for one in containers if one.get("name") == SCRIPT_CONTAINER), {})


def _find_end(spec: Mapping[str, Any], status: Mapping[str, Any]) -> Container | None:
    """Return how the script's container ended, or an init container without which it never starts; None: neither did."""
    script = _find_script(status)
    if ended := _mapping(script.get("terminated")):
        return _build_end(ended)
    if "running" in script or status.get("phase") not in _FINISHED_PHASES:
        return None
    # Those that are restarted always run beside the script, so that their end says nothing of it.
    beside = {one.get("name") for one in _list(spec.get("initContainers")) if one.get("restartPolicy") == "Always"}
    for container in _list(status.get("initContainerStatuses")):
        ended = _mapping(_mapping(container.get("state")).get("terminated"))
        if ended.get("exitCode") and container.get("name") not in beside:
            return _build_end(ended)
    return None


def _find_image(status: Mapping[str, Any]) -> str:
    """Return what the node names the image of the script's container by; empty while it has not said so."""
    own = (one for one in _list(status.get("containerStatuses")) if one.get("name") == SCRIPT_CONTAINER)
    return next((_text(one, "imageID") for one in own), "")


def _build_end(ended: Mapping[str, Any]) -> Container:
    code = ended.get("exitCode")
    finished = parse_time(ended.get("finishedAt"))
    return Container(_text(ended, "reason"), _text(ended, "message"), code if isinstance(code, int) else -1, finished)


_USUAL_WAITS = ("", "ContainerCreating", "PodInitializing")


def _find_waiting(status: Mapping[str, Any]) -> Container | None:
    """Return what the script's container waits for; what a container beside it waits for does not keep it from starting."""
    script = _find_script(status)
    if "running" in script or "terminated" in script:
        return None
    before = (_mapping(one.get("state")) for one in _list(status.get("initContainerStatuses")))
    for state in (script, *before):
        waiting = _mapping(state.get("waiting"))
        if (reason := _text(waiting, "reason")) not in _USUAL_WAITS:
            return Container(reason, _text(waiting, "message"))
    return None
