"""From a runner's process through the REST server's into the timeline's database, and out again by REST."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from oet_support import find_free_port

TESTS = Path(__file__).parents[1]
MESSAGES = 1000
SCRIPT = f"""
import oet
def main():
    for number in range({MESSAGES}):
        oet.publish("script.count", number=number)
        print("line", number)
"""


def load(path: str) -> ModuleType:
    name = f"oet_posting_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, TESTS / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Its dataclasses look for it there.
    spec.loader.exec_module(module)
    return module


fake_cluster, mailbox_tests = load("api_kube/fake_cluster.py"), load("runner/test_kube_mailbox.py")


class Server:
    """A REST server process over a fake cluster and a database."""

    def __init__(self, url: str, folder: Path) -> None:
        self.port, self.entries_port = find_free_port(), find_free_port()
        self._environ = {
            **os.environ,
            "OET_TEST_API_SERVER": url,
            "OET_TIMELINE_DATABASE": f"sqlite:///{folder}/timeline.db",
            "OET_HOST": "127.0.0.1",
            "OET_PORT": str(self.port),
            "OET_ENTRIES_PORT": str(self.entries_port),
            "OET_THREADS": "16",
            "KUBE_NAMESPACE": fake_cluster.NAMESPACE,
        }
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, str(TESTS / "support" / "oet_entries_server.py")]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=self._environ, start_new_session=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith("port ")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, 9)
            self.process.wait(20)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", f"/{fake_cluster.NAMESPACE}/oet/api/v7{path}")
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        assert answer.status == 200, data
        return data

    def read_numbers(self) -> list[int]:
        events, after = [], 0
        while page := json.loads(self.get(f"/procedures/1/events?after={after}&limit=1000")):
            events += page
            after = page[-1]["id"]
        return [one["payload"]["number"] for one in events if one["topic"] == "script.count"]

    def read_lines(self) -> list[str]:
        return self.get("/procedures/1/logs").decode().splitlines()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    cluster, api = fake_cluster.FakeCluster(), mailbox_tests.fake_api_server.FakeApiServer()
    uid = api.create(source=SCRIPT)
    api.grant()
    cluster.add("one", 1, podName="pod")
    cluster.objects["one"]["metadata"]["uid"] = uid
    cluster.change("one", status={"podName": "pod"})
    cluster.give_token("good", "pod")
    (tmp_path / "token").write_text("first")
    (tmp_path / "timeline").write_text("good")
    server = Server(cluster.url, tmp_path)
    environ = {
        "OET_TIMELINE_URL": f"http://127.0.0.1:{server.entries_port}",
        "OET_TIMELINE_TOKEN_FILE": str(tmp_path / "timeline"),
    }

    def run() -> Any:
        return mailbox_tests.KubeRunner(api, tmp_path, environ=environ)

    yield server, api, run
    server.kill()
    api.go_down()
    cluster.go_down()


def test_what_a_runner_posts_is_read_by_rest_once_and_in_order_though_the_server_is_killed(server: Any) -> None:
    rest, api, run = server
    rest.start()
    runner = run()
    try:
        for _ in range(3):
            time.sleep(0.1)  # Somewhere in the middle, wherever that is.
            rest.kill()
            rest.start()
        api.wait_exit()
        runner.wait_end(60.0)
    finally:
        runner.close()
    assert rest.read_numbers() == list(range(MESSAGES))
    lines = [line for line in rest.read_lines() if line.startswith("line ")]
    assert lines == [f"line {number}" for number in range(MESSAGES)]
