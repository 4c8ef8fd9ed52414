"""Paths of what the operator reads and writes, in one namespace."""

from __future__ import annotations

from dataclasses import dataclass

from oet_crds.names import GROUP, PLURAL, VERSION

__all__ = ["API_VERSION", "Paths", "find_resource"]

API_VERSION = f"{GROUP}/{VERSION}"


@dataclass(frozen=True, slots=True)
class Paths:
    """Paths below the API server's address."""

    namespace: str

    @property
    def executions(self) -> str:
        """All executions."""
        return f"/apis/{API_VERSION}/namespaces/{self.namespace}/{PLURAL}"

    def execution(self, name: str) -> str:
        """One execution."""
        return f"{self.executions}/{name}"

    def status(self, name: str) -> str:
        """The status of one execution."""
        return f"{self.executions}/{name}/status"

    @property
    def pods(self) -> str:
        """All Pods."""
        return f"/api/v1/namespaces/{self.namespace}/pods"

    def pod(self, name: str) -> str:
        """One Pod."""
        return f"{self.pods}/{name}"

    @property
    def config_maps(self) -> str:
        """All ConfigMaps."""
        return f"/api/v1/namespaces/{self.namespace}/configmaps"

    @property
    def leases(self) -> str:
        """All Leases."""
        return f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases"

    @property
    def events(self) -> str:
        """All Events."""
        return f"/api/v1/namespaces/{self.namespace}/events"


def find_resource(path: str) -> str:
    """Return what a path below a namespace names, as RBAC calls it: `pods`, `scriptexecutions/status`. Pure."""
    _, _, inside = path.partition("?")[0].partition("/namespaces/")
    _, resource, *rest = inside.split("/")
    return "/".join([resource, *rest[1:]])
