"""Paths of what the REST server reads and writes, in one namespace."""

from __future__ import annotations

from dataclasses import dataclass

from oet_crds.names import GROUP, PLURAL, VERSION

__all__ = ["LEASE_NAME", "Paths"]

LEASE_NAME = "oet-operator"
"""The Lease of the operator at work."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Paths below the API server's address."""

    namespace: str

    @property
    def executions(self) -> str:
        """All executions."""
        return f"/apis/{GROUP}/{VERSION}/namespaces/{self.namespace}/{PLURAL}"

    def execution(self, name: str) -> str:
        """One execution."""
        return f"{self.executions}/{name}"

    def log(self, pod: str) -> str:
        """The log of a Pod."""
        return f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log"

    @property
    def lease(self) -> str:
        """The operator's Lease."""
        return f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases/{LEASE_NAME}"
