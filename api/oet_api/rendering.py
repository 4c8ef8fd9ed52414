"""Procedures as JSON bytes, rendered once a version: lists of many prepared scripts are asked for often."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from oet_api.wire import build_procedure, dump_json
from oet_crds.execution import ScriptExecution

__all__ = ["Renderer"]

CACHE_BYTES = 32 * 1024 * 1024
"""Rendered text that is kept; past it the cache starts anew. 128 scripts with inline sources of 256 KiB just fit."""


class Renderer:
    """Renders executions as upstream's procedures. Any thread may use it."""

    def __init__(self, base: str) -> None:
        """Remember the base path, which is part of each procedure's `uri`."""
        self._base = base
        self._cache: dict[str, tuple[str, bytes]] = {}
        self._cached_bytes = 0

    def build(self, execution: ScriptExecution) -> Mapping[str, Any]:
        """Return an execution as clients see it."""
        return build_procedure(execution, self._base)

    def render(self, execution: ScriptExecution) -> bytes:
        """Return an execution as JSON."""
        version = execution.metadata.resource_version
        found = self._cache.get(execution.uid)
        if found is not None and found[0] == version:
            return found[1]
        data = dump_json(self.build(execution))
        # Threads may race here: at worst one renders what another has rendered, or the count is off by one procedure.
        self._cached_bytes += len(data) - (len(found[1]) if found else 0)
        if self._cached_bytes > CACHE_BYTES:
            self._cache, self._cached_bytes = {}, len(data)
        self._cache[execution.uid] = (version, data)
        return data

    def render_list(self, executions: Iterable[ScriptExecution]) -> bytes:
        """Return executions as a JSON list."""
        return b"[" + b",".join(map(self.render, executions)) + b"]"
