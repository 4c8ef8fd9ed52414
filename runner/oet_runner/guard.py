"""What keeps scripts from writing to the cache, so that an execution can use an environment that another one built.

Where nothing keeps them from it, each execution builds its own.
"""

from __future__ import annotations

import os

from oet_crds.git import SHARE_ALWAYS, SHARE_AUTO, SHARE_NEVER, GitPolicy
from oet_runner.script import SourceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Mapping

__all__ = ["CacheGuard", "compute_cache_dir"]

_FOLDER = "ska-oso-oet"


def compute_cache_dir(policy: GitPolicy) -> str:
    """Return where commits and environments are kept."""
    if policy.cache_dir:
        return policy.cache_dir
    base = os.environ.get("XDG_CACHE_HOME", "")
    return os.path.join(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), _FOLDER)


class CacheGuard:
    """A domain of the kernel in which the cache can only be read; prepared early, because that takes some milliseconds."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Prepare it, unless nothing is shared.

        Args:
            environ: Holds the policy.
        """
        self._domain_fd = -1
        self._folder = ""
        self._identity: tuple[int, int] | None = None
        self._problem: str | None = None
        self._is_wanted = False
        try:
            policy = GitPolicy.from_environ(environ)
        except ValueError:
            return  # Whoever fetches says so.
        self._is_required = policy.share_environments == SHARE_ALWAYS
        # A script in the domain makes and opens nothing new directly in the folders above the cache: by default that is its home.
        is_at_home = policy.share_environments == SHARE_AUTO and not policy.cache_dir
        if is_at_home or policy.share_environments == SHARE_NEVER:
            return
        self._is_wanted = True
        self._folder = compute_cache_dir(policy)
        self._prepare()

    def _prepare(self) -> None:
        from oet_runner import landlock

        self.close()
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            self._identity = self._observe_identity()
            self._domain_fd = landlock.build_domain(read_only=[self._folder])
        except (OSError, ValueError) as error:
            self._problem = str(error)

    def _observe_identity(self) -> tuple[int, int]:
        about = os.stat(self._folder)
        return about.st_dev, about.st_ino

    def has_shared(self) -> bool:
        """Tell whether environments in the cache can be trusted: no script of this machine can write there.

        Raises:
            SourceError: They must be, and cannot.
        """
        if self._domain_fd != -1 and not self._is_current():
            self._prepare()  # Somebody removed the whole cache.
        if self._domain_fd == -1 and self._is_wanted and self._is_required:
            raise SourceError(
                f"environments are shared, and scripts cannot be kept from writing to the cache here: {self._problem}. "
                "Run scripts where the kernel has Landlock, or set share_environments = never in [git]"
            )
        return self._domain_fd != -1

    def _is_current(self) -> bool:
        try:
            return self._observe_identity() == self._identity
        except OSError:
            return False

    def enter(self) -> None:
        """Give up writing to the cache for good; do nothing where nothing is shared. Raises SourceError when that fails."""
        if self._domain_fd == -1:
            return
        from oet_runner import landlock

        try:
            landlock.enter_domain(self._domain_fd)
        except OSError as error:
            raise SourceError(f"the script cannot be kept from writing to the cache: {error}") from error
        self.close()

    def close(self) -> None:
        """Forget the domain."""
        if self._domain_fd != -1:
            os.close(self._domain_fd)
            self._domain_fd = -1
