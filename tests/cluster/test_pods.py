"""What a cluster must give to OET: Pods with Python, Services with names, and a way in from the machine."""

from __future__ import annotations

from typing import Any

import pytest
from oet_cluster.images import BASE_IMAGE
from oet_cluster.kubectl import Kubectl
from oet_cluster.waiting import wait_for

pytestmark = pytest.mark.cluster

SERVER = "import http.server as h; h.HTTPServer(('', 8000), h.SimpleHTTPRequestHandler).serve_forever()"
CLIENT = """
import sys, time, urllib.request
for attempt in range(200):
    try:
        sys.exit(print(urllib.request.urlopen('http://web/', timeout=5).status))
    except OSError:
        time.sleep(0.1)
sys.exit('no answer')
"""


def build_pod(name: str, code: str, **container: Any) -> dict[str, Any]:
    main = {"name": "main", "image": BASE_IMAGE, "command": ["python3", "-uc", code], "imagePullPolicy": "Never"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [{**main, **container}]},
    }


def test_pod_with_the_base_image_runs_python(kubectl: Kubectl) -> None:
    code = "import sys, venv, shutil; print(sys.version_info[:2], shutil.which('git'))"
    kubectl.run("create", "--filename=-", manifest=build_pod("hello", code))
    kubectl.run("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/hello", "--timeout=60s")
    assert kubectl.run("logs", "hello") == "(3, 11) /usr/bin/git\n"


def test_service_is_reached_by_its_name(kubectl: Kubectl) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    for manifest in (build_pod("web", SERVER), service, build_pod("client", CLIENT)):
        kubectl.run("create", "--filename=-", manifest=manifest)
    kubectl.run("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/client", "--timeout=60s")
    assert kubectl.run("logs", "client") == "200\n"


def test_process_in_a_pod_gets_sigterm_and_its_time(kubectl: Kubectl) -> None:
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(print('asked'))); print('up'); signal.pause()"
    kubectl.run("create", "--filename=-", manifest=build_pod("polite", code))
    wait_for(lambda: "up" in kubectl.attempt("logs", "polite").output, 60, "the Pod does not print")
    # The container may be gone before the command is, which then counts as killed.
    kubectl.attempt("exec", "polite", "--", "python3", "-c", "import os; os.kill(1, 15)")
    kubectl.run("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/polite", "--timeout=60s")
    assert kubectl.run("logs", "polite").splitlines() == ["up", "asked"]
