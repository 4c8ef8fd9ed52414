"""Run all tests and leave the reports in build/: JUnit, coverage (XML and HTML), and what was printed.

Two runs, because load, crash and timing tests (`-m serial`) want the machine for themselves. The few tests that failed in one
are run once more, alone; those that pass then are named as unsteady (docs/decisions/0024). Exit code: 0 when both passed and
the pure core is covered to the last branch.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

BUILD = Path("build")
FAILED, NO_TESTS = 1, 5
"""pytest's exit codes when tests failed, and when there was nothing to run."""
MAX_AGAIN = 5
"""With more failed tests something is broken. Of 3,600 on two busy cores up to three were seen to fail in one run, and to pass in
the next."""
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


def run_pytest(
    suffix: str, *words: str, workers: int = 1, wrapper: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> int:
    """Run tests, and those that failed once more, one after the other. Leaves the reports of both.

    Args:
        suffix: Of the reports' names: build/tests`suffix`.stdout and build/junit`suffix`.xml; of the second run with -again.
        words: For pytest.
        workers: How many tests run at the same time at first.
        wrapper: What runs a module in this Python's place; empty for itself.
        environ: On top of this environment.

    Returns:
        pytest's exit code; 0 also when all that failed passed the second time.
    """
    cache = BUILD / f"cache{suffix}"
    shutil.rmtree(cache, ignore_errors=True)
    pytest = [sys.executable, *wrapper, "-m", "pytest", "-q", f"--override-ini=cache_dir={cache.absolute()}", *words]
    spread = ["-n", str(workers)] if workers > 1 else []
    result = run(f"tests{suffix}.stdout", *pytest, *spread, f"--junitxml={BUILD}/junit{suffix}.xml", environ=environ)
    failed = read_failed(cache)
    if result != FAILED or not 0 < len(failed) <= MAX_AGAIN:
        return result
    print(
        f"{len(failed)} failed, and run once more, alone; what they said is above and in {BUILD}/tests{suffix}.stdout"
    )
    suffix += "-again"
    report = f"--junitxml={BUILD}/junit{suffix}.xml"
    result = run(f"tests{suffix}.stdout", *pytest, "--last-failed", report, environ=environ)
    steady = read_failed(cache)
    for test in failed:
        print(f"{'FAILED TWICE' if test in steady else 'UNSTEADY, passed alone'}: {test}")
    return result


def read_failed(cache: Path) -> list[str]:
    """Return the tests that failed, as pytest remembers them."""
    try:
        return list(json.loads((cache / "v/cache/lastfailed").read_text()))
    except FileNotFoundError:
        return []


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
    coverage = [sys.executable, "-m", "coverage"]
    parallel = run_pytest("", "-m", "not serial and not cluster", *extra, workers=2, wrapper=["-m", "coverage", "run"])
    results = [parallel, run_pytest("-serial", "-m", "serial and not cluster", *extra)]
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
