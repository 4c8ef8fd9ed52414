"""The programs under test are no packages: they are found by their folders."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

for folder in (ROOT / "tools", ROOT / "images"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
