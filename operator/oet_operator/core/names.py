"""Names of what OET creates: total, repeatable, without collisions."""

from __future__ import annotations

import hashlib
import re

__all__ = ["MAX_NAME_LENGTH", "build_pod_name"]

MAX_NAME_LENGTH = 63
"""A Pod's name is also its host name: RFC 1123 allows 63 characters of a label."""

_HASH_LENGTH = 8
"""32 bits: two of a million names collide with a chance of 1 in 4000, and the uid is in the hash as well."""


def build_pod_name(name: str, uid: str) -> str:
    """Return the name of the Pod (or local runner) that runs an execution. Pure.

    Any input gives a valid RFC 1123 label; equal inputs give equal names, so that a retry after a crash finds the same Pod;
    different executions give different names, because the hash covers name and uid.
    """
    digest = hashlib.sha256(f"{name}\0{uid}".encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_LENGTH]
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[: MAX_NAME_LENGTH - _HASH_LENGTH - 1].strip("-")
    return f"{readable or 'se'}-{digest}"
