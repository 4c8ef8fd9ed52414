"""The Pod of an execution, from its spec and the templates of deployment and user. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from oet_crds.execution import ScriptExecution
from oet_crds.names import (
    CONFIG_MAP_FOLDER,
    EXECUTION_UID_LABEL,
    INIT_CONTAINER,
    KIND,
    MANAGED_LABEL,
    MANAGED_VALUE,
    NAMESPACE_VARIABLE,
    POD_NAME_VARIABLE,
    RUNNER_HOME,
    SCRIPT_CONTAINER,
)
from oet_crds.settings import KubernetesSettings
from oet_operator.core.decide import BACKSTOP_SECONDS
from oet_operator.kube.paths import API_VERSION

__all__ = ["build_pod", "merge"]

Wire = dict[str, Any]

USER_ID = 10001
"""The user of OET's image. Any number but 0 would do: the Pod Security standard "restricted" asks for no more."""

_KEYS = {"env": "name", "volumes": "name", "containers": "name", "initContainers": "name", "volumeMounts": "mountPath"}
"""Lists whose items have a name: they are merged by it, as `kubectl apply` does. Other lists are appended to."""

_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def merge(base: Any, overlay: Any, key: str = "") -> Any:
    """Return `base` with `overlay` on top: objects by key, named lists by name, other lists one after the other. Pure."""
    if isinstance(base, Mapping) and isinstance(overlay, Mapping):
        result = dict(base)
        for name, value in overlay.items():
            result[name] = merge(base[name], value, name) if name in base else value
        return result
    if isinstance(base, list) and isinstance(overlay, list):
        return _merge_lists(base, overlay, _KEYS.get(key))
    return overlay


def _merge_lists(base: list[Any], overlay: list[Any], key: str | None) -> list[Any]:
    result = list(base)
    for item in overlay:
        name = item.get(key) if key and isinstance(item, Mapping) else None
        same = [at for at, one in enumerate(result) if name is not None and one.get(key) == name]
        if same:
            result[same[0]] = merge(result[same[0]], item)
        else:
            result.append(item)
    return result


def build_pod(execution: ScriptExecution, settings: KubernetesSettings, template: Mapping[str, Any]) -> Wire:
    """Build the Pod that runs an execution. Pure.

    What makes it this execution's Pod, and what keeps its script from being run twice, no template can change.

    Args:
        execution: With the Pod's name in its status.
        settings: Images and account.
        template: A partial Pod that every script Pod gets; the execution's own comes on top.
    """
    pod = _build_base(execution, settings)
    overlaid = merge(merge(pod, dict(template)), execution.spec.pod_template or {})
    spec = overlaid["spec"]
    fixed = pod["spec"]
    script = _find(spec["containers"])
    script.update(command=_find(fixed["containers"])["command"])
    script["env"] = _merge_lists(list(script.get("env") or []), _build_env(execution), "name")
    for name in (
        "restartPolicy",
        "serviceAccountName",
        "automountServiceAccountToken",
        "terminationGracePeriodSeconds",
    ):
        spec[name] = fixed[name]
    labels = {**(overlaid["metadata"].get("labels") or {}), **pod["metadata"]["labels"]}
    annotations = overlaid["metadata"].get("annotations") or {}
    metadata = {**pod["metadata"], "labels": labels, **({"annotations": annotations} if annotations else {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _find(containers: list[Wire]) -> Wire:
    return next(one for one in containers if one.get("name") == SCRIPT_CONTAINER)


def _build_base(execution: ScriptExecution, settings: KubernetesSettings) -> Wire:
    image = execution.spec.image or settings.image
    is_foreign = image != settings.image
    mounts = [{"name": "oet-tmp", "mountPath": "/tmp"}]
    volumes: list[Wire] = [{"name": "oet-tmp", "emptyDir": {}}]
    if config_map := execution.spec.script.config_map:
        # Optional: a Pod that waits for ever says less than a script that is not found.
        source = {"name": config_map.name, "optional": True, "items": [{"key": config_map.key, "path": config_map.key}]}
        volumes.append({"name": "oet-script", "configMap": source})
        mounts.append({"name": "oet-script", "mountPath": CONFIG_MAP_FOLDER})
    if is_foreign:
        volumes.append({"name": "oet-runner", "emptyDir": {}})
        mounts.append({"name": "oet-runner", "mountPath": RUNNER_HOME})
    script = {
        "name": SCRIPT_CONTAINER,
        "image": image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python3", "-m", "oet_runner", "--kube"],
        "securityContext": _SECURITY,
        "volumeMounts": mounts,
    }
    spec: Wire = {
        "restartPolicy": "Never",
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": math.ceil(execution.spec.stop.grace_period_seconds + BACKSTOP_SECONDS),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": volumes,
        "containers": [script],
    }
    if is_foreign:
        spec["initContainers"] = [_build_copier(settings)]
    return {"metadata": _build_metadata(execution), "spec": spec}


def _build_metadata(execution: ScriptExecution) -> Wire:
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": execution.metadata.name,
        "uid": execution.uid,
        "controller": True,
    }
    return {
        "name": execution.status.pod_name,
        "namespace": execution.metadata.namespace,
        "labels": {MANAGED_LABEL: MANAGED_VALUE, EXECUTION_UID_LABEL: execution.uid},
        "ownerReferences": [owner],
    }


def _build_copier(settings: KubernetesSettings) -> Wire:
    """Build the container that brings the runner into an image that is not OET's own."""
    return {
        "name": INIT_CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["cp", "-r", f"{RUNNER_HOME}/.", "/copy"],
        "securityContext": _SECURITY,
        "volumeMounts": [{"name": "oet-runner", "mountPath": "/copy"}],
    }


def _build_env(execution: ScriptExecution) -> list[Wire]:
    values = {
        POD_NAME_VARIABLE: execution.status.pod_name,
        NAMESPACE_VARIABLE: execution.metadata.namespace,
        "PYTHONPATH": RUNNER_HOME,
        "OET_STOP_GRACE_SECONDS": f"{execution.spec.stop.grace_period_seconds:g}",
    }
    return [{"name": name, "value": value} for name, value in values.items()]
