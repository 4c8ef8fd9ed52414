"""What tests on a real Kubernetes share: a cluster, a namespace with what script Pods need, and the operator at work there."""

from __future__ import annotations

import base64
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from oet_cluster.cluster import Cluster, State
from oet_cluster.kubectl import Kubectl, find_kubectl
from oet_cluster.places import Places
from oet_support import find_free_port
from oet_support_chart import CHART
from oet_support_git import Origin

from oet_crds.names import GROUP, PLURAL

__all__ = [
    "IMAGE",
    "RESOURCE",
    "Operator",
    "define_executions",
    "keeping_a_folder",
    "making_namespace",
    "prepare_namespace",
    "reaching_cluster",
    "run_chart_tool",
    "running_operator",
    "serving_in_a_pod",
]

IMAGE = "localhost/ska-oso-oet:latest"
"""As `make build load` gives it to the nodes."""

RESOURCE = f"{PLURAL}.{GROUP}"
DEFINITION = Path(__file__).parents[2] / "crds" / "generated"
CHART_TOOL = CHART.parents[1] / "tools" / "chart.py"
SERVE = (
    "git clone --quiet --bare /bundle/scripts /tmp/scripts && exec git daemon --export-all --base-path=/tmp --verbose"
)

RUNNER_RIGHTS = {"get,list,watch": RESOURCE, "patch": f"{RESOURCE}/status"}


@contextmanager
def reaching_cluster(places: Places) -> Iterator[Kubectl]:
    """Give the administrator's kubectl of the cluster that KUBECONFIG names, or of our own with OET_CLUSTER=1."""
    if os.environ.get("KUBECONFIG"):
        yield Kubectl(find_kubectl(places), Path(os.environ["KUBECONFIG"]))
        return
    if os.environ.get("OET_CLUSTER") != "1":
        pytest.skip("set KUBECONFIG to a cluster's, or OET_CLUSTER=1 to bring one up")
    cluster = Cluster(places)
    was_down = cluster.observe_state() is State.DOWN
    try:
        cluster.up()
        yield Kubectl(find_kubectl(places), places.kubeconfig)
    finally:
        if was_down:
            cluster.down()


@contextmanager
def making_namespace(admin: Kubectl) -> Iterator[Kubectl]:
    """Give kubectl in a namespace of its own."""
    name = f"oet-test-{uuid4().hex[:12]}"
    admin.run("create", "namespace", name)
    inside = admin.within(name)
    # Pods of a namespace cannot be created before its ServiceAccount is there.
    inside.run("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    yield inside
    admin.run("delete", "namespace", name, "--wait=false")


def define_executions(admin: Kubectl) -> None:
    """Have the cluster know ScriptExecutions. The definition is never removed: others may use it."""
    admin.run("apply", "--server-side", "--force-conflicts", f"--filename={DEFINITION}")
    admin.run("wait", "--for=condition=Established", "--timeout=30s", f"--filename={DEFINITION}")


def prepare_namespace(kubectl: Kubectl) -> None:
    """Give a namespace the account and the rights that script Pods need."""
    kubectl.run("create", "serviceaccount", "oet-runner")
    for number, (verbs, resource) in enumerate(RUNNER_RIGHTS.items()):
        role = f"oet-runner-{number}"
        kubectl.run("create", "role", role, f"--verb={verbs}", f"--resource={resource}")
        account = f"--serviceaccount={kubectl.namespace}:oet-runner"
        kubectl.run("create", "rolebinding", role, f"--role={role}", account)


@contextmanager
def serving_in_a_pod(kubectl: Kubectl, origin: Origin) -> Iterator[str]:
    """Serve a repository to the Pods of a namespace; yields the URL."""
    origin.git("bundle", "create", "--quiet", "../bundle", "HEAD", "--all")
    content = base64.b64encode(origin.folder.with_name("bundle").read_bytes()).decode()
    metadata = {"name": "origin"}
    bundle = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "binaryData": {"scripts": content}}
    server = {
        "name": "origin",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", SERVE],
        "readinessProbe": {"tcpSocket": {"port": 9418}, "periodSeconds": 1},
        "volumeMounts": [{"name": "bundle", "mountPath": "/bundle"}],
    }
    spec = {
        "containers": [server],
        "volumes": [{"name": "bundle", "configMap": {"name": "origin"}}],
        "terminationGracePeriodSeconds": 0,
    }
    for manifest in (bundle, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}):
        kubectl.run("create", "--filename=-", manifest=manifest)
    try:
        kubectl.run("wait", "--for=condition=Ready", "pod/origin", "--timeout=60s")
        address = kubectl.run("get", "pod", "origin", "--output=jsonpath={.status.podIP}").strip()
        yield f"git://{address}/scripts"
    finally:
        kubectl.run("delete", "pod/origin", "configmap/origin", "--grace-period=0", "--force")


def run_chart_tool(kubectl: Kubectl, *arguments: str) -> str:
    """Run tools/chart.py for the image of this work tree and the namespace of a kubectl; returns what it printed."""
    command = [sys.executable, str(CHART_TOOL), *arguments, f"--namespace={kubectl.namespace}"]
    environ = {
        **os.environ,
        "KUBECONFIG": str(kubectl.kubeconfig),
        "OET_IMAGE": IMAGE,
        "NO_PROXY": "*",
        "no_proxy": "*",
    }
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def keeping_a_folder(kubectl: Kubectl) -> Iterator[str]:
    """Give a claim in a namespace on a new folder of this machine, which must be the node: a volume that outlives every Pod."""
    folder = Path(tempfile.mkdtemp(prefix="oet-timeline-"))
    folder.chmod(0o777)
    name = f"{kubectl.namespace}-timeline"
    common = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
    volume = {**common, "capacity": {"storage": "1Gi"}, "hostPath": {"path": str(folder)}}
    claim = {**common, "resources": {"requests": {"storage": "1Gi"}}, "volumeName": name}
    for kind, called, spec in (("PersistentVolume", name, volume), ("PersistentVolumeClaim", "kept", claim)):
        manifest = {"apiVersion": "v1", "kind": kind, "metadata": {"name": called}, "spec": spec}
        kubectl.run("apply", "--filename=-", manifest=manifest)
    try:
        yield "kept"
    finally:
        kubectl.run("delete", "persistentvolume", name, "--wait=false")
        shutil.rmtree(folder)


class Operator:
    """A process of the operator, for one namespace.

    Attributes:
        port: Of its /healthz, /readyz and /metrics.
    """

    def __init__(self, kubectl: Kubectl, log: Path, **settings: str) -> None:
        self.port = find_free_port()
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._environ = {
            "OET_IMAGE": IMAGE,
            "OET_OPERATOR_PORT": str(self.port),
            # A killed leader is replaced soon; two of them still do not overlap.
            "OET_LEASE_SECONDS": "3",
            **os.environ,
            "KUBECONFIG": str(kubectl.kubeconfig),
            "KUBE_NAMESPACE": str(kubectl.namespace),
            **settings,
        }

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; it may have to wait for the Lease."""
        with self._log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "oet_operator.kube"],
                env=self._environ,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Kill it as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)

    def stop(self) -> int:
        """End it in order; returns its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(30)

    @contextmanager
    def kept_running(self) -> Iterator[None]:
        """Start it again whenever it ends by itself, as the kubelet does: without its Lease it must end."""
        is_over = threading.Event()

        def keep() -> None:
            while not is_over.wait(0.2):
                assert self._process is not None
                if self._process.poll() is not None:
                    self.start()

        keeper = threading.Thread(target=keep)
        keeper.start()
        try:
            yield
        finally:
            is_over.set()
            keeper.join()

    def read(self, path: str) -> str:
        """Return what it answers to a GET; empty while it does not."""
        connection = http.client.HTTPConnection("localhost", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        except OSError:
            return ""
        finally:
            connection.close()

    def wait_for_lead(self) -> None:
        """Wait until it is at work."""
        deadline = time.monotonic() + 30
        while self.read("/readyz") != "leader\n":
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"the operator is not at work:\n{self.read_log()}")
            time.sleep(0.02)

    def read_log(self) -> str:
        """Return what it has written."""
        return self._log.read_text(errors="replace")


@contextmanager
def running_operator(kubectl: Kubectl, log: Path, **settings: str) -> Iterator[Operator]:
    """Run the operator for a namespace that was prepared for it."""
    operator = Operator(kubectl, log, **settings)
    operator.start()
    try:
        operator.wait_for_lead()
        yield operator
    finally:
        code = operator.stop()
    assert code == 0, operator.read_log()
