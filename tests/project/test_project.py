"""Rules of the repository that no other tool checks."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from oet_crds.states import State

ROOT = Path(__file__).parents[2]
PACKAGES = ["api/oet_api", "cli/oet_cli", "lib/oet", "operator/oet_operator", "runner/oet_runner"]
TRAVELLING = (
    "import oet_crds.states, oet_crds.reasons, oet_crds.topics, oet_crds.names, oet_crds.mailbox, oet_runner, oet"
)


def _list_files() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="ignore")


def test_no_package_shadows_the_standard_library() -> None:
    for folder in ("operator", "tests"):
        assert not (ROOT / folder / "__init__.py").exists()
    assert not (ROOT / "tests/operator/__init__.py").exists()
    code = "import operator; print(operator.add(1, 2))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout == b"3\n"


def test_lock_file_names_no_address() -> None:
    assert "://" not in _read(ROOT / "requirements.lock")


def test_no_file_names_a_path_of_this_machine() -> None:
    # Split, so that this file does not find itself.
    words = re.compile("|".join(["/ro" + "ot/", "/wo" + "rk/", "/home/" + r"\w+/"]))
    for path in _list_files():
        if "static" not in path.parts:
            assert not words.search(_read(path)), path


def test_every_decision_record_has_its_parts() -> None:
    records = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [int(path.name[:4]) for path in records] == list(range(1, len(records) + 1))
    for path in records:
        assert re.findall(r"^(?:## )?(Status|Context|Decision|Consequences)", _read(path), re.M) == [
            "Status",
            "Context",
            "Decision",
            "Consequences",
        ], path


def test_every_news_fragment_says_what_sort_it_is() -> None:
    for path in (ROOT / "docs/changes").iterdir():
        assert re.fullmatch(r"[a-z0-9-]+\.(breaking|new|fixed)\.md|README\.md", path.name), path


@pytest.mark.parametrize("package", PACKAGES)
def test_no_state_is_written_as_a_string(package: str) -> None:
    states = {str(state) for state in State}
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(_read(path))
        found = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in states]
        assert not found, f"{path}:{found[0].lineno}: use oet_crds.states.State"  # type: ignore[attr-defined]


def test_every_target_is_in_the_help() -> None:
    makefile = _read(ROOT / "Makefile")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.M)
    assert phony is not None
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in phony.group(1).split():
        assert f"make {target} " in shown, target


def test_wheel_has_all_packages_and_the_settings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for package in [*PACKAGES, "crds/oet_crds"]:
        assert f"{package.split('/')[1]}/__init__.py" in names
    assert "oet_crds/oet.ini" in names
    assert any(name.startswith("oet_api/static/") for name in names)


def _find_python(version: str) -> str | None:
    """Return an interpreter of a version that really runs: pyenv's shims are there for versions that are not."""
    installed = sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python"))
    for python in [*map(str, installed), shutil.which(f"python{version}")]:
        if python and subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0:
            return python
    return None


@pytest.mark.parametrize("version", ["3.8", "3.13"])
def test_what_travels_with_the_runner_imports_in_any_python(version: str) -> None:
    python = _find_python(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    environ = {"PYTHONPATH": ":".join(str(ROOT / folder) for folder in ("crds", "runner", "lib"))}
    subprocess.run([python, "-W", "error", "-c", TRAVELLING], env=environ, check=True, timeout=60)
