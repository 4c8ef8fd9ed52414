"""Every deployment setting: its name, unit, default, and where its value comes from.

The order of authority: environment variable, settings file (`OET_CONFIG`, else `oet.ini` in the home folder, else the
one that ships with OET), default. An unknown section or key is an error, because a misspelt limit is a limit that is not there.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from oet_crds.names import DEFAULT_NAMESPACE

__all__ = [
    "EngineSettings",
    "KubernetesSettings",
    "ServerSettings",
    "Settings",
    "SettingsError",
    "find_settings_file",
    "load_settings",
    "parse_settings",
]


class SettingsError(ValueError):
    """A setting is wrong. The text names the source, the key, and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _env(name: str) -> dict[str, Any]:
    return {"env": name}


class ServerSettings(_Section):
    """Section `[server]`: the REST server."""

    host: str = Field("0.0.0.0", description="Address to listen on.", json_schema_extra=_env("OET_HOST"))
    port: int = Field(5000, ge=0, le=65535, description="Port to listen on.", json_schema_extra=_env("OET_PORT"))
    namespace: str = Field(
        DEFAULT_NAMESPACE,
        pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
        description="First part of the base path.",
        json_schema_extra=_env("KUBE_NAMESPACE"),
    )
    threads: int = Field(256, ge=2, le=4096, description="Request threads.", json_schema_extra=_env("OET_THREADS"))
    max_streams: int = Field(
        200,
        ge=1,
        description="Open streams (events, followed logs) at once; the next one gets 503. Keep it well under threads.",
        json_schema_extra=_env("OET_MAX_STREAMS"),
    )
    heartbeat_seconds: float = Field(
        10.0,
        gt=0,
        le=60,
        description="Silence after which a stream sends a comment.",
        json_schema_extra=_env("OET_HEARTBEAT_SECONDS"),
    )
    max_body_bytes: int = Field(
        1024 * 1024,
        ge=1024,
        description="Largest request body.",
        json_schema_extra=_env("OET_MAX_BODY_BYTES"),
    )
    max_args_bytes: int = Field(
        256 * 1024,
        ge=256,
        description="Largest script_args of one request, as JSON.",
        json_schema_extra=_env("OET_MAX_ARGS_BYTES"),
    )
    request_timeout_seconds: float = Field(
        10.0,
        gt=0,
        description="Time a client has to send its request.",
        json_schema_extra=_env("OET_REQUEST_TIMEOUT_SECONDS"),
    )
    engine: str = Field(
        "local",
        pattern="^(local|kubernetes)$",
        description="local: scripts run in child processes of the server; kubernetes: each in a Pod (not there yet).",
        json_schema_extra=_env("OET_ENGINE"),
    )
    start_timeout_seconds: float = Field(
        10.0,
        gt=0,
        description="How long a start waits for the engine's word before it answers 504.",
        json_schema_extra=_env("OET_START_TIMEOUT_SECONDS"),
    )
    stop_timeout_seconds: float = Field(
        30.0,
        gt=0,
        description="How long a stop waits for certainty, beyond the grace period, before it answers 504.",
        json_schema_extra=_env("OET_STOP_TIMEOUT_SECONDS"),
    )


class EngineSettings(_Section):
    """Section `[engine]`: the embedded engine. The limits hold for the operator on Kubernetes as well."""

    state_dir: str = Field(
        "",
        description="Folder of the store; empty: ska-oso-oet in the XDG state folder.",
        json_schema_extra=_env("OET_STATE_DIR"),
    )
    spares: int = Field(
        2,
        ge=0,
        le=64,
        description="Runners kept ready for the next executions.",
        json_schema_extra=_env("OET_SPARES"),
    )
    max_active: int = Field(
        128,
        ge=1,
        le=4096,
        description="Executions that may be active at once; the next one gets 503.",
        json_schema_extra=_env("OET_MAX_ACTIVE"),
    )
    history_limit: int = Field(
        100,
        ge=0,
        description="Finished executions that are kept, with their timelines; older ones are removed.",
        json_schema_extra=_env("OET_HISTORY_LIMIT"),
    )
    log_limit_bytes: int = Field(
        16 * 1024 * 1024,
        ge=1024,
        description="Printed text that is kept of one execution; what comes after is counted and dropped.",
        json_schema_extra=_env("OET_LOG_LIMIT_BYTES"),
    )
    scripts_location: str = Field(
        "/scripts",
        description="Folder of the shipped scripts, abort.py among them.",
        json_schema_extra=_env("SCRIPTS_LOCATION"),
    )
    isolation: str = Field(
        "auto",
        pattern="^(auto|namespace|none)$",
        description="namespace: each script in a PID namespace of its own, where it can neither see nor signal any "
        "process but its own; none: without; auto: namespace where the kernel allows it.",
        json_schema_extra=_env("OET_ISOLATION"),
    )


class KubernetesSettings(_Section):
    """Section `[kubernetes]`: the operator, and the Pods that it makes."""

    image: str = Field(
        "",
        description="OET's own image: what script Pods run in, and where others get the runner from.",
        json_schema_extra=_env("OET_IMAGE"),
    )
    image_pull_policy: str = Field(
        "IfNotPresent",
        pattern="^(Always|IfNotPresent|Never)$",
        description="When the images of script Pods are pulled.",
        json_schema_extra=_env("OET_IMAGE_PULL_POLICY"),
    )
    service_account: str = Field(
        "oet-runner",
        min_length=1,
        description="ServiceAccount of script Pods.",
        json_schema_extra=_env("OET_RUNNER_SERVICE_ACCOUNT"),
    )
    pod_template_file: str = Field(
        "",
        description="JSON file with a Pod template that every script Pod gets, before its own podTemplate; empty: none.",
        json_schema_extra=_env("OET_POD_TEMPLATE_FILE"),
    )
    pod_start_timeout_seconds: float = Field(
        300.0,
        gt=0,
        description="How long a Pod may wait for a node or for its volumes before its execution FAILS.",
        json_schema_extra=_env("OET_POD_START_TIMEOUT_SECONDS"),
    )
    image_pull_timeout_seconds: float = Field(
        60.0,
        gt=0,
        description="How long pulls of an image may fail before the execution FAILS. A pull that goes on is not limited.",
        json_schema_extra=_env("OET_IMAGE_PULL_TIMEOUT_SECONDS"),
    )
    port: int = Field(
        8080,
        ge=0,
        le=65535,
        description="Port of the operator's /healthz, /readyz and /metrics.",
        json_schema_extra=_env("OET_OPERATOR_PORT"),
    )
    resync_seconds: float = Field(
        60.0,
        gt=0,
        description="Time between two comparisons of all that the operator knows with the API server.",
        json_schema_extra=_env("OET_RESYNC_SECONDS"),
    )
    lease_seconds: float = Field(
        10.0,
        ge=2,
        description="How long a leader that has died is still taken for alive: the operator's replicas take over then.",
        json_schema_extra=_env("OET_LEASE_SECONDS"),
    )


class Settings(_Section):
    """All settings."""

    server: ServerSettings = Field(default_factory=ServerSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
    kubernetes: KubernetesSettings = Field(default_factory=KubernetesSettings)


def parse_settings(text: str, origin: str, environ: Mapping[str, str]) -> Settings:
    """Compute the settings from the text of a settings file and the environment.

    Args:
        text: Content of the file; empty for none.
        origin: The file's name, for messages.
        environ: Environment variables; they win over the file.

    Raises:
        SettingsError: Not an INI file, an unknown section or key, or a value that is not allowed.
    """
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(text, source=origin)
    except configparser.Error as error:
        raise SettingsError(f"{origin} is not a settings file: {error}") from error
    values: dict[str, dict[str, str]] = {name: dict(parser[name]) for name in parser.sections()}
    sources = {(name, key): origin for name, section in values.items() for key in section}
    for name, field in Settings.model_fields.items():
        section_model = field.annotation
        assert isinstance(section_model, type)
        assert issubclass(section_model, _Section)
        for key, variable in _environment_names(section_model).items():
            if environ.get(variable):
                values.setdefault(name, {})[key] = environ[variable]
                sources[name, key] = f"environment variable {variable}"
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_describe(error, sources, origin)) from error


def _environment_names(section: type[_Section]) -> dict[str, str]:
    names = {}
    for key, field in section.model_fields.items():
        assert isinstance(field.json_schema_extra, dict)
        names[key] = str(field.json_schema_extra["env"])
    return names


def _describe(error: ValidationError, sources: Mapping[tuple[str, str], str], origin: str) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        path = [str(part) for part in problem["loc"]]
        where = sources.get((path[0], path[1]), origin) if len(path) > 1 else origin
        name = f"[{path[0]}] {path[1]}" if len(path) > 1 else f"[{path[0]}]"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where}: {name} is not a setting of OET; see the comments in the shipped oet.ini")
        else:
            lines.append(f"{where}: {name} = {problem['input']!r}: {problem['msg']}")
    return "\n".join(lines)


def find_settings_file(environ: Mapping[str, str], home: Path, shipped: Path) -> Path:
    """Return the settings file in force: `OET_CONFIG`, else the home folder's, else the shipped one."""
    if environ.get("OET_CONFIG"):
        return Path(environ["OET_CONFIG"])
    own = home / "oet.ini"
    return own if own.is_file() else shipped


def _shipped_file() -> Path:
    packaged = Path(__file__).with_name("oet.ini")
    return packaged if packaged.is_file() else Path(__file__).parents[2] / "oet.ini"


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Read the settings in force.

    Raises:
        SettingsError: The file cannot be read, or a setting is wrong.
    """
    path = find_settings_file(environ, Path.home(), _shipped_file())
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the settings file {path}: {error}") from error
    return parse_settings(text, str(path), environ)
