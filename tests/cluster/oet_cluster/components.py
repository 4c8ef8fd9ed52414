"""Command line and configuration of each component, as pure functions: nothing here starts or writes anything."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

from oet_cluster import network
from oet_cluster.machine import CGROUP
from oet_cluster.places import Places

__all__ = [
    "PAUSE_IMAGE",
    "Component",
    "build_cni_config",
    "build_command",
    "build_containerd_config",
    "build_kubelet_config",
    "build_proxy_config",
]

Locate = Callable[[str], Path]
"""Gives the path of a program that was built."""

PAUSE_IMAGE = "localhost/pause:1"
ETCD_URL = "http://127.0.0.1:2379"
ETCD_PEER_URL = "http://127.0.0.1:2380"
CNI_PROGRAMS = "/usr/lib/cni"
"""Where Debian's containernetworking-plugins are."""


class Component(StrEnum):
    """The processes of the node, in the order in which they are started."""

    CONTAINERD = "containerd"
    ETCD = "etcd"
    API_SERVER = "apiserver"
    CONTROLLER_MANAGER = "controller-manager"
    SCHEDULER = "scheduler"
    KUBELET = "kubelet"
    PROXY = "proxy"
    POLICIES = "policies"
    """kube-router, only for what it makes of NetworkPolicies. It asks for the node at once, and ends if there is none."""


def build_command(component: Component, places: Places, locate: Locate) -> list[str]:
    """Return the command line of a component."""
    build = {
        Component.CONTAINERD: _build_containerd,
        Component.ETCD: _build_etcd,
        Component.API_SERVER: _build_api_server,
        Component.CONTROLLER_MANAGER: _build_controller_manager,
        Component.SCHEDULER: _build_scheduler,
        Component.KUBELET: _build_kubelet,
        Component.PROXY: _build_proxy,
        Component.POLICIES: _build_policies,
    }[component]
    return build(places, locate)


def _build_containerd(places: Places, locate: Locate) -> list[str]:
    return ["containerd", "--config", str(places.config / "containerd.toml")]


def _build_etcd(places: Places, locate: Locate) -> list[str]:
    return [
        str(locate("etcd")),
        f"--data-dir={places.work / 'etcd'}",
        f"--listen-client-urls={ETCD_URL}",
        f"--advertise-client-urls={ETCD_URL}",
        f"--listen-peer-urls={ETCD_PEER_URL}",
        f"--initial-advertise-peer-urls={ETCD_PEER_URL}",
        f"--initial-cluster=default={ETCD_PEER_URL}",
        # The data is thrown away with the cluster: it need not survive a power cut.
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def _build_api_server(places: Places, locate: Locate) -> list[str]:
    pki = places.pki
    return [
        str(locate("kube-apiserver")),
        f"--etcd-servers={ETCD_URL}",
        f"--bind-address={network.NODE_ADDRESS}",
        f"--advertise-address={network.NODE_ADDRESS}",
        "--secure-port=6443",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--service-account-key-file={pki}/sa.pub",
        f"--service-account-signing-key-file={pki}/sa.key",
        f"--service-account-issuer=https://kubernetes.default.svc.{network.DOMAIN}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--anonymous-auth=false",
        f"--service-cluster-ip-range={network.SERVICES}",
        f"--kubelet-client-certificate={pki}/apiserver-kubelet.crt",
        f"--kubelet-client-key={pki}/apiserver-kubelet.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        # Nothing resolves the node's name: without this `kubectl logs` and `exec` fail.
        "--kubelet-preferred-address-types=InternalIP",
        "--allow-privileged=true",
        "--profiling=false",
    ]


def _build_controller_flags(name: str, places: Places) -> list[str]:
    kubeconfig = places.config / f"{name}.kubeconfig"
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--profiling=false",
    ]


def _build_controller_manager(places: Places, locate: Locate) -> list[str]:
    return [
        str(locate("kube-controller-manager")),
        *_build_controller_flags("controller-manager", places),
        f"--service-account-private-key-file={places.pki}/sa.key",
        f"--root-ca-file={places.pki}/ca.crt",
        "--use-service-account-credentials",
        f"--cluster-cidr={network.PODS}",
        # At the default of 20 requests a second the node is Ready 3 s later.
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    ]


def _build_scheduler(places: Places, locate: Locate) -> list[str]:
    flags = _build_controller_flags("scheduler", places)
    return [str(locate("kube-scheduler")), *flags, "--kube-api-qps=200", "--kube-api-burst=400"]


def _build_kubelet(places: Places, locate: Locate) -> list[str]:
    return [
        str(locate("kubelet")),
        f"--config={places.config / 'kubelet.json'}",
        f"--kubeconfig={places.config / 'kubelet.kubeconfig'}",
        f"--hostname-override={network.NODE_NAME}",
        f"--node-ip={network.NODE_ADDRESS}",
        "--root-dir=/var/lib/kubelet",
        "--v=2",
    ]


def _build_proxy(places: Places, locate: Locate) -> list[str]:
    return [str(locate("kube-proxy")), f"--config={places.config / 'proxy.json'}"]


def _build_policies(places: Places, locate: Locate) -> list[str]:
    return [
        str(locate("kube-router")),
        f"--kubeconfig={places.config / 'policies.kubeconfig'}",
        f"--hostname-override={network.NODE_NAME}",
        f"--service-cluster-ip-range={network.SERVICES}",
        "--run-firewall=true",
        # Routes and Services are others' here.
        "--run-router=false",
        "--run-service-proxy=false",
        "--run-loadbalancer=false",
        "--enable-cni=false",
        # They would listen on all addresses, so to Pods.
        "--health-port=0",
        "--metrics-port=0",
        # Rules follow Pods and policies as they change; this is for what somebody else did to the rules.
        "--iptables-sync-period=30s",
        # Says when it began and ended each change of the rules.
        "--v=1",
    ]


def build_containerd_config(places: Places) -> str:
    """Return containerd's configuration (version 2 of its format, which containerd 1.x and 2.x read)."""
    snapshotters = ", ".join(f'"io.containerd.snapshotter.v1.{name}"' for name in ("aufs", "btrfs", "devmapper", "zfs"))
    return f"""version = 2
root = "{places.image_store}"
state = "{places.work}/containerd-state"
disabled_plugins = [{snapshotters}]
# A container host without CAP_SYS_RESOURCE may not lower anybody's OOM score.
oom_score = 0
[grpc]
  address = "{places.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  stream_server_address = "127.0.0.1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PROGRAMS}"
    conf_dir = "{places.config}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""


def build_cni_config() -> dict[str, Any]:
    """Return the Pods' network: one bridge, addresses by turn, no masquerading, since Pods and machine know each other."""
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": network.PODS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": network.BRIDGE,
        "isGateway": True,
        "ipMasq": False,
        # A Pod may reach itself through its Service.
        "hairpinMode": True,
        "ipam": addresses,
    }
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}


def build_kubelet_config(places: Places) -> dict[str, Any]:
    """Return the kubelet's configuration: secured like a real one, with nothing that fights over the machine."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.NODE_ADDRESS,
        "readOnlyPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{places.pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{places.pki}/kubelet-server.crt",
        "tlsPrivateKeyFile": f"{places.pki}/kubelet-server.key",
        "containerRuntimeEndpoint": f"unix://{places.socket}",
        "clusterDomain": network.DOMAIN,
        "clusterDNS": [network.DNS_ADDRESS],
        "resolvConf": "",
        "podLogsDir": f"{places.work}/podlogs",
        "nodeStatusUpdateFrequency": "5s",
        **_MODEST,
        **_QUICK,
    }


_MODEST: dict[str, Any] = {
    # Version 1 cgroups are welcome, and nothing outside our own cgroup is touched.
    "cgroupDriver": "cgroupfs",
    "cgroupRoot": f"/{CGROUP}",
    "failCgroupV1": False,
    "enforceNodeAllocatable": [],
    "oomScoreAdj": 0,
    "failSwapOn": False,
    # The disk is the developer's: never evict a Pod nor collect an image because of it.
    "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    "imageGCHighThresholdPercent": 100,
    "imageGCLowThresholdPercent": 99,
}
"""The kubelet is a guest on the machine."""

_QUICK: dict[str, Any] = {
    "serializeImagePulls": False,
    "registryPullQPS": 0,
    "eventRecordQPS": 0,
    "kubeAPIQPS": 200,
    "kubeAPIBurst": 400,
    # Logs are looked at every 10 s by default, whether they are too long.
    "containerLogMonitorInterval": "3s",
}
"""Tests start many Pods at once, and wait for a log to be rotated."""


def build_proxy_config(places: Places) -> dict[str, Any]:
    """Return kube-proxy's configuration."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        # Not iptables: kube-router writes its whole filter table, and would undo a change that is made meanwhile.
        "mode": "nftables",
        "clientConnection": {"kubeconfig": f"{places.config}/proxy.kubeconfig"},
        "clusterCIDR": network.PODS,
        "hostnameOverride": network.NODE_NAME,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "oomScoreAdj": 0,
        # 0 leaves the machine's own connection tracking limits alone.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "nftables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
    }
