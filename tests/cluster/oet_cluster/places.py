"""Where the cluster keeps its files: one work folder for a cluster's life, one cache for what is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oet_cluster.errors import ClusterError

__all__ = ["REPOSITORY_FOLDER", "Places", "write_whole"]

REPOSITORY_FOLDER = Path(__file__).resolve().parents[1]
"""`tests/cluster`: the Go modules and the manifests."""

_LONGEST_WORK_FOLDER = 80
"""A Unix socket's path has at most 107 bytes (unix(7)); containerd appends up to 22 to the work folder."""


def write_whole(file: Path, text: str) -> None:
    """Write a file that is there whole or not at all, also when this process is killed meanwhile."""
    draft = file.with_name(f"{file.name}.new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)


@dataclass(frozen=True)
class Places:
    """The folders of one cluster. Nothing here touches the disk."""

    work: Path
    """State of the running cluster, its logs and its image store."""
    cache: Path
    """Programs and images that were built; shared by all clusters of a user."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Places:
        """Choose the folders from OET_CLUSTER_DIR, XDG_STATE_HOME, XDG_CACHE_HOME and HOME.

        Raises:
            ClusterError: The work folder's path is too long for a socket below it.
        """
        home = Path(environ.get("HOME", "/root"))
        state = Path(environ.get("XDG_STATE_HOME") or home / ".local" / "state")
        cache = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
        work = Path(environ.get("OET_CLUSTER_DIR") or state / "oet-cluster").absolute()
        if len(str(work)) > _LONGEST_WORK_FOLDER:
            raise ClusterError(
                f"the work folder {work} is longer than {_LONGEST_WORK_FOLDER} characters, too long for the sockets "
                "below it: set OET_CLUSTER_DIR to a shorter path"
            )
        return cls(work=work, cache=cache.absolute() / "oet-cluster")

    @property
    def claim(self) -> Path:
        """Exists from before the first change to the machine until after the last clean-up; holds the backend's name."""
        return self.work / "backend"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.work / "kubeconfig"

    @property
    def prepared(self) -> Path:
        """Exists while the namespaces, their network and the configuration are complete."""
        return self.work / "prepared"

    @property
    def lock(self) -> Path:
        """Held by the one `up` or `down` that works on this folder."""
        return self.work / "lock"

    @property
    def logs(self) -> Path:
        """One log for each process; kept by `down`."""
        return self.work / "log"

    @property
    def pids(self) -> Path:
        """One file for each process: its PID and start time."""
        return self.work / "pid"

    @property
    def pki(self) -> Path:
        """Keys and certificates; made anew by each `up`."""
        return self.work / "pki"

    @property
    def config(self) -> Path:
        """Configuration files and the components' kubeconfigs."""
        return self.work / "config"

    @property
    def socket(self) -> Path:
        """containerd's socket."""
        return self.work / "containerd.sock"

    @property
    def image_store(self) -> Path:
        """containerd's images and containers; kept by `down`, so that the next `up` need not import the images."""
        return self.work / "containerd"

    @property
    def imported(self) -> Path:
        """One empty file for each archive that the image store holds."""
        return self.work / "imported"
