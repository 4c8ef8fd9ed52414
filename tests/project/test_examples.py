"""The examples do what their comments say, also when they are run by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    "hello.py": (
        "init(subarray_id=2); main(name='Telescope', times='1')",
        ["subarray 2", "Hello Telescope, number 1", "1.0"],
    ),
    "scan.py": (
        "init(subarray_id=1); main(scans=2, seconds=0)",
        ["configured", "example.scan.started", "switched off"],
    ),
    "pubsub.py": ("main()", []),
    "block.py": (
        'open(\'sbd.json\', \'w\').write(\'{"sbd_id": "sbd-1", "telescope": "ska_mid"}\')\n'
        "init(subarray_id=1); main('sbd.json', 'sbi-1', scans=2)",
        ["sbi-1: scan 2 of 2 of sbd-1 on ska_mid"],
    ),
}


def _run(name: str, calls: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a script's functions in a new interpreter, as `python -i` would let a beginner do."""
    source = (ROOT / "examples" / name).read_text()
    return subprocess.run(
        [sys.executable, "-c", f"{source}\n{calls}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        cwd=folder,
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs_by_hand(name: str, tmp_path: Path) -> None:
    calls, words = EXAMPLES[name]
    done = _run(name, calls, tmp_path)
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout + done.stderr


def test_failing_example_fails_where_its_author_will_look() -> None:
    done = _run("failing.py", "main()")
    assert done.returncode == 1
    assert "point_dish" in done.stderr
    assert "TypeError" in done.stderr


def test_scan_that_is_stopped_cleans_up() -> None:
    stop = "import oet\ndef stop(*a): raise KeyboardInterrupt\ntime.sleep = stop\nmain(scans=3)"
    done = _run("scan.py", stop)
    assert done.returncode != 0
    assert "switched off" in done.stderr


def test_every_example_script_is_tested() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {*EXAMPLES, "failing.py"}
