"""Run all tests and leave the reports in build/: JUnit, coverage (XML and HTML), and what was printed.

Two runs, because load, crash and timing tests (`-m serial`) want the machine for themselves. Exit code: 0 when both passed
and the pure core is covered to the last branch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

BUILD = Path("build")
CORE = "operator/oet_operator/core/*"


def run(log: str, *command: str) -> int:
    """Run a command, show what it prints and keep it in build/`log`; return its exit code."""
    with (BUILD / log).open("wb") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        while data := process.stdout.read1():
            file.write(data)
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        return process.wait()


def main() -> int:
    """Run both parts and make the reports. Returns the exit code."""
    shutil.rmtree(BUILD / "coverage", ignore_errors=True)
    (BUILD / "coverage").mkdir(parents=True)
    python, extra = sys.executable, sys.argv[1:]
    pytest = ["-m", "pytest", "-q", *extra]
    coverage = [python, "-m", "coverage"]
    results = [
        run(
            "tests.stdout",
            *coverage,
            "run",
            *pytest,
            "-n",
            "2",
            "-m",
            "not serial and not cluster",
            f"--junitxml={BUILD}/junit.xml",
        ),
        run("tests-serial.stdout", python, *pytest, "-m", "serial", f"--junitxml={BUILD}/junit-serial.xml"),
    ]
    quiet = {"stdout": subprocess.DEVNULL, "check": True}
    subprocess.run([*coverage, "combine"], **quiet)  # type: ignore[call-overload]
    for report in ("xml", "html"):
        subprocess.run([*coverage, report], **quiet)  # type: ignore[call-overload]
    results.append(run("coverage.stdout", *coverage, "report", "--skip-covered"))
    results.append(run("coverage-core.stdout", *coverage, "report", f"--include={CORE}", "--fail-under=100"))
    print(f"reports: {BUILD}/junit.xml, {BUILD}/junit-serial.xml, {BUILD}/coverage/html/index.html")
    return max(results)


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    sys.exit(main())
