"""The Pod of an execution, from its spec and the templates of deployment and user. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oet_crds.execution import ScriptExecution, ScriptExecutionSpec
from oet_crds.git import GIT_VARIABLES, SHARE_AUTO, SHARE_NEVER
from oet_crds.names import (
    CONFIG_MAP_FOLDER,
    DEFAULT_CONTAINER_ANNOTATION,
    EXECUTION_NAME_ANNOTATION,
    EXECUTION_UID_LABEL,
    GROUP,
    INIT_CONTAINER,
    KIND,
    MANAGED_LABEL,
    MANAGED_VALUE,
    MODE_LABEL,
    NAMESPACE_VARIABLE,
    NO_SUBARRAY,
    POD_NAME_VARIABLE,
    PROCEDURE_LABEL,
    REHEARSAL_VALUE,
    RUNNER_HOME,
    SCRIPT_CONTAINER,
    SCRIPTS_FOLDER,
    SUBARRAY_LABEL,
    TIMELINE_AUDIENCE,
    TIMELINE_TOKEN_FILE,
    TIMELINE_TOKEN_FILE_VARIABLE,
    TIMELINE_URL_VARIABLE,
)
from oet_crds.settings import GitSettings, KubernetesSettings
from oet_crds.specs import compute_subarray
from oet_crds.states import DesiredState, Mode
from oet_operator.kube.paths import API_VERSION
from oet_operator.kube.verdicts import compute_pod_grace

__all__ = ["Templates", "build_git_environ", "build_pod", "has_own_scripts", "has_tango", "merge"]

Wire = dict[str, Any]

USER_ID = 10001
"""The user of OET's image. Any number but 0 would do: the Pod Security standard "restricted" asks for no more."""

POD_CACHE_FOLDER = "/tmp/oet-cache"
POD_WORK_FOLDER = "/tmp/oet-work"
"""Clones and environments of a deployment that has no volume for them: they go with the Pod."""

TIMELINE_VOLUME = "oet-timeline-token"

TOKEN_SECONDS = 3600
"""How long a token for the timeline is good for: the usual hour. The kubelet replaces it when four fifths are over."""

_KEYS = {"env": "name", "volumes": "name", "containers": "name", "initContainers": "name", "volumeMounts": "mountPath"}
"""Lists whose items have a name: they are merged by it, as `kubectl apply` does. Other lists are appended to."""

_RESTARTS = ("restartPolicy", "restartPolicyRules")
"""What would have a node run the container of the script again."""

_NOTES = ("labels", "annotations")

_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@dataclass(frozen=True, slots=True)
class Templates:
    """Partial Pods of a deployment.

    Attributes:
        every: What every script Pod gets.
        git: What Pods of scripts from git get as well.
    """

    every: Mapping[str, Any]
    git: Mapping[str, Any]


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


def build_pod(
    execution: ScriptExecution,
    settings: KubernetesSettings,
    template: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
) -> Wire:
    """Build the Pod that runs an execution. Pure.

    What makes it this execution's Pod, and what keeps its script from being run twice, no template can change.

    Args:
        execution: With the Pod's name in its status.
        settings: Images and account.
        template: A partial Pod that every script Pod gets; the execution's own comes on top.
        environ: More environment that no template can change; None: none.

    Raises:
        ValueError: The execution's template has parts that a Pod does not have; other nonsense raises what it comes upon.
    """
    pod = _build_base(execution, settings)
    own = execution.spec.pod_template or {}
    if unknown := sorted(own.keys() - {"metadata", "spec"}):
        raise ValueError(f"it has metadata and spec, and not {', '.join(unknown)}")
    overlaid = merge(merge(pod, dict(template)), own)
    spec = overlaid["spec"]
    fixed = pod["spec"]
    script = _find(spec["containers"])
    script.update(command=_find(fixed["containers"])["command"])
    for name in _RESTARTS:
        script.pop(name, None)
    script["env"] = _merge_lists(list(script.get("env") or []), _build_env(execution, settings, environ or {}), "name")
    for name in (
        "restartPolicy",
        "serviceAccountName",
        "automountServiceAccountToken",
        "terminationGracePeriodSeconds",
    ):
        spec[name] = fixed[name]
    if execution.spec.mode is Mode.REHEARSAL:
        spec.pop("hostNetwork", None)  # No network policy holds for a Pod in its node's network.
    notes = {
        name: _fix(overlaid["metadata"].get(name), fixed) for name, fixed in pod["metadata"].items() if name in _NOTES
    }
    metadata = {**pod["metadata"], **notes}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def has_tango(template: Mapping[str, Any]) -> bool:
    """Tell whether a template names a Tango database for scripts, or may do so out of sight, in a ConfigMap. Pure."""
    script = _find_script(template)
    names = [one.get("name") for one in script.get("env") or []]
    return "TANGO_HOST" in names or bool(script.get("envFrom"))


def has_own_scripts(template: Mapping[str, Any]) -> bool:
    """Tell whether a template mounts something over the scripts that ship with OET, or among them. Pure."""
    paths = [str(one.get("mountPath")) for one in _find_script(template).get("volumeMounts") or []]
    return any(path == SCRIPTS_FOLDER or path.startswith(f"{SCRIPTS_FOLDER}/") for path in paths)


def _find_script(template: Mapping[str, Any]) -> Mapping[str, Any]:
    containers = (template.get("spec") or {}).get("containers") or []
    return next((one for one in containers if one.get("name") == SCRIPT_CONTAINER), {})


def build_git_environ(settings: GitSettings) -> dict[str, str]:
    """Return the environment by which the runner of a script from git knows what it may, and where to keep it. Pure."""
    # Other nodes may see the same volume, and their kernels may not keep scripts from writing there.
    is_unsure = settings.share_environments == SHARE_AUTO or not settings.cache_dir
    return {
        **settings.build_environ(),
        GIT_VARIABLES["cache_dir"]: settings.cache_dir or POD_CACHE_FOLDER,
        GIT_VARIABLES["work_dir"]: settings.work_dir or POD_WORK_FOLDER,
        GIT_VARIABLES["share_environments"]: SHARE_NEVER if is_unsure else settings.share_environments,
    }


def _fix(wanted: Mapping[str, str] | None, fixed: Mapping[str, str]) -> dict[str, str]:
    """Return labels or annotations without those in OET's own name space, but for the ones that OET gives."""
    return {**{key: value for key, value in (wanted or {}).items() if not key.startswith(f"{GROUP}/")}, **fixed}


def _find(containers: list[Wire]) -> Wire:
    return next(one for one in containers if one.get("name") == SCRIPT_CONTAINER)


def _build_base(execution: ScriptExecution, settings: KubernetesSettings) -> Wire:
    image = execution.spec.image or settings.image
    is_foreign = image != settings.image
    mounts: list[Wire] = [{"name": "oet-tmp", "mountPath": "/tmp"}]
    volumes: list[Wire] = [{"name": "oet-tmp", "emptyDir": {}}]
    if config_map := execution.spec.script.config_map:
        # Optional: a Pod that waits for ever says less than a script that is not found.
        source = {"name": config_map.name, "optional": True, "items": [{"key": config_map.key, "path": config_map.key}]}
        volumes.append({"name": "oet-script", "configMap": source})
        mounts.append({"name": "oet-script", "mountPath": CONFIG_MAP_FOLDER})
    if _is_posting(execution, settings):
        volumes.append(_build_token_volume())
        mounts.append({"name": TIMELINE_VOLUME, "mountPath": posixpath.dirname(TIMELINE_TOKEN_FILE), "readOnly": True})
    if is_foreign:
        volumes.append({"name": "oet-runner", "emptyDir": {}})
        # A script must not write what its supervisor has yet to load.
        mounts.append({"name": "oet-runner", "mountPath": RUNNER_HOME, "readOnly": True})
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
        "terminationGracePeriodSeconds": compute_pod_grace(execution),
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


def _is_posting(execution: ScriptExecution, settings: KubernetesSettings) -> bool:
    """Tell whether its runner posts entries. A rehearsal reaches nobody but the API server: its Pod's log is read."""
    return bool(settings.timeline_url) and execution.spec.mode is not Mode.REHEARSAL


def _build_token_volume() -> Wire:
    """Build the volume with the token that the timeline knows this Pod by. It is no use at the API server, nor after the Pod."""
    token = {
        "audience": TIMELINE_AUDIENCE,
        "expirationSeconds": TOKEN_SECONDS,
        "path": posixpath.basename(TIMELINE_TOKEN_FILE),
    }
    sources: list[Wire] = [{"serviceAccountToken": token}]
    return {"name": TIMELINE_VOLUME, "projected": {"sources": sources}}


def _build_metadata(execution: ScriptExecution) -> Wire:
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": execution.metadata.name,
        "uid": execution.uid,
        "controller": True,
        # So that a deletion in the foreground waits for the script.
        "blockOwnerDeletion": True,
    }
    labels = {
        MANAGED_LABEL: MANAGED_VALUE,
        EXECUTION_UID_LABEL: execution.uid,
        PROCEDURE_LABEL: str(execution.procedure_id),
        **_build_subarray_label(execution.spec),
        **({MODE_LABEL: REHEARSAL_VALUE} if execution.spec.mode is Mode.REHEARSAL else {}),
    }
    return {
        "name": execution.status.pod_name,
        "namespace": execution.metadata.namespace,
        "labels": labels,
        # Others may put containers before the script's: `kubectl logs` and `kubectl exec` mean this one.
        "annotations": {
            EXECUTION_NAME_ANNOTATION: execution.metadata.name,
            DEFAULT_CONTAINER_ANNOTATION: SCRIPT_CONTAINER,
        },
        "ownerReferences": [owner],
    }


def _build_subarray_label(spec: ScriptExecutionSpec) -> dict[str, str]:
    """Say what the Pod locks, should its execution be deleted while it runs."""
    subarray = compute_subarray(spec)
    if subarray is not None:
        return {SUBARRAY_LABEL: str(subarray)}
    # The arguments of main, which come with the start, may name one yet.
    is_open = spec.desired_state is DesiredState.READY and spec.mode is not Mode.REHEARSAL
    return {} if is_open else {SUBARRAY_LABEL: NO_SUBARRAY}


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


def _build_env(execution: ScriptExecution, settings: KubernetesSettings, environ: Mapping[str, str]) -> list[Wire]:
    timeline = {TIMELINE_URL_VARIABLE: settings.timeline_url, TIMELINE_TOKEN_FILE_VARIABLE: TIMELINE_TOKEN_FILE}
    values = {
        **environ,
        **(timeline if _is_posting(execution, settings) else {}),
        POD_NAME_VARIABLE: execution.status.pod_name,
        NAMESPACE_VARIABLE: execution.metadata.namespace,
        "PYTHONPATH": RUNNER_HOME,
        "OET_STOP_GRACE_SECONDS": f"{execution.spec.stop.grace_period_seconds:g}",
    }
    return [{"name": name, "value": value} for name, value in values.items()]
