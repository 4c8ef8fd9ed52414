"""A script from git, on its way to a file: version, files, environment.

All that an execution runs lies in a folder that was made for it, or in one that no script can write to. What the cache holds of a
commit is data, which is checked as it is copied.
"""

from __future__ import annotations

import os
import shutil
import sys

from oet_crds.git import GitPolicy
from oet_runner.cache import Cache
from oet_runner.environment import (
    EnvironmentBuildError,
    Site,
    build_environment,
    compute_environment_name,
    enter_environment,
    is_environment,
)
from oet_runner.git import Repository, find_script
from oet_runner.guard import compute_cache_dir
from oet_runner.objects import ObjectsError, ObjectStore, write_files
from oet_runner.script import SourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

__all__ = ["GitSource"]

_RUN = "run"
_TREE, _GIT, _BUILD, _OWN = "tree", "git", "build", "env"
_OBJECTS = "objects"


class GitSource:
    """A script from git."""

    def __init__(self, git: dict[str, Any], is_sharing: bool) -> None:
        """Take `spec.script.git` in its wire form.

        Args:
            git: That.
            is_sharing: Whether an environment of the cache can be trusted.

        Raises:
            SourceError: It is not allowed, or the cache cannot be used.
        """
        self._git = git
        self._is_sharing = is_sharing
        try:
            self._policy = GitPolicy.from_environ(os.environ)
            folder = compute_cache_dir(self._policy)
            self._cache = Cache(folder, self._policy.cache_bytes)
            work = Cache(self._policy.work_dir or folder, self._policy.cache_bytes)
        except (OSError, ValueError) as error:
            raise SourceError(f"the cache of commits and environments cannot be used: {error}") from error
        self._repository = Repository(git["repository"], self._policy, os.environ)
        try:
            work.sweep(_RUN)
            self._run = work.make_own(_RUN)
            self._repository.open(self._place(_GIT))
        except OSError as error:
            raise SourceError(f"there is no folder for the script: {error}") from error
        self._name = self._environment = ""

    def _place(self, name: str) -> str:
        return os.path.join(self._run, name)

    def fetch(self, tell: Callable[[str], object]) -> None:
        """Have the files of the wanted version in a folder of this execution.

        Args:
            tell: Is given the commit's full hash.

        Raises:
            SourceError: It cannot be fetched.
        """
        wanted = self._repository.resolve(self._git.get("branch"), self._git.get("commit"))
        found: list[str] = []

        def make(fresh: str) -> None:
            path = os.path.join(fresh, _OBJECTS)
            self._repository.save_objects(wanted, path)
            found.append(self._write_files(path, wanted))

        def is_good(folder: str) -> bool:
            try:
                found.append(self._write_files(os.path.join(folder, _OBJECTS), wanted))
            except ObjectsError:
                shutil.rmtree(self._place(_TREE), ignore_errors=True)
                return False
            return True

        try:
            self._cache.take(f"commit-{self._repository.compute_name(wanted)}", make, is_good)
        except (OSError, ObjectsError) as error:
            raise SourceError(f"the files of commit {wanted} cannot be had: {error}") from error
        tell(found[-1])
        self._name = self._repository.compute_name(found[-1])

    def _write_files(self, path: str, wanted: str) -> str:
        """Write the files of a commit; return its hash, which is another where an annotated tag was named by its own."""
        store = ObjectStore(path, wanted)
        try:
            commit = store.find_commit(wanted)
            is_built = self._git.get("createEnv") is True
            write_files(store, commit, self._place(_TREE), self._policy.fetch_timeout_seconds, is_built)
        finally:
            store.close()
        return commit

    def prepare_environment(self) -> None:
        """Build the project's environment, unless it is there and no script can have written to it.

        Raises:
            SourceError: It cannot be built.
        """

        def make(fresh: str) -> None:
            site = Site(self._place(_TREE), self._place(_BUILD), fresh)
            build_environment(site, self._policy.build_timeout_seconds, sys.stderr.write)

        try:
            if self._is_sharing:
                self._environment = self._cache.take(compute_environment_name(self._name), make, is_environment)
            else:
                self._environment = self._place(_OWN)
                os.mkdir(self._environment)
                make(self._environment)
        except OSError as error:
            raise EnvironmentBuildError(f"the environment cannot be kept: {error}") from error

    def enter_environment(self) -> None:
        """Enter the environment, if one was prepared: that runs code of its packages."""
        if self._environment:
            enter_environment(self._environment)

    def find_file(self) -> str:
        """Return the script's file. Raises SourceError when there is none."""
        return find_script(self._place(_TREE), self._git["path"])
