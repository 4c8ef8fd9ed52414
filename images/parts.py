"""Choose what goes into the image: the Containerfile runs this in its builder, on any Python >= 3.11 without packages.

`requirements LOCK PYPROJECT NAME...`: print the part of the lock that the extras (or `build-system`) NAME need, hashes
included. pip then refuses whatever the lock does not name, so a mistake here fails the build instead of going unseen.

`runner TARGET FOLDER...`: copy into TARGET the packages that travel to a script, and what they use of the vocabulary.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["LockEntry", "compute_modules", "get_roots", "parse_lock", "select_entries"]

BUILD_SYSTEM = "build-system"
"""In place of an extra's name: what builds the wheel."""

TRAVELLERS = ("oet_runner", "oet")
VOCABULARY = "oet_crds"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class LockEntry:
    """One package of the lock."""

    name: str
    text: str
    """Its lines: version, marker, hashes and comments."""
    wanted_by: frozenset[str]
    """The packages that made it part of the lock, by uv's `via` comments."""


def normalize(name: str) -> str:
    """Return a package's name as indexes compare it. Pure."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_lock(text: str) -> list[LockEntry]:
    """Return the entries of a lock that `uv pip compile --generate-hashes` wrote. Pure."""
    entries = []
    for block in re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE):
        found = _NAME.match(block)
        if not found:
            continue
        comments = re.findall(r"^\s+#\s+(?:via\s+)?([A-Za-z0-9][A-Za-z0-9._-]*)(.*)$", block, re.MULTILINE)
        # The project itself, `ska-oso-oet (pyproject.toml:dev)`, wants everything: the roots tell which of it is meant.
        wanted_by = frozenset(normalize(name) for name, rest in comments if not rest.strip() and name != "via")
        entries.append(LockEntry(normalize(found.group()), block, wanted_by))
    return entries


def get_roots(project: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    """Return the packages that a pyproject.toml asks for: those of its extras, or of its build system.

    Args:
        project: What pyproject.toml says.
        names: Extras, each with what OET itself needs; one that begins with + without that: for environments that OET is not in.

    Raises:
        KeyError: There is no such extra.
    """
    wanted: list[str] = []
    for name in names:
        if name == BUILD_SYSTEM:
            wanted += project["build-system"]["requires"]
        elif name.startswith("+"):
            wanted += project["project"]["optional-dependencies"][name[1:]]
        else:
            wanted += project["project"]["dependencies"] + project["project"]["optional-dependencies"][name]
    return {normalize(match.group()) for match in map(_NAME.match, wanted) if match}


def select_entries(entries: Iterable[LockEntry], roots: Iterable[str]) -> list[LockEntry]:
    """Return the entries of some packages and of all that they need, in the lock's order. Pure.

    Raises:
        KeyError: The lock lacks one of the packages.
    """
    # A package is there more than once when its version depends on that of Python.
    known = list(entries)
    chosen: set[str] = set()
    fresh = set(roots)
    if missing := fresh - {entry.name for entry in known}:
        raise KeyError(*sorted(missing))
    while fresh:
        chosen |= fresh
        fresh = {entry.name for entry in known if entry.wanted_by & fresh} - chosen
    return [entry for entry in known if entry.name in chosen]


def _find_imports(source: str) -> Iterator[str]:
    """Yield the modules that a source imports, wherever it does; `from a import b` yields `a` and `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def compute_modules(sources: Iterable[str], vocabulary: Mapping[str, str]) -> set[str]:
    """Return the modules of the vocabulary that sources use, directly or through each other. Pure.

    Args:
        sources: Texts of the modules that travel.
        vocabulary: Text of each module of the vocabulary by its dotted name.

    Raises:
        ValueError: One of them imports what is neither vocabulary nor standard library, so it cannot travel.
    """
    chosen = {VOCABULARY}
    waiting = [*sources, vocabulary[VOCABULARY]]
    while waiting:
        for module in _find_imports(waiting.pop()):
            if module in vocabulary and module not in chosen:
                chosen.add(module)
                waiting.append(vocabulary[module])
    for module in sorted(chosen):
        tops = {name.partition(".")[0] for name in _find_imports(vocabulary[module])}
        foreign = sorted(tops - sys.stdlib_module_names - {VOCABULARY})
        if foreign:
            raise ValueError(f"{module} travels with the runner, but imports {', '.join(foreign)}")
    return chosen


def _read_package(folder: Path) -> dict[str, str]:
    """Return the text of each module of a package by its dotted name."""
    names = {path: ".".join(path.relative_to(folder.parent).with_suffix("").parts) for path in folder.rglob("*.py")}
    return {name.removesuffix(".__init__"): path.read_text(encoding="utf-8") for path, name in names.items()}


def copy_runner(target: Path, folders: Iterable[Path]) -> None:
    """Copy runner and script library, and the vocabulary that they use, into a folder."""
    packages = {path.name: path for folder in folders for path in folder.iterdir() if path.is_dir()}
    for name in TRAVELLERS:
        shutil.copytree(packages[name], target / name, ignore=shutil.ignore_patterns("__pycache__"))
    sources = [text for name in TRAVELLERS for text in _read_package(packages[name]).values()]
    vocabulary = _read_package(packages[VOCABULARY])
    for module in sorted(compute_modules(sources, vocabulary)):
        relative = Path(*module.split("."))
        if (packages[VOCABULARY].parent / relative).is_dir():
            relative = relative / "__init__"
        copy = target / relative.with_suffix(".py")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(vocabulary[module], encoding="utf-8")


def main(words: list[str]) -> None:
    """Do one of the two. Raises ValueError, KeyError or OSError, which fail the build."""
    match words:
        case ["requirements", lock, pyproject, *names] if names:
            project = tomllib.loads(Path(pyproject).read_text(encoding="utf-8"))
            entries = parse_lock(Path(lock).read_text(encoding="utf-8"))
            print("".join(entry.text for entry in select_entries(entries, get_roots(project, names))))
        case ["runner", target, *folders] if folders:
            copy_runner(Path(target), map(Path, folders))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
