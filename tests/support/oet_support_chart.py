"""What tests of the Helm chart need: where it is, and which Helm there is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from oet_cluster.places import Places
from oet_cluster.toolchain import Toolchain

__all__ = ["CHART", "Refused", "find_helm"]

CHART = Path(__file__).parents[2] / "charts" / "oet"


class Refused(Exception):
    """Helm did not take the values; the text has its words."""


def find_helm() -> Path:
    """Return the Helm of the cluster's cache, or else the one on the PATH; without any, skip the test."""
    cached = Toolchain(Places.from_environ(os.environ)).locate("helm")
    if cached.exists():
        return cached
    installed = shutil.which("helm")
    if installed is None:
        pytest.skip("no Helm: `make cluster-up` fetches one, or put one on the PATH")
    return Path(installed)
