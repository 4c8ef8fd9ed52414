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
from oet_crds.names import (
    CONFIG_MAP_FOLDER,
    DEFAULT_CONTAINER_ANNOTATION,
    INIT_CONTAINER,
    MANAGED_LABEL,
    MODE_LABEL,
    NO_SUBARRAY,
    POD_NAME_VARIABLE,
    REHEARSAL_VALUE,
    SCRIPT_CONTAINER,
    SUBARRAY_LABEL,
    TIMELINE_TOKEN_FILE_VARIABLE,
    TIMELINE_URL_VARIABLE,
)
from oet_crds.settings import GitSettings, KubernetesSettings
from oet_crds.states import DesiredState, Mode, State
from oet_operator.kube.pod_builder import build_git_environ, build_pod
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
                {
                    "name": "script",
                    "command": ["sh"],
                    "restartPolicy": "Always",
                    "restartPolicyRules": [{"action": "Restart"}],
                    "env": [{"name": POD_NAME_VARIABLE, "value": "another"}],
                }
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


def test_pod_is_waited_for_by_a_deletion_in_the_foreground_and_shows_its_script() -> None:
    beside = {"spec": {"containers": [{"name": "beside", "image": "i"}]}}
    pod = build_pod(_execution(pod_template=beside), SETTINGS, {})
    kubernetes_validate.validate(pod, "1.35", strict=True)
    (owner,) = pod["metadata"]["ownerReferences"]
    assert (owner["controller"], owner["blockOwnerDeletion"]) == (True, True)
    assert pod["metadata"]["annotations"][DEFAULT_CONTAINER_ANNOTATION] == SCRIPT_CONTAINER


def test_status_patch_holds_what_changed_and_nothing_of_the_runner() -> None:
    before = ScriptExecutionStatus(pod_name="p", message="old", procedure_id=4)
    history = [HistoryEntry(seq=1, state=State.CREATING, time=NOW)]
    after = ScriptExecutionStatus(pod_name="p", procedure_id=4, history=history)
    assert build_status_patch(before, after) == {
        "history": [{"seq": 1, "state": State.CREATING, "time": "2026-11-23T00:00:00Z"}],
        "message": None,
    }
    assert build_status_patch(after, after) == {}


def test_first_status_is_written_whole_since_nothing_is_stored() -> None:
    patch = build_status_patch(ScriptExecutionStatus(), ScriptExecutionStatus(procedure_id=4))
    assert (patch["state"], patch["procedureId"]) == (State.CREATING, 4)


def test_script_from_git_cannot_change_what_its_runner_may() -> None:
    environ = build_git_environ(GitSettings(allowed="a.org"))
    wanted = {"name": "OET_GIT_ALLOWED", "value": ""}
    evil = {"spec": {"containers": [{"name": "script", "env": [wanted]}]}}
    script = {"git": {"repository": "https://a.org/x", "path": "a.py"}}
    pod = build_pod(_execution(script, pod_template=evil), SETTINGS, {}, environ)
    kubernetes_validate.validate(pod, "1.35", strict=True)
    env = {one["name"]: one["value"] for one in pod["spec"]["containers"][0]["env"]}
    assert env["OET_GIT_ALLOWED"] == "a.org"
    # Without a volume of its own the cache goes with the Pod.
    assert env["OET_GIT_CACHE_DIR"].startswith("/tmp/")
    assert build_git_environ(GitSettings(cache_dir="/cache"))["OET_GIT_CACHE_DIR"] == "/cache"
    assert env["OET_GIT_WORK_DIR"].startswith("/tmp/")
    assert build_git_environ(GitSettings(work_dir="/work"))["OET_GIT_WORK_DIR"] == "/work"


@pytest.mark.parametrize(
    ("cache_dir", "wanted", "expected"),
    [
        ("/cache", "auto", "never"),
        ("/cache", "never", "never"),
        ("/cache", "always", "always"),
        ("", "always", "never"),  # Nobody else sees the cache of a Pod.
    ],
)
def test_pods_share_environments_only_where_somebody_says_so(cache_dir: str, wanted: str, expected: str) -> None:
    environ = build_git_environ(GitSettings(cache_dir=cache_dir, share_environments=wanted))
    assert environ["OET_GIT_SHARE_ENVIRONMENTS"] == expected


@pytest.mark.parametrize("value", [None, "operation"])
def test_no_template_takes_a_rehearsal_out_of_its_network_policy(value: str | None) -> None:
    template = {"metadata": {"labels": {MODE_LABEL: value}}, "spec": {"hostNetwork": True}}
    rehearsal = _execution(mode=Mode.REHEARSAL, subarray=1, desired_state=DesiredState.READY, pod_template=template)
    pod = build_pod(rehearsal, SETTINGS, template)
    kubernetes_validate.validate(pod, "1.35", strict=True)
    assert pod["metadata"]["labels"][MODE_LABEL] == REHEARSAL_VALUE
    assert pod["metadata"]["labels"][SUBARRAY_LABEL] == NO_SUBARRAY
    assert "hostNetwork" not in pod["spec"]


def test_no_template_makes_an_operation_look_like_a_rehearsal() -> None:
    template = {"metadata": {"labels": {MODE_LABEL: REHEARSAL_VALUE}}}
    assert MODE_LABEL not in build_pod(_execution(pod_template=template), SETTINGS, template)["metadata"]["labels"]


# ---- the way to the timeline

POSTING = KubernetesSettings(image="oet:1", timeline_url="http://oet-api.n.svc:5001")


@pytest.mark.parametrize("image", [None, "python:3.12"])
def test_pod_that_posts_has_a_token_for_the_timeline_alone(image: str | None) -> None:
    pod = build_pod(_execution(image=image), POSTING, {})
    kubernetes_validate.validate(pod, "1.35", strict=True)
    (volume,) = [one for one in pod["spec"]["volumes"] if "projected" in one]
    (source,) = volume["projected"]["sources"]
    assert source == {"serviceAccountToken": {"audience": "oet-timeline", "expirationSeconds": 3600, "path": "token"}}
    script = pod["spec"]["containers"][0]
    environ = {one["name"]: one["value"] for one in script["env"]}
    assert environ[TIMELINE_URL_VARIABLE] == POSTING.timeline_url
    (mount,) = [one for one in script["volumeMounts"] if one["name"] == volume["name"]]
    assert (mount["readOnly"], f"{mount['mountPath']}/token") == (True, environ[TIMELINE_TOKEN_FILE_VARIABLE])


@pytest.mark.parametrize(
    ("settings", "spec"),
    [(SETTINGS, {}), (POSTING, {"mode": Mode.REHEARSAL})],
    ids=["no address", "rehearsal"],
)
def test_pod_that_does_not_post_has_no_token_for_it(settings: KubernetesSettings, spec: dict[str, Any]) -> None:
    pod = build_pod(_execution(**spec), settings, {})
    assert not [one for one in pod["spec"]["volumes"] if "projected" in one]
    assert not [one for one in pod["spec"]["containers"][0]["env"] if "TIMELINE" in one["name"]]


def test_no_template_sends_entries_elsewhere() -> None:
    env = [{"name": TIMELINE_URL_VARIABLE, "value": "http://elsewhere"}]
    pod = build_pod(_execution(), POSTING, {"spec": {"containers": [{"name": "script", "env": env}]}})
    values = [one["value"] for one in pod["spec"]["containers"][0]["env"] if one["name"] == TIMELINE_URL_VARIABLE]
    assert values == [POSTING.timeline_url]
