"""Names that Kubernetes, files and URLs share.

Standard library of Python 3.8 only: the runner carries this module into any image.
"""

from __future__ import annotations

__all__ = [
    "API_MAJOR",
    "CATEGORY",
    "DEFAULT_NAMESPACE",
    "GROUP",
    "KIND",
    "PLURAL",
    "SHORT_NAME",
    "USER_MODULE",
    "VERSION",
]

GROUP = "oet.skao.int"
VERSION = "v1alpha1"
KIND = "ScriptExecution"
PLURAL = "scriptexecutions"
SHORT_NAME = "se"
CATEGORY = "oet"

API_MAJOR = 7
"""Major version of the REST API: part of its base path, the one upstream's clients know."""

DEFAULT_NAMESPACE = "ska-oso-oet"
"""First part of the REST base path when KUBE_NAMESPACE is not set (upstream's default)."""

USER_MODULE = "user_module"
"""`__name__` of a script's module (upstream's word)."""
