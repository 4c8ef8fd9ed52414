"""Names that Kubernetes, files and URLs share.

Standard library of Python 3.8 only: the runner carries this module into any image.
"""

from __future__ import annotations

__all__ = [
    "API_MAJOR",
    "CATEGORY",
    "CONFIG_MAP_FOLDER",
    "DEFAULT_NAMESPACE",
    "EXECUTION_UID_LABEL",
    "GROUP",
    "INIT_CONTAINER",
    "KIND",
    "MANAGED_LABEL",
    "MANAGED_VALUE",
    "NAMESPACE_VARIABLE",
    "PLURAL",
    "POD_NAME_VARIABLE",
    "RUNNER_HOME",
    "SCRIPT_CONTAINER",
    "SERVICE_ACCOUNT_FOLDER",
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

MANAGED_LABEL = f"{GROUP}/managed"
"""On every script Pod, with `MANAGED_VALUE`: what the operator watches, and what network policies select."""

MANAGED_VALUE = "script"

EXECUTION_UID_LABEL = f"{GROUP}/execution-uid"
"""On every script Pod: the uid of its execution. (The name would not do: a label's value has 63 characters, a name 253.)"""

SCRIPT_CONTAINER = "script"
"""The container of a script Pod in which runner and script live; `kubectl logs` shows it."""

INIT_CONTAINER = "oet-runner"
"""The init container that copies the runner into a Pod whose image is not OET's own."""

RUNNER_HOME = "/opt/oet/runner"
"""Folder with the packages oet_runner, oet and oet_crds: part of OET's image, a copy in all other script Pods."""

CONFIG_MAP_FOLDER = "/etc/oet/script"
"""Where a script Pod has the ConfigMap that holds its script; the key is the file's name."""

SERVICE_ACCOUNT_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where Kubernetes puts a Pod's token and the API server's certificate authority."""

POD_NAME_VARIABLE = "OET_POD_NAME"
"""Environment variable with the name of the Pod that a runner is in: it serves the execution whose status names it."""

NAMESPACE_VARIABLE = "OET_NAMESPACE"
"""Environment variable with the namespace of that Pod and its execution."""
