"""Python environments of projects: built once for a commit and an interpreter, and entered by the script's process."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
import shutil
import site
import sys
import sysconfig
from functools import partial

from oet_runner import landlock
from oet_runner.git import NO_SETTINGS
from oet_runner.script import SourceError
from oet_runner.tools import Tool, ToolError, run_tool
from oet_runner.verdict import How

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Iterator, Mapping

__all__ = [
    "EnvironmentBuildError",
    "Site",
    "build_environment",
    "compute_environment_name",
    "enter_environment",
    "is_environment",
]

VENV = "venv"
_SOURCE, _TEMPORARY = "source", "tmp"
_LAYOUT = "2"
"""What is kept in the cache by other rules has another name there."""

_DEVICES = "/dev"
"""Terminals, and shared memory: what has no name in any file system that lasts."""

_INDEX = ["git", "read-tree", "HEAD"]
"""Builders that ask git for the version must not be told that all files are missing."""

_UNWANTED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE", "OET_", "UV_CACHE_DIR", "GIT_DIR")
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
    python = f"{_LAYOUT}|{sys.version}|{sysconfig.get_config_var('SOABI')}|{os.path.realpath(sys.executable)}"
    return f"env-{clone}-{hashlib.sha256(python.encode()).hexdigest()[:16]}"


def is_environment(folder: str) -> bool:
    """Tell whether a folder of the cache has an environment whose interpreter is there."""
    return os.access(os.path.join(folder, VENV, "bin", "python"), os.X_OK)


class Site:
    """Where an environment is built.

    Attributes:
        tree: Files of the project, which are only read.
        work: A folder for what is needed while it is built; it must not be there.
        folder: Gets the environment.
    """

    __slots__ = ("folder", "tree", "work")

    def __init__(self, tree: str, work: str, folder: str) -> None:
        self.tree = tree
        self.work = work
        self.folder = folder


def build_environment(site: Site, timeout_seconds: float, echo: Callable[[str], object]) -> None:
    """Build the environment that a project's own metadata asks for, with uv where it is, else with venv and pip.

    What the project runs meanwhile can write to the site alone, where the kernel can see to that.

    Args:
        site: Where.
        timeout_seconds: Longest time for each step.
        echo: Is given what the programs print.

    Raises:
        EnvironmentBuildError: The project says nothing of what it needs, or it cannot be built.
        OSError: The site cannot be made.
    """
    source = os.path.join(site.work, _SOURCE)
    os.mkdir(site.work)
    os.mkdir(os.path.join(site.work, _TEMPORARY))
    # Building writes into the project's folder, which the script is to find as it was committed.
    shutil.copytree(site.tree, source, symlinks=True)
    wanted = _select_requirements(source)
    temporary = os.path.join(site.work, _TEMPORARY)
    run_tool(Tool(_INDEX, source, _build_git_environ(os.environ), timeout_seconds))
    environ = _build_environ(os.environ, temporary)
    commands = _build_commands(_find_uv(), os.path.join(site.folder, VENV), wanted)
    with _confining([site.folder, site.work]) as confine:
        for command in commands:
            tool = Tool(command, source, environ, timeout_seconds)
            tool.prepare = confine
            try:
                run_tool(tool, echo)
            except ToolError as error:
                raise EnvironmentBuildError(f"the environment cannot be built: {error}", error.log) from error
    shutil.rmtree(site.work, ignore_errors=True)


@contextlib.contextmanager
def _confining(writable: list[str]) -> Iterator[Callable[[], object] | None]:
    """Yield what makes a new process able to write to some folders only; None where the kernel cannot do that."""
    if not landlock.is_available():
        yield None
        return
    fd = landlock.build_writing_domain([_DEVICES, *writable])
    try:
        yield partial(landlock.enter_domain, fd)
    finally:
        os.close(fd)


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


def _build_git_environ(environ: Mapping[str, str]) -> dict[str, str]:
    clean = {name: value for name, value in environ.items() if not name.startswith("GIT_")}
    return {**clean, **NO_SETTINGS}


def _build_environ(environ: Mapping[str, str], temporary: str) -> dict[str, str]:
    clean = {name: value for name, value in environ.items() if not name.startswith(_UNWANTED)}
    clean.update(UV_LINK_MODE="copy", UV_PYTHON_DOWNLOADS="never", UV_NO_PROGRESS="1", GIT_TERMINAL_PROMPT="0")
    # Scripts may have written to the user's caches, and to the packages in their home folder.
    clean.update(UV_CACHE_DIR=os.path.join(temporary, "uv"), PIP_NO_CACHE_DIR="1", PYTHONNOUSERSITE="1")
    return {**clean, "TMPDIR": temporary, "XDG_CACHE_HOME": temporary}


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
