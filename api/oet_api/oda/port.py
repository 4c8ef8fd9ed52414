"""What activities need of the archive: scheduling block definitions to read, and a place for instances."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from oet_crds.errors import NotFoundError, RequestRefusedError

__all__ = ["Oda", "Sbd", "build_missing", "check_document", "is_sbd_id"]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")


@dataclass(frozen=True, slots=True)
class Sbd:
    """One version of a scheduling block definition.

    Attributes:
        sbd_id: Which definition.
        version: Its version.
        document: All of it, as the archive has it.
    """

    sbd_id: str
    version: int
    document: Mapping[str, Any]


class Oda(Protocol):
    """An archive. All methods may be called from any thread."""

    def get_sbd(self, sbd_id: str) -> Sbd:
        """Return the latest version of a definition.

        Raises:
            NotFoundError: There is none of this id.
            RequestRefusedError: What is there is no definition.
            UnavailableError: The archive does not answer.
        """
        ...

    def add_sbi(self, sbi: Mapping[str, Any]) -> None:
        """Store a new instance; durable when this returns.

        Args:
            sbi: The instance. Its `sbi_id` is unique, and must not be there yet.

        Raises:
            UnavailableError: The archive does not take it.
        """
        ...


def is_sbd_id(text: str) -> bool:
    """Tell whether a text can be an id: letters, digits, dots, dashes and underscores, no path. Pure."""
    return _ID.fullmatch(text) is not None


def build_missing(sbd_id: str, where: str) -> NotFoundError:
    """Return the error for a definition that is not there. Pure."""
    return NotFoundError(f"No SBDefinition {sbd_id} in {where}")


def check_document(sbd_id: str, document: object) -> Mapping[str, Any]:
    """Return a definition's document. Raises RequestRefusedError when it is no JSON object. Pure."""
    if not isinstance(document, dict):
        raise RequestRefusedError(f"SBDefinition {sbd_id} is no JSON object in the archive: correct it there")
    return document
