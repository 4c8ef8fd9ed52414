"""The few things that the cluster changes on the machine outside its namespaces, and how each is put back."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from oet_cluster.places import write_whole
from oet_cluster.processes import Namespaces
from oet_cluster.waiting import wait_for

__all__ = ["CGROUP", "Machine", "parse_cgroup_roots"]

CGROUP = "oet-cluster"
"""Name of the cluster's own cgroup in every hierarchy."""

_FIXED_FOLDERS = ("/var/lib/cni", "/var/lib/kubelet", "/run/containerd", "/run/netns")
"""Folders whose paths are fixed in containerd, runc, the CNI plugins or the kubelet: inside they are covered by private ones."""

_SYSCTLS = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")
"""The kubelet sets these, and no namespace holds them."""

_CGROUP_END_SECONDS = 10.0
"""A cgroup can be removed some milliseconds after its last process ended."""


def parse_cgroup_roots(mounts: str) -> list[Path]:
    """Return where the cgroup hierarchies are, from the text of /proc/mounts: one with version 2, a dozen with version 1."""
    fields = [line.split() for line in mounts.splitlines()]
    return [Path(parts[1]) for parts in fields if parts[2] in ("cgroup", "cgroup2")]


def _observe_cgroup_roots() -> list[Path]:
    return parse_cgroup_roots(Path("/proc/mounts").read_text(encoding="utf-8"))


class Machine:
    """Changes the machine, and remembers in the work folder what has to be put back."""

    def __init__(self, work: Path) -> None:
        self._fixed = work / "fixed"
        self._sysctls = work / "sysctls.json"
        self._created = work / "created.json"

    def prepare(self, namespaces: Namespaces) -> None:
        """Cover the fixed folders inside the namespaces, remember the system settings, make the cgroups."""
        if not self._created.exists():
            values = {name: Path("/proc/sys", name).read_text(encoding="ascii").strip() for name in _SYSCTLS}
            write_whole(self._sysctls, json.dumps(values))
            # Last: it says that all is remembered.
            write_whole(self._created, json.dumps(find_absent(_FIXED_FOLDERS)))
        for folder in _FIXED_FOLDERS:
            private = self._fixed / folder.strip("/").replace("/", "-")
            private.mkdir(parents=True, exist_ok=True)
            Path(folder).mkdir(parents=True, exist_ok=True)
            namespaces.run(["mount", "--bind", str(private), folder])
        for root in _observe_cgroup_roots():
            _create_cgroup(root)

    def restore(self) -> None:
        """Put back what `prepare` and the kubelet changed. Does nothing where there is nothing to put back."""
        for root in _observe_cgroup_roots():
            _remove_cgroup(root / CGROUP)
        if self._sysctls.exists():
            for name, value in json.loads(self._sysctls.read_text(encoding="utf-8")).items():
                with contextlib.suppress(OSError):
                    Path("/proc/sys", name).write_text(value, encoding="ascii")
            self._sysctls.unlink()
        if self._created.exists():
            for folder in reversed(json.loads(self._created.read_text(encoding="utf-8"))):
                # Not empty: somebody else began to use it meanwhile.
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
            self._created.unlink()


def find_absent(folders: Iterable[str]) -> list[str]:
    """Return the folders, and those above them, that do not exist; the ones above first."""
    absent: list[str] = []
    for folder in map(Path, folders):
        chain = [path for path in (*reversed(folder.parents), folder) if not path.exists()]
        absent += [str(path) for path in chain if str(path) not in absent]
    return absent


def _create_cgroup(root: Path) -> None:
    """Make our cgroup in a hierarchy: the kubelet wants it in every one; a version 1 cpuset without values takes no process."""
    folder = root / CGROUP
    folder.mkdir(exist_ok=True)
    for name in ("cpuset.cpus", "cpuset.mems"):
        inherited = root / name
        if inherited.exists() and not (folder / name).read_text(encoding="ascii").strip():
            (folder / name).write_text(inherited.read_text(encoding="ascii"), encoding="ascii")


def _remove_cgroup(folder: Path) -> None:
    def is_gone() -> bool:
        for path, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        return not folder.exists()

    wait_for(is_gone, _CGROUP_END_SECONDS, f"the cgroup {folder} cannot be removed: a process is left in it")
