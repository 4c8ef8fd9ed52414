"""What the node of our own is told: command lines, configuration, certificates, manifest. Nothing is started."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from oet_cluster import components, network
from oet_cluster.api import has_available_replica, is_node_ready
from oet_cluster.certs import CERTIFICATES, build_extensions, build_kubeconfig
from oet_cluster.components import Component, build_command
from oet_cluster.images import get_coredns_image
from oet_cluster.node import has_pod_rules, render_system
from oet_cluster.places import Places

PLACES = Places(work=Path("/w"), cache=Path("/c"))


def build(component: Component) -> list[str]:
    return build_command(component, PLACES, lambda program: Path("/bin") / program)


def read_flags(component: Component) -> dict[str, str]:
    return dict(flag.removeprefix("--").partition("=")[::2] for flag in build(component)[1:])


@pytest.mark.parametrize("component", list(Component))
def test_every_component_has_a_command_line_of_flags(component: Component) -> None:
    program, *flags = build(component)
    assert program
    assert component is Component.CONTAINERD or all(flag.startswith("--") for flag in flags)


@pytest.mark.parametrize(
    ("component", "flag", "value"),
    [
        pytest.param(Component.API_SERVER, "kubelet-preferred-address-types", "InternalIP", id="logs without a name"),
        pytest.param(Component.API_SERVER, "authorization-mode", "Node,RBAC", id="real authorization"),
        pytest.param(Component.API_SERVER, "anonymous-auth", "false", id="nobody unknown"),
        pytest.param(Component.API_SERVER, "bind-address", network.NODE_ADDRESS, id="inside the namespace"),
        pytest.param(Component.API_SERVER, "etcd-servers", components.ETCD_URL, id="own etcd"),
        pytest.param(Component.ETCD, "listen-client-urls", components.ETCD_URL, id="loopback only"),
        pytest.param(Component.CONTROLLER_MANAGER, "kube-api-qps", "500", id="ready early"),
        pytest.param(Component.CONTROLLER_MANAGER, "leader-elect", "false", id="alone"),
        pytest.param(Component.KUBELET, "hostname-override", network.NODE_NAME, id="own name"),
        pytest.param(Component.PROXY, "config", "/w/config/proxy.json", id="own configuration"),
        pytest.param(Component.POLICIES, "run-firewall", "true", id="policies"),
        pytest.param(Component.POLICIES, "run-router", "false", id="no routes"),
        pytest.param(Component.POLICIES, "run-service-proxy", "false", id="no services"),
        pytest.param(Component.POLICIES, "hostname-override", network.NODE_NAME, id="the node it is on"),
        pytest.param(Component.POLICIES, "service-cluster-ip-range", network.SERVICES, id="the range of the Services"),
        pytest.param(Component.POLICIES, "health-port", "0", id="no port that Pods reach"),
    ],
)
def test_component_is_told_what_matters(component: Component, flag: str, value: str) -> None:
    assert read_flags(component)[flag] == value


def test_certificate_of_every_name_is_issued() -> None:
    text = " ".join(word for component in Component for word in build(component))
    text += str(components.build_kubelet_config(PLACES))
    used = set(re.findall(r"/w/pki/([a-z-]+)\.crt", text)) - {"ca"}
    kubeconfigs = set(re.findall(r"/w/config/([a-z-]+)\.kubeconfig", text + str(components.build_proxy_config(PLACES))))
    assert used | kubeconfigs | {"admin"} == {certificate.name for certificate in CERTIFICATES}


def test_containerd_config_is_toml_without_a_registry() -> None:
    config = tomllib.loads(components.build_containerd_config(PLACES))
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    assert config["version"] == 2
    assert config["root"] == str(PLACES.image_store)
    assert config["grpc"]["address"] == str(PLACES.socket)
    assert cri["sandbox_image"] == components.PAUSE_IMAGE
    assert cri["cni"]["conf_dir"] == "/w/config/cni"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("failCgroupV1", False),
        ("cgroupDriver", "cgroupfs"),
        ("enforceNodeAllocatable", []),
        ("imageGCHighThresholdPercent", 100),
        ("clusterDNS", [network.DNS_ADDRESS]),
        ("readOnlyPort", 0),
    ],
)
def test_kubelet_is_told_what_matters(key: str, value: object) -> None:
    assert components.build_kubelet_config(PLACES)[key] == value


def test_kubelet_answers_nobody_unknown() -> None:
    config = components.build_kubelet_config(PLACES)
    assert config["authentication"]["anonymous"] == {"enabled": False}
    assert config["authorization"] == {"mode": "Webhook"}


def test_pod_network_and_proxy_agree_on_the_range() -> None:
    (bridge,) = components.build_cni_config()["plugins"]
    assert bridge["ipam"]["ranges"] == [[{"subnet": components.build_proxy_config(PLACES)["clusterCIDR"]}]]
    assert bridge["bridge"] == network.BRIDGE


RULES = """
-A FORWARD -m comment --comment "kube-router netpol - 4IA2OSFRMVNDXBVV" -j KUBE-ROUTER-FORWARD
{}
-A KUBE-ROUTER-FORWARD -m comment --comment "rule to explicitly ACCEPT traffic" -j ACCEPT
"""
POD_RULE = '-A KUBE-ROUTER-FORWARD -s 10.244.0.2/32 -m comment --comment "from POD name:dns" -j KUBE-POD-FW-3FJ2QW7K'


@pytest.mark.parametrize(
    ("rules", "has_rules"),
    [
        pytest.param("", False, id="nothing yet"),
        pytest.param(RULES.format(""), False, id="no Pod yet"),
        pytest.param(RULES.format(":KUBE-POD-FW-3FJ2QW7K - [0:0]"), False, id="nothing leads to the Pod's"),
        pytest.param(RULES.format(POD_RULE), True, id="one Pod"),
    ],
)
def test_policies_are_in_force_when_a_pods_packets_go_through_rules(rules: str, has_rules: bool) -> None:
    assert has_pod_rules(rules) is has_rules


def test_policy_controller_only_looks() -> None:
    documents = list(yaml.safe_load_all(render_system()))
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "kube-router"}
    (binding,) = [document for document in documents if subject in document.get("subjects", [])]
    (role,) = [
        document
        for document in documents
        if document["kind"] == "ClusterRole" and document["metadata"]["name"] == binding["roleRef"]["name"]
    ]
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"list", "watch", "get"}
    assert "secrets" not in str(role)
    (own,) = [rule for rule in role["rules"] if "get" in rule["verbs"]]
    assert (own["resources"], own["resourceNames"]) == (["nodes"], [network.NODE_NAME])
    (certificate,) = [each for each in CERTIFICATES if each.subject == "/CN=kube-router"]
    assert certificate.name == "policies"


def test_system_manifest_is_filled_in() -> None:
    documents = list(yaml.safe_load_all(render_system()))
    by_kind = {document["kind"]: document for document in documents}
    (container,) = by_kind["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == get_coredns_image()
    assert by_kind["Service"]["spec"]["clusterIP"] == network.DNS_ADDRESS
    assert f"kubernetes {network.DOMAIN} " in by_kind["ConfigMap"]["data"]["Corefile"]


@pytest.mark.parametrize("certificate", CERTIFICATES, ids=lambda certificate: certificate.name)
def test_certificate_is_for_a_server_or_a_client_never_both(certificate: Any) -> None:
    extensions = build_extensions(certificate)
    assert ("serverAuth" in extensions) == bool(certificate.addresses) == ("subjectAltName" in extensions)
    assert ("clientAuth" in extensions) != ("serverAuth" in extensions)


def test_api_server_is_known_by_every_address_it_is_called_by() -> None:
    (server,) = [certificate for certificate in CERTIFICATES if certificate.name == "apiserver"]
    needed = {f"IP:{network.NODE_ADDRESS}", f"IP:{network.API_SERVICE_ADDRESS}", "DNS:kubernetes.default.svc"}
    assert needed <= set(server.addresses)


def test_kubeconfig_holds_its_keys_itself(tmp_path: Path) -> None:
    for name in ("ca.crt", "admin.crt", "admin.key"):
        (tmp_path / name).write_text(name)
    config = build_kubeconfig("admin", tmp_path)
    assert str(tmp_path) not in str(config)
    assert config["clusters"][0]["cluster"]["server"] == network.API_URL
    assert config["users"][0]["user"]["client-key-data"] == "YWRtaW4ua2V5"


NODE_READY = {
    "status": {"conditions": [{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": "True"}]}
}
NODE_NOT_READY = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}


@pytest.mark.parametrize(
    ("node", "is_ready"),
    [
        pytest.param(None, False, id="no answer"),
        pytest.param({"status": {}}, False, id="no condition yet"),
        pytest.param(NODE_NOT_READY, False, id="not ready"),
        pytest.param(NODE_READY, True, id="ready"),
    ],
)
def test_node_is_ready_when_it_says_so(node: Mapping[str, Any] | None, is_ready: bool) -> None:
    assert is_node_ready(node) is is_ready


@pytest.mark.parametrize(
    ("deployment", "serves"),
    [
        pytest.param(None, False, id="no answer"),
        pytest.param({"status": {}}, False, id="nothing yet"),
        pytest.param({"status": {"availableReplicas": 1}}, True, id="one replica"),
    ],
)
def test_deployment_serves_with_one_available_replica(deployment: Mapping[str, Any] | None, serves: bool) -> None:
    assert has_available_replica(deployment) is serves


@pytest.mark.parametrize(
    ("routes", "conflicts"),
    [
        pytest.param([], [], id="none"),
        pytest.param(["default", "192.168.1.0/24"], [], id="ordinary"),
        pytest.param(["10.0.0.0/8"], [], id="wider is overruled"),
        pytest.param(["10.244.0.0/24"], ["10.244.0.0/24"], id="the Pods' own"),
        pytest.param(["10.96.3.0/24"], ["10.96.3.0/24"], id="within the Services"),
        pytest.param(["10.250.0.2"], ["10.250.0.2"], id="one address"),
    ],
)
def test_routes_within_our_ranges_conflict(routes: list[str], conflicts: list[str]) -> None:
    assert network.find_conflicts(routes) == conflicts
