"""The part of the chart's values.schema.json that the settings' models decide: section `config`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oet_crds.settings import Settings

SCHEMA = Path(__file__).parents[1] / "charts" / "oet" / "values.schema.json"

MADE_BY_THE_CHART = {
    "server": {"host", "hosts", "port", "entries_port", "namespace", "engine"},
    "engine": {"state_dir", "spares", "isolation", "confinement", "scripts_location"},
    "kubernetes": {
        "image",
        "image_pull_policy",
        "service_account",
        "pod_template_file",
        "git_template_file",
        "port",
        "rehearsals",
        "timeline_url",
    },
    # The chart mounts a volume there, and a Secret.
    "git": {"cache_dir", "credentials_dir"},
    # Values `oda.backend`, `oda.data` and `oda.postgres`; the password comes from a Secret.
    "oda": {
        "backend",
        "data_dir",
        "postgres_host",
        "postgres_port",
        "postgres_database",
        "postgres_user",
        "postgres_password",
    },
    # Value `features.readViaPubsub`: scripts read the flag, so it goes into their Pods.
    "tango": {"read_via_pubsub"},
    # Values `timeline`: the URL comes from a Secret.
    "timeline": {"database", "retention_days"},
}
"""Settings that the chart makes from its own values, or that only the embedded engine has: not taken under `config`."""

NOT_IN_A_SCHEMA_OF_VALUES = ("title", "default", "env")


def resolve_reference(about: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return what is said of a setting with what it refers to in place of the reference."""
    name = about.get("$ref", "").rpartition("/")[2]
    kept = {word: about[word] for word in about if word != "$ref"}
    return {**schema["$defs"][name], **kept} if name else about


def build_values_schema() -> str:
    """Return the text of values.schema.json: as it is, with the settings of today."""
    schema: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    sections = schema["properties"]["config"]["properties"] = {}
    for name, field in Settings.model_fields.items():
        keys = {}
        section = field.annotation.model_json_schema()  # type: ignore[union-attr]
        for key, about in section["properties"].items():
            if key not in MADE_BY_THE_CHART[name]:
                found = resolve_reference(about, section)
                keys[key] = {word: found[word] for word in found if word not in NOT_IN_A_SCHEMA_OF_VALUES}
        if not keys:
            continue
        sections[name] = {"type": "object", "additionalProperties": False, "properties": keys}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
