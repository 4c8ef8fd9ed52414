"""A script from git, on its way to a file: version, clone, environment."""

from __future__ import annotations

import os
import sys

from oet_crds.git import GitPolicy
from oet_runner.cache import Cache
from oet_runner.environment import (
    EnvironmentBuildError,
    build_environment,
    compute_environment_name,
    enter_environment,
    is_environment,
)
from oet_runner.git import TREE, Repository, find_script
from oet_runner.script import SourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

__all__ = ["GitSource", "compute_cache_dir"]

_FOLDER = "ska-oso-oet"


def compute_cache_dir(policy: GitPolicy) -> str:
    """Return where clones and environments are kept."""
    if policy.cache_dir:
        return policy.cache_dir
    base = os.environ.get("XDG_CACHE_HOME", "")
    return os.path.join(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), _FOLDER)


class GitSource:
    """A script from git."""

    def __init__(self, git: dict[str, Any]) -> None:
        """Take `spec.script.git` in its wire form.

        Raises:
            SourceError: It is not allowed, or the cache cannot be used.
        """
        self._git = git
        try:
            self._policy = GitPolicy.from_environ(os.environ)
            self._cache = Cache(compute_cache_dir(self._policy), self._policy.cache_bytes)
        except (OSError, ValueError) as error:
            raise SourceError(f"the cache of clones and environments cannot be used: {error}") from error
        self._repository = Repository(git["repository"], self._policy, os.environ)
        self._tree = ""
        self._name = ""

    def fetch(self, tell: Callable[[str], object]) -> None:
        """Have the files of the wanted version in the cache.

        Args:
            tell: Is given the commit's full hash.

        Raises:
            SourceError: It cannot be fetched.
        """
        commit = self._repository.resolve(self._git.get("branch"), self._git.get("commit"))
        try:
            folder, commit = self._repository.take_clone(self._cache, commit)
        except OSError as error:
            raise SourceError(f"the clone cannot be kept: {error}") from error
        tell(commit)
        self._tree = os.path.join(folder, TREE)
        self._name = self._repository.compute_name(commit)

    def enter_environment(self) -> None:
        """Build the project's environment, unless it is there, and enter it.

        Raises:
            SourceError: It cannot be built.
        """

        def make(fresh: str) -> None:
            build_environment(self._tree, fresh, self._policy.build_timeout_seconds, sys.stderr.write)

        name = compute_environment_name(self._name)
        try:
            enter_environment(self._cache.take(name, make, is_environment))
        except OSError as error:
            raise EnvironmentBuildError(f"the environment cannot be kept: {error}") from error

    def find_file(self) -> str:
        """Return the script's file. Raises SourceError when there is none."""
        return find_script(self._tree, self._git["path"])
