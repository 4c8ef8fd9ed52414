"""Versions of git repositories: looked up, and fetched.

git runs in a repository that was made for this execution, never in one that was there before, and writes no files of a
commit: so nothing in a repository is run, no hook, no filter, no submodule. It asks nobody for anything.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat

from oet_crds.git import find_problem, find_version_problem, mask_credentials
from oet_runner.objects import make_git_dir
from oet_runner.script import SourceError
from oet_runner.tools import Tool, ToolError, run_tool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO, Mapping

    from oet_crds.git import GitPolicy

__all__ = ["NO_SETTINGS", "Repository", "find_script"]

UPSTREAM_BRANCH = "master"
"""The branch that clients of OET name when they mean the default one."""

_FULL_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SAFE = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "submodule.recurse=false",
    "protocol.ext.allow=never",
    "fetch.unpackLimit=1",  # A pack is one file, however many objects are in it.
    "gc.auto=0",
    "maintenance.auto=false",
)
NO_SETTINGS = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1"}
"""What git needs no network for needs nobody's settings."""

_SSH = "ssh -o BatchMode=yes -o ConnectTimeout=20"


class Repository:
    """One repository, as far as it is allowed."""

    def __init__(self, url: str, policy: GitPolicy, environ: Mapping[str, str]) -> None:
        """Take a repository. Ask nothing of it before `open`.

        Args:
            url: Where it is.
            policy: What is allowed.
            environ: The environment of git, from which all is taken away that could lead it elsewhere.

        Raises:
            SourceError: It is not allowed.
        """
        problem = find_problem(url, policy)
        if problem:
            raise SourceError(problem)
        self._url = url
        self._policy = policy
        self._options = _build_options(policy)
        self._environ = _build_environ(policy, environ)
        self._folder = ""
        self._has_all = False

    def open(self, folder: str) -> None:
        """Make a new folder for what is fetched. Raises OSError."""
        make_git_dir(folder)
        self._folder = folder

    def resolve(self, branch: str | None, commit: str | None) -> str:
        """Return the full hash of a commit, or of the newest commit of a branch.

        Args:
            branch: Branch or tag; None: the repository's default branch.
            commit: A full hash, or the beginning of one; it wins over the branch.

        Raises:
            SourceError: There is none, or the repository cannot be reached.
        """
        problem = find_version_problem(branch, commit)
        if problem:
            raise SourceError(problem)
        if commit is not None:
            if _FULL_COMMIT.fullmatch(commit.lower()):
                return commit.lower()
            # A server does not know the beginning of a hash, and what is in the cache might be another that begins so.
            self._fetch_all()
            return self._look_up(commit.lower())
        names = ["HEAD"]
        if branch is not None:
            names = [f"refs/heads/{branch}", f"refs/tags/{branch}^{{}}", f"refs/tags/{branch}"]
            names += ["HEAD"] if branch == UPSTREAM_BRANCH else []
        listed = self._ask(["ls-remote", "--", self._url, *names])
        found = {name: value for value, _, name in (line.partition("\t") for line in listed.splitlines())}
        for name in names:
            if _FULL_COMMIT.fullmatch(found.get(name, "")):
                return found[name]
        what = f"no branch or tag {branch!r}" if branch is not None else "no default branch"
        raise SourceError(f"repository {mask_credentials(self._url)} has {what}")

    def compute_name(self, commit: str) -> str:
        """Return the name by which the cache knows a commit of this repository. Pure."""
        return f"{_digest(self._url)}-{commit}"

    def save_objects(self, commit: str, path: str) -> None:
        """Fetch a commit, unless it was fetched already, and write it and all that it holds into a file.

        Args:
            commit: Its full hash.
            path: Of the new file, which `objects.ObjectStore` reads.

        Raises:
            SourceError: It cannot be fetched.
            OSError: The file cannot be written.
        """
        if self._has_all or not self._fetch_alone(commit):
            self._fetch_all()
            self._look_up(commit)
            self._forget_all_but(commit)
        command = ["cat-file", "--batch", "--batch-all-objects", "--unordered", "--buffer"]
        with open(path, "xb") as file:
            self._git(command, output=file)

    def _fetch_alone(self, commit: str) -> bool:
        """Fetch one commit without its history; tell whether the server gives that."""
        try:
            self._fetch(["--depth=1"], [commit])
        except ToolError:
            return False
        return True

    def _fetch_all(self) -> None:
        if not self._has_all:
            self._fetch([], ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"])
        self._has_all = True

    def _fetch(self, options: list[str], names: list[str]) -> None:
        common = ["fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head"]
        self._ask([*common, *options, "--", self._url, *names])

    def _look_up(self, commit: str) -> str:
        try:
            return self._git(["rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}"]).strip()
        except ToolError:
            raise SourceError(
                f"repository {mask_credentials(self._url)} has no commit {commit}, or several that begin so"
            ) from None

    def _forget_all_but(self, commit: str) -> None:
        """Leave a commit alone, without the commits before it."""
        found = self._look_up(commit)
        shutil.rmtree(os.path.join(self._folder, "refs"))
        os.mkdir(os.path.join(self._folder, "refs"))
        for name, value in (("packed-refs", ""), ("shallow", found), ("HEAD", commit)):
            with open(os.path.join(self._folder, name), "w", encoding="ascii") as file:
                file.write(f"{value}\n" if value else "")
        self._git(["repack", "-a", "-d", "--quiet"])

    def _ask(self, arguments: list[str]) -> str:
        """Run git for what needs the network: it may use the user's settings for that, proxies for one."""
        return self._git(arguments, {})

    def _git(
        self,
        arguments: list[str],
        settings: Mapping[str, str] = NO_SETTINGS,
        output: BinaryIO | None = None,
    ) -> str:
        """Run git in the repository of this execution alone."""
        environ = {**self._environ, **settings, "GIT_DIR": self._folder}
        command = ["git", *self._options, *arguments]
        return run_tool(Tool(command, self._folder, environ, self._policy.fetch_timeout_seconds, output))


def _build_options(policy: GitPolicy) -> list[str]:
    settings = list(_SAFE)
    if policy.allowed:
        settings.append("http.followRedirects=false")  # To a host that is not allowed, maybe.
    credentials = os.path.join(policy.credentials_dir, "credentials")
    if policy.credentials_dir and os.path.exists(credentials):
        # Only ever read: the folder is a mounted Secret.
        helper = f'!f() {{ test "$1" = get && exec git credential-store --file={_quote(credentials)} get; }}; f'
        settings += ["credential.helper=", f"credential.helper={helper}"]
    return [word for setting in settings for word in ("-c", setting)]


def _build_environ(policy: GitPolicy, environ: Mapping[str, str]) -> dict[str, str]:
    clean = {
        name: value for name, value in environ.items() if not name.startswith("GIT_") or name.startswith("GIT_SSL")
    }
    clean.update(
        GIT_TERMINAL_PROMPT="0",
        GIT_ASKPASS="false",
        SSH_ASKPASS="false",
        GIT_ALLOW_PROTOCOL=":".join(policy.protocols.replace(",", " ").split()),
        GIT_SSH_COMMAND=_build_ssh(policy.credentials_dir),
        GIT_LFS_SKIP_SMUDGE="1",
        LC_ALL="C.UTF-8",
    )
    return clean


def _build_ssh(folder: str) -> str:
    key, hosts = os.path.join(folder, "ssh-privatekey"), os.path.join(folder, "known_hosts")
    command = _SSH
    if folder and os.path.exists(key):
        command += f" -o IdentitiesOnly=yes -i {_quote(key)}"
    if folder and os.path.exists(hosts):
        command += f" -o StrictHostKeyChecking=yes -o UserKnownHostsFile={_quote(hosts)}"
    return command


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def find_script(tree: str, path: str) -> str:
    """Return the file of a script in a working tree.

    Args:
        tree: The working tree.
        path: Path in it; slashes at its beginning count for nothing.

    Raises:
        SourceError: It is not there, is no file, or leads out of the tree.
    """
    if "\0" in path:
        raise SourceError("the path holds a NUL character")
    root = os.path.realpath(tree)
    real = os.path.realpath(os.path.join(root, path.lstrip("/")))
    inner = os.path.relpath(real, root)
    if inner.split(os.sep)[0] in ("..", ".git"):
        raise SourceError(f"path {path!r} leads out of the repository")
    try:
        is_file = stat.S_ISREG(os.stat(real).st_mode)
    except OSError:
        raise SourceError(f"there is no file {path!r} in the repository at this commit") from None
    if not is_file:
        raise SourceError(f"{path!r} is not a file")
    return real
