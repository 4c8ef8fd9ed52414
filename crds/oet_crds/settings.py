"""Every deployment setting: its name, unit, default, and where its value comes from.

The order of authority, for each setting by itself: environment variable, the file that `OET_CONFIG` names, `oet.ini` in the home
folder, `oet.ini` in the root of the installation, default. An unknown section or key is an error, because a misspelt limit is a
limit that is not there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

import oet_crds
from oet_crds.aborts import ABORT_SCRIPT, parse_abort_script
from oet_crds.execution import MAX_LIMIT_SECONDS
from oet_crds.flags import READ_VIA_PUBSUB, parse_flag
from oet_crds.git import GIT_VARIABLES, PROTOCOLS, SHARING, GitPolicy, find_problem, find_secret, mask_secrets
from oet_crds.ini import Entries, Entry, SettingsError, find_settings_files, merge_entries, parse_ini, read_ini
from oet_crds.mailbox import CONFINEMENT_VARIABLE, Confinement
from oet_crds.names import DEFAULT_NAMESPACE, SCRIPTS_FOLDER, TIMELINE_URL_VARIABLE

__all__ = [
    "ActivityStates",
    "Effective",
    "EngineSettings",
    "GitSettings",
    "KubernetesSettings",
    "OdaBackend",
    "OdaSettings",
    "ServerSettings",
    "Settings",
    "SettingsError",
    "TangoSettings",
    "TimelineSettings",
    "explain_settings",
    "load_settings",
    "mask_password",
    "parse_settings",
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _env(name: str) -> dict[str, Any]:
    return {"env": name}


def _parse_switch(value: object) -> object:
    return parse_flag(value) if isinstance(value, str) else value


def _check_repository(repository: str) -> str:
    if secret := find_secret(repository):
        raise ValueError(secret)
    return repository


def _check_abort_script(uri: str) -> str:
    parse_abort_script(uri)
    return uri


_HOST_NAME = r"(\*|(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?)"
_HOSTS = f"^({_HOST_NAME}([ ,]+{_HOST_NAME})*)?$"
"""Names of hosts without a port: a browser's page has the same name on every one."""


class ServerSettings(_Section):
    """Section `[server]`: the REST server."""

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. Whoever reaches it can run Python: 127.0.0.1 is this machine alone, 0.0.0.0 all "
        "addresses, for a server behind a network policy or an ingress that asks who comes.",
        json_schema_extra=_env("OET_HOST"),
    )
    hosts: str = Field(
        "",
        pattern=_HOSTS,
        description="Names under which the server may be addressed, with spaces between, beside addresses, localhost and the "
        "name of its machine; *.NAME: all below one; *: every name, where something before it checks them. Any other is "
        "refused (421): a web page can give this server's address a name of its own, and would then be taken for OET's page.",
        json_schema_extra=_env("OET_HOSTS"),
    )
    port: int = Field(5000, ge=0, le=65535, description="Port to listen on.", json_schema_extra=_env("OET_PORT"))
    entries_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port of its own for what runners post, and for nothing else, so that a network policy can let scripts reach "
        "it alone; 0: they post to the port above.",
        json_schema_extra=_env("OET_ENTRIES_PORT"),
    )
    namespace: str = Field(
        DEFAULT_NAMESPACE,
        pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
        description="First part of the base path.",
        json_schema_extra=_env("KUBE_NAMESPACE"),
    )
    threads: int = Field(
        320,
        ge=2,
        le=4096,
        description="Request threads. Of those left beside the streams all but 16 may wait for the outcome of a start or a stop.",
        json_schema_extra=_env("OET_THREADS"),
    )
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
        description="local: scripts run in child processes of the server; kubernetes: each in a Pod.",
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
    user_header: str = Field(
        "",
        pattern=r"^([A-Za-z0-9-]{1,64})?$",
        description="Header in which the ingress names the caller, such as X-Forwarded-User: kept in the timeline beside what "
        "was asked, never used to allow anything. Empty: callers are not named.",
        json_schema_extra=_env("OET_USER_HEADER"),
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
        "",
        description="Folder of the scripts that come with a deployment, abort.py among them; empty: those that ship with OET "
        f"(in its image: {SCRIPTS_FOLDER}).",
        json_schema_extra=_env("SCRIPTS_LOCATION"),
    )
    abort_script: Annotated[str, AfterValidator(_check_abort_script)] = Field(
        "",
        description="Script that a stop with abort runs: file:///PATH, or git+URL@VERSION#PATH with a branch or a whole commit "
        f"as version; empty: {ABORT_SCRIPT} in scripts_location.",
        json_schema_extra=_env("OET_ABORT_SCRIPT"),
    )
    prearm_abort: Annotated[bool, BeforeValidator(_parse_switch)] = Field(
        False,
        description="For each subarray on which a script is READY or RUNNING, an abort script is held READY, so that an abort "
        "starts nothing.",
        json_schema_extra=_env("OET_PREARM_ABORT"),
    )
    ready_limit_seconds: float = Field(
        8 * 3600.0,
        ge=0,
        le=MAX_LIMIT_SECONDS,
        description="A script that is READY and that nobody starts is STOPPED after this long, a shift by default: it keeps "
        "memory, and on Kubernetes a node, for nobody; 0: never. Abort scripts that are held READY are not.",
        json_schema_extra=_env("OET_READY_LIMIT_SECONDS"),
    )
    isolation: str = Field(
        "auto",
        pattern="^(auto|namespace|none)$",
        description="namespace: each script in a PID namespace of its own, where it can neither see nor signal any "
        "process but its own; none: without; auto: namespace where the kernel allows it.",
        json_schema_extra=_env("OET_ISOLATION"),
    )
    confinement: str = Field(
        Confinement.AUTO.value,
        pattern=f"^({'|'.join(Confinement)})$",
        description="auto: a script cannot reach its runner, the server or the state folder where the kernel has Landlock (Linux "
        "5.19; /readyz says whether that is in force), and setuid programs give it no rights; none: without.",
        json_schema_extra=_env(CONFINEMENT_VARIABLE),
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
    git_template_file: str = Field(
        "",
        description="The same for the Pods of scripts from git alone, laid over that one: cache and credentials.",
        json_schema_extra=_env("OET_GIT_POD_TEMPLATE_FILE"),
    )
    rehearsals: bool = Field(
        False,
        description="The cluster enforces the network policy that keeps the Pods of rehearsals away from the telescope; where "
        "this is not said, rehearsals FAIL and nothing of them runs.",
        json_schema_extra=_env("OET_REHEARSALS"),
    )
    timeline_url: str = Field(
        "",
        pattern=r"^(https?://[^/?#\s]+(/[^?#\s]*)?)?$",
        description="Where runners post what happened to their scripts: the REST server, as script Pods reach it; empty: "
        "nowhere, it is read from the Pods' logs.",
        json_schema_extra=_env(TIMELINE_URL_VARIABLE),
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


class TangoSettings(_Section):
    """Section `[tango]`: feature flags, which scripts read by `oet.features`."""

    read_via_pubsub: Annotated[bool, BeforeValidator(_parse_switch)] = Field(
        READ_VIA_PUBSUB.default,
        description=READ_VIA_PUBSUB.meaning,
        json_schema_extra=_env(READ_VIA_PUBSUB.variable),
    )


_GIT = GitPolicy()


class GitSettings(_Section):
    """Section `[git]`: scripts from git repositories. All but the first two travel to the runners."""

    repository: Annotated[str, AfterValidator(_check_repository)] = Field(
        "https://gitlab.com/ska-telescope/oso/ska-oso-scripting.git",
        min_length=1,
        description="Repository of git scripts whose request names none.",
        json_schema_extra=_env("OET_GIT_REPOSITORY"),
    )
    branch: str = Field(
        "master",
        min_length=1,
        description="Branch of git scripts whose request names neither branch nor commit. Where there is no master, the "
        "repository's default branch is meant.",
        json_schema_extra=_env("OET_GIT_BRANCH"),
    )
    protocols: str = Field(
        _GIT.protocols,
        pattern=f"^({'|'.join(PROTOCOLS)})([ ,]+({'|'.join(PROTOCOLS)}))*$",
        description=f"Protocols that repositories may be fetched by, of {', '.join(PROTOCOLS)}.",
        json_schema_extra=_env(GIT_VARIABLES["protocols"]),
    )
    allowed: str = Field(
        _GIT.allowed,
        description="Where scripts may come from: HOST or HOST/PATH, with spaces between; a repository must be one of these or "
        "below one. Empty: from anywhere. For files: the path alone.",
        json_schema_extra=_env(GIT_VARIABLES["allowed"]),
    )
    cache_dir: str = Field(
        _GIT.cache_dir,
        description="Folder of commits and environments, shared by all runners; empty: ska-oso-oet in the user's cache folder, "
        "in a Pod a folder that goes with it.",
        json_schema_extra=_env(GIT_VARIABLES["cache_dir"]),
    )
    cache_bytes: int = Field(
        _GIT.cache_bytes,
        ge=0,
        description="What commits and environments may take on the disk; beyond it those that nobody uses are removed, those "
        "used longest ago first.",
        json_schema_extra=_env(GIT_VARIABLES["cache_bytes"]),
    )
    work_dir: str = Field(
        _GIT.work_dir,
        description="Folder of the files of running scripts, and of environments that are not shared; empty: in the cache, in a "
        "Pod a folder that goes with it.",
        json_schema_extra=_env(GIT_VARIABLES["work_dir"]),
    )
    share_environments: str = Field(
        _GIT.share_environments,
        pattern=f"^({'|'.join(SHARING)})$",
        description="Whether an execution uses an environment that another one built. always: scripts are kept from writing to "
        "the cache, which needs Landlock (Linux 5.19), and where the kernel has none no script from git is run; never: each "
        "execution builds its own; auto: always where the kernel has it and cache_dir names a folder, in the folders above "
        "which scripts then make nothing new; else never, and never in Pods, whose cache other nodes' Pods may have written to.",
        json_schema_extra=_env(GIT_VARIABLES["share_environments"]),
    )
    credentials_dir: str = Field(
        _GIT.credentials_dir,
        description="Folder with ssh-privatekey and known_hosts, or with credentials (a line of https://USER:TOKEN@HOST); empty: "
        "what the user's own git and ssh use.",
        json_schema_extra=_env(GIT_VARIABLES["credentials_dir"]),
    )
    fetch_timeout_seconds: float = Field(
        _GIT.fetch_timeout_seconds,
        gt=0,
        description="How long asking a repository for a version may take, and fetching it.",
        json_schema_extra=_env(GIT_VARIABLES["fetch_timeout_seconds"]),
    )
    build_timeout_seconds: float = Field(
        _GIT.build_timeout_seconds,
        gt=0,
        description="How long each step of building an environment may take.",
        json_schema_extra=_env(GIT_VARIABLES["build_timeout_seconds"]),
    )

    def build_policy(self) -> GitPolicy:
        """Return what of it the runners need. Pure."""
        return GitPolicy.from_environ(self.build_environ())

    def build_environ(self) -> dict[str, str]:
        """Return the environment variables that carry it to a runner. Pure."""
        return {variable: str(getattr(self, name)) for name, variable in GIT_VARIABLES.items()}


class TimelineSettings(_Section):
    """Section `[timeline]`: where the REST server on Kubernetes keeps what happened. The local engine has a file of its own."""

    database: str = Field(
        "",
        description="SQLAlchemy URL of the database, postgresql://USER:PASSWORD@HOST/DATABASE for any number of servers or "
        "sqlite:////FOLDER/timeline.db for one; empty: in memory, as long as executions and Pods are there.",
        json_schema_extra=_env("OET_TIMELINE_DATABASE"),
    )
    retention_days: float = Field(
        90.0,
        gt=0,
        description="How long what ended can be read, with all that happened to it, once Kubernetes has removed it.",
        json_schema_extra=_env("OET_TIMELINE_RETENTION_DAYS"),
    )
    pool_size: int = Field(
        10,
        ge=3,
        le=100,
        description="Connections to the database that one server may hold, besides the one on which it listens.",
        json_schema_extra=_env("OET_TIMELINE_POOL_SIZE"),
    )


_PASSWORD = re.compile(r"(?<=://)([^:@/]*):([^/]*)@")
_PASSWORD_OPTION = re.compile(r"([?&](?:password|sslpassword)=)[^&]*", re.IGNORECASE)


def mask_password(text: str) -> str:
    """Return a setting as people may see it: a URL without its password. Pure."""
    return _PASSWORD_OPTION.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))


class OdaBackend(StrEnum):
    """Where the archive of scheduling blocks is."""

    FILESYSTEM = "filesystem"
    POSTGRES = "postgres"


class ActivityStates(StrEnum):
    """What activities are shown to be in."""

    PROCEDURE = "procedure"
    TODO = "todo"


def _parse_port(value: object) -> object:
    # Kubernetes writes tcp://ADDRESS:PORT into POSTGRES_PORT of all Pods beside a Service named postgres.
    return value.rpartition(":")[2] if isinstance(value, str) and value.startswith("tcp://") else value


_TABLE = r"^[a-z_][a-z0-9_]{0,62}$"
"""Names that PostgreSQL takes without quotes (https://www.postgresql.org/docs/current/sql-syntax-lexical.html)."""


class OdaSettings(_Section):
    """Section `[oda]`: the archive that activities take scheduling blocks from. Environment names are upstream's."""

    backend: OdaBackend = Field(
        OdaBackend.FILESYSTEM,
        description="filesystem: files below data_dir; postgres: the tables of ska-db-oda.",
        json_schema_extra=_env("ODA_BACKEND_TYPE"),
    )
    data_dir: str = Field(
        "/var/lib/oda",
        min_length=1,
        description="Folder of the files: sbd/ID/VERSION.json is read, sbi/ID/1.json written.",
        json_schema_extra=_env("ODA_DATA_DIR"),
    )
    postgres_host: str = Field(
        "localhost",
        min_length=1,
        description="Host of the PostgreSQL server.",
        json_schema_extra=_env("POSTGRES_HOST"),
    )
    postgres_port: Annotated[int, BeforeValidator(_parse_port)] = Field(
        5432, ge=1, le=65535, description="Port of the PostgreSQL server.", json_schema_extra=_env("POSTGRES_PORT")
    )
    postgres_database: str = Field(
        "postgres", min_length=1, description="Name of the database.", json_schema_extra=_env("POSTGRES_DB_NAME")
    )
    postgres_user: str = Field(
        "postgres", min_length=1, description="User of the database.", json_schema_extra=_env("ADMIN_POSTGRES_USER")
    )
    postgres_password: SecretStr = Field(
        SecretStr(""),
        description="Password of that user; empty: none is sent. Better in the environment than in a file.",
        json_schema_extra=_env("ADMIN_POSTGRES_PASSWORD"),
    )
    sbd_table: str = Field(
        "tab_oda_sbd",
        pattern=_TABLE,
        description="Table of scheduling block definitions.",
        json_schema_extra=_env("OET_ODA_SBD_TABLE"),
    )
    sbi_table: str = Field(
        "tab_oda_sbi",
        pattern=_TABLE,
        description="Table of scheduling block instances.",
        json_schema_extra=_env("OET_ODA_SBI_TABLE"),
    )
    timeout_seconds: float = Field(
        5.0,
        ge=1,
        le=60,
        description="How long the PostgreSQL server may take to connect, and to answer.",
        json_schema_extra=_env("OET_ODA_TIMEOUT_SECONDS"),
    )
    activity_states: ActivityStates = Field(
        ActivityStates.PROCEDURE,
        description="procedure: an activity's state follows its procedure; todo: it is TODO for ever, as upstream has it.",
        json_schema_extra=_env("OET_ACTIVITY_STATES"),
    )


class Settings(_Section):
    """All settings."""

    server: ServerSettings = Field(default_factory=ServerSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
    kubernetes: KubernetesSettings = Field(default_factory=KubernetesSettings)
    git: GitSettings = Field(default_factory=GitSettings)
    oda: OdaSettings = Field(default_factory=OdaSettings)
    tango: TangoSettings = Field(default_factory=TangoSettings)
    timeline: TimelineSettings = Field(default_factory=TimelineSettings)


@dataclass(frozen=True)
class Effective:
    """One setting as it is in force."""

    section: str
    key: str
    value: object
    source: str
    """`FILE:LINE`, `environment variable NAME`, or `default`."""
    variable: str
    """The environment variable that would win over every file."""


def parse_settings(text: str, origin: str, environ: Mapping[str, str]) -> Settings:
    """Compute the settings from the text of one settings file and the environment.

    Args:
        text: Content of the file; empty for none.
        origin: The file's name, for messages.
        environ: Environment variables; they win over the file.

    Raises:
        SettingsError: Not an INI file, an unknown section or key, or a value that is not allowed.
    """
    return _build_settings(_merge_sources([parse_ini(text, origin)], environ))


def load_settings(environ: Mapping[str, str], home: Path | None = None) -> Settings:
    """Read the settings in force.

    Args:
        environ: Environment variables.
        home: The user's home folder; None: that of the process's user.

    Raises:
        SettingsError: A file cannot be read, or a setting is wrong.
    """
    return _build_settings(_read_sources(environ, home))


def explain_settings(environ: Mapping[str, str], home: Path | None = None) -> Iterator[Effective]:
    """Return every setting in force, and where it comes from.

    Args:
        environ: Environment variables.
        home: The user's home folder; None: that of the process's user.

    Raises:
        SettingsError: A file cannot be read, or a setting is wrong.
    """
    entries = _read_sources(environ, home)
    settings = _build_settings(entries)
    for section, key, variable in _iterate_keys():
        entry = entries.get(section, {}).get(key)
        value = getattr(getattr(settings, section), key)
        value = mask_password(value) if isinstance(value, str) else value
        yield Effective(section, key, value, entry.origin if entry else "default", variable)


def _read_sources(environ: Mapping[str, str], home: Path | None) -> Entries:
    files = find_settings_files(environ, home or _find_home(), Path(oet_crds.__file__).parent)
    return _merge_sources([read_ini(path) for path in files], environ)


def _find_home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:
        return None  # a user without a name and without HOME, as in a Pod


def _merge_sources(layers: Sequence[Entries], environ: Mapping[str, str]) -> Entries:
    said: Entries = {}
    for section, key, variable in _iterate_keys():
        if environ.get(variable):
            said.setdefault(section, {})[key] = Entry(environ[variable], f"environment variable {variable}")
    return merge_entries([said, *layers])


def _iterate_keys() -> Iterator[tuple[str, str, str]]:
    """Return section, key and environment variable of every setting."""
    for section, field in Settings.model_fields.items():
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, _Section)
        for key, about in model.model_fields.items():
            assert isinstance(about.json_schema_extra, dict)
            yield section, key, str(about.json_schema_extra["env"])


def _build_settings(entries: Entries) -> Settings:
    values = {section: {key: entry.value for key, entry in keys.items()} for section, keys in entries.items()}
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(
            "\n".join(_describe(problem, entries) for problem in error.errors(include_url=False))
        ) from error
    source = parse_abort_script(settings.engine.abort_script)
    if source and source.git and (problem := find_problem(source.git.repository, settings.git.build_policy())):
        where = entries["engine"]["abort_script"].origin
        raise SettingsError(f"{where}: [engine] abort_script: {problem}")
    return settings


def _describe(problem: Any, entries: Entries) -> str:
    section, *keys = (str(part) for part in problem["loc"])
    known = entries.get(section, {})
    if not keys:
        where = min((entry.origin for entry in known.values()), default="a settings file")
        return f"{where}: [{section}] is not a section of OET's settings; there are {', '.join(Settings.model_fields)}"
    where = known[keys[0]].origin
    if problem["type"] == "extra_forbidden":
        return f"{where}: [{section}] {keys[0]} is not a setting of OET; see the comments in the shipped oet.ini"
    given, why = mask_secrets(mask_password(str(problem["input"]))), problem["msg"].removeprefix("Value error, ")
    return f"{where}: [{section}] {keys[0]} = {given!r}: {why}"
