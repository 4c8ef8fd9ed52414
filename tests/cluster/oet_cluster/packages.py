"""What must be installed on the machine, and one clear message when it is not."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from oet_cluster.errors import ClusterError

__all__ = ["BUILD", "CONTAINER_TOOLS", "KIND_NODE", "OWN_NODE", "Requirement", "check", "find_missing", "install"]


@dataclass(frozen=True)
class Requirement:
    """A program, or a file, and the Debian package that has it."""

    program: str
    """Name looked up on the PATH, or an absolute path."""
    package: str | None
    """Debian package; None when no package is meant to bring it."""
    hint: str = ""
    """What to do when no package brings it."""


BUILD = (Requirement("go", None, "install Go 1.25 or newer and put it on the PATH"),)
"""To build the programs from their Go modules."""

OWN_NODE = (
    Requirement("containerd", "containerd"),
    Requirement("containerd-shim-runc-v2", "containerd"),
    Requirement("ctr", "containerd"),
    Requirement("runc", "runc"),
    Requirement("/usr/lib/cni/bridge", "containernetworking-plugins"),
    Requirement("/usr/lib/cni/host-local", "containernetworking-plugins"),
    Requirement("iptables", "iptables"),
    Requirement("ipset", "ipset"),
    Requirement("nft", "nftables"),
    Requirement("/proc/sys/net/bridge", None, "load what makes a bridge obey iptables: modprobe br_netfilter"),
    Requirement("ip", "iproute2"),
    Requirement("nsenter", "util-linux"),
    Requirement("unshare", "util-linux"),
    Requirement("sysctl", "procps"),
    Requirement("openssl", "openssl"),
    Requirement("mmdebstrap", "mmdebstrap"),
)
"""To run the node of our own."""

KIND_NODE = (
    Requirement("docker", None, "install a Docker engine"),
    Requirement("mmdebstrap", "mmdebstrap"),
)
"""To run kind, and to make the base image for it."""

CONTAINER_TOOLS = (
    Requirement("podman", "podman"),
    Requirement("buildah", "buildah"),
    Requirement("docker-registry", "docker-registry"),
)
"""To build OET's own image without a Docker engine, and to test its push; the cluster itself needs none of them."""

_EXTRA_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where Debian keeps programs that a user's PATH often leaves out."""


def _is_present(program: str) -> bool:
    if program.startswith("/"):
        return os.access(program, os.X_OK)
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_EXTRA_PATH}") is not None


def find_missing(
    requirements: Iterable[Requirement], is_present: Callable[[str], bool] = _is_present
) -> list[Requirement]:
    """Return the requirements that the machine does not meet."""
    return [requirement for requirement in requirements if not is_present(requirement.program)]


def build_complaint(missing: Iterable[Requirement]) -> str:
    """Say in one message all that is missing and how to get it."""
    missing = tuple(missing)
    lines = ["this machine lacks " + ", ".join(requirement.program for requirement in missing)]
    lines += [f"{requirement.program}: {requirement.hint}" for requirement in missing if requirement.hint]
    packages = sorted({requirement.package for requirement in missing if requirement.package})
    if packages:
        lines.append(
            "install the Debian packages with `python -m oet_cluster deps` as root, "
            f"or by hand: apt-get install {' '.join(packages)}"
        )
    return "\n  ".join(lines)


def check(requirements: Iterable[Requirement]) -> None:
    """Make sure that the machine has what is required.

    Raises:
        ClusterError: Something is missing; the message names everything at once.
    """
    missing = find_missing(requirements)
    if missing:
        raise ClusterError(build_complaint(missing))


def install(requirements: Iterable[Requirement]) -> list[str]:
    """Install the Debian packages of what is missing and return their names; programs without a package are left.

    Raises:
        ClusterError: Not root, no apt-get, or apt-get failed.
    """
    packages = sorted({requirement.package for requirement in find_missing(requirements) if requirement.package})
    if not packages:
        return []
    if os.geteuid() != 0:
        raise ClusterError(f"installing packages needs root: sudo apt-get install {' '.join(packages)}")
    if not shutil.which("apt-get"):
        raise ClusterError(f"no apt-get on this machine: install what these Debian packages hold: {' '.join(packages)}")
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        if subprocess.run(["apt-get", "-qq", *command], env=environ, check=False).returncode != 0:
            raise ClusterError(f"`apt-get {' '.join(command)}` failed; its message is above")
    return packages
