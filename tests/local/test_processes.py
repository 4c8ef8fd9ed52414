"""Orphans and leftovers: found, killed, and said to be gone only when they are."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import uuid

import pytest
from oet_support import find_marked, wait_until

from oet_operator.local.processes import ENGINE_VARIABLE, kill_leftovers

# A subreaper of its own, so that the test's own process keeps its children; it prints how many rounds it needed.
ENGINE = """
    import os, subprocess, sys, time
    from oet_operator.local.processes import become_subreaper, kill_and_reap_orphans
    become_subreaper()
    runner = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
    runner.stdout.readline()
    bystander = subprocess.Popen(["sleep", "600"])
    runner.kill()
    runner.wait()
    deadline = time.monotonic() + 20
    while kill_and_reap_orphans({bystander.pid}) and time.monotonic() < deadline:
        time.sleep(0.002)
    print("bystander lives" if bystander.poll() is None else "bystander was killed")
    bystander.kill()
    bystander.wait()
"""

FAMILIES = {
    "children": "children(0)",
    "grandchildren": "children(2)",
    "detached": "os.fork() or (os.setsid(), children(1), time.sleep(600))",
}

FAMILY = """
import os, subprocess, sys, time
def children(depth):
    for _ in range(2):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    if depth and os.fork() == 0:
        children(depth - 1)
        time.sleep(600)
{start}
time.sleep(0.1)
print("up", flush=True)
time.sleep(600)
"""

WAITER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


@pytest.mark.parametrize("family", FAMILIES)
def test_orphans_of_a_dead_runner_are_killed_and_nobody_else(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = uuid.uuid4().hex
    monkeypatch.setenv("SCRIPT_MARK", mark)
    source = FAMILY.format(start=FAMILIES[family])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ENGINE), source], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "bystander lives"
    assert find_marked(mark) == []


@pytest.mark.parametrize("place", ["environment", "command line"])
def test_leftovers_of_an_earlier_engine_are_counted_and_killed_and_own_ones_are_not(place: str) -> None:
    store = uuid.uuid4().hex
    processes = {}
    for engine in ("earlier", "own"):
        mark = f"{ENGINE_VARIABLE}={store}:{engine}"
        # A supervisor hides its environment from all but root.
        words = ["env", mark, "sleep", "600"] if place == "environment" else [*WAITER, "--mark", mark]
        processes[engine] = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        if place == "environment":
            wait_until(lambda: len(find_marked(store)) == 2, 20, "the processes do not run")
        else:
            assert all(process.stdout and process.stdout.readline() for process in processes.values())
        own = f"{store}:own"
        assert kill_leftovers(store, own, kill=False) == 1
        assert processes["earlier"].poll() is None
        assert kill_leftovers(store, own, kill=True) == 1
        processes["earlier"].wait(20)
        assert kill_leftovers(store, own, kill=True) == 0
        assert processes["own"].poll() is None
    finally:
        for process in processes.values():
            process.kill()
            process.wait(20)
            assert process.stdout is not None
            process.stdout.close()
