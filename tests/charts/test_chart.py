"""The Helm chart: what it renders for which values, and what it refuses."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from oet_support import running_server
from oet_support_chart import CHART, Refused

from oet_api.services import compute_base
from oet_crds.execution import ScriptExecutionStatus
from oet_crds.names import GROUP, MANAGED_LABEL, MANAGED_VALUE, MODE_LABEL, PLURAL, REHEARSAL_VALUE, SCRIPT_CONTAINER
from oet_crds.settings import ServerSettings, Settings, parse_settings
from oet_crds.states import FINAL_STATES

ROOT = CHART.parents[1]
KUBERNETES_VERSIONS = ("1.31", "1.35")
FOREIGN_KINDS = ("ServiceMonitor",)
"""Not part of Kubernetes; there is no schema to compare them with."""

MANAGED = {
    "server": {"host", "hosts", "port", "entries_port", "namespace", "engine"},
    "engine": {"state_dir", "spares", "isolation", "confinement", "scripts_location"},
    "kubernetes": {
        "image",
        "image_pull_policy",
        "service_account",
        "pod_template_file",
        "git_template_file",
        "port",
        "rehearsals",
        "timeline_url",
    },
    "git": {"cache_dir", "credentials_dir"},
    "timeline": {"database", "retention_days"},
    "oda": {
        "backend",
        "data_dir",
        "postgres_host",
        "postgres_port",
        "postgres_database",
        "postgres_user",
        "postgres_password",
    },
}
"""Settings that the chart makes from its own values, or that only the embedded engine has."""

VOLUMES = [
    {"name": "shared", "path": "shared", "readOnly": False, "source": {"persistentVolumeClaim": {"claimName": "c"}}},
    {"name": "nfs", "path": "a/b", "subPath": "x", "source": {"nfs": {"server": "s", "path": "/p"}}},
]

VALUE_SETS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "simulation": {"simulation": {"enabled": True, "subarrays": 3}},
    "one of each": {"api": {"replicas": 1}, "operator": {"replicas": 1}},
    "many replicas": {"api": {"replicas": 3}, "operator": {"replicas": 5}},
    "everything on": {
        "image": {"repository": "localhost:5000/a/b", "digest": "sha256:" + "0" * 64, "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "tangoHost": "db.tango:10000",
        "features": {"readViaPubsub": True},
        "config": {"engine": {"history_limit": 5, "log_limit_bytes": 123456789}, "server": {"heartbeat_seconds": 2.5}},
        "api": {
            "replicas": 2,
            "env": {"A": 1, "B": True, "C": "c: d", "D": 12345678},
            "service": {"type": "NodePort", "port": 80, "annotations": {"a": "b"}},
            "podAnnotations": {"a": "b"},
            "ingress": {
                "enabled": True,
                "className": "nginx",
                "host": "oet.local",
                "annotations": {"a": "off"},
                "tls": [{"hosts": ["oet.local"], "secretName": "s"}],
            },
            "nodeSelector": {"a": "b"},
            "tolerations": [{"key": "k", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "high",
            "serviceAccount": {"name": "my-api", "annotations": {"a": "b"}},
        },
        "operator": {"serviceAccount": {"name": "my-operator"}, "env": {"A": "a"}, "podAnnotations": {"a": "b"}},
        "runner": {"serviceAccount": {"name": "my-runner"}},
        "scripts": {"location": "/opt/scripts", "volumes": VOLUMES, "env": {"SKUID_URL": "skuid:9870"}},
        "networkPolicy": {
            "api": {"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
            "scripts": {"egress": [{"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 10000}]}]},
            "apiServerCidr": "10.2.0.1/32",
        },
        "rehearsal": {"enabled": True},
        "timeline": {"database": {"url": "postgresql://db/oet"}},
        "metrics": {
            "from": [{"namespaceSelector": {}}],
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboard": {"enabled": True},
        },
        "global": {"tango_host": "other:10000", "minikube": True},
    },
    "everything off": {
        "policy": {"enabled": False},
        "networkPolicy": {"enabled": False},
    },
    "no resources": {"api": {"resources": {}}, "operator": {"resources": {}}, "scripts": {"resources": {}}},
    "archive on a volume": {"oda": {"data": {"persistentVolumeClaim": {"claimName": "oda"}}}},
    "archive in PostgreSQL": {
        "oda": {"backend": "postgres", "postgres": {"host": "db", "password": {"secret": "oda-db"}}},
        "config": {"oda": {"timeout_seconds": 2, "activity_states": "todo"}},
    },
    "scripts from a ConfigMap": {"scripts": {"configMap": "my-scripts"}},
    "nothing but DNS for scripts": {"networkPolicy": {"scripts": {"egress": []}}},
    "database in a Secret": {"api": {"replicas": 2}, "timeline": {"database": {"existingSecret": "oet-database"}}},
    "SQLite on a volume": {"timeline": {"persistence": {"enabled": True, "storageClass": "fast"}}},
    "other names": {"fullnameOverride": "observing", "nameOverride": "x"},
}

Render = Callable[..., list[dict[str, Any]]]
Find = Callable[..., dict[str, Any]]
values_sets = pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)


def iter_pods(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and spec of each Pod and Pod template."""
    for each in objects:
        name = f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"] == "Pod":
            yield name, each["spec"]
        elif "template" in each.get("spec", {}):
            yield name, each["spec"]["template"]["spec"]


def get_environment(deployment: dict[str, Any]) -> dict[str, Any]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    names = [each["name"] for each in container["env"]]
    assert len(names) == len(set(names))
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def list_settings(section: str) -> set[str]:
    model = Settings.model_fields[section].annotation
    return set(getattr(model, "model_fields", {}))


def load_pod_template(find: Find, scripts: dict[str, Any], **values: Any) -> dict[str, Any]:
    config = find("ConfigMap", "oet-config", {"scripts": scripts, **values})
    template: dict[str, Any] = json.loads(config["data"]["pod-template.json"])
    return template


# ---- Kubernetes takes it -------------------------------------------------------------------------------------------------


@values_sets
def test_every_object_is_what_kubernetes_understands(render: Render, values: dict[str, Any]) -> None:
    objects = render(values)
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))
    for each in objects:
        if each["kind"] not in FOREIGN_KINDS:
            for version in KUBERNETES_VERSIONS:
                kubernetes_validate.validate(each, version, strict=True)


@values_sets
def test_helm_has_no_complaint(helm: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")
    command = [str(helm), "lint", "--strict", str(CHART), f"--values={path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@values_sets
def test_every_pod_is_restricted(render: Render, values: dict[str, Any]) -> None:
    pods = dict(iter_pods(render(values)))
    assert len(pods) == (4 if "simulation" in values else 3)
    for name, spec in pods.items():
        security = spec["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not any(spec.get(word) for word in ("hostNetwork", "hostPID", "hostIPC")), name
        assert all(not {"hostPath"} & set(volume) for volume in spec["volumes"]), name
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            own = container["securityContext"]
            assert own == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert {"name": mounts["/tmp"], "emptyDir": {}} in spec["volumes"], name


@values_sets
def test_only_script_pods_take_a_token_that_they_did_not_ask_for(render: Render, values: dict[str, Any]) -> None:
    objects = render(values)
    automatic = {
        each["metadata"]["name"]: each["automountServiceAccountToken"]
        for each in objects
        if each["kind"] == "ServiceAccount"
    }
    asked = {name: spec["automountServiceAccountToken"] for name, spec in iter_pods(objects)}
    assert [name for name, is_on in automatic.items() if is_on] == [
        name for name in automatic if name.endswith("-runner")
    ]
    assert {name for name, is_on in asked.items() if is_on} == {
        name for name in asked if name.startswith("Deployment/") and not name.endswith("-telescope")
    }


def test_everything_else_is_in_the_namespace_of_the_release(render: Render) -> None:
    for each in render(VALUE_SETS["everything on"]):
        assert "namespace" not in each["metadata"]
        # There is no right to review tokens within a namespace.
        assert not each["kind"].startswith("Cluster") or each["metadata"]["name"] == "observatory.oet.tokens"


@pytest.mark.parametrize(
    ("release", "prefix"), [("oet", "oet"), ("my-oet", "my-oet"), ("test", "test-oet"), ("x" * 53, "x" * 50)]
)
def test_names_begin_with_the_release(render: Render, release: str, prefix: str) -> None:
    common = {"oet-one-in-a-namespace"}
    for each in render({}, release):
        name = each["metadata"]["name"].removeprefix("observatory.")
        assert name in common or name.startswith(prefix)


# ---- parts that must agree with the code ---------------------------------------------------------------------------------


def test_definition_in_the_chart_is_the_generated_one() -> None:
    generated = {path.name: path.read_bytes() for path in (ROOT / "crds" / "generated").iterdir()}
    assert {path.name: path.read_bytes() for path in (CHART / "crds").iterdir()} == generated


def test_chart_has_the_version_of_the_project() -> None:
    project = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert project is not None
    assert chart["version"] == chart["appVersion"] == project[1]


def test_policy_names_every_field_of_status_but_the_runners(find: Find) -> None:
    policy = find("ValidatingAdmissionPolicy", "observatory.oet.status")
    pattern = r"!variables\.isRunner \|\| object\.\?status\.\?(\w+) == oldObject\.\?status\.\?(\w+)"
    found = [re.fullmatch(pattern, each["expression"]) for each in policy["spec"]["validations"]]
    pairs = [(match[1], match[2]) for match in found if match]
    fields = [field.alias for field in ScriptExecutionStatus.model_fields.values()]
    assert all(new == old for new, old in pairs)
    assert sorted(new for new, _ in pairs) == sorted(set(map(str, fields)) - {"runner"})


def test_policies_know_the_accounts_and_the_label_by_their_names(render: Render) -> None:
    values = VALUE_SETS["everything on"]
    policies = [each for each in render(values) if each["kind"] == "ValidatingAdmissionPolicy"]
    variables = {
        (policy["metadata"]["name"].rpartition(".")[2], each["name"]): each["expression"]
        for policy in policies
        for each in policy["spec"].get("variables", [])
    }
    operator, runner = (f"'system:serviceaccount:observatory:my-{part}'" for part in ("operator", "runner"))
    assert (
        variables["status", "isOperator"]
        == variables["pods", "isByOperator"]
        == f"request.userInfo.username == {operator}"
    )
    assert variables["status", "isRunner"] == f"request.userInfo.username == {runner}"
    assert variables["pods", "isRunner"].endswith("== 'my-runner'")
    text = json.dumps(policies)
    assert f"[?'{MANAGED_LABEL}'].orValue('') == '{MANAGED_VALUE}'" in text
    key = "kubernetes.io/metadata.name"
    for policy in policies:
        spec = policy["spec"]
        is_elsewhere = policy["metadata"]["name"].endswith(".elsewhere")
        assert spec["failurePolicy"] == ("Ignore" if is_elsewhere else "Fail")
        others = {"matchExpressions": [{"key": key, "operator": "NotIn", "values": ["observatory"]}]}
        selector = others if is_elsewhere else {"matchLabels": {key: "observatory"}}
        assert spec["matchConstraints"]["namespaceSelector"] == selector


@pytest.mark.parametrize("warns", [True, False])
def test_each_policy_is_bound_and_denies_but_for_the_one_that_warns_elsewhere(render: Render, warns: bool) -> None:
    objects = render({"policy": {"warnElsewhere": warns}})
    policies = {each["metadata"]["name"] for each in objects if each["kind"] == "ValidatingAdmissionPolicy"}
    bindings = [each["spec"] for each in objects if each["kind"] == "ValidatingAdmissionPolicyBinding"]
    names = {f"observatory.oet.{name}": ["Deny"] for name in ("aborts", "ends", "pods", "sizes", "status", "templates")}
    if warns:
        names["observatory.oet.elsewhere"] = ["Warn"]
    assert {each["policyName"]: each["validationActions"] for each in bindings} == names
    assert policies == names.keys()


CORE, LEASES = "", "coordination.k8s.io"
RIGHTS: dict[str, set[tuple[str, str, str, str]]] = {
    "oet-api": {
        (GROUP, PLURAL, "", "create delete get list patch watch"),
        (CORE, "pods/log", "", "get"),
        (LEASES, "leases", "oet-operator", "get"),
    },
    "oet-operator": {
        (GROUP, PLURAL, "", "create delete get list watch"),
        (GROUP, f"{PLURAL}/status", "", "patch"),
        (GROUP, f"{PLURAL}/finalizers", "", "update"),
        (CORE, "pods", "", "create delete get list patch watch"),
        (CORE, "events", "", "create"),
        (CORE, "configmaps", "oet-procedure-ids", "get update"),
        (CORE, "configmaps", "", "create"),
        (LEASES, "leases", "oet-operator", "get update"),
        (LEASES, "leases", "", "create"),
    },
    "oet-runner": {
        (GROUP, PLURAL, "", "get list watch"),
        (GROUP, f"{PLURAL}/status", "", "patch"),
    },
}
"""Account -> group, resource, name (empty: all), verbs. Nothing may be added without a reason that stands in roles.yaml."""


def test_rights_are_exactly_these(render: Render) -> None:
    objects = render()
    roles = {each["metadata"]["name"]: each["rules"] for each in objects if each["kind"] == "Role"}
    found: dict[str, set[tuple[str, str, str, str]]] = {}
    for binding in [each for each in objects if each["kind"] == "RoleBinding"]:
        (subject,) = binding["subjects"]
        assert (subject["kind"], subject["namespace"]) == ("ServiceAccount", "observatory")
        assert binding["roleRef"]["kind"] == "Role"
        for rule in roles.pop(binding["roleRef"]["name"]):
            assert set(rule) <= {"apiGroups", "resources", "resourceNames", "verbs"}
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for name in rule.get("resourceNames", [""]):
                        right = (group, resource, name, " ".join(sorted(rule["verbs"])))
                        found.setdefault(subject["name"], set()).add(right)
    assert found == RIGHTS
    assert not roles, "a Role that nobody has"


def test_rights_belong_to_the_accounts_of_the_pods(render: Render) -> None:
    objects = render(VALUE_SETS["everything on"])
    subjects = {each["subjects"][0]["name"] for each in objects if each["kind"] == "RoleBinding"}
    accounts = {each["metadata"]["name"] for each in objects if each["kind"] == "ServiceAccount"}
    pods = {spec["serviceAccountName"] for _, spec in iter_pods(objects) if "serviceAccountName" in spec}
    assert subjects == accounts == {"my-api", "my-operator", "my-runner"}
    assert pods == {"my-api", "my-operator"}


# ---- configuration -------------------------------------------------------------------------------------------------------


def test_schema_takes_exactly_the_settings_that_the_chart_does_not_make_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (CHART / "values.schema.json").read_text(encoding="utf-8")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    assert text == importlib.import_module("generate_chart").build_values_schema(), "run `make generate`"
    sections = json.loads(text)["properties"]["config"]["properties"]
    missing = {name: list_settings(name) - set(section["properties"]) for name, section in sections.items()}
    assert missing == MANAGED


def test_settings_file_is_one_that_oet_reads(find: Find) -> None:
    config = {
        "server": {"max_body_bytes": 5_000_000, "heartbeat_seconds": 2.5, "threads": 64},
        "engine": {"history_limit": 7, "log_limit_bytes": 123_456_789},
        "kubernetes": {"lease_seconds": 5, "resync_seconds": 1.5},
    }
    text = find("ConfigMap", "oet-config", {"config": config})["data"]["oet.ini"]
    settings = parse_settings(text, "oet.ini", {}).model_dump()
    for section, keys in config.items():
        assert {key: settings[section][key] for key in keys} == keys


def test_scripts_from_git_get_cache_and_secret_and_others_do_not(find: Find) -> None:
    plain = json.loads(find("ConfigMap", "oet-config")["data"]["git-template.json"])["spec"]
    assert plain["volumes"] == [{"name": "oet-git-cache", "emptyDir": {}}]
    claim = {"persistentVolumeClaim": {"claimName": "c"}}
    values = {"git": {"cache": claim, "secret": "git-read"}}
    data = find("ConfigMap", "oet-config", values)["data"]
    spec = json.loads(data["git-template.json"])["spec"]
    assert spec["volumes"][0] == {"name": "oet-git-cache", **claim}
    assert spec["volumes"][1]["secret"] == {"secretName": "git-read", "defaultMode": 0o440}
    assert [mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]] == ["/var/cache/oet", "/etc/oet/git"]
    assert "git-read" not in data["pod-template.json"]
    container = find("Deployment", "oet-operator", values)["spec"]["template"]["spec"]["containers"][0]
    env = {one["name"]: one.get("value") for one in container["env"]}
    assert (env["OET_GIT_CACHE_DIR"], env["OET_GIT_CREDENTIALS_DIR"]) == ("/var/cache/oet", "/etc/oet/git")


@pytest.mark.parametrize("part", ["api", "operator"])
def test_environment_is_one_that_oet_reads(find: Find, part: str) -> None:
    environment = get_environment(find("Deployment", f"oet-{part}", VALUE_SETS["defaults"]))
    texts = {name: value for name, value in environment.items() if isinstance(value, str)}
    settings = parse_settings("", "", texts)
    assert settings.server.namespace == "observatory"
    assert settings.engine.scripts_location == "/scripts"
    if part == "api":
        assert (settings.server.engine, settings.server.port) == ("kubernetes", 5000)
    else:
        kubernetes = settings.kubernetes
        assert (kubernetes.image, kubernetes.service_account) == ("localhost/ska-oso-oet:7.1.0", "oet-runner")
        assert kubernetes.port == 8080
        assert environment["POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}


def test_timeline_is_nowhere_unless_the_values_say_where(find: Find) -> None:
    environment = get_environment(find("Deployment", "oet-api"))
    assert not [name for name in environment if name.startswith("OET_TIMELINE")]


def test_database_comes_from_its_secret_and_from_nowhere_else(render: Render, find: Find) -> None:
    values = {"timeline": {"database": {"existingSecret": "oet-database", "key": "address"}, "retentionDays": 365}}
    environment = get_environment(find("Deployment", "oet-api", values))
    assert environment["OET_TIMELINE_DATABASE"] == {"secretKeyRef": {"name": "oet-database", "key": "address"}}
    assert environment["OET_TIMELINE_RETENTION_DAYS"] == "365"
    assert not [each for each in render(values) if each["kind"] in ("Secret", "PersistentVolumeClaim")]


@pytest.mark.parametrize("existing", ["", "mine"])
def test_file_of_sqlite_is_on_a_volume_that_one_pod_has_at_a_time(render: Render, find: Find, existing: str) -> None:
    values = {"timeline": {"persistence": {"enabled": True, "existingClaim": existing}}}
    spec = find("Deployment", "oet-api", values)["spec"]
    assert spec["strategy"] == {"type": "Recreate"}
    pod = spec["template"]["spec"]
    claim = existing or "oet-timeline"
    volume = next(each["name"] for each in pod["volumes"] if each.get("persistentVolumeClaim") == {"claimName": claim})
    folder = next(each["mountPath"] for each in pod["containers"][0]["volumeMounts"] if each["name"] == volume)
    settings = parse_settings(
        "", "", {each["name"]: each["value"] for each in pod["containers"][0]["env"] if "value" in each}
    )
    assert settings.timeline.database == f"sqlite:///{folder}/timeline.db"
    claims = [each["metadata"]["name"] for each in render(values) if each["kind"] == "PersistentVolumeClaim"]
    assert claims == ([] if existing else [claim])


def test_archive_in_postgresql_is_reached_with_a_password_out_of_a_secret(find: Find) -> None:
    deployment = find("Deployment", "oet-api", VALUE_SETS["archive in PostgreSQL"])
    environment = get_environment(deployment)
    assert environment["ADMIN_POSTGRES_PASSWORD"] == {
        "secretKeyRef": {"name": "oda-db", "key": "ADMIN_POSTGRES_PASSWORD"}
    }
    oda = parse_settings("", "", {name: text for name, text in environment.items() if isinstance(text, str)}).oda
    assert (oda.backend, oda.postgres_host, oda.postgres_port) == ("postgres", "db", 5432)
    assert [each["name"] for each in deployment["spec"]["template"]["spec"]["volumes"]] == ["config", "state", "tmp"]


def test_archive_of_files_is_mounted_where_the_api_looks_for_it(find: Find) -> None:
    deployment = find("Deployment", "oet-api", VALUE_SETS["archive on a volume"])
    texts = {name: text for name, text in get_environment(deployment).items() if isinstance(text, str)}
    spec = deployment["spec"]["template"]["spec"]
    folder = next(each["mountPath"] for each in spec["containers"][0]["volumeMounts"] if each["name"] == "oda")
    assert folder == parse_settings("", "", texts).oda.data_dir
    assert {"name": "oda", "persistentVolumeClaim": {"claimName": "oda"}} in spec["volumes"]


@pytest.mark.parametrize("part", ["api", "operator"])
def test_services_that_happen_to_be_there_set_nothing(find: Find, part: str) -> None:
    spec = find("Deployment", f"oet-{part}")["spec"]["template"]["spec"]
    assert spec["enableServiceLinks"] is False


@pytest.mark.parametrize(
    ("part", "file"), [("api", "oet.ini"), ("operator", "oet.ini"), ("operator", "pod-template.json")]
)
def test_files_are_mounted_where_the_environment_says(find: Find, part: str, file: str) -> None:
    deployment = find("Deployment", f"oet-{part}")
    environment = get_environment(deployment)
    path = environment["OET_CONFIG" if file == "oet.ini" else "OET_POD_TEMPLATE_FILE"]
    spec = deployment["spec"]["template"]["spec"]
    folder = next(each["mountPath"] for each in spec["containers"][0]["volumeMounts"] if each["name"] == "config")
    assert path == f"{folder}/{file}"
    volume = next(each["configMap"] for each in spec["volumes"] if each["name"] == "config")
    assert file in find("ConfigMap", volume["name"])["data"]
    assert "items" not in volume or {"key": file, "path": file} in volume["items"]


CHANGES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "setting, API": ("api", {"config": {"engine": {"history_limit": 1}}}, True),
    "setting, operator": ("operator", {"config": {"engine": {"history_limit": 1}}}, True),
    "script's environment, API": ("api", {"scripts": {"env": {"A": "b"}}}, False),
    "script's environment, operator": ("operator", {"scripts": {"env": {"A": "b"}}}, True),
}


@pytest.mark.parametrize(("part", "values", "is_restarted"), CHANGES.values(), ids=CHANGES)
def test_what_a_part_reads_at_its_start_restarts_it(
    find: Find, part: str, values: dict[str, Any], is_restarted: bool
) -> None:
    name = f"oet-{part}"
    before, after = (find("Deployment", name, each)["spec"]["template"] for each in ({}, values))
    assert (before != after) == is_restarted


@pytest.mark.parametrize(("replicas", "budgets"), [(1, []), (2, ["oet-api"]), (None, ["oet-api"])])
def test_budget_is_there_unless_there_is_one_replica(render: Render, replicas: int | None, budgets: list[str]) -> None:
    objects = render({"api": {"replicas": replicas}, "operator": {"replicas": 1}})
    (api,) = [each for each in objects if (each["kind"], each["metadata"]["name"]) == ("Deployment", "oet-api")]
    assert api["spec"].get("replicas") == replicas
    assert ("replicas" in api["spec"]) is (replicas is not None)
    assert [each["metadata"]["name"] for each in objects if each["kind"] == "PodDisruptionBudget"] == budgets


def test_scripts_have_a_budget_only_if_that_is_wanted(render: Render) -> None:
    objects = render({"scripts": {"disruptionBudget": True}, "operator": {"replicas": 1}})
    (budget,) = [each for each in objects if each["kind"] == "PodDisruptionBudget"]
    assert budget["spec"]["selector"] == {"matchLabels": {MANAGED_LABEL: MANAGED_VALUE}}


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ({}, "localhost/ska-oso-oet:7.1.0"),
        ({"repository": "a:5000/b", "tag": "c"}, "a:5000/b:c"),
        ({"tag": "c", "digest": "sha256:" + "a" * 64}, "localhost/ska-oso-oet@sha256:" + "a" * 64),
    ],
    ids=["default", "tag", "digest"],
)
def test_all_pods_have_the_one_image(render: Render, image: dict[str, str], reference: str) -> None:
    objects = render({"image": image})
    assert {each["image"] for _, spec in iter_pods(objects) for each in spec["containers"]} == {reference}


# ---- script Pods ---------------------------------------------------------------------------------------------------------


def get_script_container(template: dict[str, Any]) -> dict[str, Any]:
    (container,) = [each for each in template["spec"]["containers"] if each["name"] == SCRIPT_CONTAINER]
    return dict(container)


def test_config_map_is_mounted_as_the_folder_of_scripts(find: Find) -> None:
    template = load_pod_template(find, {"configMap": "my-scripts", "location": "/x"})
    assert template["spec"]["volumes"] == [{"name": "scripts", "configMap": {"name": "my-scripts"}}]
    mount = {"name": "scripts", "mountPath": "/x", "readOnly": True}
    assert get_script_container(template)["volumeMounts"] == [mount]


def test_several_volumes_are_mounted_below_the_folder_of_scripts(find: Find) -> None:
    template = load_pod_template(find, {"volumes": VOLUMES})
    assert template["spec"]["volumes"] == [
        {"name": "shared", "persistentVolumeClaim": {"claimName": "c"}},
        {"name": "nfs", "nfs": {"server": "s", "path": "/p"}},
    ]
    assert get_script_container(template)["volumeMounts"] == [
        {"name": "shared", "mountPath": "/scripts/shared", "readOnly": False},
        {"name": "nfs", "mountPath": "/scripts/a/b", "readOnly": True, "subPath": "x"},
    ]


def test_script_environment_has_the_words_of_upstream(find: Find) -> None:
    scripts = {"env": {"SUBARRAYNODE_FQDN_PREFIX": "low/tm", "VALIDATION_STRICTNESS": 2}, "location": "/s"}
    template = load_pod_template(find, scripts, tangoHost="db:10000", features={"readViaPubsub": True})
    environment = {each["name"]: each["value"] for each in get_script_container(template)["env"]}
    assert environment == {
        "SUBARRAYNODE_FQDN_PREFIX": "low/tm",
        "VALIDATION_STRICTNESS": "2",
        "TANGO_HOST": "db:10000",
        "SCRIPTS_LOCATION": "/s",
        "OET_READ_VIA_PUBSUB": "true",
    }


@pytest.mark.parametrize(
    ("values", "host"),
    [
        ({}, None),
        ({"global": {"tango_host": "g:1"}}, "g:1"),
        ({"global": {"tango_host": "g:1"}, "tangoHost": "t:2"}, "t:2"),
    ],
    ids=["none", "umbrella", "own"],
)
def test_tango_host_is_the_charts_own_or_the_umbrellas(find: Find, values: dict[str, Any], host: str | None) -> None:
    environment = get_script_container(load_pod_template(find, {}, **values))["env"]
    assert [each["value"] for each in environment if each["name"] == "TANGO_HOST"] == ([host] if host else [])


def test_pod_template_is_joined_with_the_simple_values_and_wins(find: Find) -> None:
    own = {
        "name": SCRIPT_CONTAINER,
        "env": [{"name": "A", "value": "own"}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "resources": {"limits": {"cpu": "1"}},
        "workingDir": "/data",
    }
    scripts = {
        "configMap": "c",
        "env": {"A": "simple", "B": "simple"},
        "envFrom": [{"secretRef": {"name": "s"}}],
        "nodeSelector": {"a": "simple", "b": "simple"},
        "tolerations": [{"key": "k"}],
        "imagePullSecrets": [{"name": "r"}],
        "podTemplate": {
            "metadata": {"annotations": {"x": "y"}},
            "spec": {
                "containers": [{"name": "sidecar", "image": "i"}, own],
                "volumes": [{"name": "data", "emptyDir": {}}],
                "nodeSelector": {"a": "own"},
                "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["db"]}],
            },
        },
    }
    template = load_pod_template(find, scripts)
    spec, container = template["spec"], get_script_container(template)
    values = {each["name"]: each["value"] for each in container["env"]}
    assert (values["A"], values["B"]) == ("own", "simple")
    assert len(container["env"]) == len(values)
    assert (container["resources"], container["workingDir"]) == ({"limits": {"cpu": "1"}}, "/data")
    assert [each["mountPath"] for each in container["volumeMounts"]] == ["/scripts", "/data"]
    assert [each["name"] for each in spec["volumes"]] == ["scripts", "data"]
    assert [each["name"] for each in spec["containers"]] == [SCRIPT_CONTAINER, "sidecar"]
    assert spec["nodeSelector"] == {"a": "own", "b": "simple"}
    assert (spec["tolerations"], spec["imagePullSecrets"]) == ([{"key": "k"}], [{"name": "r"}])
    assert container["envFrom"] == [{"secretRef": {"name": "s"}}]
    assert (template["metadata"], spec["hostAliases"]) == (
        {"annotations": {"x": "y"}},
        [{"ip": "10.0.0.1", "hostnames": ["db"]}],
    )


# ---- network -------------------------------------------------------------------------------------------------------------


def test_nothing_reaches_script_pods_and_they_reach_neither_api_nor_operator(find: Find) -> None:
    inwards = find("NetworkPolicy", "oet-scripts-ingress")["spec"]
    assert inwards["podSelector"] == {"matchLabels": {MANAGED_LABEL: MANAGED_VALUE}}
    assert (inwards["policyTypes"], inwards["ingress"]) == (["Ingress"], [])
    scripts = find("NetworkPolicy", "oet-scripts")["spec"]
    assert scripts["podSelector"]["matchLabels"] == {MANAGED_LABEL: MANAGED_VALUE}
    assert scripts["policyTypes"] == ["Egress"]
    assert {} in scripts["egress"]
    (rule,) = find("NetworkPolicy", "oet-api")["spec"]["ingress"]
    (peer,) = rule["from"]
    assert peer["podSelector"] == {"matchExpressions": [{"key": MANAGED_LABEL, "operator": "DoesNotExist"}]}
    assert find("NetworkPolicy", "oet-operator")["spec"]["ingress"] == []


def test_no_policy_that_lets_something_out_shuts_something_out_of_the_same_pods(render: Render) -> None:
    """Some plug-ins take what one rule of a policy lets out of one of its Pods for let into another one."""
    values = {
        "simulation": {"enabled": True},
        "rehearsal": {"enabled": True},
        "networkPolicy": {"apiServerCidr": "10.2.0.1/32"},
    }
    for policy in render(values):
        if policy["kind"] == "NetworkPolicy" and policy["spec"].get("egress"):
            assert policy["spec"]["policyTypes"] == ["Egress"], policy["metadata"]["name"]


@pytest.mark.parametrize("part", ["api", "operator"])
def test_network_policy_and_budget_select_the_pods_of_the_part(find: Find, part: str) -> None:
    values = {"api": {"replicas": 2}}
    labels = find("Deployment", f"oet-{part}", values)["spec"]["template"]["metadata"]["labels"]
    selectors = [
        find("Deployment", f"oet-{part}", values)["spec"]["selector"]["matchLabels"],
        find("NetworkPolicy", f"oet-{part}", values)["spec"]["podSelector"]["matchLabels"],
        find("PodDisruptionBudget", f"oet-{part}", values)["spec"]["selector"]["matchLabels"],
    ]
    if part == "api":
        selectors.append(find("Service", "oet-api", values)["spec"]["selector"])
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert selector["app.kubernetes.io/component"] == part


def test_tight_egress_still_lets_scripts_reach_dns_and_the_api_server(find: Find) -> None:
    values = {"networkPolicy": {"scripts": {"egress": []}, "apiServerCidr": "10.2.0.1/32"}}
    dns, server = find("NetworkPolicy", "oet-scripts", values)["spec"]["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert {port["port"] for port in server["ports"]} == {443, 6443}
    assert server["to"] == [{"ipBlock": {"cidr": "10.2.0.1/32"}}]


def test_rehearsals_reach_the_api_server_alone_and_get_nothing_that_other_scripts_get(find: Find) -> None:
    cidr = "10.2.0.1/32"
    values = {"rehearsal": {"enabled": True}, "networkPolicy": {"apiServerCidr": cidr}}
    own = find("NetworkPolicy", "oet-rehearsals", values)["spec"]
    assert own["podSelector"]["matchLabels"] == {MANAGED_LABEL: MANAGED_VALUE, MODE_LABEL: REHEARSAL_VALUE}
    assert own["policyTypes"] == ["Egress"]
    ports = [{"port": port, "protocol": "TCP"} for port in (443, 6443)]
    assert own["egress"] == [{"ports": ports, "to": [{"ipBlock": {"cidr": cidr}}]}]
    (left_out,) = find("NetworkPolicy", "oet-scripts", values)["spec"]["podSelector"]["matchExpressions"]
    assert left_out == {"key": MODE_LABEL, "operator": "NotIn", "values": [REHEARSAL_VALUE]}


@pytest.mark.parametrize("is_enabled", [True, False])
def test_operator_runs_rehearsals_only_where_the_values_say_so(find: Find, is_enabled: bool) -> None:
    values = {"rehearsal": {"enabled": is_enabled}, "networkPolicy": {"apiServerCidr": "10.2.0.1/32"}}
    container = find("Deployment", "oet-operator", values)["spec"]["template"]["spec"]["containers"][0]
    environ = {one["name"]: one.get("value", "") for one in container["env"]}
    assert parse_settings("", "none", environ).kubernetes.rehearsals is is_enabled


def test_rehearsals_reach_nothing_where_the_api_server_is_not_named(find: Find) -> None:
    assert find("NetworkPolicy", "oet-rehearsals", {})["spec"]["egress"] == []


def test_runners_reach_the_port_for_entries_and_nothing_else_of_the_api(find: Find) -> None:
    values = {"timeline": {"database": {"url": "postgresql://db/oet"}}, "networkPolicy": {"scripts": {"egress": []}}}
    users, entries = find("NetworkPolicy", "oet-api", values)["spec"]["ingress"]
    assert users == find("NetworkPolicy", "oet-api")["spec"]["ingress"][0]
    assert entries["ports"] == [{"port": "entries", "protocol": "TCP"}]
    (peer,) = entries["from"]
    assert peer["podSelector"]["matchLabels"] == {MANAGED_LABEL: MANAGED_VALUE}
    assert peer["podSelector"]["matchExpressions"][0]["values"] == [REHEARSAL_VALUE]
    assert "namespaceSelector" not in peer
    assert find("NetworkPolicy", "oet-operator", values)["spec"]["ingress"] == []
    api = find("Deployment", "oet-api", values)["spec"]["template"]
    *_, way = find("NetworkPolicy", "oet-scripts", values)["spec"]["egress"]
    assert way["to"][0]["podSelector"]["matchLabels"].items() <= api["metadata"]["labels"].items()
    ports = {one["name"]: one["containerPort"] for one in api["spec"]["containers"][0]["ports"]}
    assert [one["port"] for one in way["ports"]] == [ports["entries"]] != [ports["http"]]


def test_runners_are_told_the_service_that_leads_to_the_port_for_entries(find: Find) -> None:
    values = {"timeline": {"database": {"url": "postgresql://db/oet"}}}
    operator = parse_settings("", "none", get_environment(find("Deployment", "oet-operator", values)))
    api = parse_settings("", "none", get_environment(find("Deployment", "oet-api", values)))
    service = find("Service", "oet-api", values)
    (port,) = [one for one in service["spec"]["ports"] if one["targetPort"] == "entries"]
    name = service["metadata"]["name"]
    assert operator.kubernetes.timeline_url == f"http://{name}.observatory.svc:{port['port']}"
    assert api.server.entries_port == port["port"]
    values["timeline"]["ingest"] = {"url": "https://oet.example/timeline"}
    operator = parse_settings("", "none", get_environment(find("Deployment", "oet-operator", values)))
    assert operator.kubernetes.timeline_url == "https://oet.example/timeline"


def test_api_may_review_tokens_only_where_runners_post(render: Render) -> None:
    values = {"timeline": {"database": {"url": "postgresql://db/oet"}}}
    objects = render(values)
    (role,) = [each for each in objects if each["kind"] == "ClusterRole"]
    assert role["rules"] == [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}
    ]
    (binding,) = [each for each in objects if each["kind"] == "ClusterRoleBinding"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"] == "observatory.oet.tokens"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "oet-api", "namespace": "observatory"}]
    assert not [each for each in render() if each["kind"].startswith("ClusterRole")]


def test_without_a_timeline_nothing_is_open_for_entries(find: Find) -> None:
    assert [one["name"] for one in find("Service", "oet-api")["spec"]["ports"]] == ["http"]
    operator = parse_settings("", "none", get_environment(find("Deployment", "oet-operator")))
    api = parse_settings("", "none", get_environment(find("Deployment", "oet-api")))
    assert (operator.kubernetes.timeline_url, api.server.entries_port) == ("", 0)


# ---- what it refuses -----------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rehearsals without policies": (
        {"rehearsal": {"enabled": True}, "networkPolicy": {"enabled": False, "apiServerCidr": "10.2.0.1/32"}},
        "networkPolicy.enabled",
    ),
    "rehearsals that reach every server's port": ({"rehearsal": {"enabled": True}}, "networkPolicy.apiServerCidr"),
    "unknown value": ({"replicas": 2}, "replicas"),
    "unknown value below": ({"api": {"replica": 2}}, "replica"),
    "replicas as text": ({"api": {"replicas": "2"}}, "replicas"),
    "no operator": ({"operator": {"replicas": 0}}, "replicas"),
    "unknown setting": ({"config": {"engine": {"histroy_limit": 1}}}, "histroy_limit"),
    "unknown section": ({"config": {"motor": {}}}, "motor"),
    "setting out of bounds": ({"config": {"kubernetes": {"lease_seconds": 1}}}, "lease_seconds"),
    "setting that the chart makes": ({"config": {"server": {"engine": "local"}}}, "engine"),
    "variable that the chart sets": ({"api": {"env": {"OET_PORT": "1"}}}, "OET_PORT"),
    "script variable that the operator sets": ({"scripts": {"env": {"OET_POD_NAME": "x"}}}, "OET_POD_NAME"),
    "pull policy": ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    "digest": ({"image": {"digest": "0123"}}, "digest"),
    "relative location": ({"scripts": {"location": "scripts"}}, "location"),
    "location with a slash at its end": ({"scripts": {"location": "/scripts/"}}, "location"),
    "way out of the location": (
        {"scripts": {"volumes": [{"name": "a", "path": "../etc", "source": {"emptyDir": {}}}]}},
        "path",
    ),
    "two sources": ({"scripts": {"volumes": [{"name": "a", "source": {"emptyDir": {}, "nfs": {}}}]}}, "source"),
    "two volumes at one place": (
        {"scripts": {"volumes": [{"name": n, "path": "p", "source": {"emptyDir": {}}} for n in "ab"]}},
        "same path",
    ),
    "volume over another": (
        {"scripts": {"configMap": "c", "volumes": [{"name": "a", "path": "p", "source": {"emptyDir": {}}}]}},
        "only a single volume",
    ),
    "one account for two": (
        {"runner": {"serviceAccount": {"name": "same"}}, "api": {"serviceAccount": {"name": "same"}}},
        "need an account each",
    ),
    "SQLite for two servers": (
        {"api": {"replicas": 2}, "timeline": {"persistence": {"enabled": True}}},
        "set api.replicas to 1",
    ),
    "two databases": (
        {"timeline": {"persistence": {"enabled": True}, "database": {"existingSecret": "a"}}},
        "either a database or persistence",
    ),
    "database that only one server can have": ({"timeline": {"database": {"url": "sqlite:////a"}}}, "url"),
    "archive without its server": ({"oda": {"backend": "postgres"}}, "oda.postgres.host"),
    "archive of another kind": ({"oda": {"backend": "rest"}}, "backend"),
    "Tango host without port": ({"tangoHost": "db"}, "tangoHost"),
}


@pytest.mark.parametrize(("values", "words"), REFUSED.values(), ids=REFUSED)
def test_wrong_value_is_refused_by_its_name(render: Render, values: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=re.escape(words)):
        render(values)


def test_every_value_of_the_chart_is_in_the_schema_and_the_other_way_round() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))

    def compare(schema: dict[str, Any], values: dict[str, Any], path: str) -> None:
        assert set(schema["properties"]) == set(values), path
        for key, below in schema["properties"].items():
            if below.get("properties") and isinstance(values[key], dict) and values[key]:
                compare(below, values[key], f"{path}.{key}")

    assert schema["additionalProperties"] is False
    for section in ("server", "engine", "kubernetes", "git", "oda", "timeline"):
        del values["config"][section]
    compare(schema, values, "")


# ---- files that travel with it -------------------------------------------------------------------------------------------


def test_smoke_test_passes_on_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server(OET_SPARES="1") as server:
        monkeypatch.setenv("OET_SERVER", f"http://127.0.0.1:{server.port}")
        monkeypatch.setenv("OET_BASE", "/ska-oso-oet/oet/api/v7")
        done = subprocess.run(
            [sys.executable, str(CHART / "files" / "smoke.py")], capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 0, done.stderr
    assert "is COMPLETE" in done.stdout


def test_smoke_test_asks_the_api_of_the_release(find: Find) -> None:
    (container,) = find("Pod", "oet-smoke-test")["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert environment["OET_SERVER"] == "http://oet-api:5000"
    assert environment["OET_BASE"] == compute_base(ServerSettings(namespace="observatory"))
    assert container["args"] == [(CHART / "files" / "smoke.py").read_text(encoding="utf-8")]


def test_smoke_test_fails_where_no_server_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OET_SERVER", "http://127.0.0.1:9")
    monkeypatch.setenv("OET_BASE", "/x")
    command = [sys.executable, str(CHART / "files" / "smoke.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "http://127.0.0.1:9 is not reached" in done.stderr


def test_smoke_test_knows_the_final_states() -> None:
    text = (CHART / "files" / "smoke.py").read_text(encoding="utf-8")
    found = re.search(r"^FINAL = \((.*)\)$", text, re.M)
    assert found is not None
    assert set(re.findall(r'"(\w+)"', found[1])) == {str(state) for state in FINAL_STATES}


def test_dashboard_shows_metrics_that_exist() -> None:
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
    wanted = {name for each in dashboard["panels"] for name in re.findall(r"\boet_\w+", each["targets"][0]["expr"])}
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    types = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", page, re.M))
    shown = {f"{name}_bucket" if kind == "histogram" else name for name, kind in types.items()}
    assert wanted
    assert wanted <= shown


@pytest.mark.parametrize("is_policed", [True, False])
def test_simulated_telescope_is_what_scripts_use(render: Render, find: Find, is_policed: bool) -> None:
    values = {"simulation": {"enabled": True, "subarrays": 3}, "networkPolicy": {"enabled": is_policed}}
    telescope = find("Deployment", "oet-telescope", values)["spec"]["template"]
    (container,) = telescope["spec"]["containers"]
    assert "--subarrays=3" in container["command"]
    service = find("Service", "oet-telescope", values)["spec"]
    assert service["selector"].items() <= telescope["metadata"]["labels"].items()
    config = find("ConfigMap", "oet-config", values)["data"]["pod-template.json"]
    (script,) = json.loads(config)["spec"]["containers"]
    assert {"name": "TANGO_HOST", "value": "oet-telescope.observatory.svc:10000"} in script["env"]
    policies = {each["metadata"]["name"] for each in render(values) if each["kind"] == "NetworkPolicy"}
    assert ({"oet-telescope", "oet-scripts-to-telescope"} <= policies) is is_policed


def test_simulated_and_real_telescope_exclude_each_other(render: Render) -> None:
    with pytest.raises(Refused, match="either a simulated telescope or a real one"):
        render({"simulation": {"enabled": True}, "tangoHost": "db:10000"})


@pytest.mark.parametrize(
    ("api", "names"),
    [
        ({}, []),
        ({"ingress": {"enabled": True, "host": "oet.local"}}, ["oet.local"]),
        ({"ingress": {"enabled": False, "host": "oet.local"}}, []),
        ({"hosts": ["a.example", "*.b.example"]}, ["a.example", "*.b.example"]),
    ],
)
def test_api_answers_to_the_names_by_which_clients_come(find: Find, api: dict[str, Any], names: list[str]) -> None:
    (container,) = find("Deployment", "oet-api", {"api": api})["spec"]["template"]["spec"]["containers"]
    environ = {one["name"]: one.get("value", "") for one in container["env"]}
    endings = ("", ".observatory", ".observatory.svc", ".observatory.svc.cluster.local")
    own = [f"oet-api{ending}" for ending in endings]
    settings = parse_settings("", "none", environ).server
    assert settings.hosts.split() == own + names
    assert settings.host == "0.0.0.0"
