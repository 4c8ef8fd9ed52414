"""The Pod of an execution: what templates may change, and what they may not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import kubernetes_validate
import pytest

from oet_crds.execution import (
    HistoryEntry,
    Metadata,
    ScriptExecution,
    ScriptExecutionSpec,
    ScriptExecutionStatus,
    ScriptSource,
)
from oet_crds.names import CONFIG_MAP_FOLDER, INIT_CONTAINER, MANAGED_LABEL, POD_NAME_VARIABLE
from oet_crds.settings import KubernetesSettings
from oet_crds.states import State
from oet_operator.kube.pod_builder import build_pod
from oet_operator.kube.reconciler import build_status_patch

SETTINGS = KubernetesSettings(image="oet:1")
NOW = datetime(2026, 11, 23, tzinfo=UTC)


def _execution(script: dict[str, Any] | None = None, **spec: Any) -> ScriptExecution:
    source = ScriptSource.model_validate(script or {"inline": {"source": "def main(): pass"}})
    return ScriptExecution(
        metadata=Metadata(name="e", namespace="n", uid="u", creation_timestamp=NOW),
        spec=ScriptExecutionSpec(script=source, **spec),
        status=ScriptExecutionStatus(pod_name="e-1"),
    )


@pytest.mark.parametrize("script", [None, {"configMap": {"name": "c", "key": "a.py"}}], ids=["inline", "config_map"])
@pytest.mark.parametrize("image", [None, "python:3.12"])
def test_pod_is_what_kubernetes_understands(script: dict[str, Any] | None, image: str | None) -> None:
    pod = build_pod(_execution(script, image=image), SETTINGS, {})
    kubernetes_validate.validate(pod, "1.35", strict=True)
    copiers = [one["name"] for one in pod["spec"].get("initContainers", [])]
    assert copiers == ([INIT_CONTAINER] if image else [])
    mounts = [mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]]
    assert (CONFIG_MAP_FOLDER in mounts) == (script is not None)


def test_templates_add_to_the_pod_the_user_after_the_deployment() -> None:
    deployment = {"spec": {"containers": [{"name": "script", "env": [{"name": "A", "value": "1"}]}]}}
    user = {
        "spec": {
            "nodeSelector": {"disk": "fast"},
            "volumes": [{"name": "data", "emptyDir": {}}],
            "containers": [
                {"name": "script", "env": [{"name": "A", "value": "2"}], "resources": {"limits": {"memory": "1Gi"}}}
            ],
        }
    }
    pod = build_pod(_execution(pod_template=user), SETTINGS, deployment)
    script = pod["spec"]["containers"][0]
    assert {"name": "A", "value": "2"} in script["env"]
    assert script["resources"] == {"limits": {"memory": "1Gi"}}
    assert pod["spec"]["nodeSelector"] == {"disk": "fast"}
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["oet-tmp", "data"]


def test_template_cannot_change_what_makes_the_pod_safe() -> None:
    evil = {
        "metadata": {"name": "other", "labels": {MANAGED_LABEL: "no"}, "ownerReferences": []},
        "spec": {
            "restartPolicy": "Always",
            "serviceAccountName": "admin",
            "containers": [
                {"name": "script", "command": ["sh"], "env": [{"name": POD_NAME_VARIABLE, "value": "another"}]}
            ],
        },
    }
    plain, pod = build_pod(_execution(), SETTINGS, {}), build_pod(_execution(pod_template=evil), SETTINGS, {})
    assert pod["metadata"] == plain["metadata"]
    assert pod["spec"] == plain["spec"]


@pytest.mark.parametrize("template", [{"spec": 1}, {"spec": {"containers": "x"}}, {"spec": {"containers": None}}])
def test_template_of_nonsense_is_an_error_that_the_operator_expects(template: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError, KeyError, AttributeError, StopIteration)):
        build_pod(_execution(pod_template=template), SETTINGS, {})


def test_status_patch_holds_what_changed_and_nothing_of_the_runner() -> None:
    before = ScriptExecutionStatus(pod_name="p", message="old")
    history = [HistoryEntry(seq=1, state=State.CREATING, time=NOW)]
    after = ScriptExecutionStatus(pod_name="p", procedure_id=4, history=history)
    assert build_status_patch(before, after) == {
        "history": [{"seq": 1, "state": State.CREATING, "time": "2026-11-23T00:00:00Z"}],
        "message": None,
        "procedureId": 4,
    }
    assert build_status_patch(after, after) == {}
