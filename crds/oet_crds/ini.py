"""Settings files: which there are, and what stands in which line of them.

Standard library of Python 3.8 only: the script library reads feature flags with it in any image.
"""

from __future__ import annotations

import configparser
from os.path import isfile  # says no where Path.is_file raises: in a folder that may not be looked into
from pathlib import Path
from typing import Dict, Mapping, NamedTuple

__all__ = [
    "CONFIG_VARIABLE",
    "FILE_NAME",
    "Entry",
    "SettingsError",
    "find_settings_files",
    "merge_entries",
    "parse_ini",
    "read_ini",
]

FILE_NAME = "oet.ini"

CONFIG_VARIABLE = "OET_CONFIG"
"""Environment variable that names one more settings file, stronger than the others."""


class SettingsError(ValueError):
    """A setting is wrong. The text names the file and line or the variable, the key, and what is allowed."""


class Entry(NamedTuple):
    """A value, and where it was written."""

    value: str
    origin: str
    """`FILE:LINE`, or `environment variable NAME`."""


Entries = Dict[str, Dict[str, Entry]]
"""Entries by section and key."""


def find_settings_files(environ: Mapping[str, str], home: Path | None, package: Path) -> list[Path]:
    """Return the settings files in force, the strongest first.

    Args:
        environ: Environment variables. The file that OET_CONFIG names is taken even if it is not there, so that reading it fails.
        home: The user's home folder; None when there is none.
        package: Folder of the installed `oet_crds`: beside its modules the file lies in a wheel, two folders up in a source tree.
    """
    named = [Path(environ[CONFIG_VARIABLE])] if environ.get(CONFIG_VARIABLE) else []
    own = [home / FILE_NAME] if home and isfile(home / FILE_NAME) else []
    shipped = [path for path in (package / FILE_NAME, package.parent.parent / FILE_NAME) if isfile(path)]
    return named + own + shipped[:1]


def parse_ini(text: str, origin: str) -> Entries:
    """Return what a settings file says. Pure.

    Args:
        text: The file's content.
        origin: Its name, for messages.

    Raises:
        SettingsError: It is no INI file, or says a thing twice.
    """
    # No default section: what it holds would appear in every other.
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(text, source=origin)
    except configparser.Error as error:
        raise SettingsError(f"{origin} is not a settings file: {error}") from error
    lines = _number_lines(text, parser)
    return {
        section: {key: Entry(value, f"{origin}:{lines[section, key]}") for key, value in parser[section].items()}
        for section in parser.sections()
    }


def _number_lines(text: str, parser: configparser.ConfigParser) -> dict[tuple[str, str], int]:
    """Return the line, from 1, of every key, and of every section under the empty key, as the parser reads them."""
    lines: dict[tuple[str, str], int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = parser.SECTCRE.match(line.strip())
        option = parser.OPTCRE.match(line.strip())
        if header:
            section = header.group("header")
            lines[section, ""] = number
        elif option:
            lines.setdefault((section, parser.optionxform(option.group("option").rstrip())), number)
    return lines


def read_ini(path: Path) -> Entries:
    """Return what a settings file says. Raises SettingsError if it cannot be read, or is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the settings file {path}: {error}") from error
    return parse_ini(text, str(path))


def merge_entries(layers: list[Entries]) -> Entries:
    """Return all entries; of those for the same key that of the first layer. Pure."""
    merged: Entries = {}
    for layer in reversed(layers):
        for section, entries in layer.items():
            merged.setdefault(section, {}).update(entries)
    return merged
