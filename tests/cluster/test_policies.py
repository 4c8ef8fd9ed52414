"""What a real API server allows to the accounts of the chart: their rights, and the admission policies that narrow them."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from oet_cluster.kubectl import Kubectl, Outcome
from oet_cluster.waiting import wait_for
from oet_support_chart import CHART, find_helm

from oet_crds.execution import ScriptExecutionStatus
from oet_crds.names import GROUP, KIND, MANAGED_LABEL, MANAGED_VALUE, PLURAL, VERSION
from oet_crds.reasons import Outcome as ScriptOutcome
from oet_crds.reasons import Reason
from oet_crds.states import DesiredState, Purpose, State

pytestmark = pytest.mark.cluster

RESOURCE = f"{PLURAL}.{GROUP}"
TIME = "2026-01-01T00:00:00.000001Z"
TEMPLATES = ("accounts", "roles", "policies")
OWN_POD, OTHER_POD = "script-own", "script-other"

ENTRY = {"seq": 1, "state": State.IDLE, "time": TIME}
EXIT = {"outcome": ScriptOutcome.COMPLETE, "reason": Reason.COMPLETED, "message": "main returned", "time": TIME}
OPERATORS: dict[str, Any] = {
    "state": State.RUNNING,
    "procedureId": 7,
    "script": "a.py",
    "subarray": 1,
    "history": [ENTRY],
    "podName": OTHER_POD,
    "grant": {"time": TIME, "subarray": 1},
    "refusal": {"generation": 1, "holder": 2, "message": "busy", "time": TIME},
    "reason": Reason.COMPLETED,
    "message": "a message",
    "conditions": [
        {"type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": TIME},
    ],
    "observedGeneration": 3,
    "resolved": {"commit": "c0ffee"},
    "stacktrace": "Traceback",
    "abort": {"procedureId": 8},
}
"""A value for each field of status that is the operator's."""


@dataclass(frozen=True)
class User:
    """Somebody with a token."""

    kubectl: Kubectl
    token: str

    def patch_status(self, name: str, status: Mapping[str, Any] | None, **more: Any) -> Outcome:
        """Merge into an execution's status in one request, as runner and operator do: kubectl would read it first."""
        cluster = json.loads(self.kubectl.run("config", "view", "--raw", "--minify", "--output=json"))["clusters"][0][
            "cluster"
        ]
        context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{self.kubectl.namespace}/{PLURAL}/{name}/status"
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/merge-patch+json"}
        body = json.dumps({"status": status, **more}).encode()
        request = urllib.request.Request(cluster["server"] + path, body, headers, method="PATCH")
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(request, timeout=30) as answer:
                return Outcome(True, answer.read().decode(), "")
        except urllib.error.HTTPError as error:
            with error:
                return Outcome(False, "", json.load(error)["message"])


@dataclass(frozen=True)
class Installation:
    """The chart's accounts, rights and policies in a namespace, and several users of it."""

    admin: Kubectl
    users: Mapping[str, User]
    names: tuple[str, ...]
    """The policies."""

    def attempt(self, user: str, *arguments: str, manifest: Mapping[str, Any] | None = None) -> Outcome:
        """Run kubectl as a user."""
        return self.users[user].kubectl.attempt(*arguments, manifest=manifest)


def render(namespace: str) -> str:
    shown = [f"--show-only=templates/{name}.yaml" for name in TEMPLATES]
    command = [str(find_helm()), "template", "oet", str(CHART), f"--namespace={namespace}", *shown]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def build_pod(name: str, account: str, **labels: str) -> dict[str, Any]:
    # No node has the label, so it is never run: only its token matters.
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "serviceAccountName": account,
            "nodeSelector": {f"{GROUP}/nowhere": "true"},
            "containers": [{"name": "c", "image": "none"}],
        },
    }


def build_script_pod(name: str) -> dict[str, Any]:
    return build_pod(name, "oet-runner", **{MANAGED_LABEL: MANAGED_VALUE})


def create_token(kubectl: Kubectl, account: str, pod: str = "") -> str:
    bound = ["--bound-object-kind=Pod", f"--bound-object-name={pod}"] if pod else []
    return kubectl.run("create", "token", account, *bound).strip()


def log_in(kubectl: Kubectl, folder: Path, account: str, pod: str = "") -> User:
    """Return a user with nothing but a token: a certificate beside it would win."""
    token = create_token(kubectl, account, pod)
    config = json.loads(kubectl.run("config", "view", "--raw", "--minify", "--output=json"))
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    path = folder / f"kubeconfig-{uuid4().hex}"
    path.write_text(json.dumps(config), encoding="utf-8")
    return User(replace(kubectl, kubeconfig=path), token)


def is_policed(kubectl: Kubectl, names: tuple[str, ...]) -> bool:
    """Tell whether all policies are checked and in force: the API server needs a moment after they were stored."""
    for name in names:
        if "typeChecking" not in kubectl.read("validatingadmissionpolicy", name).get("status", {}):
            return False
    text = json.dumps({"status": {"state": State.IDLE}})
    dry = ("patch", RESOURCE, "probe", "--subresource=status", "--type=merge", f"--patch={text}", "--dry-run=server")
    patch = kubectl.attempt(*dry)
    pod = kubectl.attempt("create", "--dry-run=server", "--filename=-", manifest=build_script_pod("probe"))
    abort = kubectl.attempt("create", "--dry-run=server", "--filename=-", manifest=build_abort("probe-abort"))
    return all("ValidatingAdmissionPolicy" in outcome.complaint for outcome in (patch, pod, abort))


@pytest.fixture(scope="module")
def installation(executions: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    kubectl, folder = executions, tmp_path_factory.mktemp("users")
    names = tuple(f"{kubectl.namespace}.oet.{name}" for name in ("status", "pods", "aborts", "templates", "elsewhere"))
    manifest = render(str(kubectl.namespace))
    kubectl.run("apply", "--filename=-", manifest=manifest)
    try:
        create_execution(kubectl, "probe")
        wait_for(lambda: is_policed(kubectl, names), 60, "the policies are not in force", 0.3)
        for name, role in (("visitor", "edit"), ("administrator", "cluster-admin")):
            kubectl.run("create", "serviceaccount", name)
            kubectl.run(
                "create", "rolebinding", name, f"--clusterrole={role}", f"--serviceaccount={kubectl.namespace}:{name}"
            )
        accounts = {"operator": "oet-operator", "api": "oet-api", "runner without Pod": "oet-runner"}
        accounts |= {"visitor": "visitor", "administrator": "administrator"}
        users = {name: log_in(kubectl, folder, account) for name, account in accounts.items()}
        for name, pod in (("runner", OWN_POD), ("other runner", OTHER_POD)):
            users["operator"].kubectl.run("create", "--filename=-", manifest=build_script_pod(pod))
            users[name] = log_in(kubectl, folder, "oet-runner", pod)
        yield Installation(kubectl, users, names)
    finally:
        kinds = "validatingadmissionpolicybinding,validatingadmissionpolicy"
        kubectl.run("delete", kinds, *names, "--ignore-not-found")


def create_execution(kubectl: Kubectl, name: str) -> None:
    manifest = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {"name": name},
        "spec": {"script": {"file": {"path": "a.py"}}},
    }
    kubectl.run("create", "--filename=-", manifest=manifest)


def build_abort(name: str) -> dict[str, Any]:
    spec = {"script": {"file": {"path": "a.py"}}, "purpose": Purpose.ABORT, "desiredState": DesiredState.READY}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": {"name": name}, "spec": spec}


def test_only_the_operator_creates_abort_scripts_and_only_the_api_starts_them(installation: Installation) -> None:
    name = f"abort-{uuid4().hex[:12]}"
    for user in ("api", "visitor", "administrator"):
        if user != "visitor":  # The usual roles do not know the kind.
            refused = installation.attempt(user, "create", "--filename=-", manifest=build_abort(name))
            assert "only OET's operator creates abort scripts" in refused.complaint
    made = installation.attempt("operator", "create", "--filename=-", manifest=build_abort(name))
    assert made.is_done, made.complaint
    patch = json.dumps({"spec": {"desiredState": DesiredState.RUNNING, "abortOf": "somebody"}})
    arguments = ("patch", RESOURCE, name, "--type=merge", f"--patch={patch}")
    refused = installation.attempt("administrator", *arguments)
    assert "only OET's API says for whom" in refused.complaint
    done = installation.attempt("api", *arguments)
    assert done.is_done, done.complaint


@pytest.mark.parametrize(
    ("fields", "is_allowed"),
    [
        ({}, False),
        ({"args": {"init": {"kwargs": {"subarray_id": None}}}}, False),
        ({"subarray": 1}, True),
        ({"args": {"init": {"kwargs": {"subarray_id": 1}}}}, True),
        ({"args": {"main": {"kwargs": {"subarray_id": "1"}}}}, True),
        ({"mode": "Rehearsal"}, True),
    ],
)
def test_stop_with_abort_of_nothing_is_refused_and_every_other_stop_is_not(
    installation: Installation, fields: dict[str, Any], is_allowed: bool
) -> None:
    name = f"stop-{uuid4().hex[:12]}"
    spec = {"script": {"file": {"path": "a.py"}}, **fields}
    manifest = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": {"name": name}, "spec": spec}
    installation.users["api"].kubectl.run("create", "--filename=-", manifest=manifest)
    stop = {"desiredState": DesiredState.STOPPED, "stop": {"abort": True}}
    arguments = ("patch", RESOURCE, name, "--type=merge")
    outcome = installation.attempt("api", *arguments, f"--patch={json.dumps({'spec': stop})}")
    assert outcome.is_done == is_allowed, outcome.complaint
    if not is_allowed:
        assert "stop it without abort" in outcome.complaint
        plain = json.dumps({"spec": {"desiredState": DesiredState.STOPPED}})
        assert installation.attempt("api", *arguments, f"--patch={plain}").is_done


@pytest.fixture
def execution(installation: Installation) -> str:
    """An execution whose Pod is `OWN_POD`, with the status that the operator gives it first."""
    name = f"case-{uuid4().hex[:12]}"
    create_execution(installation.users["api"].kubectl, name)
    first = {"state": State.CREATING, "procedureId": 1, "podName": OWN_POD, "observedGeneration": 1, "history": []}
    outcome = write(installation, "operator", name, first)
    assert outcome.is_done, outcome.complaint
    return name


def write(installation: Installation, user: str, name: str, status: Mapping[str, Any] | None) -> Outcome:
    return installation.users[user].patch_status(name, status)


def test_api_server_has_no_doubt_about_the_policies(installation: Installation) -> None:
    for name in installation.names:
        checked = installation.admin.read("validatingadmissionpolicy", name)["status"]["typeChecking"]
        assert checked.get("expressionWarnings", []) == []


def test_samples_are_all_the_fields_that_are_the_operators() -> None:
    fields = {field.alias for field in ScriptExecutionStatus.model_fields.values()} - {"runner"}
    assert set(OPERATORS) == fields


# ---- the runner ----------------------------------------------------------------------------------------------------------


def test_runner_reports_for_the_execution_of_its_pod(installation: Installation, execution: str) -> None:
    for report in ({"claim": "abc"}, {"transitions": [ENTRY], "resolvedCommit": "c0ffee"}, {"exit": EXIT}):
        outcome = write(installation, "runner", execution, {"runner": report})
        assert outcome.is_done, outcome.complaint
    stored = installation.admin.read(RESOURCE, execution)["status"]
    assert stored["runner"] == {"claim": "abc", "transitions": [ENTRY], "resolvedCommit": "c0ffee", "exit": EXIT}
    assert (stored["state"], stored["podName"]) == (State.CREATING, OWN_POD)


@pytest.mark.parametrize("user", ["other runner", "runner without Pod"])
def test_runner_of_another_pod_is_refused(installation: Installation, execution: str, user: str) -> None:
    outcome = write(installation, user, execution, {"runner": {"claim": "abc"}})
    assert not outcome.is_done
    assert "own Pod" in outcome.complaint
    assert "runner" not in installation.admin.read(RESOURCE, execution)["status"]


def test_runner_is_refused_before_the_operator_has_named_its_pod(installation: Installation) -> None:
    create_execution(installation.users["api"].kubectl, "no-status")
    outcome = write(installation, "runner", "no-status", {"runner": {"claim": "abc"}})
    assert not outcome.is_done
    assert "own Pod" in outcome.complaint


@pytest.mark.parametrize("field", OPERATORS)
def test_runner_cannot_set_a_field_of_the_operator(installation: Installation, execution: str, field: str) -> None:
    outcome = write(installation, "runner", execution, {field: OPERATORS[field], "runner": {"claim": "abc"}})
    assert not outcome.is_done
    assert f"status.{field} is the operator's" in outcome.complaint


@pytest.mark.parametrize("status", [{"state": None}, {"podName": None}, {"procedureId": None}, None], ids=str)
def test_runner_cannot_remove_what_the_operator_wrote(installation: Installation, execution: str, status: Any) -> None:
    outcome = write(installation, "runner", execution, status)
    assert not outcome.is_done
    assert "is the operator's" in outcome.complaint


CLAIMED = {
    "another claim": {"claim": "def"},
    "no claim": {"claim": None},
    "nothing": None,
    "another end": {"exit": {**EXIT, "outcome": ScriptOutcome.STOPPED}},
    "another detail of the end": {"exit": {"message": "forged"}},
    "no end": {"exit": None},
    "not confined after all": {"confined": False},
    "confinement taken back": {"confined": None},
}


@pytest.mark.parametrize("change", CLAIMED.values(), ids=CLAIMED)
def test_claim_and_end_are_never_changed(installation: Installation, execution: str, change: Any) -> None:
    done = write(installation, "runner", execution, {"runner": {"claim": "abc", "confined": True, "exit": EXIT}})
    assert done.is_done, done.complaint
    outcome = write(installation, "runner", execution, {"runner": change})
    assert not outcome.is_done
    assert "never changed" in outcome.complaint
    # Sent twice because the first answer was lost: the same report is no change.
    again = write(installation, "runner", execution, {"runner": {"claim": "abc", "confined": True, "exit": EXIT}})
    assert again.is_done, again.complaint


def test_confinement_is_not_told_after_the_claim(installation: Installation, execution: str) -> None:
    assert write(installation, "runner", execution, {"runner": {"claim": "abc"}}).is_done
    outcome = write(installation, "runner", execution, {"runner": {"confined": True}})
    assert not outcome.is_done
    assert "confined" in outcome.complaint
    assert "confined" not in installation.admin.read(RESOURCE, execution)["status"]["runner"]


def test_runner_cannot_change_spec_or_metadata(installation: Installation, execution: str) -> None:
    text = json.dumps({"spec": {"desiredState": DesiredState.STOPPED}})
    outcome = installation.attempt("runner", "patch", RESOURCE, execution, "--type=merge", f"--patch={text}")
    assert "cannot patch" in outcome.complaint
    more = {"metadata": {"labels": {"a": "b"}}, "spec": {"desiredState": DesiredState.STOPPED}}
    outcome = installation.users["runner"].patch_status(execution, {}, **more)
    assert outcome.is_done, outcome.complaint
    stored = installation.admin.read(RESOURCE, execution)
    assert "desiredState" not in stored["spec"]
    assert "labels" not in stored["metadata"]


def test_long_report_is_not_refused_for_its_length(installation: Installation, execution: str) -> None:
    long = {**EXIT, "outcome": ScriptOutcome.FAILED, "stacktrace": "x" * 32_768}
    history = [{**ENTRY, "seq": number} for number in range(1, 65)]
    operator = write(installation, "operator", execution, {"history": history, "stacktrace": "x" * 32_768})
    assert operator.is_done, operator.complaint
    for _ in range(2):
        outcome = write(
            installation, "runner", execution, {"runner": {"claim": "a", "transitions": history, "exit": long}}
        )
        assert outcome.is_done, outcome.complaint


# ---- all others ----------------------------------------------------------------------------------------------------------


def test_operator_writes_every_field_but_the_runners(installation: Installation, execution: str) -> None:
    done = write(installation, "runner", execution, {"runner": {"claim": "abc"}})
    assert done.is_done, done.complaint
    outcome = write(installation, "operator", execution, OPERATORS)
    assert outcome.is_done, outcome.complaint
    for change in ({"claim": "def"}, {"transitions": [ENTRY]}, None):
        refused = write(installation, "operator", execution, {"runner": change})
        assert not refused.is_done
        assert "the operator never changes it" in refused.complaint


@pytest.mark.parametrize(
    ("user", "words"), [("administrator", "only OET's operator"), ("api", "cannot patch"), ("visitor", "cannot patch")]
)
def test_nobody_else_writes_a_status(installation: Installation, execution: str, user: str, words: str) -> None:
    outcome = write(installation, user, execution, {"state": State.COMPLETE})
    assert not outcome.is_done
    assert words in outcome.complaint


def test_stop_gets_through_beside_the_policies(installation: Installation, execution: str) -> None:
    text = json.dumps({"spec": {"desiredState": DesiredState.STOPPED}})
    for user in ("api", "administrator"):
        outcome = installation.attempt(user, "patch", RESOURCE, execution, "--type=merge", f"--patch={text}")
        assert outcome.is_done, outcome.complaint
    outcome = installation.attempt("operator", "delete", RESOURCE, execution)
    assert outcome.is_done, outcome.complaint


def test_other_namespaces_are_not_policed(installation: Installation) -> None:
    name = f"oet-test-{uuid4().hex[:12]}"
    installation.admin.run("create", "namespace", name)
    try:
        elsewhere = installation.admin.within(name)
        create_execution(elsewhere, "free")
        text = json.dumps({"status": {"state": State.IDLE}})
        patch = ("patch", RESOURCE, "free", "--subresource=status", "--type=merge", f"--patch={text}")
        outcome = elsewhere.attempt(*patch)
        assert outcome.is_done, outcome.complaint
    finally:
        installation.admin.run("delete", "namespace", name, "--wait=false")


def test_creation_where_no_operator_works_is_done_with_a_warning(installation: Installation) -> None:
    name = f"oet-test-{uuid4().hex[:12]}"
    installation.admin.run("create", "namespace", name)
    try:
        elsewhere = installation.admin.within(name)
        manifest = {**build_abort("lonely"), "spec": {"script": {"file": {"path": "a.py"}}}}
        warned = elsewhere.attempt("create", "--filename=-", manifest=manifest)
        assert warned.is_done
        assert f"no operator of OET with the account oet-operator works in namespace {name}" in warned.complaint
        # Another release: its operator has the same rights there.
        right = ("--verb=patch", f"--resource={RESOURCE}/status")
        elsewhere.run("create", "role", "operator", *right)
        elsewhere.run("create", "rolebinding", "operator", "--role=operator", f"--serviceaccount={name}:oet-operator")
        manifest["metadata"] = {"generateName": "served-"}

        def is_silent() -> bool:
            return "no operator" not in elsewhere.attempt("create", "--filename=-", manifest=manifest).complaint

        assert wait_for(is_silent, 10, "the operator of another release is not known", 0.3)
    finally:
        installation.admin.run("delete", "namespace", name, "--wait=false")


def test_part_of_a_template_that_no_pod_has_is_refused_whoever_asks_and_however_carelessly(
    installation: Installation,
) -> None:
    for template, words in (
        ({"nodeSelector": {}}, "nodeSelector"),
        ({"metadata": {}, "spec": {}, "specs": 1}, "specs"),
    ):
        spec = {"script": {"file": {"path": "a.py"}}, "podTemplate": template}
        manifest = {**build_abort("misspelt"), "spec": spec}
        outcome = installation.admin.attempt("create", "--validate=ignore", "--filename=-", manifest=manifest)
        assert f"like a Pod, and not {words}" in outcome.complaint


# ---- Pods ----------------------------------------------------------------------------------------------------------------


def build_old_style_pod() -> dict[str, Any]:
    pod = build_script_pod("old-style")
    pod["spec"]["serviceAccount"] = pod["spec"].pop("serviceAccountName")
    return pod


PODS: dict[str, tuple[str, dict[str, Any], str]] = {
    "script Pod by a visitor": ("visitor", build_script_pod("p"), "create a ScriptExecution instead"),
    "script Pod by an administrator": ("administrator", build_script_pod("p"), "create a ScriptExecution instead"),
    "script Pod in the old words": ("visitor", build_old_style_pod(), "create a ScriptExecution instead"),
    "Pod of the operator's account by the operator": (
        "operator",
        build_pod("p", "oet-operator", **{MANAGED_LABEL: MANAGED_VALUE}),
        "runners alone",
    ),
    "script Pod without the label by the operator": ("operator", build_pod("p", "oet-runner"), "needs the label"),
    "script Pod with the API's label by the operator": (
        "operator",
        build_pod("p", "oet-runner", **{MANAGED_LABEL: MANAGED_VALUE, "app.kubernetes.io/component": "api"}),
        "cannot have the labels",
    ),
    "script Pod by a runner": ("runner", build_script_pod("p"), "cannot create"),
    "script Pod by the API": ("api", build_script_pod("p"), "cannot create"),
}


@pytest.mark.parametrize(("user", "pod", "words"), PODS.values(), ids=PODS)
def test_pod_is_refused(installation: Installation, user: str, pod: dict[str, Any], words: str) -> None:
    outcome = installation.attempt(user, "create", "--filename=-", manifest=pod)
    assert not outcome.is_done
    assert words in outcome.complaint


def test_visitor_may_create_other_pods(installation: Installation) -> None:
    installation.users["visitor"].kubectl.run("create", "--filename=-", manifest=build_pod("visitors-own", "default"))


def test_controller_cannot_be_made_to_create_a_script_pod(installation: Installation) -> None:
    labels = {"app": "roundabout"}
    pod = build_script_pod("p")
    template = {"metadata": {"labels": {**labels, MANAGED_LABEL: MANAGED_VALUE}}, "spec": pod["spec"]}
    manifest = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": "roundabout"},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
    }
    installation.users["visitor"].kubectl.run("create", "--filename=-", manifest=manifest)

    def observe_failure() -> str:
        status = installation.admin.read("replicaset", "roundabout").get("status", {})
        failures = [each["message"] for each in status.get("conditions", []) if each["type"] == "ReplicaFailure"]
        return "".join(failures)

    assert "create a ScriptExecution instead" in wait_for(observe_failure, 30, "the controller does not complain", 0.2)


# ---- rights --------------------------------------------------------------------------------------------------------------

MAY_NOT = {
    "runner": [
        "create pods",
        "get secrets",
        "get configmaps",
        "list pods",
        "create serviceaccounts --subresource=token",
        "delete se",
        "create se",
    ],
    "api": ["create pods", "delete pods", "create pods --subresource=exec", "get secrets", "list leases", "update se"],
    "operator": [
        "get secrets",
        "update pods",
        "list configmaps",
        "list secrets",
        "patch se",
        "create pods --subresource=exec",
        "create roles",
    ],
}


@pytest.mark.parametrize("user", MAY_NOT)
def test_account_may_not_more_than_it_needs(installation: Installation, user: str) -> None:
    for words in MAY_NOT[user]:
        verb, what, *more = words.split()
        outcome = installation.attempt(user, "auth", "can-i", verb, RESOURCE if what == "se" else what, *more)
        assert outcome.output.strip() == "no", words


# ---- sizes -------------------------------------------------------------------------------------------------------------


def test_spec_that_leaves_no_room_for_its_status_is_refused_and_a_stop_of_one_is_not(
    installation: Installation,
) -> None:
    def build(name: str, size: int) -> dict[str, Any]:
        spec = {"script": {"file": {"path": "a.py"}}, "args": {"main": {"args": [{"data": ["x" * size]}]}}}
        return {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": {"name": name}, "spec": spec}

    refused = installation.admin.attempt("create", "--filename=-", manifest=build("too-large", 1_100_000))
    assert not refused.is_done
    assert "may have 1048576" in refused.complaint
    installation.admin.run("create", "--filename=-", manifest=build("large", 900_000))
    stop = json.dumps({"spec": {"desiredState": DesiredState.STOPPED}})
    installation.admin.run("patch", RESOURCE, "large", "--type=merge", f"--patch={stop}")
    installation.admin.run("delete", RESOURCE, "large")
