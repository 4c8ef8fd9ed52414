"""What the builder chooses for the image."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import parts
import pytest

ROOT = Path(__file__).parents[2]

LOCK = """\
# a header
click==8.5.1 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via
    #   ska-oso-oet (pyproject.toml)
    #   kopf
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:cc
    # via click
kopf==1.45.2 \\
    --hash=sha256:dd
    # via ska-oso-oet (pyproject.toml)
pytest==9.0 \\
    --hash=sha256:ee
    # via ska-oso-oet (pyproject.toml:dev)
python-json_Logger==4.2.0 \\
    --hash=sha256:ff
    # via kopf
"""


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def entries() -> list[parts.LockEntry]:
    return parts.parse_lock((ROOT / "requirements.lock").read_text())


def _names(chosen: list[parts.LockEntry]) -> list[str]:
    return [entry.name for entry in chosen]


@pytest.mark.parametrize(
    ("roots", "expected"),
    [
        pytest.param({"click"}, ["click", "colorama"], id="what-it-needs"),
        pytest.param({"kopf"}, ["click", "colorama", "kopf", "python-json-logger"], id="through-another"),
        pytest.param({"pytest"}, ["pytest"], id="needs-nothing"),
        pytest.param(set(), [], id="nothing"),
    ],
)
def test_package_brings_what_it_needs_and_nothing_else(roots: set[str], expected: list[str]) -> None:
    assert _names(parts.select_entries(parts.parse_lock(LOCK), roots)) == expected


def test_chosen_entry_keeps_version_marker_and_hashes() -> None:
    text = "".join(entry.text for entry in parts.select_entries(parts.parse_lock(LOCK), {"click"}))
    assert "click==8.5.1 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n" in text
    assert "colorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:cc\n" in text


def test_package_that_the_lock_lacks_is_refused() -> None:
    with pytest.raises(KeyError, match="falcon"):
        parts.select_entries(parts.parse_lock(LOCK), {"falcon"})


def test_package_with_a_version_for_each_python_keeps_all_of_them() -> None:
    lock = (
        "numpy==2.4.6 ; python_full_version < '3.12' \\\n    --hash=sha256:aa\n    # via pytango\n"
        "numpy==2.5.5 ; python_full_version >= '3.12' \\\n    --hash=sha256:bb\n    # via pytango\n"
        "pytango==10.3.1 \\\n    --hash=sha256:cc\n    # via ska-oso-oet (pyproject.toml)\n"
    )
    assert "".join(entry.text for entry in parts.select_entries(parts.parse_lock(lock), {"pytango"})) == lock


def test_every_package_of_the_lock_is_read(entries: list[parts.LockEntry]) -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert len(entries) == sum("==" in line.partition(" ")[0] for line in lock.splitlines() if line[:1].isalnum())
    assert all("--hash=sha256:" in entry.text for entry in entries)


@pytest.mark.parametrize(
    ("extras", "has", "lacks"),
    [
        pytest.param(["api", "cli", "kubernetes"], {"falcon", "click", "kubernetes"}, {"kopf", "pytest"}, id="api"),
        pytest.param(["operator"], {"kopf", "aiohttp", "orjson", "pydantic"}, {"kubernetes", "falcon"}, id="operator"),
        pytest.param(["+tango"], {"pytango", "pytango-db", "numpy"}, {"falcon", "kopf", "pydantic"}, id="script"),
        pytest.param([parts.BUILD_SYSTEM], {"hatchling", "editables"}, {"pydantic", "mypy"}, id="build-system"),
    ],
)
def test_part_of_the_image_has_its_packages_only(
    project: dict[str, object], entries: list[parts.LockEntry], extras: list[str], has: set[str], lacks: set[str]
) -> None:
    names = set(_names(parts.select_entries(entries, parts.get_roots(project, extras))))
    assert has <= names
    assert not lacks & names


def test_vocabulary_travels_as_far_as_it_is_used() -> None:
    vocabulary = {
        "oet_crds": "",
        "oet_crds.states": "import enum",
        "oet_crds.names": "def late():\n    from oet_crds import states",
        "oet_crds.settings": "import pydantic",
    }
    assert parts.compute_modules(["from oet_crds.names import GROUP"], vocabulary) == {
        "oet_crds",
        "oet_crds.names",
        "oet_crds.states",
    }


def test_runner_that_uses_a_module_with_packages_fails_the_build() -> None:
    vocabulary = {"oet_crds": "", "oet_crds.settings": "import pydantic"}
    with pytest.raises(ValueError, match=r"oet_crds\.settings travels with the runner, but imports pydantic"):
        parts.compute_modules(["import oet_crds.settings"], vocabulary)


def test_copied_runner_starts_by_itself(tmp_path: Path) -> None:
    words = ["runner", str(tmp_path / "runner"), "runner", "lib", "crds"]
    subprocess.run([sys.executable, ROOT / "images/parts.py", *words], check=True, cwd=ROOT, timeout=60)
    imports = "import oet, oet_runner.__main__; print(oet.__file__, oet_runner.__file__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", imports],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(tmp_path / "runner"), "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(tmp_path)) == 2
    assert not list(tmp_path.rglob("*.pyc"))
    assert not (tmp_path / "runner/oet_crds/settings.py").exists()


def test_unknown_words_print_what_may_be_asked_for() -> None:
    with pytest.raises(SystemExit, match="requirements LOCK PYPROJECT NAME"):
        parts.main(["everything"])
