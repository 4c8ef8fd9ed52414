"""Feature flags: `oet.features.read_via_pubsub`, or by the name of the existing OET, `oet.FEATURES.read_via_pubsub`.

A flag comes from the first of these that says something: its environment variable, the file that OET_CONFIG names, `oet.ini` in
the user's home folder, the `oet.ini` in the root of the installation, the default. Standard library of Python 3.8 only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Mapping, Sequence

import oet_crds
from oet_crds.flags import READ_VIA_PUBSUB, TANGO_SECTION, Flag, parse_flag
from oet_crds.ini import Entry, SettingsError, find_settings_files, merge_entries, read_ini

__all__ = ["FEATURES", "Features", "SettingsError"]


class Features:
    """The flags in force. Each is read when it is asked for the first time, and stays as it is from then on."""

    def __init__(self, environ: Mapping[str, str] | None = None, files: Sequence[Path] | None = None) -> None:
        """Remember where to read.

        Args:
            environ: Environment variables; None for those of the process.
            files: Settings files, the strongest first; None for those in force.
        """
        self._environ = environ
        self._files = files
        self._values: dict[Flag, bool] = {}

    @classmethod
    def create_from_config_files(cls, *paths: str) -> Features:
        """Return the flags as the environment and these files say, the strongest first; missing files are no error."""
        return cls(files=[Path(path).expanduser() for path in paths if Path(path).expanduser().is_file()])

    @property
    def read_via_pubsub(self) -> bool:
        """Whether Tango attributes are waited for by events; False: by polling. Raises SettingsError."""
        return self._get(READ_VIA_PUBSUB)

    @property
    def use_pubsub_to_read_tango_attributes(self) -> bool:
        """The same, by the name that scripts of the existing OET know."""
        return self.read_via_pubsub

    @property
    def use_polling_to_read_tango_attributes(self) -> bool:
        """The opposite, by the name that scripts of the existing OET know."""
        return not self.read_via_pubsub

    def _get(self, flag: Flag) -> bool:
        if flag not in self._values:
            entry = self._find(flag)
            try:
                self._values[flag] = flag.default if entry is None else parse_flag(entry.value)
            except SettingsError as error:
                assert entry is not None
                raise SettingsError(f"{entry.origin}: [{flag.section}] {flag.key}: {error}") from None
        return self._values[flag]

    def _find(self, flag: Flag) -> Entry | None:
        """Return what is said of a flag, None when nothing is. Raises SettingsError."""
        environ = os.environ if self._environ is None else self._environ
        if environ.get(flag.variable):
            return Entry(environ[flag.variable], f"environment variable {flag.variable}")
        files = _find_files(environ) if self._files is None else self._files
        entries = merge_entries([read_ini(path) for path in files]).get(flag.section, {})
        # The server judges the other sections; this one is ours.
        for key, entry in entries.items():
            if key != READ_VIA_PUBSUB.key:
                raise SettingsError(
                    f"{entry.origin}: [{TANGO_SECTION}] {key} is not a setting of OET; there is {READ_VIA_PUBSUB.key}"
                )
        return entries.get(flag.key)


def _find_files(environ: Mapping[str, str]) -> Sequence[Path]:
    try:
        home: Path | None = Path.home()
    except RuntimeError:
        home = None  # a user without a name and without HOME, as in a Pod
    return find_settings_files(environ, home, Path(oet_crds.__file__).parent)


FEATURES = Features()
"""The flags of this process."""


def __getattr__(name: str) -> bool:
    """Return a flag of this process, so that `oet.features.read_via_pubsub` reads like a setting. Raises SettingsError."""
    if name != READ_VIA_PUBSUB.key:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return FEATURES.read_via_pubsub
