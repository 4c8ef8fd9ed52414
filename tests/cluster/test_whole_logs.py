"""Long logs on a real Kubernetes without a database: the REST API gives all that was printed, or says how much is missing."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from oet_cluster.kubectl import Kubectl
from oet_cluster.waiting import wait_for
from oet_support import Client, Server
from oet_support_cluster import RESOURCE, prepare_namespace, running_operator

from oet_crds.names import API_MAJOR
from oet_crds.states import State
from oet_crds.topics import EntryKind

pytestmark = pytest.mark.cluster

PATH = [State.CREATING, State.IDLE, State.LOADING, State.IDLE, State.READY, State.RUNNING]

PRINT = """
import time
def main(count, goes_on=False, **_):
    for number in range(count):
        print("line", number, "x" * 90)
        if number % 4000 == 0:
            time.sleep(0.2)  # The runner drops what is printed faster than it is taken.
    while goes_on:
        number += 1
        print("line", number)
        time.sleep(0.1)
"""

_NOTE = re.compile(r"\[oet: (\d+) (lines|entries) dropped.*\]")
_LINE = re.compile(r"line (\d+)(?: x{90})?")


@pytest.fixture(scope="module")
def namespace(executions: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """A namespace with the operator at work."""
    prepare_namespace(executions)
    with running_operator(executions, tmp_path_factory.mktemp("operator") / "log"):
        yield executions


@contextmanager
def serving(kubectl: Kubectl, folder: Path) -> Iterator[Client]:
    """Run a REST server; yields a client of it."""
    folder.mkdir()
    settings = {"OET_ENGINE": "kubernetes", "KUBECONFIG": str(kubectl.kubeconfig)}
    server = Server(folder, KUBE_NAMESPACE=str(kubectl.namespace), **settings)
    server.start()
    client = Client(server.port, f"/{kubectl.namespace}/oet/api/v{API_MAJOR}")
    try:
        yield client
    finally:
        client.close()
        server.stop()


def read(client: Client, procedure_id: int, what: str) -> str:
    # A connection of its own: the client's is idle for so long meanwhile that the server ends it.
    url = f"http://127.0.0.1:{client._connection.port}{client._base}/procedures/{procedure_id}/{what}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


def read_log(client: Client, procedure_id: int) -> list[str]:
    return read(client, procedure_id, "logs").splitlines()


def count_entries(log: list[str]) -> tuple[int, int]:
    """Return how many lines are in a log and how many it says are missing; none comes twice or out of order."""
    lines, missing, last = 0, 0, -1
    for text in log:
        if note := _NOTE.fullmatch(text):
            missing += int(note[1])
            continue
        line = _LINE.fullmatch(text)
        assert line is not None, text
        assert int(line[1]) > last
        lines, last = lines + 1, int(line[1])
    return lines, missing


def read_states(client: Client, procedure_id: int) -> list[str]:
    events = json.loads(read(client, procedure_id, f"events?kind={EntryKind.STATE}"))
    return [event["payload"]["new_state"] for event in events]


def test_first_answer_of_a_new_server_has_all_that_long_logs_hold(namespace: Kubectl, tmp_path: Path) -> None:
    count = 44_000
    with serving(namespace, tmp_path / "before") as client:
        procedures = [client.prepare(PRINT, number) for number in (1, 2)]
        for number in procedures:
            client.start(number, count)
        for number in procedures:
            client.wait_for(number, State.COMPLETE, seconds=60)
    with serving(namespace, tmp_path / "after") as client:
        for number in procedures:
            assert count_entries(read_log(client, number)) == (count, 0)
        for number in procedures:
            assert read_states(client, number) == [*PATH, State.READY, State.COMPLETE]


def test_what_the_kubelet_rotates_away_is_counted(namespace: Kubectl, tmp_path: Path) -> None:
    with serving(namespace, tmp_path / "before") as client:
        number = client.prepare(PRINT, 3)
        client.start(number, 120_000, goes_on=True)
        name = find_name(namespace, number)
        pod = namespace.run("get", RESOURCE, name, "--output=jsonpath={.status.podName}")
        begin = f"/api/v1/namespaces/{namespace.namespace}/pods/{pod}/log?limitBytes=20"
        wait_for(lambda: is_rotated(namespace, begin), 60, "the log is not rotated")
        with serving(namespace, tmp_path / "after") as fresh:
            # A mark comes once a second: only from then on is it known how much there was.
            wait_for(lambda: _NOTE.match(read_log(fresh, number)[0]), 10, "nothing is said to be missing")
            log = read_log(fresh, number)
            (first, _), second = count_entries(log[1:]), _NOTE.fullmatch(log[0])
            assert second is not None
            # What is missing is where it is said to be: the first line that is there follows it.
            assert log[1].split()[1] == second[1]
            assert first == int(log[-1].split()[1]) + 1 - int(second[1])
            # As above: a connection of its own.
            with closing(Client(client._connection.port, client._base)) as stopper:
                stopper.stop(number)
            total = int(namespace.run("get", RESOURCE, name, "--output=jsonpath={.status.runner.exit.logEntries}"))
            for one in (client, fresh):
                wait_for(lambda one=one: sum(count_entries(read_log(one, number))) == total, 10, "not all is told")
                assert read_states(one, number) == [*PATH, State.STOPPED]


def is_rotated(kubectl: Kubectl, begin: str) -> bool:
    # The kubelet gives no log of a container that it has not seen run yet: its look comes after the runner's first words.
    seen = kubectl.attempt("get", "--raw", begin)
    return seen.is_done and not seen.output.startswith("line 0")


def find_name(kubectl: Kubectl, procedure_id: int) -> str:
    rows = kubectl.run(
        "get", RESOURCE, "--output=jsonpath={range .items[*]}{.status.procedureId} {.metadata.name}\n{end}"
    )
    return dict(row.split() for row in rows.splitlines())[str(procedure_id)]
