"""Build the documentation: build/docs/html/index.html. Every warning is an error. Exit code: that of Sphinx."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "build" / "docs"


def main() -> int:
    """Build. Returns the exit code."""
    if shutil.which("dot") is None:
        print("docs: no program `dot`, which draws the pictures (Debian: apt-get install graphviz)", file=sys.stderr)
        return 1
    words = ["-W", "--keep-going", "-q", "-n", "-d", str(TARGET / "doctrees"), "docs", str(TARGET / "html")]
    code = subprocess.run([sys.executable, "-m", "sphinx", *words], cwd=ROOT, check=False).returncode
    if code == 0:
        print(f"docs: {TARGET.relative_to(ROOT)}/html/index.html")
    return code


if __name__ == "__main__":
    sys.exit(main())
