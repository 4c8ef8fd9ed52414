"""The way of entries from a Pod to the REST server, with tokens that a real Kubernetes makes and reviews."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oet_cluster.kubectl import Kubectl
from oet_cluster.waiting import wait_for
from oet_support import find_free_port
from oet_support_cluster import RESOURCE, prepare_namespace, running_operator

from oet_crds.mailbox import CONFINEMENT_VARIABLE, Confinement
from oet_crds.names import ENTRIES_PATH, GROUP, KIND, SCRIPT_CONTAINER, TIMELINE_AUDIENCE, VERSION

pytestmark = pytest.mark.cluster

SERVER = Path(__file__).parents[1] / "support" / "oet_entries_server.py"
MESSAGES = 500
SCRIPT = f"""
import json, oet, os, urllib.request
def main(other=None):
    for number in range({MESSAGES}):
        oet.publish("script.count", number=number)
    print("printed")
"""
TOKEN_TAKER = f"""{SCRIPT}
    # What a script that is not confined can do with its runner's token.
    token = open(os.environ["OET_TIMELINE_TOKEN_FILE"]).read()
    path = os.environ["OET_TIMELINE_URL"] + {ENTRIES_PATH!r}.replace("{{uid}}", other or "nobody")
    entry = {{"n": 1, "t": 1, "k": "log", "stream": "stdout", "line": "forged"}}
    headers = {{"Authorization": "Bearer " + token, "Content-Type": "application/json"}}
    request = urllib.request.Request(path, json.dumps({{"entries": [entry]}}).encode(), headers)
    try:
        urllib.request.urlopen(request, timeout=20)
    except OSError as error:
        print("another execution:", getattr(error, "code", "no answer"))
"""


class Server:
    """A REST server process, and what it stored."""

    def __init__(self, kubectl: Kubectl, address: str) -> None:
        self.port, self.entries_port = find_free_port(), find_free_port()
        self.address = address
        self.entries: list[dict[str, Any]] = []
        self._environ = {
            **os.environ,
            "KUBECONFIG": str(kubectl.kubeconfig),
            "KUBE_NAMESPACE": str(kubectl.namespace),
            "OET_HOST": address,
            "OET_PORT": str(self.port),
            "OET_ENTRIES_PORT": str(self.entries_port),
        }
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER)], stdout=subprocess.PIPE, text=True, env=self._environ
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().startswith("port ")
        threading.Thread(target=self._read, args=[self._process.stdout], daemon=True).start()

    def _read(self, output: Any) -> None:
        with contextlib.suppress(ValueError):  # It was closed.
            for line in output:
                self.entries.append(json.loads(line))

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(40)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def of(self, uid: str) -> list[dict[str, Any]]:
        return [entry for entry in list(self.entries) if entry["uid"] == uid]

    def post(self, uid: str, token: str) -> int:
        connection = http.client.HTTPConnection(self.address, self.entries_port, timeout=20)
        entry = {"n": 1, "t": 1, "k": "log", "stream": "stdout", "line": "x"}
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request("POST", ENTRIES_PATH.replace("{uid}", uid), json.dumps({"entries": [entry]}), headers)
        status = connection.getresponse().status
        connection.close()
        return status


def find_own_address(node: str) -> str:
    """Return this machine's address as its nodes, and the Pods there, know it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((node, 9))  # Sends nothing.
        return str(probe.getsockname()[0])


@pytest.fixture(scope="module")
def server(admin: Kubectl, executions: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server, where Pods reach it, and an operator whose Pods post to it."""
    prepare_namespace(executions)
    path = '{.items[0].status.addresses[?(@.type=="InternalIP")].address}'
    server = Server(executions, find_own_address(admin.run("get", "nodes", f"--output=jsonpath={path}").strip()))
    settings = {"OET_TIMELINE_URL": f"http://{server.address}:{server.entries_port}"}
    server.start()
    with running_operator(executions, tmp_path_factory.mktemp("operator") / "log", **settings):
        yield server
    server.stop()


def create(kubectl: Kubectl, name: str, source: str, **arguments: Any) -> str:
    env = [{"name": CONFINEMENT_VARIABLE, "value": str(Confinement.NONE)}] if source == TOKEN_TAKER else []
    spec = {
        "podTemplate": {"spec": {"containers": [{"name": SCRIPT_CONTAINER, "env": env}]}},
        "script": {"inline": {"source": source}},
        "desiredState": "Running",
        "args": {"main": {"kwargs": arguments}},
    }
    wire = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": {"name": name}, "spec": spec}
    kubectl.run("create", "--filename=-", manifest=wire)
    return kubectl.run("get", RESOURCE, name, "--output=jsonpath={.metadata.uid}").strip()


def wait_state(kubectl: Kubectl, name: str, state: str) -> None:
    kubectl.run("wait", f"--for=jsonpath={{.status.state}}={state}", f"{RESOURCE}/{name}", "--timeout=90s")


def check(entries: list[dict[str, Any]], messages: int) -> None:
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
    numbers = [entry["payload"]["number"] for entry in entries if entry["kind"] == "message"]
    assert numbers == list(range(messages))


def test_pod_posts_all_its_entries_and_for_no_other_execution(executions: Kubectl, server: Server) -> None:
    other = create(executions, "other", "def main(): pass")
    wait_state(executions, "other", "COMPLETE")
    uid = create(executions, "posting", TOKEN_TAKER, other=other)
    wait_state(executions, "posting", "COMPLETE")
    wait_for(lambda: any(one["payload"].get("line") == "another execution: 403" for one in server.of(uid)), 30, "403")
    check(server.of(uid), MESSAGES)
    assert "forged" not in [entry["payload"].get("line") for entry in server.entries]
    states = [entry["payload"]["new_state"] for entry in server.of(uid) if "new_state" in entry["payload"]]
    assert states[:2] == ["IDLE", "LOADING"]
    assert states[-2:] == ["RUNNING", "READY"]
    pod = executions.run("get", RESOURCE, "posting", "--output=jsonpath={.status.podName}").strip()
    wait_for(lambda: "printed" in executions.attempt("logs", pod).output, 60, "the Pod's log")


def test_server_that_was_away_gets_all_when_it_is_back(executions: Kubectl, server: Server) -> None:
    server.stop()
    try:
        uid = create(executions, "alone", SCRIPT)
        # The end is known at once; the Pod stays for the rest.
        wait_state(executions, "alone", "COMPLETE")
        pod = executions.run("get", RESOURCE, "alone", "--output=jsonpath={.status.podName}").strip()
        # The node tells of a Pod's beginning later than its runner of the end.
        executions.run("wait", "--for=jsonpath={.status.phase}=Running", f"pod/{pod}", "--timeout=60s")
    finally:
        server.start()  # The next test needs it, whatever becomes of this one.
    executions.run("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{pod}", "--timeout=60s")
    wait_for(lambda: len(server.of(uid)) > MESSAGES, 30, "the entries")
    check(server.of(uid), MESSAGES)


def test_tokens_that_are_not_for_this_are_refused(executions: Kubectl, server: Server) -> None:
    uid = create(executions, "waiting", "import time\ndef main(): time.sleep(100)")
    wait_state(executions, "waiting", "RUNNING")
    pod = executions.run("get", RESOURCE, "waiting", "--output=jsonpath={.status.podName}").strip()

    def make_token(*options: str) -> str:
        return executions.run("create", "token", "oet-runner", *options).strip()

    bound = ("--bound-object-kind=Pod", f"--bound-object-name={pod}")
    assert server.post(uid, make_token()) == 401
    assert server.post(uid, make_token(f"--audience={TIMELINE_AUDIENCE}")) == 401
    assert server.post(uid, make_token(*bound)) == 401
    assert server.post(uid, base64.b64encode(b"nothing").decode()) == 401
    assert server.post(uid, make_token(f"--audience={TIMELINE_AUDIENCE}", *bound)) == 200
    assert server.post("nobody", make_token(f"--audience={TIMELINE_AUDIENCE}", *bound)) == 403
    executions.run("delete", RESOURCE, "waiting", "--wait=false")
