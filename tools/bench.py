"""Measure OET beside its rivals, in one run on one machine: `make bench`.

Every figure is taken from outside, over REST, on the real server with its embedded engine. The rivals are what a user would
do without OET: start `python3 script.py`, with the same interpreter. Prints medians and 95th percentiles, and writes
build/bench.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
from oet_support import Client, Server, Stream, find_descendants, running_server, wait_until  # noqa: E402

ROUNDS = int(os.environ.get("OET_BENCH_ROUNDS", "100"))
"""Repetitions of a measurement: enough for a 95th percentile, few enough for a run of about two minutes."""

SCRIPT = """\
import time
def init(*args, **kwargs):
    pass
def main(*args, **kwargs):
    begun = time.monotonic()
    import oet
    oet.announce(str(begun))
    while True:
        time.sleep(0.01)
"""

ABORT = """\
import time
import oet
def init(subarray_id):
    pass
def main():
    oet.announce(str(time.monotonic()))
"""

FIRST_LINE = "import time, sys; sys.stdout.write(str(time.monotonic()))"


@dataclass
class Figure:
    """One measurement: milliseconds unless the name says otherwise.

    Attributes:
        middle: The median, unless `numbers` says otherwise.
        high: The 95th percentile, unless `numbers` says otherwise.
        numbers: What the two are.
    """

    name: str
    middle: float
    high: float
    numbers: str = "p50, p95"
    rival: str = ""
    rival_p50: float = 0.0
    goal: str = ""

    @property
    def ratio(self) -> str:
        """The median in units of the rival's."""
        return f"{self.middle / self.rival_p50:.2f}x" if self.rival_p50 else ""


def summarise(name: str, samples: list[float], **about: Any) -> Figure:
    """Return median and 95th percentile of samples in milliseconds."""
    ordered = sorted(samples)
    return Figure(name, statistics.median(ordered), ordered[int(len(ordered) * 0.95)], **about)


def measure_process_starts() -> tuple[list[float], list[float]]:
    """Time `python3 script.py` from its start to its first line, and `python3 -c pass` to its end."""
    first_lines, ends = [], []
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "script.py")
        script.write_text(FIRST_LINE)
        for _ in range(max(20, ROUNDS // 2)):
            begun = time.monotonic()
            done = subprocess.run([sys.executable, str(script)], capture_output=True, check=True)
            first_lines.append((float(done.stdout) - begun) * 1e3)
            begun = time.monotonic()
            subprocess.run([sys.executable, "-c", "pass"], check=True)
            ends.append((time.monotonic() - begun) * 1e3)
    return first_lines, ends


def measure_lifecycle(port: int) -> tuple[list[float], list[float], list[float]]:
    """Time submit -> READY, start -> first line of main, and stop -> answer, over REST."""
    client, stream = Client(port), Stream(port)
    submits, starts, stops = [], [], []
    for _ in range(ROUNDS):
        begun = time.monotonic()
        procedure = client.create(SCRIPT)
        stream.wait_for(lambda e: e.get("new_state") == "READY" and e["msg_src"] == str(procedure))  # noqa: B023
        submits.append((time.monotonic() - begun) * 1e3)
        begun = time.monotonic()
        client.ask("PUT", f"/procedures/{procedure}", {"state": "RUNNING", "script_args": {"main": {"args": []}}})
        said = stream.wait_for(lambda e: e["topic"] == "script.announce" and e["msg_src"] == str(procedure))  # noqa: B023
        starts.append((float(said["msg"]) - begun) * 1e3)
        begun = time.monotonic()
        client.ask("PUT", f"/procedures/{procedure}", {"state": "STOPPED"})
        stops.append((time.monotonic() - begun) * 1e3)
        time.sleep(0.15)  # A person's pace: the engine replaces the used spare meanwhile.
    stream.close()
    return submits, starts, stops


def measure_aborts(server: Server, is_prearmed: bool) -> list[float]:
    """Time stop with abort, from the request to the first line of the abort script's main, over REST."""
    client, samples, path = Client(server.port), [], "/procedures/?armed=true&state=READY"
    for _ in range(ROUNDS):
        procedure = client.prepare(SCRIPT)
        client.start(procedure)
        client.wait_for(procedure, "RUNNING")
        if is_prearmed:
            wait_until(lambda: [one for one in client.ask("GET", path) if "purpose" in one], 60, "no abort is armed")
        else:
            time.sleep(0.15)  # A person's pace: the engine replaces the used spare meanwhile.
        begun = time.monotonic()
        client.ask("PUT", f"/procedures/{procedure}", {"state": "STOPPED", "abort": True})
        aborter = client.get(procedure)["aborted_by"]
        said = [one["payload"] for one in client.ask("GET", f"/procedures/{aborter}/events?kind=message")]
        samples.append((float(said[0]["msg"]) - begun) * 1e3)
    client.close()
    return samples


def summarise_aborts() -> Iterator[Figure]:
    """Measure aborts on servers of their own, with abort scripts held READY and without."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "abort.py").write_text(ABORT)
        for word, is_prearmed in (("", False), (", held READY", True)):
            environ = {"SCRIPTS_LOCATION": folder, "OET_PREARM_ABORT": str(is_prearmed)}
            with running_server(**environ) as server:
                samples = sorted(measure_aborts(server, is_prearmed))
            p99 = samples[int(len(samples) * 0.99)]
            name = f"stop+abort -> first line of abort's main{word} (p99 {p99:.1f} ms)"
            yield summarise(name, samples, goal="p99 <= 1000 ms" if is_prearmed else "")


def measure_requests(port: int, path: str, seconds: float = 3.0) -> list[float]:
    """Time GET requests one after the other on one connection."""
    client, samples = Client(port), []
    until = time.monotonic() + seconds
    while (begun := time.monotonic()) < until:
        client.ask("GET", path)
        samples.append((time.monotonic() - begun) * 1e3)
    return samples


def read_pss_kib(pid: int) -> int:
    """Return a process's proportional share of memory, in KiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def find_runner_memory_mib(server: int) -> float:
    """Return the memory of all processes below the server that belong to runners, in MiB."""
    total = 0
    for pid in find_descendants(server):
        with contextlib.suppress(OSError):
            if b"oet_runner" in Path(f"/proc/{pid}/cmdline").read_bytes():
                total += read_pss_kib(pid)
    return total / 1024


def measure_memory() -> tuple[Figure, Figure]:
    """Measure memory per spare and per prepared script, beside a bare interpreter that waits."""
    bare = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    time.sleep(0.3)
    bare_mib = read_pss_kib(bare.pid) / 1024
    bare.communicate(b"\n")
    count = 16
    with running_server(OET_SPARES=str(count)) as server:
        time.sleep(3.0)  # All spares are up after 16 x 50 ms; what is measured does not change after.
        spare = find_runner_memory_mib(server.pid) / count
    with running_server(OET_SPARES="0") as server:
        client = Client(server.port)
        for procedure in [client.create(SCRIPT, number) for number in range(count)]:
            client.wait_for(procedure, "READY")
        prepared = find_runner_memory_mib(server.pid) / count
    about = {"rival": "python3 waiting, MiB", "rival_p50": bare_mib}
    return (
        Figure("memory per spare, MiB (PSS)", spare, spare, **about),  # type: ignore[arg-type]
        Figure("memory per prepared script, MiB (PSS)", prepared, prepared, **about),  # type: ignore[arg-type]
    )


def measure_crowded(port: int) -> list[float]:
    """Time GET /procedures/ with 64 prepared scripts and 200 open streams."""
    client = Client(port)
    for procedure in [client.create(SCRIPT, number) for number in range(64)]:
        client.wait_for(procedure, "READY")
    streams = [Stream(port) for _ in range(200)]
    samples = measure_requests(port, "/procedures/", 5.0)
    for stream in streams:
        stream.close()
    return samples


def measure_help() -> list[float]:
    """Time `oet --help`."""
    oet, samples = Path(sys.executable).with_name("oet"), []
    for _ in range(20):
        begun = time.monotonic()
        subprocess.run([oet, "--help"], check=True, stdout=subprocess.DEVNULL)
        samples.append((time.monotonic() - begun) * 1e3)
    return samples


def collect() -> Iterator[Figure]:
    """Measure everything, in order."""
    first_lines, ends = measure_process_starts()
    first_line, end = statistics.median(first_lines), statistics.median(ends)
    yield summarise("rival: python3 script.py -> first line", first_lines)
    yield summarise("rival: python3 -c pass", ends)
    rival = {"rival": "python3 script.py -> first line", "rival_p50": first_line}
    with running_server() as server:
        measure_lifecycle(server.port)  # Once for warm caches, as a server that runs for days has.
        submits, starts, stops = measure_lifecycle(server.port)
        yield summarise("submit -> READY", submits, goal="p50 <= 0.45x", **rival)
        yield summarise("start -> first line of main", starts, goal="p95 <= 3 ms", **rival)
        yield summarise("stop -> certain answer", stops, goal="p95 <= 10 ms", **rival)
        procedure = Client(server.port).prepare(SCRIPT)
        one = measure_requests(server.port, f"/procedures/{procedure}")
        yield summarise(f"GET of one procedure ({len(one) / 3:.0f} requests/s on one connection)", one, **rival)
    with running_server() as server:
        crowded = sorted(measure_crowded(server.port))
        p99 = crowded[int(len(crowded) * 0.99)]
        name = f"GET /procedures/, 64 prepared, 200 streams (p99 {p99:.1f} ms)"
        yield summarise(name, crowded, goal="p99 < 50 ms", **rival)
    yield from summarise_aborts()
    yield from measure_memory()
    yield summarise("oet --help", measure_help(), rival="python3 -c pass", rival_p50=end)


PARTS: dict[str, Callable[[], Iterator[Figure]]] = {"aborts": summarise_aborts}
"""What can be measured by itself."""


def main() -> None:
    """Print the table and write build/bench.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="only this part")
    part = parser.parse_args().only
    figures = []
    print(f"{'milliseconds unless said':62} {'p50':>8} {'p95':>8}  {'of rival':>8}  goal", flush=True)
    for figure in PARTS[part]() if part else collect():
        figures.append(figure)
        print(f"{figure.name:62} {figure.middle:8.2f} {figure.high:8.2f}  {figure.ratio:>8}  {figure.goal}", flush=True)
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    (build / "bench.json").write_text(json.dumps([asdict(figure) for figure in figures], indent=1))


if __name__ == "__main__":
    main()
