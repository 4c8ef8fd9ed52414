"""Up, down and status: the same words for both kinds of cluster, repeatable, and safe after any crash."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from oet_cluster import packages
from oet_cluster.errors import ClusterError
from oet_cluster.kind import KindNode, has_docker_engine
from oet_cluster.node import OwnNode
from oet_cluster.places import Places, write_whole
from oet_cluster.toolchain import Toolchain

__all__ = ["Backend", "BackendName", "Cluster", "State", "choose_backend", "decide_state"]

Report = Callable[[str], None]


class BackendName(StrEnum):
    """Who makes the cluster."""

    KIND = "kind"
    OWN = "own"


class State(StrEnum):
    """What a cluster is, as `status` tells it."""

    UP = "up"
    HALF_UP = "half up"
    DOWN = "down"


class Backend(Protocol):
    """One kind of cluster."""

    def check(self) -> None:
        """Make sure that the machine has what is needed. Raises ClusterError."""

    def check_free(self) -> None:
        """Make sure that nothing is in the way. Raises ClusterError."""

    def build(self) -> None:
        """Build what the cache lacks. Raises ClusterError."""

    def is_begun(self) -> bool:
        """Tell whether `start` can go on from what is there."""

    def is_up(self) -> bool:
        """Tell whether all of it works."""

    def start(self) -> None:
        """Start what does not run, and wait until it works. Raises ClusterError."""

    def stop(self) -> None:
        """End it and clean up, whatever state it is in. Raises ClusterError."""

    def load(self, archive: Path) -> None:
        """Import an image archive. Raises ClusterError."""

    def describe(self) -> list[str]:
        """Return lines for a reader."""


def choose_backend(wanted: str, has_engine: Callable[[], bool] = has_docker_engine) -> BackendName:
    """Choose who makes a new cluster: kind where there is a Docker engine, unless OET_CLUSTER_BACKEND says which.

    Raises:
        ClusterError: There is no such backend.
    """
    if not wanted:
        return BackendName.KIND if has_engine() else BackendName.OWN
    try:
        return BackendName(wanted)
    except ValueError as error:
        raise ClusterError(f"OET_CLUSTER_BACKEND is {wanted!r}; it may be `kind` or `own`, or absent") from error


def decide_state(is_claimed: bool, is_up: bool) -> State:
    """Tell what a cluster is."""
    if not is_claimed:
        return State.DOWN
    return State.UP if is_up else State.HALF_UP


class Cluster:
    """The cluster whose state is in one work folder."""

    def __init__(self, places: Places, report: Report = print) -> None:
        self.places = places
        self.toolchain = Toolchain(places, report)
        self._report = report

    def make_backend(self) -> Backend:
        """Return the backend that made the cluster, or else the one that would."""
        if self._is_claimed():
            name = BackendName(self.places.claim.read_text(encoding="ascii").strip())
        else:
            name = choose_backend(os.environ.get("OET_CLUSTER_BACKEND", ""))
        make = KindNode if name is BackendName.KIND else OwnNode
        return make(self.places, self.toolchain, self._report)

    def _is_claimed(self) -> bool:
        return self.places.claim.exists()

    def observe_state(self) -> State:
        """Look what the cluster is now."""
        is_claimed = self._is_claimed()
        return decide_state(is_claimed, is_claimed and self.make_backend().is_up())

    def build(self) -> None:
        """Build what the cache lacks, without touching any cluster. Raises ClusterError."""
        backend = self.make_backend()
        backend.check()
        backend.build()

    def up(self) -> None:
        """Bring the cluster up; go on where an interrupted `up` stopped; clean up first after a crash.

        Raises:
            ClusterError: Something is missing on the machine, or the cluster does not come up.
        """
        backend = self.make_backend()
        backend.check()
        with self._locked():
            if self._is_claimed() and backend.is_up():
                self._report("the cluster is up already")
                return
            backend.build()
            if not backend.is_begun():
                if self._is_claimed():
                    self._report("removing what an earlier cluster left")
                    backend.stop()
                backend.check_free()
                name = BackendName.KIND if isinstance(backend, KindNode) else BackendName.OWN
                write_whole(self.places.claim, name)
            backend.start()
        self._report("the cluster is up")

    def down(self, is_purge: bool = False) -> None:
        """Take the cluster down and put the machine back as it was.

        Args:
            is_purge: Remove logs and image store too.

        Raises:
            ClusterError: Something of it could not be removed; `down` can be tried again.
        """
        with self._locked():
            if self._is_claimed():
                backend = self.make_backend()
                if isinstance(backend, OwnNode) and os.geteuid() != 0:
                    raise ClusterError("taking the cluster down needs root, as bringing it up did")
                backend.stop()
                self.places.claim.unlink()
                self._report("the cluster is down")
            else:
                self._report("the cluster is down already")
            if is_purge:
                shutil.rmtree(self.places.work)

    def load(self, archive: Path) -> None:
        """Import an image archive into the running cluster.

        Raises:
            ClusterError: No such archive, or the cluster is not up.
        """
        if not archive.is_file():
            raise ClusterError(f"there is no image archive {archive}")
        with self._locked():
            if self.observe_state() is not State.UP:
                raise ClusterError("the cluster is not up, so there is nothing to load the image into")
            self.make_backend().load(archive)

    def describe(self) -> list[str]:
        """Return lines that tell what the cluster is, for a reader."""
        state = self.observe_state()
        lines = [f"cluster: {state}", f"work folder: {self.places.work}"]
        if state is not State.DOWN:
            lines += [f"kubeconfig: {self.places.kubeconfig}", *self.make_backend().describe()]
        return lines

    def build_exports(self) -> str:
        """Return the shell line that makes kubectl and helm find the cluster."""
        folders = dict.fromkeys(str(self.toolchain.locate(program).parent) for program in ("kubectl", "helm"))
        return f"export KUBECONFIG={self.places.kubeconfig} PATH={':'.join(folders)}:$PATH"

    def get_own_node(self) -> OwnNode:
        """Return the node of our own, for tests that kill its components.

        Raises:
            ClusterError: The cluster is down, or kind's.
        """
        backend = self.make_backend()
        if not self._is_claimed() or not isinstance(backend, OwnNode):
            raise ClusterError("only the components of a running node of our own can be killed and started")
        return backend

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one command at a time change the cluster."""
        self.places.work.mkdir(parents=True, exist_ok=True)
        with self.places.lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._report("waiting for another command that works on this cluster")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def install_packages() -> list[str]:
    """Install the Debian packages that the machine lacks and return their names. Raises ClusterError."""
    is_kind = choose_backend(os.environ.get("OET_CLUSTER_BACKEND", "")) is BackendName.KIND
    node = packages.KIND_NODE if is_kind else (*packages.OWN_NODE, *packages.CONTAINER_TOOLS)
    return packages.install(node)
