"""The part of the chart's values.schema.json that the settings' models decide: section `config`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oet_crds.settings import Settings

SCHEMA = Path(__file__).parents[1] / "charts" / "oet" / "values.schema.json"

MADE_BY_THE_CHART = {
    "server": {"host", "port", "namespace", "engine"},
    "engine": {"state_dir", "spares", "isolation", "scripts_location"},
    "kubernetes": {"image", "image_pull_policy", "service_account", "pod_template_file", "port"},
}
"""Settings that the chart makes from its own values, or that only the embedded engine has: not taken under `config`."""

NOT_IN_A_SCHEMA_OF_VALUES = ("title", "default", "env")


def build_values_schema() -> str:
    """Return the text of values.schema.json: as it is, with the settings of today."""
    schema: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    sections = schema["properties"]["config"]["properties"] = {}
    for name, field in Settings.model_fields.items():
        keys = {}
        for key, about in field.annotation.model_json_schema()["properties"].items():  # type: ignore[union-attr]
            if key not in MADE_BY_THE_CHART[name]:
                keys[key] = {word: about[word] for word in about if word not in NOT_IN_A_SCHEMA_OF_VALUES}
        sections[name] = {"type": "object", "additionalProperties": False, "properties": keys}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
