"""The node of our own: a real Kubernetes on this machine, as root, without Docker and without a registry."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from string import Template
from typing import Any

from oet_cluster import certs, components, network, packages
from oet_cluster.api import Api, has_available_replica, is_node_ready
from oet_cluster.components import Component
from oet_cluster.errors import ClusterError
from oet_cluster.images import Images, compute_import_stamp, get_coredns_image
from oet_cluster.kubectl import Kubectl
from oet_cluster.machine import Machine
from oet_cluster.places import REPOSITORY_FOLDER, Places
from oet_cluster.processes import INIT, Namespaces
from oet_cluster.toolchain import NODE_MODULES, Toolchain
from oet_cluster.waiting import wait_for

__all__ = ["OwnNode", "has_pod_rules", "render_system"]

_READY_SECONDS = 120.0
"""Each step takes at most a few seconds on two idle cores; this is for a machine that also runs a test suite."""

_KUBECONFIGS = ("admin", "kubelet", "controller-manager", "scheduler", "proxy", "policies")

_DOWN_FIRST = (
    Component.KUBELET,
    Component.CONTROLLER_MANAGER,
    Component.SCHEDULER,
    Component.PROXY,
    Component.POLICIES,
    Component.API_SERVER,
)
"""Who would start containers again, or complain, while they are being removed."""


def render_system() -> str:
    """Return the manifest of what belongs to the cluster itself, filled in."""
    text = (REPOSITORY_FOLDER / "manifests" / "system.yaml").read_text(encoding="utf-8")
    return Template(text).substitute(
        coredns_image=get_coredns_image(),
        dns_address=network.DNS_ADDRESS,
        domain=network.DOMAIN,
        node=network.NODE_NAME,
    )


def has_pod_rules(rules: str) -> bool:
    """Tell whether a table, as `iptables-save` prints it, leads the packets of at least one Pod through kube-router's rules."""
    return re.search(r"^-A KUBE-ROUTER-FORWARD .*-j KUBE-POD-FW-", rules, re.MULTILINE) is not None


class OwnNode:
    """Brings the node up and takes it down. One at a time: `cluster` holds the lock."""

    def __init__(self, places: Places, toolchain: Toolchain, report: Callable[[str], None] = print) -> None:
        self._places = places
        self._toolchain = toolchain
        self._report = report
        self._images = Images(places, toolchain.locate, report)
        self._namespaces = Namespaces(places.work, places.pids, places.logs)
        self._machine = Machine(places.work)
        self._api = Api(places.pki)

    def check(self) -> None:
        """Make sure that the machine can run the node. Raises ClusterError with all that is missing."""
        if os.geteuid() != 0:
            raise ClusterError(
                "a node of our own needs root: run the same command with sudo, or install a Docker engine"
            )
        packages.check(packages.OWN_NODE)

    def build(self) -> None:
        """Build the programs and images that the cache lacks. Takes minutes when it is empty."""
        self._toolchain.build(NODE_MODULES)
        self._toolchain.fetch_helm()
        self._images.ensure_programs()
        self._images.ensure_base()

    def check_free(self) -> None:
        """Make sure that nothing on the machine is in the way. Raises ClusterError if something is."""
        network.check_routes()

    def is_begun(self) -> bool:
        """Tell whether there are namespaces that are ready for components: then `start` goes on from there."""
        return self._namespaces.find(INIT) is not None and self._places.prepared.exists()

    def is_up(self) -> bool:
        """Tell whether every process runs and the node is ready."""
        return (
            all(self._namespaces.find(name) for name in (INIT, *Component))
            and is_node_ready(self._api.read(f"/api/v1/nodes/{network.NODE_NAME}"))
            and has_available_replica(self._read_coredns())
        )

    def start(self) -> None:
        """Start what does not run, and wait until the node and its DNS serve.

        Raises:
            ClusterError: A command failed, or something did not become ready in time; the message names its log.
        """
        report = self._build_reporter()
        if not self.is_begun():
            self._create()
            report("namespaces, network, certificates")
        for component in (Component.CONTAINERD, Component.ETCD, Component.API_SERVER):
            self.start_component(component)
        with ThreadPoolExecutor(1) as pool:
            images = pool.submit(self._import_images)
            self._wait(self._api.is_ready, Component.API_SERVER)
            report("API server ready")
            self.start_component(Component.CONTROLLER_MANAGER)
            self.start_component(Component.SCHEDULER)
            images.result()
        report("images imported")
        self.start_component(Component.KUBELET)
        self.start_component(Component.PROXY)
        self._apply_system()
        self._wait(self._is_default_account_there, Component.CONTROLLER_MANAGER)
        self._wait(lambda: is_node_ready(self._api.read(f"/api/v1/nodes/{network.NODE_NAME}")), Component.KUBELET)
        report("node ready")
        self.start_component(Component.POLICIES)
        self._wait(lambda: has_available_replica(self._read_coredns()), Component.KUBELET)
        report("DNS ready")
        self._wait(self._has_rules_for_a_pod, Component.POLICIES)
        report("network policies in force")

    def _build_reporter(self) -> Callable[[str], None]:
        began = time.monotonic()
        return lambda what: self._report(f"{time.monotonic() - began:5.1f} s  {what}")

    def _create(self) -> None:
        """Make everything that comes before the first component."""
        shutil.rmtree(self._places.logs, ignore_errors=True)
        self._write_configuration()
        self._namespaces.create(self._toolchain.locate("pause"))
        self._machine.prepare(self._namespaces)
        network.connect(self._namespaces)
        self._places.prepared.touch()

    def _write_configuration(self) -> None:
        places = self._places
        certs.issue_all(places.pki)
        (places.config / "cni").mkdir(parents=True, exist_ok=True)
        (places.config / "containerd.toml").write_text(components.build_containerd_config(places), encoding="utf-8")
        files = {
            "cni/10-bridge.conflist": components.build_cni_config(),
            "kubelet.json": components.build_kubelet_config(places),
            "proxy.json": components.build_proxy_config(places),
            **{f"{name}.kubeconfig": certs.build_kubeconfig(name, places.pki) for name in _KUBECONFIGS},
        }
        for name, content in files.items():
            path = places.config / name
            path.touch(mode=0o600)
            path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        shutil.copy(places.config / "admin.kubeconfig", places.kubeconfig)

    def start_component(self, component: Component) -> None:
        """Start one component unless it runs. Raises ClusterError if it ends at once or the namespaces are gone."""
        command = components.build_command(component, self._places, self._toolchain.locate)
        self._namespaces.spawn(component, command)

    def kill_component(self, component: Component) -> bool:
        """Kill one component as a crash would (SIGKILL). Returns False if it did not run."""
        return self._namespaces.kill(component)

    def _wait(self, is_so: Callable[[], bool], component: Component) -> None:
        log = self._places.logs / f"{component}.log"

        def observe() -> bool:
            if self._namespaces.find(component) is None:
                raise ClusterError(f"{component} ended while the cluster came up: {_read_last_line(log)} (see {log})")
            return is_so()

        wait_for(observe, _READY_SECONDS, f"the cluster did not come up: {component} is late, see {log}")

    def _is_default_account_there(self) -> bool:
        return self._api.read("/api/v1/namespaces/default/serviceaccounts/default") is not None

    def _read_coredns(self) -> Mapping[str, Any] | None:
        return self._api.read("/apis/apps/v1/namespaces/kube-system/deployments/coredns")

    def _has_rules_for_a_pod(self) -> bool:
        """Tell whether the Pods that run have rules: DNS always has a Pod."""
        return has_pod_rules(self._namespaces.run(["iptables-save", "--table", "filter"]))

    def _import_images(self) -> None:
        log = self._places.logs / f"{Component.CONTAINERD}.log"
        wait_for(self._is_containerd_ready, _READY_SECONDS, f"containerd does not answer: see {log}")
        for archive in (*self._images.ensure_programs(), self._images.ensure_base()):
            self.load(archive)

    def _is_containerd_ready(self) -> bool:
        try:
            self._ctr("version")
        except ClusterError:
            return False
        return True

    def _ctr(self, *arguments: str) -> str:
        return self._namespaces.run(["ctr", "--address", str(self._places.socket), "--namespace", "k8s.io", *arguments])

    def load(self, archive: Path) -> None:
        """Import an image archive (OCI, or as `docker save` writes it) unless that very archive was imported.

        Raises:
            ClusterError: containerd refuses it, or does not run.
        """
        stamp = self._places.imported / compute_import_stamp(archive)
        if not stamp.exists():
            self._ctr("image", "import", "--snapshotter", "overlayfs", str(archive.absolute()))
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.touch()

    def _apply_system(self) -> None:
        """Apply the manifest of what belongs to the cluster itself. Raises ClusterError if it is refused."""
        kubectl = Kubectl(self._toolchain.locate("kubectl"), self._places.kubeconfig)
        kubectl.run("apply", "--filename=-", manifest=render_system())

    def describe(self) -> list[str]:
        """Return one line for each process: PID and resident memory, or that it does not run."""
        lines = []
        for name in (INIT, *Component):
            pid = self._namespaces.find(name)
            state = f"PID {pid:>8} {_observe_resident_mebibytes(pid):5d} MiB" if pid else "does not run"
            lines.append(f"{name:20}{state}")
        return lines

    def stop(self) -> None:
        """End every process and put the machine back as it was; logs and image store stay. Safe after any crash."""
        self._places.prepared.unlink(missing_ok=True)
        is_store_clean = self._empty_store()
        self._namespaces.destroy()
        network.disconnect()
        self._machine.restore()
        places = self._places
        rubbish = [places.pids, places.pki, places.config, *(places.work / name for name in _CREATED_BY_OTHERS)]
        if not is_store_clean:
            rubbish += [places.image_store, places.imported]
        for folder in rubbish:
            shutil.rmtree(folder, ignore_errors=True)
        for file in (places.kubeconfig, places.socket, places.socket.with_suffix(".sock.ttrpc")):
            file.unlink(missing_ok=True)

    def _empty_store(self) -> bool:
        """Remove all containers, so that the image store can be used again. Returns False where it cannot."""
        if self._namespaces.find(Component.CONTAINERD) is None:
            return self._is_store_untouched()
        for component in _DOWN_FIRST:
            self.kill_component(component)
        with contextlib.suppress(ClusterError):
            containers = self._ctr("containers", "list", "--quiet").split()
            if containers:
                with contextlib.suppress(ClusterError):
                    self._ctr("tasks", "delete", "--force", *containers)
                self._ctr("containers", "delete", *containers)
            return True
        return False

    def _is_store_untouched(self) -> bool:
        """Tell whether an orderly `stop` was the last thing that happened to the store."""
        return not self._places.pids.exists()


_CREATED_BY_OTHERS = ("etcd", "fixed", "podlogs", "containerd-state")
"""Folders of the work folder that components fill; worthless once they are gone."""


def _observe_resident_mebibytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) // 1024
    return 0


def _read_last_line(log: Path) -> str:
    with contextlib.suppress(OSError, IndexError):
        return log.read_text(encoding="utf-8", errors="replace").splitlines()[-1]
    return "it said nothing"
