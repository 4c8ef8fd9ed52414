"""Load for the operator without Pods that cost anything: executions are created at a rate, and their Pods and runners simulated.

The Pods name a node that does not exist, so that no scheduler and no kubelet looks at them; whatever node and runner would write
is written here.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from oet_cluster.kubectl import Kubectl

from oet_crds.names import (
    EXECUTION_NAME_ANNOTATION,
    GROUP,
    KIND,
    SCRIPT_CONTAINER,
    VERSION,
)
from oet_crds.reasons import Outcome, Reason
from oet_crds.states import DesiredState, State
from oet_operator.kube.__main__ import read_credentials
from oet_operator.kube.client import KubeClient
from oet_operator.kube.errors import ApiMissingError
from oet_operator.kube.paths import Paths

__all__ = ["LoadResult", "compute_quantile", "fill_with_finished", "run_load"]

Watch = Callable[[str, Callable[[Any], None]], AbstractContextManager[None]]

NODE = "simulated"
SOURCE = "import time\n" + "# a line of a usual script, about this long\n" * 60 + "def main(): pass\n"
PREPARATION = (State.IDLE, State.LOADING, State.IDLE, State.READY, State.RUNNING)
PARALLEL = 24
"""Requests under way at once."""
START_SECONDS = 0.5
"""Until a runner says its first word: as a container at its quickest."""


@dataclass
class LoadResult:
    """What was reached.

    Attributes:
        rate: Executions that ended per second.
        cpu_seconds: CPU time of processes before the load.
        seconds: How long it took.
    """

    rate: float = 0.0
    seconds: float = 0.0
    cpu_seconds: dict[int, float] = field(default_factory=dict)

    def operator_share(self, pid: int) -> float:
        """Return the share of one core that a process used."""
        return (read_cpu_seconds(pid) - self.cpu_seconds.get(pid, 0.0)) / self.seconds


def read_cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read_all_cpu_seconds() -> dict[int, float]:
    """Return the CPU time of all processes."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                found[int(entry.name)] = read_cpu_seconds(int(entry.name))
            except OSError:
                continue
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _build_execution(name: str, **spec: Any) -> dict[str, Any]:
    body = {"script": {"inline": {"source": SOURCE}}, **spec}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": {"name": name}, "spec": body}


def _build_transitions(*states: State) -> list[dict[str, Any]]:
    return [{"seq": number, "state": state, "time": _now()} for number, state in enumerate(states, 1)]


def _build_exit() -> dict[str, Any]:
    return {
        "outcome": Outcome.COMPLETE,
        "reason": Reason.COMPLETED,
        "message": "main returned",
        "time": _now(),
        "exitCode": 0,
    }


async def _open(kubectl: Kubectl) -> tuple[KubeClient, Paths]:
    os.environ["KUBECONFIG"] = str(kubectl.kubeconfig)
    client = KubeClient(read_credentials)
    await client.open()
    return client, Paths(str(kubectl.namespace))


class Simulation:
    """Nodes and runners of all script Pods of a namespace."""

    def __init__(self, client: KubeClient, paths: Paths) -> None:
        self._client = client
        self._paths = paths
        self._seen: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(PARALLEL)
        self.ended = 0

    def on_pod(self, event: Any) -> None:
        """Begin the life of a Pod that is seen first."""
        metadata = event["object"]["metadata"]
        if event["type"] == "ADDED" and metadata["uid"] not in self._seen:
            self._seen.add(metadata["uid"])
            task = asyncio.create_task(self._live(metadata["name"], metadata["annotations"][EXECUTION_NAME_ANNOTATION]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _live(self, pod: str, name: str) -> None:
        await asyncio.sleep(START_SECONDS)
        runner: dict[str, Any] = {"claim": pod, "transitions": _build_transitions(*PREPARATION)}
        await self._patch(self._paths.status(name), {"runner": runner})
        await asyncio.sleep(0.2)
        runner = {"transitions": _build_transitions(*PREPARATION, State.READY), "exit": _build_exit()}
        await self._patch(self._paths.status(name), {"runner": runner})
        ended = {"exitCode": 0, "reason": "Completed", "startedAt": _now()[:19] + "Z", "finishedAt": _now()[:19] + "Z"}
        container = {"name": SCRIPT_CONTAINER, "state": {"terminated": ended}, "ready": False, "restartCount": 0}
        container |= {"image": "i", "imageID": ""}
        await self._patch(f"{self._paths.pod(pod)}/status", {"phase": "Succeeded", "containerStatuses": [container]})
        self.ended += 1

    async def _patch(self, path: str, status: dict[str, Any]) -> None:
        async with self._slots:
            # Under overload the cluster itself removes Pods whose node does not exist.
            with suppress(ApiMissingError):
                await self._client.patch(path, {"status": status})


async def _run_load(kubectl: Kubectl, rate: int, seconds: float, watch: Watch) -> LoadResult:
    client, paths = await _open(kubectl)
    simulation = Simulation(client, paths)
    loop = asyncio.get_running_loop()
    with watch(paths.pods, lambda event: loop.call_soon_threadsafe(simulation.on_pod, event)):
        result = await _bring(client, paths, simulation, rate, seconds)
    await client.close()
    return result


async def _bring(client: KubeClient, paths: Paths, simulation: Simulation, rate: int, seconds: float) -> LoadResult:
    """Create executions at a rate, and wait until all have ended."""
    template = {"spec": {"nodeName": NODE}}
    result = LoadResult(cpu_seconds=read_all_cpu_seconds())
    slots, begun, posts = asyncio.Semaphore(PARALLEL), time.monotonic(), []
    count = int(rate * seconds)

    async def create(number: int) -> None:
        async with slots:
            await client.post(paths.executions, _build_execution(f"load-{rate}-{number}", podTemplate=template))

    for number in range(count):
        await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
        posts.append(asyncio.create_task(create(number)))
    await asyncio.gather(*posts)
    deadline = time.monotonic() + 120
    while simulation.ended < count and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    result.seconds = time.monotonic() - begun
    result.rate = simulation.ended / result.seconds
    return result


def run_load(kubectl: Kubectl, rate: int, seconds: float, watch: Watch) -> LoadResult:
    """Create executions at a rate and simulate their Pods, until all have ended; `watch` tells of objects from a thread."""
    return asyncio.run(_run_load(kubectl, rate, seconds, watch))


async def _fill(kubectl: Kubectl, count: int) -> None:
    client, paths = await _open(kubectl)
    slots = asyncio.Semaphore(PARALLEL)

    async def fill_one(number: int) -> None:
        name = f"old-{number}"
        history = _build_transitions(State.CREATING, *PREPARATION, State.READY, State.COMPLETE)
        runner = {"claim": name, "transitions": history[1:-1], "exit": _build_exit()}
        status = {"state": State.COMPLETE, "procedureId": number, "history": history, "runner": runner, "podName": name}
        async with slots:
            await client.post(paths.executions, _build_execution(name, desiredState=DesiredState.RUNNING))
            await client.patch(paths.status(name), {"status": status})

    await asyncio.gather(*(fill_one(number) for number in range(1, count + 1)))
    await client.close()


def fill_with_finished(kubectl: Kubectl, count: int) -> None:
    """Create executions that are over, as an operator would have left them."""
    asyncio.run(_fill(kubectl, count))


def compute_quantile(name: str, before: str, after: str, share: float) -> float:
    """Return a quantile of a histogram between two readings of the numbers, in seconds: within a bucket, in proportion.

    Args:
        name: Of the histogram; of one with the label `verb` the PATCHes are taken.
        before: The first reading.
        after: The second.
        share: Which quantile.
    """

    def read(text: str) -> dict[float, float]:
        found = re.findall(name + r'_bucket\{le="([^"]+)"(?:,verb="PATCH")?\} ([\d.]+)', text)
        return {float(bound): float(count) for bound, count in found}

    old, new = read(before), read(after)
    counts = {bound: new[bound] - old.get(bound, 0.0) for bound in sorted(new)}
    wanted = share * max(counts.values(), default=0.0)
    low, below = 0.0, 0.0
    for bound, count in counts.items():
        if count >= wanted and count > below:
            return low if bound == float("inf") else low + (bound - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return float("nan")
