"""Versions of git repositories: looked up, fetched once, and checked before they are used again.

Nothing in a repository is run: no hook, no filter, no submodule; and git asks nobody for anything.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat

from oet_crds.git import find_problem, find_version_problem, mask_credentials
from oet_runner.script import SourceError
from oet_runner.tools import Tool, ToolError, run_tool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Mapping

    from oet_crds.git import GitPolicy
    from oet_runner.cache import Cache

__all__ = ["TREE", "Repository", "find_script"]

TREE = "tree"
"""The working tree, in a clone's folder of the cache."""

UPSTREAM_BRANCH = "master"
"""The branch that clients of OET name when they mean the default one."""

_FULL_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_BYTECODE = ":(exclude,glob)**/__pycache__/**"
_SAFE = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "submodule.recurse=false",
    "protocol.ext.allow=never",
    "core.trustctime=false",  # It changed when the right to write was taken away.
    "gc.auto=0",
    "maintenance.auto=false",
    "advice.detachedHead=false",
    "init.defaultBranch=none",
    "safe.directory=*",  # The cache may be another user's volume; what is in it is checked, and runs nothing.
)
_SSH = "ssh -o BatchMode=yes -o ConnectTimeout=20"


class Repository:
    """One repository, as far as it is allowed."""

    def __init__(self, url: str, policy: GitPolicy, environ: Mapping[str, str]) -> None:
        """Take a repository.

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
            # The beginning of a hash is looked up in the clone: a server does not know it.
            return commit.lower()
        names = ["HEAD"]
        if branch is not None:
            names = [f"refs/heads/{branch}", f"refs/tags/{branch}^{{}}", f"refs/tags/{branch}"]
            names += ["HEAD"] if branch == UPSTREAM_BRANCH else []
        listed = self._git(["ls-remote", "--", self._url, *names], "/")
        found = {name: value for value, _, name in (line.partition("\t") for line in listed.splitlines())}
        for name in names:
            if _FULL_COMMIT.fullmatch(found.get(name, "")):
                return found[name]
        what = f"no branch or tag {branch!r}" if branch is not None else "no default branch"
        raise SourceError(f"repository {mask_credentials(self._url)} has {what}")

    def compute_name(self, commit: str) -> str:
        """Return the name of a clone in the cache. Pure."""
        return f"{_digest(self._url)}-{commit}"

    def take_clone(self, cache: Cache, commit: str) -> tuple[str, str]:
        """Return the folder of a clone, whose `TREE` has the files of a commit, and the commit's full hash.

        Args:
            cache: Where clones are kept.
            commit: Full hash, or the beginning of one.

        Raises:
            SourceError: It cannot be fetched.
            OSError: The cache cannot be used.
        """
        name = f"clone-{self.compute_name(commit)}"
        folder = cache.take(
            name,
            lambda fresh: self._clone(os.path.join(fresh, TREE), commit),
            lambda found: self._is_good(found, commit),
        )
        return folder, self._read_head(os.path.join(folder, TREE))

    def _clone(self, tree: str, commit: str) -> None:
        os.mkdir(tree)
        self._git(["init", "--quiet", "--template=", "."], tree)
        wanted = commit
        if not _FULL_COMMIT.fullmatch(commit) or not self._fetch_alone(tree, commit):
            self._fetch_all(tree)
            wanted = self._look_up(tree, commit)
        self._git(
            ["-c", "advice.detachedHead=false", "checkout", "--quiet", "--detach", "--no-recurse-submodules", wanted],
            tree,
        )

    def _fetch_alone(self, tree: str, commit: str) -> bool:
        """Fetch one commit without its history; tell whether the server gives that."""
        try:
            self._fetch(tree, ["--depth=1"], [commit])
        except ToolError:
            return False
        return True

    def _fetch_all(self, tree: str) -> None:
        self._fetch(tree, [], ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"])

    def _fetch(self, tree: str, options: list[str], names: list[str]) -> None:
        common = ["fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head"]
        self._git([*common, *options, "--", self._url, *names], tree)

    def _look_up(self, tree: str, commit: str) -> str:
        try:
            return self._git(
                ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}"], tree
            ).strip()
        except ToolError:
            raise SourceError(
                f"repository {mask_credentials(self._url)} has no commit {commit}, or several that begin so"
            ) from None

    def _read_head(self, tree: str) -> str:
        return self._git(["rev-parse", "--verify", "HEAD"], tree).strip()

    def _is_good(self, folder: str, commit: str) -> bool:
        """Tell whether a clone has the files of its commit, all of them and no others, but for Python's own."""
        tree = os.path.join(folder, TREE)
        try:
            if not self._read_head(tree).startswith(commit):
                return False
            status = ["status", "--porcelain", "--ignored", "--untracked-files=all", "--", ".", _BYTECODE]
            return not self._git(["--no-optional-locks", *status], tree).strip()
        except SourceError:
            return False

    def _git(self, arguments: list[str], folder: str) -> str:
        command = ["git", *self._options, *arguments]
        return run_tool(Tool(command, folder, self._environ, self._policy.fetch_timeout_seconds))


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
