"""Check style, types, and who imports whom; leave build/reports/linting.xml (JUnit) and each tool's words beside it.

Exit code: 0 when no tool has found anything.
"""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "build" / "reports"

CHECKS = {
    "format": ["ruff", "format", "--check", "."],
    "style": ["ruff", "check", "."],
    "types": ["mypy"],
    "imports": ["lint-imports"],
}


def check(name: str, words: list[str]) -> xml.Element:
    """Run a tool, show and keep what it says. Returns it as a JUnit test case."""
    begin = time.monotonic()
    program = Path(sys.executable).with_name(words[0])
    done = subprocess.run(
        [program, *words[1:]], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(f"$ {' '.join(words)}\n{done.stdout}", end="", flush=True)
    (REPORTS / f"{name}.txt").write_text(done.stdout, encoding="utf-8")
    case = xml.Element("testcase", classname="lint", name=name, time=f"{time.monotonic() - begin:.3f}")
    if done.returncode != 0:
        xml.SubElement(case, "failure", message=f"{' '.join(words)} has findings").text = done.stdout
    return case


def main() -> int:
    """Run all checks, also after one has found something. Returns the exit code."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    cases = [check(name, words) for name, words in CHECKS.items()]
    failures = sum(case.find("failure") is not None for case in cases)
    suite = xml.Element(
        "testsuite", name="lint", tests=str(len(cases)), failures=str(failures), errors="0", skipped="0"
    )
    suite.extend(cases)
    xml.ElementTree(suite).write(REPORTS / "linting.xml", encoding="utf-8", xml_declaration=True)
    print(f"reports: {REPORTS.relative_to(ROOT)}/linting.xml")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
