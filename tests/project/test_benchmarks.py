"""The benchmarks: what they measure takes minutes and the machine for itself, so here they only have to be what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("tool", ["bench.py", "bench_cluster.py"])
def test_targets_name_tools_that_explain_themselves(tool: str) -> None:
    assert f"tools/{tool}" in (ROOT / "Makefile").read_text()
    done = subprocess.run([sys.executable, ROOT / "tools" / tool, "--help"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, "usage" in done.stdout) == (0, True), done.stderr
