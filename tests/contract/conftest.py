"""Every adapter of the ports, under the same tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes.config
import pytest
from oet_cluster.kubectl import Kubectl
from oet_cluster.places import Places
from oet_support_cluster import (
    RESOURCE,
    define_executions,
    making_namespace,
    prepare_namespace,
    reaching_cluster,
    running_operator,
)

from oet_api.kube.engine import KubeEngine
from oet_crds.git import SHARE_NEVER
from oet_crds.names import SCRIPT_CONTAINER
from oet_crds.ports import ExecutionStore, Timeline
from oet_crds.settings import EngineSettings, GitSettings, ServerSettings, Settings
from oet_operator.local.engine import LocalEngine
from oet_operator.local.runner import is_isolation_available

Engine = LocalEngine | KubeEngine

HISTORY_LIMIT, MAX_ACTIVE = 3, 6
SCRIPTS = "scripts"
SCRIPTS_FOLDER = "/scripts"
TEMPLATE = {
    "spec": {
        "volumes": [{"name": SCRIPTS, "configMap": {"name": SCRIPTS, "optional": True}}],
        "containers": [{"name": SCRIPT_CONTAINER, "volumeMounts": [{"name": SCRIPTS, "mountPath": SCRIPTS_FOLDER}]}],
    }
}


@pytest.fixture(scope="session")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """A namespace with the operator at work."""
    folder = tmp_path_factory.mktemp("operator")
    template = folder / "template.json"
    template.write_text(json.dumps(TEMPLATE))
    settings = {"OET_HISTORY_LIMIT": str(HISTORY_LIMIT), "OET_POD_TEMPLATE_FILE": str(template)}
    settings.update(SCRIPTS_LOCATION=SCRIPTS_FOLDER, OET_GIT_PROTOCOLS="git", OET_REHEARSALS="true")
    with reaching_cluster(Places.from_environ(os.environ)) as admin:
        define_executions(admin)
        with making_namespace(admin) as kubectl:
            prepare_namespace(kubectl)
            with running_operator(kubectl, folder / "operator.log", **settings):
                yield kubectl


@pytest.fixture(params=["local-namespace", "local-none", pytest.param("kube", marks=pytest.mark.cluster)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A running engine without executions."""
    if request.param == "kube":
        with running_kube_engine(request.getfixturevalue("namespace")) as engine:
            yield engine
        return
    if request.param == "local-namespace" and not is_isolation_available():
        pytest.skip("no PID namespaces here")
    settings = EngineSettings(
        state_dir=str(tmp_path / "state"),
        spares=1,
        history_limit=HISTORY_LIMIT,
        max_active=MAX_ACTIVE,
        isolation=str(request.param).removeprefix("local-"),
        scripts_location=str(tmp_path),
    )
    # Where environments are shared, scripts find nothing new in the folders above the cache: here that is where they are.
    git = GitSettings(protocols="git", cache_dir=str(tmp_path / "cache"), share_environments=SHARE_NEVER)
    local = LocalEngine(settings, git)
    local.start()
    yield local
    local.stop()


@contextmanager
def running_kube_engine(kubectl: Kubectl) -> Iterator[KubeEngine]:
    configuration: Any = kubernetes.client.Configuration()
    config: Any = kubernetes.config
    config.load_kube_config(str(kubectl.kubeconfig), client_configuration=configuration, persist_config=False)
    configuration.no_proxy = "*"
    settings = Settings(
        server=ServerSettings(namespace=str(kubectl.namespace)), engine=EngineSettings(max_active=MAX_ACTIVE)
    )
    engine = KubeEngine(settings, configuration)
    engine.start()
    yield engine
    engine.stop()
    # A subarray is held until the Pod has ended.
    kubectl.run("delete", RESOURCE, "--all", "--timeout=60s")
    kubectl.run("wait", "--for=delete", "pod", "--all", "--timeout=60s")


@pytest.fixture
def ship(engine: Engine, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, str], None]:
    """Puts a file where the shipped scripts are."""

    def ship_to_pods(name: str, text: str) -> None:
        metadata = {"name": SCRIPTS}
        manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {name: text}}
        request.getfixturevalue("namespace").run("apply", "--filename=-", manifest=manifest)

    def ship_to_folder(name: str, text: str) -> None:
        (tmp_path / name).write_text(text)

    return ship_to_pods if isinstance(engine, KubeEngine) else ship_to_folder


@pytest.fixture
def store(engine: Engine) -> ExecutionStore:
    """The execution store port."""
    return engine


@pytest.fixture
def timeline(engine: Engine) -> Timeline:
    """The timeline port."""
    return engine.timeline
