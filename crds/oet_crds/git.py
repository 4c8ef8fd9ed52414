"""Where scripts from git may come from, and how they are fetched: what server, operator and runner agree on.

Standard library of Python 3.8 only: the runner carries this module into any image.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "GIT_VARIABLES",
    "PASSWORD_IN_URL",
    "PROTOCOLS",
    "SHARE_ALWAYS",
    "SHARE_AUTO",
    "SHARE_NEVER",
    "SHARING",
    "GitPolicy",
    "Place",
    "find_problem",
    "find_secret",
    "find_version_problem",
    "is_commit",
    "mask_credentials",
    "mask_secrets",
    "parse_place",
]

GIT_VARIABLES = {
    "protocols": "OET_GIT_PROTOCOLS",
    "allowed": "OET_GIT_ALLOWED",
    "cache_dir": "OET_GIT_CACHE_DIR",
    "cache_bytes": "OET_GIT_CACHE_BYTES",
    "work_dir": "OET_GIT_WORK_DIR",
    "share_environments": "OET_GIT_SHARE_ENVIRONMENTS",
    "credentials_dir": "OET_GIT_CREDENTIALS_DIR",
    "fetch_timeout_seconds": "OET_GIT_FETCH_TIMEOUT_SECONDS",
    "build_timeout_seconds": "OET_GIT_BUILD_TIMEOUT_SECONDS",
}
"""Environment variables by which the settings of section `[git]` travel to the runner."""

PROTOCOLS = ("https", "ssh", "http", "git", "file")
"""All that can be allowed. Whatever else git knows runs programs of its own."""

SHARE_AUTO, SHARE_NEVER, SHARE_ALWAYS = SHARING = ("auto", "never", "always")
"""Whether an execution may use an environment that another one built: where its own kernel keeps scripts from writing to it;
never; or always, and no script is run where the kernel cannot do that."""

_SCP_FORM = re.compile(r"(?:(?P<user>[^@/:]+)@)?(?P<host>[^@/:]+):(?P<path>.*)")
"""`user@host:path`: what git takes for ssh, as does scp."""

PASSWORD_IN_URL = r"://[^/?#:\[]*:[0-9]*[^0-9/?#]|^[^/@:]+:[^/@]*@"
"""A URL with a password: after a colon before the path comes a port, or it is one; then the same in scp's form.

Python reads it as RE2 does, by which Kubernetes applies it.
"""

_PASSWORD_IN_URL = re.compile(PASSWORD_IN_URL)
# What is masked ends where the next URL begins: so long texts take no longer than they must.
_PASSWORD = re.compile(r"((?<=://)[^/?#:\s'\"\[]*):(?=[0-9]*[^0-9/?#\s'\"])(?:[^/?#\s'\"]*@|(?:(?!://)[^\s'\"])*@)")
_SCP_PASSWORD = re.compile(r"^([^/@:\s]+):[^/@\s]*@")
_QUERY = re.compile(r"((?<=://)(?:(?!://)[^\s'\"?])*)\?[^\s'\"]*")
_USER_INFO = re.compile(r"(?<=://)[^/\s'\"]*@")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f]")
_COMMIT = re.compile(r"[0-9a-f]{4,64}")
_BRANCH = re.compile(r"[^-\x00-\x20\x7f~^:?*\[\\/][^\x00-\x20\x7f~^:?*\[\\]*")


class GitPolicy:
    """What is allowed, where it is kept, and how long it may take.

    Attributes:
        protocols: Protocols that may be used.
        allowed: `HOST` or `HOST/PATH` (a path itself for files): a repository must be one of these or below one; empty: all.
        cache_dir: Folder of commits and environments; empty: in the user's cache folder.
        cache_bytes: What the cache may hold, beyond what is in use.
        work_dir: Folder of what belongs to one execution each; empty: in the cache.
        share_environments: One of `SHARING`.
        credentials_dir: Folder with `ssh-privatekey` and `known_hosts`, or `credentials`; empty: the user's own are used.
        fetch_timeout_seconds: Longest time to ask for a version and to fetch it, each.
        build_timeout_seconds: Longest time to build an environment.
    """

    def __init__(self) -> None:
        self.protocols = "https ssh"
        self.allowed = ""
        self.cache_dir = ""
        self.cache_bytes = 10 * 1024**3
        self.work_dir = ""
        self.share_environments = SHARE_AUTO
        self.credentials_dir = ""
        self.fetch_timeout_seconds = 120.0
        self.build_timeout_seconds = 900.0

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> GitPolicy:
        """Read what `GIT_VARIABLES` say; what they do not say is as usual.

        Raises:
            ValueError: A number is none, or a word is not one of those that mean something.
        """
        policy = cls()
        for name, variable in GIT_VARIABLES.items():
            if environ.get(variable):
                setattr(policy, name, type(getattr(policy, name))(environ[variable]))
        if policy.share_environments not in SHARING:
            raise ValueError(f"share_environments is {policy.share_environments!r}, and none of {', '.join(SHARING)}")
        return policy


class Place:
    """Where a repository is.

    Attributes:
        protocol: One of `PROTOCOLS`, or what git would take for one.
        host: Lower case, with its port if one is given; empty for files.
        path: With a slash at its beginning; nothing in it is escaped.
    """

    __slots__ = ("host", "path", "protocol")

    def __init__(self, protocol: str, host: str, path: str) -> None:
        self.protocol = protocol
        self.host = host
        self.path = "/" + path.strip("/")


def parse_place(repository: str) -> Place:
    """Say how git understands the URL of a repository. Pure.

    Raises:
        ValueError: It is none that can be allowed; the text says why.
    """
    if not repository or repository.startswith("-") or _UNPRINTABLE.search(repository):
        raise ValueError("it is empty, begins with a dash, or holds spaces or control characters")
    if re.match(r"[A-Za-z0-9+.-]+::", repository):
        raise ValueError("it names a helper program")
    if "://" in repository:
        from urllib.parse import unquote, urlsplit  # Every runner has this module; few need these.

        url = urlsplit(repository)
        host = url.netloc.rpartition("@")[2].lower()
        place = Place(url.scheme.lower(), host, unquote(url.path))
    else:
        scp = _SCP_FORM.fullmatch(repository)
        place = Place("ssh", scp.group("host").lower(), scp.group("path")) if scp else Place("file", "", repository)
        if not scp and not repository.startswith("/"):
            raise ValueError("it is neither a URL nor the path of a folder from the root")
    if ".." in place.path.split("/") or place.host.startswith("-") or place.path.startswith("/-"):
        raise ValueError("its host or path is not plain")
    if (place.protocol == "file") != (place.host == ""):
        raise ValueError("it needs a host, and a file has none")
    return place


def find_problem(repository: str, policy: GitPolicy) -> str | None:
    """Say why scripts may not come from a repository; None when they may. Pure."""
    shown = mask_credentials(repository)[:200]
    if secret := find_secret(repository):
        return f"repository {shown!r} cannot be used: {secret}"
    try:
        place = parse_place(repository)
    except ValueError as error:
        return f"{shown!r} is not the URL of a repository that OET fetches from: {error}"
    protocols = re.split(r"[\s,]+", policy.protocols.strip())
    if place.protocol not in protocols or place.protocol not in PROTOCOLS:
        return (
            f"repository {shown!r} cannot be used: protocol {place.protocol} is not allowed, but {', '.join(protocols)}"
        )
    allowed = [entry for entry in re.split(r"[\s,]+", policy.allowed) if entry]
    if allowed and not any(_is_within(place, entry) for entry in allowed):
        return f"repository {shown!r} is not among those that scripts may come from: {', '.join(allowed)}"
    return None


def _is_within(place: Place, entry: str) -> bool:
    import fnmatch

    host, slash, path = entry.partition("/")
    if not fnmatch.fnmatchcase(place.host, host.lower()):
        return False
    wanted = _strip_suffix(slash + path.strip("/"))
    return wanted in ("", "/") or (_strip_suffix(place.path) + "/").startswith(wanted + "/")


def _strip_suffix(path: str) -> str:
    return path[: -len(".git")] if path.endswith(".git") else path


def find_version_problem(branch: str | None, commit: str | None) -> str | None:
    """Say what is wrong with the names of a branch and a commit; None when nothing is. Pure."""
    if commit is not None and not _COMMIT.fullmatch(commit.lower()):
        return f"{commit[:80]!r} is not a commit: 4 to 64 hexadecimal digits"
    if branch is None or commit is not None:
        return None
    if not _BRANCH.fullmatch(branch) or ".." in branch or "@{" in branch:
        return f"{branch[:80]!r} is not the name of a branch"
    return None


def is_commit(value: object) -> bool:
    """Tell whether a value is the full hash of a commit. Pure."""
    return isinstance(value, str) and len(value) in (40, 64) and _COMMIT.fullmatch(value) is not None


def find_secret(repository: str) -> str | None:
    """Say why the URL of a repository may hold a secret; None when it cannot. Pure: a user's name alone is none."""
    if not _PASSWORD_IN_URL.search(repository) and "?" not in repository.partition("://")[2]:
        return None
    return (
        "it holds a password or a query, which everybody would see who sees the execution: leave it out, and give OET "
        "credentials by a Secret or by [git] credentials_dir"
    )


def mask_secrets(url: str) -> str:
    """Return a URL, or a text with URLs, without their passwords and queries; users' names stay. Pure."""
    if "@" not in url and "?" not in url:
        return url
    return _QUERY.sub(r"\1?***", _SCP_PASSWORD.sub(r"\1:***@", _PASSWORD.sub(r"\1:***@", url)))


def mask_credentials(text: str) -> str:
    """Return a text without the names, passwords and queries that URLs in it hold. Pure."""
    return _USER_INFO.sub("***@", mask_secrets(text))
