"""tools/chart.py: what it makes of its input, without a cluster."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from oet_support_chart import CHART

from oet_crds.states import State, is_final

TOOLS = CHART.parents[1] / "tools"
DIGEST = "sha256:" + "0" * 64


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    sys.path.insert(0, str(TOOLS))
    try:
        return importlib.import_module("chart")
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("localhost/ska-oso-oet:latest", ("localhost/ska-oso-oet", "latest", "")),
        ("oet", ("oet", "latest", "")),
        ("host:5000/a/oet", ("host:5000/a/oet", "latest", "")),
        ("host:5000/a/oet:1.2", ("host:5000/a/oet", "1.2", "")),
        (f"a/oet@{DIGEST}", ("a/oet", "", DIGEST)),
        (f"host:5000/a/oet:1.2@{DIGEST}", ("host:5000/a/oet", "1.2", DIGEST)),
    ],
)
def test_image_reference_becomes_values(tool: ModuleType, reference: str, parts: tuple[str, str, str]) -> None:
    assert tool.parse_image(reference) == dict(zip(("repository", "tag", "digest"), parts, strict=True))


@pytest.mark.parametrize("reference", ["host/", ":tag", "@" + DIGEST])
def test_image_without_a_name_is_refused(tool: ModuleType, reference: str) -> None:
    with pytest.raises(tool.ChartError, match="OET_IMAGE is"):
        tool.parse_image(reference)


def test_execution_counts_as_active_until_its_state_is_final(tool: ModuleType) -> None:
    executions = [{"metadata": {"name": str(state)}, "status": {"state": str(state)}} for state in State]
    executions += [{"metadata": {"name": "new"}}, {"metadata": {"name": "empty"}, "status": {}}]
    active = [str(state) for state in State if not is_final(state)]
    assert tool.list_active(executions) == [*active, "new", "empty"]


@pytest.mark.parametrize("command", ["up", "down", "test"])
def test_without_programs_the_tool_says_which_it_lacks(tmp_path: Path, command: str) -> None:
    environ = {**os.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(TOOLS / "chart.py"), command],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "no kubectl" in done.stderr
    assert "Traceback" not in done.stderr
