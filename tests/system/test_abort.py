"""Stop with abort, as clients of the server meet it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from oet_support import BASE, Client, Refused, Server, Stream, wait_until
from oet_support_git import Origin

WAITING = "import time\ndef main(*args, **kwargs):\n    time.sleep(600)"
ABORT = "def init(subarray_id): pass\ndef main(): print('aborted')"
ROUNDS, COMPETITORS = 100, 4


@contextmanager
def _running(folder: Path, abort: str, **settings: str) -> Iterator[Server]:
    (folder / "abort.py").write_text(abort)
    server = Server(folder, OET_SPARES="2", SCRIPTS_LOCATION=str(folder), **settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _begin(client: Client) -> int:
    """Have a script run on subarray 2 that waits to be stopped; returns its procedure id."""
    procedure = client.prepare(WAITING, 2)
    client.start(procedure)
    client.wait_for(procedure, "RUNNING")
    return procedure


def _abort(client: Client, procedure: int) -> Any:
    return client.ask("PUT", f"/procedures/{procedure}", {"state": "STOPPED", "abort": True})


def _compete(server: Server, done: threading.Event, subarray: int, others: set[int]) -> None:
    """Prepare a script and start it as soon as the subarray is free, again and again; put down what other starts are answered."""
    client = Client(server.port)
    while not done.is_set():
        procedure = client.prepare(WAITING, subarray)
        while not done.is_set():
            try:
                client.start(procedure)
            except Refused as refused:
                others.add(refused.status)
                done.wait(0.002)
            else:
                break
    client.close()


def _find_running(client: Client) -> int | None:
    found = [one["id"] for one in client.ask("GET", "/procedures/?state=RUNNING") if "purpose" not in one]
    return found[0] if found else None


@pytest.mark.serial
@pytest.mark.parametrize("prearmed", ["false", "true"])
def test_hundred_aborts_under_competing_starts_always_run_next(tmp_path: Path, prearmed: str) -> None:
    settings = {"OET_PREARM_ABORT": prearmed, "OET_HISTORY_LIMIT": "1000"}
    with _running(tmp_path, ABORT, **settings) as server:
        client, done = Client(server.port), threading.Event()
        others: set[int] = set()
        threads = [
            threading.Thread(target=_compete, args=(server, done, 3, others), daemon=True) for _ in range(COMPETITORS)
        ]
        for thread in threads:
            thread.start()
        try:
            stopped = []
            for _ in range(ROUNDS):
                wait_until(lambda: _find_running(client) is not None, 60, "nobody was started")
                target = _find_running(client)
                assert target is not None
                assert "aborted subarray activity" in _abort(client, target)["abort_message"]
                stopped.append(target)
        finally:
            done.set()
            for thread in threads:
                thread.join(60)
        order, aborted_by = _read_runs(client)
        client.close()
    assert len(set(stopped)) == ROUNDS
    assert others == {409}
    for target in stopped:
        assert order[order.index(target) + 1] == aborted_by[target]


def _read_runs(client: Client) -> tuple[list[int], dict[int, int]]:
    """Return all procedures whose main began, in that order, and which one aborted after which."""
    begun, aborted_by = [], {}
    for one in client.ask("GET", "/procedures/"):
        begun += [(at, one["id"]) for state, at in one["history"]["process_states"] if state == "RUNNING"]
        if "aborted_by" in one:
            aborted_by[one["id"]] = one["aborted_by"]
    return [number for _, number in sorted(begun)], aborted_by


@pytest.mark.parametrize("prearmed", ["false", "true"])
def test_abort_that_fails_is_an_alarm_everywhere(tmp_path: Path, prearmed: str) -> None:
    abort = "def init(subarray_id): pass\ndef main(): raise RuntimeError('the subarray refused')"
    with _running(tmp_path, abort, OET_PREARM_ABORT=prearmed) as server:
        client, stream = Client(server.port), Stream(server.port)
        target = _begin(client)
        done = subprocess.run(
            [Path(sys.executable).with_name("oet"), "procedure", "stop", f"--pid={target}"],
            env={"OET_URL": f"http://127.0.0.1:{server.port}{BASE}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (8, "")
        assert "ALARM" in done.stderr
        assert "the subarray refused" in done.stderr
        told = stream.wait_for(lambda entry: entry["topic"] == "abort.failed")
        assert (told["msg_src"], told["severity"], told["subarray"]) == (str(target), "ALARM", 2)
        found = client.get(target)
        assert found["state"] == "STOPPED"
        assert "ALARM" in found["alarm"]
        assert found["alarm"] in found["message"]
        stream.close()
        client.close()


@pytest.mark.parametrize("kwargs", [{}, {"subarray_id": None}])
def test_abort_of_nothing_is_refused_before_anything_is_stopped(client: Client, kwargs: dict[str, Any]) -> None:
    target = client.prepare("import time\ndef init(**kwargs): pass\n" + WAITING, None, **kwargs)
    client.start(target)
    client.wait_for(target, "RUNNING")
    with pytest.raises(Refused) as refused:
        _abort(client, target)
    assert refused.value.status == 409
    assert "stop it without abort" in refused.value.body["detail"]
    assert client.get(target)["state"] == "RUNNING"
    client.stop(target)


@pytest.mark.parametrize("subarray", [[1, 2], "1,2"])
def test_several_subarrays_are_refused_when_they_are_named(client: Client, subarray: object) -> None:
    with pytest.raises(Refused) as refused:
        client.create(WAITING, None, subarray_id=subarray)
    assert refused.value.status == 422


def test_held_abort_script_is_shown_only_to_who_asks_and_cannot_be_started(tmp_path: Path) -> None:
    with _running(tmp_path, ABORT, OET_PREARM_ABORT="true") as server:
        client = Client(server.port)
        target = client.prepare(WAITING, 2)

        def find_armed() -> list[Any]:
            found = client.ask("GET", "/procedures/?armed=true")
            return [one for one in found if one.get("purpose") == "Abort" and one["state"] == "READY"]

        wait_until(find_armed, 30, "no abort script is held")
        assert [one["id"] for one in client.ask("GET", "/procedures/")] == [target]
        (armed,) = find_armed()
        with pytest.raises(Refused) as refused:
            client.start(armed["id"])
        assert refused.value.status == 409
        client.close()


def test_server_that_is_killed_arms_anew_and_aborts(tmp_path: Path) -> None:
    with _running(tmp_path, ABORT, OET_PREARM_ABORT="true") as server:
        for _ in range(2):
            client = Client(server.port)
            target = _begin(client)
            wait_until(
                lambda: [
                    one
                    for one in client.ask("GET", "/procedures/?armed=true&state=READY")  # noqa: B023 -- called at once
                    if one.get("purpose") == "Abort"
                ],
                30,
                "no abort script is held",
            )
            server.kill()
            client.close()
            server.start()
        client = Client(server.port)
        target = _begin(client)
        assert "aborted subarray activity" in _abort(client, target)["abort_message"]
        client.close()


def test_wrong_name_of_the_abort_script_keeps_the_server_from_starting(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "oet_api"],
        env={"OET_ABORT_SCRIPT": "abort.py", "OET_STATE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "abort_script" in done.stderr
    assert "git+URL@VERSION#PATH" in done.stderr or "file:///PATH" in done.stderr


def test_abort_script_may_be_another_file(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("def init(subarray_id): pass\ndef main(): print('another')")
    with _running(tmp_path, "1 / 0", OET_ABORT_SCRIPT=f"file://{tmp_path}/other.py") as server:
        client = Client(server.port)
        target = _begin(client)
        assert "aborted subarray activity" in _abort(client, target)["abort_message"]
        client.close()


def test_abort_script_may_be_in_a_git_repository(tmp_path: Path) -> None:
    origin = Origin(tmp_path / "repository")
    origin.commit({"scripts/abort.py": ABORT})
    settings = {"OET_GIT_PROTOCOLS": "file", "OET_GIT_CACHE_DIR": str(tmp_path / "cache")}
    uri = f"git+{origin.url}@main#scripts/abort.py"
    with _running(tmp_path, "1 / 0", OET_ABORT_SCRIPT=uri, OET_PREARM_ABORT="true", **settings) as server:
        client = Client(server.port)
        target = _begin(client)
        assert "aborted subarray activity" in _abort(client, target)["abort_message"]
        aborter = client.get(client.get(target)["aborted_by"])
        assert (aborter["state"], len(aborter["commit"])) == ("COMPLETE", 40)
        client.close()
