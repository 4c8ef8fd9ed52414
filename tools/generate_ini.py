"""The text of oet.ini, the settings file that ships with OET, from the settings' models."""

from __future__ import annotations

import textwrap

from pydantic import SecretStr

from oet_crds.settings import Settings

HEADER = """\
# Settings of OET. Written by `make generate` from crds/oet_crds/settings.py; write what is to be otherwise into ~/oet.ini.
# Order of authority for each key: environment variable, the file that OET_CONFIG names, ~/oet.ini, this file.
# Unknown sections and keys are errors. `oet config show` prints what is in force, and why.
"""


def build_ini() -> str:
    """Return the text of oet.ini: every setting with its meaning, unit, environment variable and default."""
    lines = [HEADER]
    for name, field in Settings.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        lines.append(f"[{name}]")
        for key, setting in section.model_fields.items():  # type: ignore[attr-defined]
            about = f"{setting.description} Environment: {setting.json_schema_extra['env']}."
            lines += [f"# {line}" for line in textwrap.wrap(about, 110)]
            lines.append(f"{key} = {_write(setting.default)}".rstrip())
        lines.append("")
    return "\n".join(lines)


def _write(value: object) -> str:
    """Return a value as files write it."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value).lower() if isinstance(value, bool) else str(value)
