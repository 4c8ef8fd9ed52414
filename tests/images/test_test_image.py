"""`make test-image`: the test procedure in a temporary container of the application image."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import images
import pytest
from images import Tool

ROOT = Path(__file__).parents[2]

# The first run puts the packages of the tests on the image.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.mark.parametrize(("lines", "code"), [("assert True", 0), ("assert False", 2)], ids=["passes", "fails"])
def test_tests_run_in_the_image_and_keep_their_exit_status(lines: str, code: int) -> None:
    try:
        tool = images.choose_tool(os.environ.get("OET_CONTAINER_TOOL", ""))
    except images.ImageError as error:
        pytest.skip(str(error))
    if tool is Tool.BUILDAH:
        pytest.skip("buildah builds images, but cannot run them: install podman or docker")
    own = ROOT / "tests" / "crds" / "test_in_the_image.py"
    own.write_text(f"import oet_crds\n\n\ndef test_it() -> None:\n    assert oet_crds\n    {lines}\n")
    kept = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    try:
        # With that file in the work tree: an image is named by whether the sources are those of a commit.
        subprocess.run(
            [sys.executable, ROOT / "tools/images.py", "build"], capture_output=True, check=True, timeout=800
        )
        command = ["make", "--silent", "test-image", "ARGS=tests/crds/test_in_the_image.py"]
        done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=False, timeout=800)
    finally:
        own.unlink()
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    cases = list(xml.parse(ROOT / "build/junit.xml").getroot().iter("testcase"))
    assert [case.find("failure") is None for case in cases] == [code == 0]
    left = images.ask(tool, "ps", "--all", "--format={{.Names}}") or ""
    assert "oet-test-" not in left
