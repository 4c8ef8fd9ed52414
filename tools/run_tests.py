"""Run all tests and leave the reports in build/: JUnit, coverage (XML and HTML), and what was printed.

Two runs, because load, crash and timing tests (`-m serial`) want the machine for themselves. Exit code: 0 when both passed
and the pure core is covered to the last branch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

BUILD = Path("build")
NO_TESTS = 5
"""pytest's exit code when there was nothing to run."""
CORE = "operator/oet_operator/core/*"


def run(log: str, *command: str, environ: Mapping[str, str] | None = None) -> int:
    """Run a command with this environment on top; show what it prints and keep it in build/`log`; return its exit code."""
    with (BUILD / log).open("wb") as file:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **(environ or {})}
        )
        assert process.stdout is not None
        while data := process.stdout.read1():
            file.write(data)
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        return process.wait()


def drop_torn_data(folder: Path) -> int:
    """Remove the coverage data of processes that tests killed while they wrote it. Returns how many there were."""
    torn = [path for path in folder.glob("data.*") if not is_whole(path)]
    for path in torn:
        path.unlink()
    return len(torn)


def is_whole(path: Path) -> bool:
    """Tell whether a file of coverage data can be read from its first to its last page."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            version = connection.execute("SELECT version FROM coverage_schema").fetchone()
            return bool(version and connection.execute("PRAGMA integrity_check").fetchone() == ("ok",))
    except sqlite3.Error:
        return False


def main(extra: Sequence[str]) -> int:
    """Run both parts and make the reports.

    Args:
        extra: For pytest. With a choice of tests nothing is said of coverage, and one of the two parts may be empty.

    Returns:
        The exit code.
    """
    shutil.rmtree(BUILD / "coverage", ignore_errors=True)
    (BUILD / "coverage").mkdir(parents=True)
    pytest = ["-m", "pytest", "-q", *extra]
    coverage = [sys.executable, "-m", "coverage"]
    parallel = [*pytest, "-n", "2", "-m", "not serial and not cluster", f"--junitxml={BUILD}/junit.xml"]
    alone = [*pytest, "-m", "serial and not cluster", f"--junitxml={BUILD}/junit-serial.xml"]
    results = [run("tests.stdout", *coverage, "run", *parallel), run("tests-serial.stdout", sys.executable, *alone)]
    if extra:
        return max([result for result in results if result != NO_TESTS], default=NO_TESTS)
    if torn := drop_torn_data(BUILD / "coverage"):
        print(f"coverage: left out the data of {torn} processes that were killed by their tests")
    quiet = {"stdout": subprocess.DEVNULL, "check": True}
    subprocess.run([*coverage, "combine"], **quiet)  # type: ignore[call-overload]
    for report in ("xml", "html"):
        subprocess.run([*coverage, report], **quiet)  # type: ignore[call-overload]
    results.append(run("coverage.stdout", *coverage, "report", "--skip-covered"))
    results.append(run("coverage-core.stdout", *coverage, "report", f"--include={CORE}", "--fail-under=100"))
    print(f"reports: {BUILD}/junit.xml, {BUILD}/junit-serial.xml, {BUILD}/coverage/html/index.html")
    return max(results)


if __name__ == "__main__":
    # A shell's background job ignores it, and so would all that the tests start, interrupt and wait for.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(Path(__file__).parents[1])
    sys.exit(main(sys.argv[1:]))
