"""Names that Kubernetes, files and URLs share.

Standard library of Python 3.8 only: the runner carries this module into any image.
"""

from __future__ import annotations

__all__ = [
    "API_MAJOR",
    "API_MANAGER",
    "CATEGORY",
    "CONFIG_MAP_FOLDER",
    "DEFAULT_CONTAINER_ANNOTATION",
    "DEFAULT_NAMESPACE",
    "ENTRIES_PATH",
    "EXECUTION_NAME_ANNOTATION",
    "EXECUTION_UID_LABEL",
    "GROUP",
    "INIT_CONTAINER",
    "KIND",
    "MANAGED_LABEL",
    "MANAGED_VALUE",
    "MODE_LABEL",
    "NAMESPACE_VARIABLE",
    "NO_SUBARRAY",
    "OPERATOR_MANAGER",
    "PLURAL",
    "POD_NAME_VARIABLE",
    "PROCEDURE_LABEL",
    "REHEARSAL_VALUE",
    "RELEASE_ANNOTATION",
    "RUNNER_HOME",
    "RUNNER_MANAGER",
    "SB_FOLDER",
    "SCRIPTS_FOLDER",
    "SCRIPT_CONTAINER",
    "SERVICE_ACCOUNT_FOLDER",
    "SHORT_NAME",
    "STOPPED_BY_ANNOTATION",
    "SUBARRAY_LABEL",
    "TIMELINE_AUDIENCE",
    "TIMELINE_CA_FILE_VARIABLE",
    "TIMELINE_TOKEN_FILE",
    "TIMELINE_TOKEN_FILE_VARIABLE",
    "TIMELINE_URL_VARIABLE",
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

EXECUTION_NAME_ANNOTATION = f"{GROUP}/execution"
"""On every script Pod: the name of its execution, for people, and for who finds the Pod without its execution."""

PROCEDURE_LABEL = f"{GROUP}/procedure-id"
"""On every script Pod: the number that users know its execution by."""

STOPPED_BY_ANNOTATION = f"{GROUP}/stopped-by"
"""On an execution that was stopped over REST: who asked for it, as the ingress names the caller. For people; it allows
nothing."""

SUBARRAY_LABEL = f"{GROUP}/subarray"
"""On every script Pod: the subarray that its execution locks, or `NO_SUBARRAY`; absent: the start may still name one."""

NO_SUBARRAY = "none"

RELEASE_ANNOTATION = f"{GROUP}/release"
"""On an UNKNOWN execution: why a person releases its subarray. Its presence releases it."""

MODE_LABEL = f"{GROUP}/mode"
"""On the script Pod of a rehearsal, with `REHEARSAL_VALUE`: a network policy of its own selects it, others leave it out."""

REHEARSAL_VALUE = "rehearsal"

SCRIPT_CONTAINER = "script"
"""The container of a script Pod in which runner and script live; `kubectl logs` shows it."""

DEFAULT_CONTAINER_ANNOTATION = "kubectl.kubernetes.io/default-container"
"""Kubernetes' own: the container of a Pod that kubectl means where none is named."""

API_MANAGER = "oet-api"
OPERATOR_MANAGER = "oet-operator"
RUNNER_MANAGER = "oet-runner"
"""Who wrote a field, as `metadata.managedFields` tells it (`kubectl get --show-managed-fields`)."""

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

SCRIPTS_FOLDER = "/scripts"
"""Folder of the shipped scripts in OET's image."""

SB_FOLDER = "/tmp"
"""Where a script finds the scheduling block of its activity: the one folder that any image and any user can write to."""

TIMELINE_URL_VARIABLE = "OET_TIMELINE_URL"
"""Environment variable that tells a runner where to post its entries; without it they go to the log alone."""

TIMELINE_TOKEN_FILE_VARIABLE = "OET_TIMELINE_TOKEN_FILE"
"""Environment variable with the file of the token that goes along."""

TIMELINE_CA_FILE_VARIABLE = "OET_TIMELINE_CA_FILE"
"""Environment variable with the certificate authorities of an https address; without it those of the image."""

TIMELINE_AUDIENCE = "oet-timeline"
"""Whom that token is for: the API server takes it for nothing else, and the REST server takes no other."""

TIMELINE_TOKEN_FILE = "/var/run/secrets/oet-timeline/token"
"""Where a script Pod has it."""

ENTRIES_PATH = "/internal/executions/{uid}/entries"
"""Where on the REST server a runner posts its entries."""
