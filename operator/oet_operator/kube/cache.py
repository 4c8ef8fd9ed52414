"""What the operator knows: executions and the Pods they run in, the newest of each that was ever seen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from oet_crds.execution import ScriptExecution
from oet_operator.kube.pod_facts import parse_pod
from oet_operator.kube.verdicts import Sighting

__all__ = ["Cache"]

_log = logging.getLogger(__name__)


class Cache:
    """Executions and sightings of their Pods, by the execution's uid."""

    def __init__(self) -> None:
        self.executions: dict[str, ScriptExecution] = {}
        self._sightings: dict[str, Sighting] = {}
        self.highest_id = 0

    def put_execution(self, wire: Mapping[str, Any]) -> str | None:
        """Take in an execution as the API server gives it; return its uid if it is news."""
        metadata = wire["metadata"]
        known = self.executions.get(metadata["uid"])
        if known is not None and int(known.metadata.resource_version) >= int(metadata["resourceVersion"]):
            return None
        try:
            execution = ScriptExecution.model_validate(wire)
        except ValidationError as error:
            # The CRD is made from the model: only an object that an older CRD accepted comes here.
            _log.error("execution %s is left alone, it cannot be understood: %s", metadata.get("name"), error)
            return None
        self.executions[execution.uid] = execution
        self.highest_id = max(self.highest_id, execution.procedure_id or 0)
        return execution.uid

    def drop_execution(self, uid: str) -> None:
        """Forget an execution that is gone."""
        self.executions.pop(uid, None)
        self._sightings.pop(uid, None)

    def get_sighting(self, uid: str) -> Sighting:
        """Return what is known of an execution's Pod."""
        return self._sightings.get(uid, Sighting())

    def put_pod(self, wire: Mapping[str, Any], *, is_gone: bool = False) -> str | None:
        """Take in a Pod; return the uid of its execution if it is news."""
        pod = parse_pod(wire)
        known = self.get_sighting(pod.execution_uid)
        if known.pod is not None:
            is_past = known.is_gone and known.pod.uid == pod.uid
            if is_past or known.pod.version > pod.version:
                return None
        self._sightings[pod.execution_uid] = Sighting(pod, is_gone)
        return pod.execution_uid

    def list_pods(self) -> dict[str, str]:
        """Return the executions whose Pod is there, by the Pod's uid."""
        return {one.pod.uid: uid for uid, one in self._sightings.items() if one.pod is not None and not one.is_gone}

    def mark_pod_gone(self, uid: str) -> None:
        """Note that an execution's Pod is not there any more, with what was seen of it last."""
        self._sightings[uid] = replace(self.get_sighting(uid), is_gone=True)

    def put_refusal(self, uid: str, message: str, *, is_final: bool) -> None:
        """Note that the API server refused an execution's Pod."""
        self._sightings[uid] = Sighting(refusal=message, is_refusal_final=is_final)
