"""Ask the API server whether the cluster has come so far."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from oet_cluster import network

__all__ = ["Api", "has_available_replica", "is_node_ready"]

_TIMEOUT_SECONDS = 5.0


class Api:
    """Reads with the administrator's certificate."""

    def __init__(self, pki: Path) -> None:
        self._pki = pki

    def read(self, path: str) -> Mapping[str, Any] | None:
        """Return the object at a path; None while there is none, or no API server answers."""
        text = self._get(path)
        return json.loads(text) if text else None

    def is_ready(self) -> bool:
        """Tell whether the API server says that it is ready."""
        return self._get("/readyz") is not None

    def _get(self, path: str) -> bytes | None:
        address = urlsplit(network.API_URL)
        try:
            context = ssl.create_default_context(cafile=str(self._pki / "ca.crt"))
            context.load_cert_chain(self._pki / "admin.crt", self._pki / "admin.key")
            connection = http.client.HTTPSConnection(
                str(address.hostname), address.port, context=context, timeout=_TIMEOUT_SECONDS
            )
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                content = response.read()
            finally:
                connection.close()
        except (OSError, http.client.HTTPException):
            return None
        return content if response.status == http.HTTPStatus.OK else None


def is_node_ready(node: Mapping[str, Any] | None) -> bool:
    """Tell whether a Node object says Ready."""
    conditions = (node or {}).get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def has_available_replica(deployment: Mapping[str, Any] | None) -> bool:
    """Tell whether a Deployment serves."""
    return bool((deployment or {}).get("status", {}).get("availableReplicas", 0))
