"""A REST server on Kubernetes with a store of entries in memory, or the database that is set: `python oet_entries_server.py`.

Settings come from the environment. It prints its port, and each entry that it stores.
`OET_TEST_API_SERVER` is the address of another API server than KUBECONFIG's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import kubernetes.client
from oet_support_sink import MemorySink

from oet_api.kube.engine import KubeEngine
from oet_api.server import run_server
from oet_crds.execution import ScriptExecution
from oet_crds.ports import RunnerEntry
from oet_crds.settings import load_settings


class PrintingSink(MemorySink):
    """Prints what it has stored for the first time."""

    def ingest(self, execution: ScriptExecution, entries: Sequence[RunnerEntry]) -> int:
        """Store entries; see the port."""
        known = {entry.seq for entry in self.of(execution.uid)}
        for entry in entries:
            if entry.seq not in known:
                payload = dict(entry.payload)
                fields = {"uid": execution.uid, "seq": entry.seq, "kind": entry.kind, "payload": payload}
                print(json.dumps(fields), flush=True)
        return super().ingest(execution, entries)


def make_engine() -> KubeEngine:
    """Make the engine, in the worker process."""
    configuration = None
    if url := os.environ.get("OET_TEST_API_SERVER"):
        configuration = kubernetes.client.Configuration(host=url)
        configuration.no_proxy = "*"
    settings = load_settings(os.environ)
    return KubeEngine(settings, configuration, sink=None if settings.timeline.database else PrintingSink())


def greet(host: str, port: int) -> None:
    """Say that requests are served."""
    print(f"port {port}", flush=True)


if __name__ == "__main__":
    sys.exit(run_server(load_settings(os.environ).server, make_engine, greet))
