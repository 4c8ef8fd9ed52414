"""The subarray lock, as clients meet it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from oet_support import Client, Refused, Server

WAITING = "import time\ndef main(*args, **kwargs):\n    time.sleep(600)"


def test_two_subarrays_run_at_once(client: Client) -> None:
    first, second = client.prepare(WAITING, 1), client.prepare(WAITING, 2)
    client.start(first)
    client.start(second)
    client.wait_for(first, "RUNNING")
    client.wait_for(second, "RUNNING")
    client.stop(first)
    assert client.get(second)["state"] == "RUNNING"
    client.stop(second)


def _race(server: Server, procedures: list[int]) -> list[int]:
    """Start procedures at the same moment; return the statuses of the answers."""
    barrier = threading.Barrier(len(procedures))
    statuses = []

    def start(procedure: int) -> None:
        client = Client(server.port)
        barrier.wait(30)
        try:
            client.start(procedure)
            statuses.append(200)
        except Refused as refused:
            statuses.append(refused.status)
        client.close()

    threads = [threading.Thread(target=start, args=[procedure]) for procedure in procedures]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return statuses


def test_fifty_racing_starts_on_one_subarray_run_one(client: Client, server: Server) -> None:
    procedures = [client.create(WAITING, 3) for _ in range(10)]
    for procedure in procedures:
        client.wait_for(procedure, "READY")
    statuses = _race(server, procedures * 5)
    running = [one["id"] for one in client.ask("GET", "/procedures/") if one["state"] == "RUNNING"]
    assert len(running) == 1
    # The one that runs answers 200 to each of its five starts; all others are refused.
    assert sorted(statuses) == [200] * 5 + [409] * 45
    client.stop(running[0])


def test_refused_start_names_the_holder_and_can_be_repeated(client: Client) -> None:
    holder, other = client.prepare(WAITING, 4), client.prepare(WAITING, 4)
    client.start(holder)
    with pytest.raises(Refused) as refused:
        client.start(other)
    assert refused.value.status == 409
    assert refused.value.body["holder"] == holder
    assert f"#{holder}" in refused.value.body["detail"]
    assert client.get(other)["state"] == "READY"
    client.stop(holder)
    client.start(other)
    client.wait_for(other, "RUNNING")
    client.stop(other)


def test_main_runs_once_under_racing_starts(client: Client, server: Server, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    source = f"import time\ndef main():\n    open({str(ran)!r}, 'a').write('x')\n    time.sleep(0.2)"
    procedure = client.prepare(source, 5)
    statuses = _race(server, [procedure] * 20)
    client.wait_for(procedure, "COMPLETE")
    assert ran.read_text() == "x"
    # A start that comes when it is over is refused; none fails in any other way.
    assert set(statuses) <= {200, 409}


def test_execution_without_subarray_holds_no_lock(client: Client) -> None:
    first, second = client.prepare(WAITING, None), client.prepare(WAITING, None)
    client.start(first)
    client.start(second)
    client.wait_for(first, "RUNNING")
    client.wait_for(second, "RUNNING")
    client.stop(first)
    client.stop(second)
