"""Measure OET on Kubernetes beside a bare Pod, in one run on one cluster: `make bench-cluster` (KUBECONFIG).

Operator and REST server run as processes of this machine, as their Pods would; scripts run in Pods of a namespace made for the
run and removed after it. All clocks are CLOCK_MONOTONIC, which processes and containers of one machine share: the node must be
this machine. Arguments choose parts (cold, prepared, writes, load, aborts, memory); all when there are none. Prints two numbers
for each and says which they are, and writes build/bench-cluster.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "cluster"), str(ROOT / "tools")]
from bench import Figure, read_pss_kib, summarise  # noqa: E402
from bench_load import compute_quantile, fill_with_finished, run_load  # noqa: E402
from oet_cluster.kubectl import Kubectl  # noqa: E402
from oet_cluster.places import Places  # noqa: E402
from oet_support import Client, Server, wait_until  # noqa: E402
from oet_support_cluster import (  # noqa: E402
    IMAGE,
    Operator,
    define_executions,
    making_namespace,
    prepare_namespace,
    reaching_cluster,
    running_operator,
)
from oet_support_executions import Executions  # noqa: E402

from oet_crds.names import API_MAJOR  # noqa: E402
from oet_crds.settings import KubernetesSettings  # noqa: E402
from oet_crds.states import State  # noqa: E402

ROUNDS = int(os.environ.get("OET_BENCH_ROUNDS", "20"))
"""Repetitions of what needs a Pod: each takes about two seconds."""
RATES = [int(rate) for rate in os.environ.get("OET_BENCH_RATES", "10,25,100").split(",")]
"""Executions per second that the load is to bring: what a small machine bears, and the goal. Each costs the API server about
eight writes of 5 ms of a core's time, so that two cores bear about 30."""
FINISHED = int(os.environ.get("OET_BENCH_FINISHED", "5000"))
"""Executions that are over, for the memory of the operator."""

LEASE_SECONDS = str(KubernetesSettings().lease_seconds)
"""As users have it: the tests' operators have a short one, and give it up when the API server does not answer under load."""

FIRST_LINE = "import time; print('FIRST', time.monotonic(), flush=True)"
COLD_SCRIPT = f"def main():\n    {FIRST_LINE}\n    time.sleep(3)"
PREPARED_SCRIPT = f"def main(**_):\n    {FIRST_LINE}\n    while True: time.sleep(0.01)"


class Bench:
    """The namespace, the operator and the server of a run."""

    def __init__(self, kubectl: Kubectl, operator: Operator, server: Server) -> None:
        self.world = Executions(kubectl)
        self.kubectl = kubectl
        self.operator = operator
        self.base = f"/{kubectl.namespace}/oet/api/v{API_MAJOR}"
        self.port = server.port
        self.client = Client(server.port, self.base)

    def read_first_line(self, pod: str) -> float:
        """Return when the script in a Pod had its first line, from its log."""
        wait_until(lambda: "FIRST" in self.kubectl.attempt("logs", pod).output, 30, f"no first line of {pod}")
        found = re.search(r"FIRST ([\d.]+)", self.kubectl.run("logs", pod))
        assert found is not None
        return float(found[1])

    def count_writes(self) -> Counter[str]:
        """Return how many writes of the operator for executions the API server took, by resource: not the Lease, not the ids."""
        found = re.findall(
            r'oet_operator_writes_total\{resource="(pods|scriptexecutions[^"]*)",[^}]*\} ([\d.]+)', self.metrics
        )
        counts = Counter[str]()
        for resource, count in found:
            counts[resource] += int(float(count))
        return counts

    @property
    def metrics(self) -> str:
        """The operator's numbers."""
        return self.operator.read("/metrics")


@contextmanager
def watching(world: Executions, path: str, on_event: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Watch objects in a thread, from now on."""
    version = world.client.request("GET", path)["metadata"]["resourceVersion"]
    stream = world.client.open_stream(path, {"watch": "true", "resourceVersion": version}, 300)

    def read() -> None:
        rest = b""
        try:
            for piece in stream.iter_pieces():
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    on_event(json.loads(line))
        except Exception:  # noqa: BLE001 - the end of the watch, however it comes
            return

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    yield
    stream.cut()
    thread.join(5)


def build_bare_pod(name: str) -> dict[str, Any]:
    """Build the rival: the same image, started by Kubernetes alone, with a token mounted."""
    command = ["python3", "-c", f"{FIRST_LINE}; time.sleep(3)"]  # Long enough for the kubelet to see it run.
    container = {"name": "script", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": command}
    spec = {"restartPolicy": "Never", "serviceAccountName": "oet-runner", "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def measure_cold(bench: Bench) -> Iterator[Figure]:
    """Time creation -> first line, and creation -> seen to run, of an execution and of a bare Pod, in turn."""
    lines: dict[str, list[float]] = {"bare": [], "oet": []}
    seen: dict[str, list[float]] = {"bare": [], "oet": []}
    pods = f"/api/v1/namespaces/{bench.world.namespace}/pods"
    running: dict[str, float] = {}

    def on_pod(event: dict[str, Any]) -> None:
        if event["object"].get("status", {}).get("phase") == "Running":
            running.setdefault(event["object"]["metadata"]["name"], time.monotonic())

    with watching(bench.world, pods, on_pod):
        for number in range(ROUNDS):
            name, begun = f"bare-{number}", time.monotonic()
            bench.world.client.request("POST", pods, build_bare_pod(name))
            lines["bare"].append((bench.read_first_line(name) - begun) * 1e3)
            wait_until(lambda: name in running, 30, f"{name} is not seen to run")  # noqa: B023
            seen["bare"].append((running[name] - begun) * 1e3)
            bench.world.client.request("DELETE", f"{pods}/{name}", {"gracePeriodSeconds": 1})
            time.sleep(1.5)
            name, begun = f"cold-{number}", time.monotonic()
            bench.world.create(name, COLD_SCRIPT)
            seen["oet"].append((wait_for_running(bench, name) - begun) * 1e3)
            lines["oet"].append((bench.read_first_line(bench.world.get_status(name)["podName"]) - begun) * 1e3)
            bench.world.wait_for(name, State.COMPLETE)
            bench.world.delete(name)
            time.sleep(1.5)
    bare_line, bare_seen = statistics.median(lines["bare"]), statistics.median(seen["bare"])
    rival = "bare Pod, same image"
    yield summarise("created -> first line of main", lines["oet"], rival=rival, rival_p50=bare_line, goal="<= 1.25x")
    yield summarise("created -> RUNNING over REST", seen["oet"], rival=rival, rival_p50=bare_seen, goal="<= 1x")


def wait_for_running(bench: Bench, name: str) -> float:
    """Ask the REST server until it says that an execution runs; returns when it said so (monotonic seconds)."""
    number: int | None = None
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if number is None:
            number = bench.world.get_status(name).get("procedureId")
        elif bench.client.get(number)["state"] == State.RUNNING:
            return time.monotonic()
        time.sleep(0.005)
    raise TimeoutError(f"{name} is not seen to run")


def measure_prepared(bench: Bench) -> Iterator[Figure]:
    """Time start -> first line of main, and stop -> answer, over REST, of executions that hold a subarray."""
    starts, answers, stops = [], [], []
    for _ in range(ROUNDS):
        procedure = bench.client.prepare(PREPARED_SCRIPT)
        begun = time.monotonic()
        bench.client.start(procedure)
        answers.append((time.monotonic() - begun) * 1e3)
        name = next(
            one for one, found in bench.world.list().items() if found.get("status", {}).get("procedureId") == procedure
        )
        starts.append((bench.read_first_line(bench.world.get_status(name)["podName"]) - begun) * 1e3)
        begun = time.monotonic()
        bench.client.stop(procedure)
        stops.append((time.monotonic() - begun) * 1e3)
        bench.world.wait_for(name, State.STOPPED)
    yield summarise("start -> first line of main (REST)", starts, goal="p95 <= 60 ms")
    yield summarise("start -> answer (REST)", answers)
    yield summarise("stop -> certain answer (REST)", stops, goal="p95 <= 150 ms")


KINDS: dict[str, dict[str, Any]] = {
    "short, no subarray": {"source": "def main(): pass"},
    "short, subarray": {"source": "def main(): pass", "subarray": 3},
    "2 s, no subarray": {"source": "import time\ndef main(): time.sleep(2)"},
    "2 s, subarray": {"source": "import time\ndef main(): time.sleep(2)", "subarray": 3},
}


def measure_writes(bench: Bench) -> Iterator[Figure]:
    """Count what operator and runner write for one execution: what changes beside the operator's writes is the runner's."""
    for kind, options in KINDS.items():
        own, statuses, runners = [], [], []
        for number in range(5):
            made, changes = count_writes_of_one(bench, f"writes-{abs(hash(kind)) % 10**6}-{number}", dict(options))
            own.append(float(made.total()))
            statuses.append(made["scriptexecutions/status"])
            runners.append(float(changes - statuses[-1]))
        name = f"writes of the operator, of them {statistics.median(statuses):.0f} to the execution: {kind}"
        yield Figure(name, statistics.median(own), max(own), "p50, most", goal="<= 3")
        yield Figure(
            f"writes of the runner: {kind}", statistics.median(runners), max(runners), "p50, most", goal="<= 4"
        )


def count_writes_of_one(bench: Bench, name: str, spec: dict[str, Any]) -> tuple[Counter[str], int]:
    """Run one execution; return the operator's writes by resource, and how often the execution changed."""
    changes: list[str] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["object"]["metadata"]["name"] == name and event["type"] == "MODIFIED":
            changes.append(event["type"])

    path = f"/apis/oet.skao.int/v1alpha1/namespaces/{bench.world.namespace}/scriptexecutions"
    with watching(bench.world, path, on_event):
        before = bench.count_writes()
        bench.world.create(name, spec.pop("source"), **spec)
        bench.world.wait_for_end(name)
        time.sleep(1.0)  # What is written late is written within 0.3 s.
        return bench.count_writes() - before, len(changes)


def measure_load(kubectl: Kubectl, operator: Operator) -> Iterator[Figure]:
    """Measure event -> write, and how long the API server takes, from the operator's numbers, with simulated Pods."""
    world = Executions(kubectl)
    for rate in RATES:
        before = operator.read("/metrics")
        result = run_load(kubectl, rate, 20, lambda path, tell: watching(world, path, tell))
        after = operator.read("/metrics")
        share = result.operator_share(operator.pid) * 100
        about = f"{rate}/s asked for, {result.rate:.0f}/s reached, {share:.0f} % CPU"
        for what, histogram, goal in (
            (f"event -> write sent, {about}", "oet_operator_reaction_seconds", "p99 <= 25 ms at 100/s"),
            (f"write sent -> API server's answer, {rate}/s", "oet_operator_request_seconds", ""),
        ):
            middle, high = (compute_quantile(histogram, before, after, quantile) * 1e3 for quantile in (0.5, 0.99))
            yield Figure(what, middle, high, "p50, p99", goal=goal)


def measure_memory(kubectl: Kubectl, folder: Path) -> Figure:
    """Measure the operator's memory with many executions that are over, in MiB: PSS now, and the highest RSS."""
    fill_with_finished(kubectl, FINISHED)
    with running_operator(
        kubectl, folder / "memory.log", OET_HISTORY_LIMIT=str(10 * FINISHED), OET_LEASE_SECONDS=LEASE_SECONDS
    ) as operator:
        wanted = f'oet_operator_executions{{state="COMPLETE"}} {float(FINISHED)}'
        wait_until(lambda: wanted in operator.read("/metrics"), 60, "not all are known")
        time.sleep(5.0)  # Until the watch has told of all of them too.
        peak = next(
            line for line in Path(f"/proc/{operator.pid}/status").read_text().splitlines() if line.startswith("VmHWM")
        )
        now = read_pss_kib(operator.pid) / 1024
    return Figure(
        f"operator with {FINISHED} finished, MiB", now, int(peak.split()[1]) / 1024, "now, peak", goal="< 120"
    )


def measure_aborts(bench: Bench, is_prearmed: bool) -> Figure:
    """Time stop with abort, from the request to the first line of the abort script's main, over REST."""
    samples, path = [], "/procedures/?armed=true&state=READY"
    for _ in range(ROUNDS):
        procedure = bench.client.prepare(PREPARED_SCRIPT)
        bench.client.start(procedure)
        bench.client.wait_for(procedure, State.RUNNING)
        if is_prearmed:
            wait_until(lambda: any("purpose" in one for one in bench.client.ask("GET", path)), 60, "nothing is armed")
        begun = time.monotonic()
        bench.client.ask("PUT", f"/procedures/{procedure}", {"state": State.STOPPED, "abort": True})
        wait_until(lambda: "aborted_by" in bench.client.get(procedure), 30, "it is not said who aborted")  # noqa: B023
        aborter = bench.client.get(procedure)["aborted_by"]
        pods = [found["status"] for found in bench.world.list().values() if "status" in found]
        pod = next(status["podName"] for status in pods if status.get("procedureId") == aborter)
        samples.append((bench.read_first_line(pod) - begun) * 1e3)
    name = f"stop+abort -> first line of abort's main{', held READY' * is_prearmed} (max {max(samples):.0f})"
    return summarise(name, samples, goal="p99 <= 1000 ms" if is_prearmed else "")


@contextmanager
def aborting(kubectl: Kubectl, folder: Path, is_prearmed: bool) -> Iterator[Bench]:
    """Run operator and server with an abort script that says when it begins."""
    source = f"def init(subarray_id): pass\ndef main():\n    {FIRST_LINE}"
    kubectl.run("create", "configmap", "scripts", f"--from-literal=abort.py={source}")
    mount = {"name": "script", "volumeMounts": [{"name": "scripts", "mountPath": "/scripts"}]}
    volume = {"name": "scripts", "configMap": {"name": "scripts"}}
    template = folder / "template.json"
    template.write_text(json.dumps({"spec": {"volumes": [volume], "containers": [mount]}}))
    environ = {
        "OET_POD_TEMPLATE_FILE": str(template),
        "OET_PREARM_ABORT": str(is_prearmed),
        "SCRIPTS_LOCATION": "/scripts",
    }
    settings = {"OET_ENGINE": "kubernetes", "KUBECONFIG": str(kubectl.kubeconfig)}
    server = Server(folder, KUBE_NAMESPACE=str(kubectl.namespace), **settings)
    with running_operator(kubectl, folder / "aborts.log", **environ) as operator:
        server.start()
        try:
            yield Bench(kubectl, operator, server)
        finally:
            server.stop()


PARTS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "cold": measure_cold,
    "prepared": measure_prepared,
    "writes": measure_writes,
}


def collect_beside_a_server(admin: Kubectl, folder: Path, parts: set[str]) -> Iterator[Figure]:
    """Run the measurements that need a REST server."""
    with making_namespace(admin) as kubectl:
        prepare_namespace(kubectl)
        settings = {"OET_ENGINE": "kubernetes", "KUBECONFIG": str(kubectl.kubeconfig)}
        server = Server(folder, KUBE_NAMESPACE=str(kubectl.namespace), **settings)
        with running_operator(
            kubectl, folder / "operator.log", OET_HISTORY_LIMIT="100000", OET_LEASE_SECONDS=LEASE_SECONDS
        ) as operator:
            server.start()
            try:
                bench = Bench(kubectl, operator, server)
                for name, measure in PARTS.items():
                    if not parts or name in parts:
                        yield from measure(bench)
                bench.client.close()
            finally:
                server.stop()


def collect(admin: Kubectl, folder: Path, parts: set[str]) -> Iterator[Figure]:
    """Run the measurements of the named parts, all if there are none."""
    if not parts or parts & PARTS.keys():
        yield from collect_beside_a_server(admin, folder, parts)
    if not parts or "load" in parts:
        # No REST server: it would ask for the logs of Pods that do not run.
        with making_namespace(admin) as kubectl:
            prepare_namespace(kubectl)
            log, lasting = folder / "load.log", {"OET_HISTORY_LIMIT": "100000", "OET_LEASE_SECONDS": LEASE_SECONDS}
            with running_operator(kubectl, log, **lasting) as operator:
                yield from measure_load(kubectl, operator)
    for is_prearmed in (False, True) if not parts or "aborts" in parts else ():
        with making_namespace(admin) as kubectl:
            prepare_namespace(kubectl)
            with aborting(kubectl, folder, is_prearmed) as bench:
                yield measure_aborts(bench, is_prearmed)
    if not parts or "memory" in parts:
        with making_namespace(admin) as kubectl:
            prepare_namespace(kubectl)
            yield measure_memory(kubectl, folder)


def main() -> None:
    """Measure, print the table and write build/bench-cluster.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="what to measure; nothing: everything")
    parts = set(parser.parse_args().parts)
    print(f"{'milliseconds unless said':70} {'':>17}   {'which are':10} of its rival   goal", flush=True)
    figures = []
    with reaching_cluster(Places.from_environ(os.environ)) as admin, TemporaryDirectory() as folder:
        define_executions(admin)
        for figure in collect(admin, Path(folder), parts):
            figures.append(figure)
            ratio = f"{figure.ratio} {figure.rival_p50:.0f}" if figure.rival else ""
            numbers = f"{figure.middle:8.1f} {figure.high:8.1f}   {figure.numbers:10}"
            print(f"{figure.name:70} {numbers} {ratio:14} {figure.goal}", flush=True)
    report = {"rounds": ROUNDS, "load_average": os.getloadavg(), "figures": [asdict(figure) for figure in figures]}
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "bench-cluster.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
