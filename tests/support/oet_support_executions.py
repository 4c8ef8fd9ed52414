"""Executions in a namespace of a real cluster, as a test makes and watches them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes.config
from oet_cluster.kubectl import Kubectl
from oet_support import wait_until

from oet_api.kube.client import MERGE_PATCH, KubeClient
from oet_api.kube.errors import ApiError
from oet_api.kube.paths import Paths
from oet_crds.names import GROUP, KIND, NAMESPACE_VARIABLE, POD_NAME_VARIABLE, VERSION
from oet_crds.states import DesiredState, State, is_final

__all__ = ["Executions", "build_client", "find_processes"]

PATIENCE_SECONDS = 120.0
"""For what takes a second or two: the machine may be busy, and a kubelet looks at a broken image every ten seconds only."""


def build_client(kubeconfig: Path) -> KubeClient:
    """Return a client of the API server for the administrator."""
    configuration: Any = kubernetes.client.Configuration()
    config: Any = kubernetes.config
    config.load_kube_config(str(kubeconfig), client_configuration=configuration, persist_config=False)
    configuration.no_proxy = "*"
    return KubeClient(configuration)


def find_processes(pod: str, namespace: str) -> list[int]:
    """Return the processes of a script Pod, as the machine of its node shows them: other nodes' are not found."""
    marks = {f"{POD_NAME_VARIABLE}={pod}".encode(), f"{NAMESPACE_VARIABLE}={namespace}".encode()}
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environ = set((entry / "environ").read_bytes().split(b"\0")) if entry.name.isdecimal() else set()
        except OSError:
            continue
        if marks <= environ:
            found.append(int(entry.name))
    return sorted(found)


class Executions:
    """The executions of one namespace."""

    def __init__(self, kubectl: Kubectl) -> None:
        self.kubectl = kubectl
        self.namespace = str(kubectl.namespace)
        self.client = build_client(kubectl.kubeconfig)
        self._paths = Paths(self.namespace)

    def create(self, name: str, source: str | Mapping[str, Any], **spec: Any) -> str:
        """Create an execution of an inline script, or of any source; returns its name."""
        script = {"inline": {"source": source}} if isinstance(source, str) else source
        manifest = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": KIND,
            "metadata": {"name": name},
            "spec": {"script": script, **spec},
        }
        self.client.request("POST", self._paths.executions, manifest)
        return name

    def patch(self, name: str, **spec: Any) -> None:
        """Change the spec of an execution."""
        self.client.request("PATCH", self._paths.execution(name), {"spec": spec}, content_type=MERGE_PATCH)

    def stop(self, name: str, **options: Any) -> None:
        """Ask for the stop of an execution."""
        self.patch(name, desiredState=DesiredState.STOPPED, **({"stop": options} if options else {}))

    def delete(self, name: str, **options: Any) -> None:
        """Delete an execution."""
        self.client.request("DELETE", self._paths.execution(name), options)

    def list(self) -> dict[str, dict[str, Any]]:
        """Return all executions by name."""
        items = self.client.request("GET", self._paths.executions)["items"]
        return {one["metadata"]["name"]: one for one in items}

    def get(self, name: str) -> dict[str, Any] | None:
        """Return an execution, None when it is not there."""
        try:
            return self.client.request("GET", self._paths.execution(name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def get_status(self, name: str) -> dict[str, Any]:
        """Return the status of an execution; empty while there is none."""
        status: dict[str, Any] = (self.get(name) or {}).get("status") or {}
        return status

    def wait(self, name: str, is_wanted: Callable[[dict[str, Any]], Any], seconds: float = PATIENCE_SECONDS) -> Any:
        """Wait until an execution's status is as wanted; returns the status. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not is_wanted(status := self.get_status(name)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} is {status}")
            time.sleep(0.02)
        return status

    def wait_for(self, name: str, state: State, seconds: float = PATIENCE_SECONDS) -> Any:
        """Wait until an execution is in a state; returns its status. Raises TimeoutError, at once if it has ended otherwise."""

        def is_there(status: dict[str, Any]) -> bool:
            found = status.get("state")
            if found != state and found and is_final(State(found)):
                raise TimeoutError(f"{name} ended: {status}")
            return bool(found == state)

        return self.wait(name, is_there, seconds)

    def wait_for_end(self, name: str, seconds: float = PATIENCE_SECONDS) -> Any:
        """Wait until an execution is in a final state; returns its status."""
        return self.wait(name, lambda status: "state" in status and is_final(State(status["state"])), seconds)

    def read_log(self, name: str) -> str:
        """Return what the Pod of an execution has printed; the kubelet may learn of it after the end was reported."""
        pod = self.get_status(name)["podName"]
        wait_until(lambda: self.kubectl.attempt("logs", pod).is_done, PATIENCE_SECONDS, f"no log of {pod}")
        return self.kubectl.run("logs", pod)

    def find_processes(self, name: str) -> list[int]:
        """Return the processes of an execution on this machine; those of another machine are not found."""
        return find_processes(self.get_status(name)["podName"], self.namespace)

    def kill_runner(self, name: str, signal: int) -> bool:
        """Signal the supervisor in an execution's Pod from outside; tells whether it is on this machine."""
        processes = self.find_processes(name)
        if processes:
            os.kill(processes[0], signal)
        return bool(processes)
