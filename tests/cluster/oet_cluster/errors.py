"""The one error that a user of the test cluster has to read."""

from __future__ import annotations

__all__ = ["ClusterError"]


class ClusterError(Exception):
    """Something that the user must repair; the message says what is wrong and what to do."""
