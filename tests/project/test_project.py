"""Rules of the repository that no other tool checks."""

from __future__ import annotations

import ast
import configparser
import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from oet_crds.reasons import Reason
from oet_crds.states import State
from oet_crds.topics import Topic

ROOT = Path(__file__).parents[2]
PACKAGES = ["api/oet_api", "cli/oet_cli", "lib/oet", "operator/oet_operator", "runner/oet_runner"]
TRAVELLING = """
import importlib, pkgutil
import oet, oet_runner
for name in ("states", "reasons", "topics", "names", "mailbox", "container_log"):
    importlib.import_module("oet_crds." + name)
for package in (oet, oet_runner):
    for module in pkgutil.iter_modules(package.__path__):
        if module.name != "__main__":
            importlib.import_module(package.__name__ + "." + module.name)
"""


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


def _import_generator() -> ModuleType:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module("generate")
    finally:
        sys.path.pop(0)


def test_no_package_shadows_the_standard_library() -> None:
    for pattern in ("operator/__init__.py", "tests/__init__.py", "tests/*/__init__.py"):
        assert list(ROOT.glob(pattern)) == []
    code = "import operator; print(operator.add(1, 2))"
    for folder in (ROOT, ROOT / "operator", ROOT / "tests"):
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=True)
        assert done.stdout == b"3\n", folder


def test_lock_file_names_no_address_and_pins_by_hash() -> None:
    text = _read(ROOT / "requirements.lock")
    assert "://" not in text
    pinned = re.findall(r"^[A-Za-z0-9].*", text, re.M)
    assert pinned
    assert all("==" in line and line.endswith("\\") for line in pinned)


@pytest.mark.parametrize(
    "words",
    [
        # In parts, so that this file does not find itself.
        pytest.param(["/ro" + "ot/", "/wo" + "rk/", "/home/" + r"[\w-]+/"], id="path_of_a_machine"),
        pytest.param([word + suffix for word in ("pypi", "pythonhosted") for suffix in (r"\.org",)], id="pypi"),
        pytest.param(["npm" + r"js\.(org|com)", "proxy" + r"\.golang\.org"], id="npm_or_go"),
        pytest.param([r"(docker|ghcr|quay|gcr|k8s\.gcr)" + r"\.io", "registry" + r"\.k8s\.io"], id="images"),
    ],
)
def test_no_file_names_what_only_one_machine_has(words: list[str]) -> None:
    pattern = re.compile("|".join(words))
    for path in _list_files():
        if "static" not in path.parts:  # swagger-ui's files are not ours
            found = pattern.search(_read(path))
            assert not found, f"{path}: {found.group()}"


@pytest.mark.parametrize("name", _import_generator().PAGES)
def test_generated_file_is_what_the_code_says(name: str) -> None:
    assert _read(ROOT / name) == _import_generator().PAGES[name](), "run `make generate`"


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
def test_no_word_of_the_vocabulary_is_written_as_a_string(package: str) -> None:
    words = {str(word): type(word).__name__ for kind in (State, Reason, Topic) for word in kind}
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(_read(path))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in words:
                pytest.fail(f"{path}:{node.lineno}: use oet_crds' {words[node.value]} for {node.value!r}")


@pytest.mark.parametrize("page", [path for path in _list_files() if path.suffix == ".md"], ids=lambda path: path.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", re.sub(r"`[^`]*`", "", _read(page))):
        assert (page.parent / target).exists(), f"{page}: {target}"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_every_target_is_in_the_help() -> None:
    makefile = _read(ROOT / "Makefile")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.M)
    assert phony is not None
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in phony.group(1).split():
        assert f"make {target} " in shown, target


def test_wheel_has_all_that_an_installation_needs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (listed,) = [name for name in names if name.endswith("entry_points.txt")]
        scripts = configparser.ConfigParser()
        scripts.read_string(wheel.read(listed).decode())
        settings = wheel.read("oet_crds/oet.ini").decode()
    committed = {path for path in _list_files() if "__pycache__" not in path.parts}
    for package in [*PACKAGES, "crds/oet_crds"]:
        parent = (ROOT / package).parent
        wanted = {str(path.relative_to(parent)) for path in committed if path.is_relative_to(ROOT / package)}
        assert wanted <= names
    assert settings == _read(ROOT / "oet.ini")
    assert set(scripts["console_scripts"]) == {"oet", "oet-api"}
    assert not [name for name in names if name.startswith(("tests/", "tools/", "examples/"))]


@pytest.mark.parametrize("name", ["oet", "oet-api"])
def test_installed_command_leads_to_a_function(name: str) -> None:
    (script,) = metadata.entry_points(group="console_scripts", name=name)
    assert callable(script.load())


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
    folders = ":".join(str(ROOT / folder) for folder in ("crds", "runner", "lib"))
    environ = {"PYTHONPATH": folders, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([python, "-W", "error", "-c", TRAVELLING], env=environ, check=True, timeout=60)
