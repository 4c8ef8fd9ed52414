"""The chart as Helm renders it, without a cluster."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from oet_support_chart import CHART, Refused, find_helm

Objects = list[dict[str, Any]]
Values = Mapping[str, Any]

NAMESPACE = "observatory"


@pytest.fixture(scope="session")
def helm() -> Path:
    return find_helm()


@pytest.fixture
def render(helm: Path, tmp_path: Path) -> Callable[..., Objects]:
    """Render the chart with values; returns all objects. Raises Refused with Helm's words."""

    def render_chart(values: Values | None = None, release: str = "oet") -> Objects:
        path = tmp_path / "values.yaml"
        path.write_text(json.dumps(values or {}), encoding="utf-8")
        # The version of the API server that Helm pretends to talk to: the oldest that the chart takes.
        command = [str(helm), "template", release, str(CHART), f"--values={path}", f"--namespace={NAMESPACE}"]
        done = subprocess.run(
            [*command, "--kube-version=1.31.0"], capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode != 0:
            raise Refused(done.stderr)
        return [each for each in yaml.safe_load_all(done.stdout) if each]

    return render_chart


@pytest.fixture
def find(render: Callable[..., Objects]) -> Callable[..., dict[str, Any]]:
    """Render the chart and return the one object of a kind and name."""

    def find_object(kind: str, name: str, values: Values | None = None) -> dict[str, Any]:
        (found,) = [each for each in render(values) if (each["kind"], each["metadata"]["name"]) == (kind, name)]
        return found

    return find_object
