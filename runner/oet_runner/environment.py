"""Python environments of projects: built once for a commit and an interpreter, and entered by the script's process."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import shutil
import site
import sys
import sysconfig

from oet_runner.cache import make_writable
from oet_runner.script import SourceError
from oet_runner.tools import Tool, ToolError, run_tool
from oet_runner.verdict import How

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Mapping

__all__ = [
    "EnvironmentBuildError",
    "build_environment",
    "compute_environment_name",
    "enter_environment",
    "is_environment",
]

VENV = "venv"
_SOURCE = "source"
_SCRIPT_LIBRARY = "oet"
_PROJECT_TABLE = re.compile(r"^\s*\[\s*(project|build-system|tool\.poetry)\s*\]", re.MULTILINE)
_POETRY_TABLE = re.compile(r"^\s*\[\s*tool\.poetry\s*\]", re.MULTILINE)
_BUILD_TABLE = re.compile(r"^\s*\[\s*build-system\s*\]", re.MULTILINE)
_POETRY_BACKEND = '\n[build-system]\nrequires = ["poetry-core"]\nbuild-backend = "poetry.core.masonry.api"\n'


class EnvironmentBuildError(SourceError):
    """The environment cannot be built."""

    how = How.UNPREPARED


def compute_environment_name(clone: str) -> str:
    """Return the name of the environment of a clone for this interpreter, which another one's environment never has.

    Args:
        clone: Name of the clone: it tells repository and commit.
    """
    python = f"{sys.version}|{sysconfig.get_config_var('SOABI')}|{os.path.realpath(sys.executable)}"
    return f"env-{clone}-{hashlib.sha256(python.encode()).hexdigest()[:16]}"


def is_environment(folder: str) -> bool:
    """Tell whether a folder of the cache has an environment whose interpreter is there."""
    return os.access(os.path.join(folder, VENV, "bin", "python"), os.X_OK)


def build_environment(tree: str, folder: str, timeout_seconds: float, echo: Callable[[str], object]) -> None:
    """Build the environment that a project's own metadata asks for, with uv where it is, else with venv and pip.

    Args:
        tree: Working tree of the project.
        folder: New folder of the cache.
        timeout_seconds: Longest time for each step.
        echo: Is given what the programs print.

    Raises:
        EnvironmentBuildError: The project says nothing of what it needs, or it cannot be built.
    """
    # Building writes into the project's folder, and the clone is others' as well.
    source = os.path.join(folder, _SOURCE)
    shutil.copytree(tree, source, symlinks=True)
    make_writable(source)
    wanted = _select_requirements(source)
    venv = os.path.join(folder, VENV)
    environ = _build_environ(os.environ)
    for command in _build_commands(_find_uv(), venv, wanted):
        try:
            run_tool(Tool(command, source, environ, timeout_seconds), echo)
        except ToolError as error:
            raise EnvironmentBuildError(f"the environment cannot be built: {error}", error.log) from error
    shutil.rmtree(source)


def _select_requirements(source: str) -> list[str]:
    wanted = []
    if os.path.isfile(os.path.join(source, "requirements.txt")):
        wanted += ["-r", "requirements.txt"]
    if _is_project(source):
        wanted.append(".")
    if not wanted:
        raise EnvironmentBuildError(
            "the repository does not say which environment it needs: at its root is neither a pyproject.toml with a "
            "project, nor setup.py, nor requirements.txt"
        )
    return wanted


def _is_project(source: str) -> bool:
    try:
        with open(os.path.join(source, "pyproject.toml"), encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return os.path.isfile(os.path.join(source, "setup.py"))
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentBuildError(f"pyproject.toml cannot be read: {error}") from error
    if _POETRY_TABLE.search(text) and not _BUILD_TABLE.search(text):
        # What poetry itself assumes, and other builders do not.
        with open(os.path.join(source, "pyproject.toml"), "a", encoding="utf-8") as file:
            file.write(_POETRY_BACKEND)
    return _PROJECT_TABLE.search(text) is not None or os.path.isfile(os.path.join(source, "setup.py"))


def _find_uv() -> str | None:
    return shutil.which("uv") or shutil.which("uv", path=os.path.dirname(sys.executable))


def _build_commands(uv: str | None, venv: str, wanted: list[str]) -> list[list[str]]:
    python = os.path.join(venv, "bin", "python")
    if uv is not None:
        return [
            [uv, "venv", "--quiet", "--no-project", "--python", sys.executable, venv],
            [uv, "pip", "install", "--python", python, "--compile-bytecode", *wanted],
        ]
    return [
        [sys.executable, "-m", "venv", venv],
        [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", *wanted],
    ]


def _build_environ(environ: Mapping[str, str]) -> dict[str, str]:
    unwanted = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    clean = {name: value for name, value in environ.items() if name not in unwanted and not name.startswith("OET_")}
    # Copies: a hard link would make read-only what is in uv's own cache.
    clean.update(UV_LINK_MODE="copy", UV_PYTHON_DOWNLOADS="never", UV_NO_PROGRESS="1", GIT_TERMINAL_PROMPT="0")
    return clean


def enter_environment(folder: str) -> None:
    """Make this process, and the Python processes that it starts, see the packages of an environment first.

    Args:
        folder: The environment's folder of the cache.
    """
    # The script library stays what it is, whatever an environment calls its packages.
    importlib.import_module(_SCRIPT_LIBRARY)

    venv = os.path.join(folder, VENV)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    before = list(sys.path)
    site.addsitedir(os.path.join(venv, "lib", version, "site-packages"))
    added = [path for path in sys.path if path not in before]
    sys.path[:] = added + before
    sys.executable = os.path.join(venv, "bin", "python")
    os.environ["VIRTUAL_ENV"] = venv
    os.environ["PATH"] = os.pathsep.join([os.path.join(venv, "bin"), os.environ.get("PATH", os.defpath)])
