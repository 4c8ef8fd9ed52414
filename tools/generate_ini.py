"""The text of oet.ini, the settings file that ships with OET, from the settings' models."""

from __future__ import annotations

import textwrap

from oet_crds.settings import Settings

HEADER = """\
# Settings of OET. Written by `make generate` from crds/oet_crds/settings.py; copy it to ~/oet.ini and change the copy.
# Order of authority: environment variable, the file that OET_CONFIG names, ~/oet.ini, this file.
# Unknown sections and keys are errors.
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
            lines.append(f"{key} = {setting.default}".rstrip())
        lines.append("")
    return "\n".join(lines)
