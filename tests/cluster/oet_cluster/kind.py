"""kind: a node that is a Docker container, for machines with a Docker engine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from oet_cluster import packages
from oet_cluster.errors import ClusterError
from oet_cluster.images import Images
from oet_cluster.kubectl import Kubectl
from oet_cluster.places import REPOSITORY_FOLDER, Places
from oet_cluster.toolchain import KIND, KUBERNETES, Toolchain

__all__ = ["CLUSTER_NAME", "KindNode", "build_create_command", "has_docker_engine"]

CLUSTER_NAME = "oet"

_READY = "180s"
"""kind pulls nothing by then; this is for its node to become Ready."""


def has_docker_engine() -> bool:
    """Tell whether a Docker engine answers; the client alone is no engine."""
    if not shutil.which("docker"):
        return False
    try:
        return _run(["docker", "version", "--format", "{{.Server.Version}}"], timeout_seconds=10.0).strip() != ""
    except ClusterError:
        return False


def build_create_command(kind: str, kubeconfig: Path) -> list[str]:
    """Return the command that creates the cluster."""
    config = REPOSITORY_FOLDER / "kind.yaml"
    name = f"--name={CLUSTER_NAME}"
    return [kind, "create", "cluster", name, f"--config={config}", f"--kubeconfig={kubeconfig}", f"--wait={_READY}"]


class KindNode:
    """Brings kind's node up and takes it down."""

    def __init__(
        self,
        places: Places,
        toolchain: Toolchain,
        report: Callable[[str], None] = print,
        has_engine: Callable[[], bool] = has_docker_engine,
    ) -> None:
        self._places = places
        self._toolchain = toolchain
        self._report = report
        self._has_engine = has_engine
        self._images = Images(places, toolchain.locate, report)

    @property
    def _kind(self) -> str:
        """The program on the PATH, or the one that we build."""
        return shutil.which("kind") or str(self._toolchain.locate("kind"))

    def check(self) -> None:
        """Make sure that the machine can run kind. Raises ClusterError with what is missing."""
        packages.check(packages.KIND_NODE)
        if not self._has_engine():
            raise ClusterError(
                "no Docker engine answers: start it, or have a node of our own with OET_CLUSTER_BACKEND=own"
            )

    def build(self) -> None:
        """Build kind (unless it is on the PATH), kubectl and the base image, as far as the cache lacks them."""
        self._toolchain.build([] if shutil.which("kind") else [KIND])
        self._toolchain.build([KUBERNETES.select("kubectl")])
        self._toolchain.fetch_helm()
        self._images.ensure_base()

    def check_free(self) -> None:
        """Nothing can be in the way: kind's containers have addresses of their own."""

    def is_begun(self) -> bool:
        """Never: kind does not go on from a half-made cluster."""
        return False

    def is_up(self) -> bool:
        """Tell whether kind knows our cluster and its API server is ready."""
        if not self._has_engine() or CLUSTER_NAME not in _run([self._kind, "get", "clusters"]).split():
            return False
        kubectl = Kubectl(self._toolchain.locate("kubectl"), self._places.kubeconfig)
        return kubectl.attempt("get", "--raw=/readyz").output == "ok"

    def start(self) -> None:
        """Create the cluster and give it the base image. Raises ClusterError if kind fails."""
        _run(build_create_command(self._kind, self._places.kubeconfig), timeout_seconds=900.0)
        self._report("kind's node is ready")
        self.load(self._images.base_archive)

    def load(self, archive: Path) -> None:
        """Import an image archive. Raises ClusterError if kind fails."""
        _run([self._kind, "load", "image-archive", f"--name={CLUSTER_NAME}", str(archive)], timeout_seconds=300.0)

    def describe(self) -> list[str]:
        """Return one line about each container of the cluster."""
        if not self._has_engine():
            return ["the Docker engine does not answer"]
        label = f"label=io.x-k8s.kind.cluster={CLUSTER_NAME}"
        listed = _run(["docker", "ps", "--all", "--filter", label, "--format", "{{.Names}}  {{.Status}}"])
        return listed.splitlines() or ["no container runs"]

    def stop(self) -> None:
        """Delete the cluster; nothing happens if there is none. Raises ClusterError if kind fails or Docker is away."""
        if not self._has_engine():
            raise ClusterError(
                "the Docker engine that has the cluster's container does not answer: start it and try again; "
                f"if it is gone for good, remove {self._places.claim}"
            )
        self._toolchain.build([] if shutil.which("kind") else [KIND])
        _run([self._kind, "delete", "cluster", f"--name={CLUSTER_NAME}", f"--kubeconfig={self._places.kubeconfig}"])
        self._places.kubeconfig.unlink(missing_ok=True)


def _run(command: Sequence[str], timeout_seconds: float = 120.0) -> str:
    """Run a command on the machine and return what it printed. Raises ClusterError if it fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_seconds)
    except OSError as error:
        raise ClusterError(
            f"cannot run {command[0]}: {error.strerror}; build it with `python -m oet_cluster build`"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"`{' '.join(command)}` took longer than {timeout_seconds:g} s") from error
    if done.returncode != 0:
        raise ClusterError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout
