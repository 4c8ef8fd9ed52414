"""Who asked for something, and why: for the timeline, never for a decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import falcon

__all__ = ["MAX_REASON_CHARS", "MAX_USER_CHARS", "Origin", "clean_user", "observe_user"]

MAX_REASON_CHARS = 500
"""A sentence or two; what needs more belongs into a log book."""

MAX_USER_CHARS = 256
"""An e-mail address may have 254 (RFC 5321, section 4.5.3.1.3)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asked, and why.

    Attributes:
        user: Name that the ingress gives; None where none is known.
        reason: The caller's own words; None where there are none.
    """

    user: str | None = None
    reason: str | None = None

    def to_fields(self) -> Mapping[str, Any]:
        """Return what is known as fields of a timeline's entry. Pure."""
        known = {"user": self.user, "reason": self.reason}
        return {name: value for name, value in known.items() if value is not None}


def clean_user(text: str | None) -> str | None:
    """Return a name that can be shown on one line; None when nothing is left of it. Pure."""
    if text is None:
        return None
    # WSGI hands a header on as Latin-1 whatever it is; most who write such a header write UTF-8.
    decoded = text.encode("latin-1", "replace").decode("utf-8", "replace")
    shown = "".join(one for one in decoded if one.isprintable()).strip()
    return shown[:MAX_USER_CHARS] or None


def observe_user(req: falcon.Request, header: str) -> str | None:
    """Return the caller's name out of a header that the ingress sets; None without one, or when `header` is empty."""
    return clean_user(req.get_header(header)) if header else None
