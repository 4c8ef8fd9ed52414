"""Activities on a real server, with scripts that look at what they were given."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oet_support import BASE, Client, Refused, Server, Stream, wait_until
from oet_support_docs import ROOT, read_blocks
from oet_support_git import Origin
from oet_support_postgres import running_postgres
from sqlalchemy import create_engine, make_url, select

from oet_api.oda.postgres import build_tables
from oet_crds.settings import OdaSettings
from oet_crds.topics import Topic

SCRIPT = """
import json, os
SEEN = {}
def init(*args, **kwargs):
    SEEN["init"] = [args, kwargs]
def main(*args, sb_json, sbi_id, **kwargs):
    with open(sb_json) as file:
        document = json.load(file)
    mode = os.stat(sb_json).st_mode & 0o777
    print(json.dumps({**SEEN, "main": [args, kwargs], "sbi": sbi_id, "sbd": document["sbd_id"], "mode": mode, "path": sb_json}))
"""
SLEEP = "import time\ndef main(**_): time.sleep(600)\n"
FAILS = "def main(**_): raise ValueError('broken')\n"


def build_sbd(folder: Path, sbd_id: str = "sbd-1", version: int = 1) -> dict[str, Any]:
    """Return a definition with an activity for each kind of script that the tests need; their files are written."""
    activities = {}
    for name, source in (("observe", SCRIPT), ("sleep", SLEEP), ("fail", FAILS)):
        (folder / f"{name}.py").write_text(source)
        activities[name] = {
            "kind": "filesystem",
            "path": f"file://{folder}/{name}.py",
            "function_args": {
                "init": {"args": [], "kwargs": {"subarray_id": 1}} if name == "observe" else None,
                "main": {"args": [7], "kwargs": {"c": 3}} if name == "observe" else {"kwargs": {"subarray_id": 1}},
            },
        }
    return {
        "interface": "https://schema.skao.int/ska-oso-pdm-sbd/0.1",
        "sbd_id": sbd_id,
        "telescope": "ska_mid",
        "metadata": {"version": version},
        "activities": activities,
    }


def put_sbd(oda: Path, sbd: dict[str, Any]) -> None:
    path = oda / "sbd" / sbd["sbd_id"] / f"{sbd['metadata']['version']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sbd))


@pytest.fixture
def oda(tmp_path: Path) -> Path:
    """The archive of the server."""
    folder = tmp_path / "oda"
    put_sbd(folder, build_sbd(tmp_path))
    return folder


@pytest.fixture
def server(tmp_path: Path, oda: Path) -> Iterator[Server]:
    server = Server(tmp_path, ODA_DATA_DIR=str(oda), OET_SPARES="1", OET_GIT_PROTOCOLS="file")
    server.start()
    yield server
    server.stop()


def run(client: Client, name: str = "observe", **fields: Any) -> dict[str, Any]:
    answer = client.ask("POST", "/activities/", {"sbd_id": "sbd-1", "activity_name": name, **fields})
    assert isinstance(answer, dict)
    return answer


def wait_for(client: Client, activity_id: int, state: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def is_there() -> bool:
        seen.update(client.ask("GET", f"/activities/{activity_id}"))
        return bool(seen["state"] == state)

    wait_until(is_there, 30, f"activity {activity_id} is not {state}")
    return seen


def read_printed(client: Client, procedure_id: int) -> dict[str, Any]:
    entries = client.ask("GET", f"/procedures/{procedure_id}/events?kind=log")
    found = json.loads(entries[0]["payload"]["line"])
    assert isinstance(found, dict)
    return found


def test_activity_runs_the_script_of_the_block_with_its_arguments_and_the_block(
    client: Client, oda: Path, tmp_path: Path
) -> None:
    answer = run(client)
    assert list(answer)[:11] == [
        "id", "pid", "procedure_id", "sbd_id", "activity_name", "prepare_only",
        "script_args", "activity_states", "state", "sbi_id", "uri",
    ]  # fmt: skip
    assert (answer["id"], answer["state"], answer["prepare_only"]) == (1, "REQUESTED", False)
    ended = wait_for(client, 1, "COMPLETE")
    assert [state for state, _ in ended["activity_states"]] == ["REQUESTED", "PREPARED", "RUNNING", "COMPLETE"]
    printed = read_printed(client, 1)
    assert printed["init"] == [[], {"subarray_id": 1}]
    assert printed["main"] == [[7], {"c": 3}]
    assert (printed["sbi"], printed["sbd"], printed["mode"]) == (answer["sbi_id"], "sbd-1", 0o600)
    assert ended["script_args"]["main"]["kwargs"]["sb_json"] == printed["path"]
    assert not os.path.exists(printed["path"])
    (path,) = oda.glob("sbi/*/1.json")
    sbi = json.loads(path.read_text())
    assert (sbi["sbi_id"], sbi["sbd_ref"], sbi["sbd_version"]) == (answer["sbi_id"], "sbd-1", 1)
    assert sbi["activities"][0]["activity_ref"] == "observe"
    assert sbi["activities"][0]["runtime_args"] == []


def test_request_replaces_the_arguments_of_the_functions_that_it_names(client: Client, oda: Path) -> None:
    run(client, script_args={"main": {"kwargs": {"d": 4}}})
    wait_for(client, 1, "COMPLETE")
    printed = read_printed(client, 1)
    assert (printed["init"], printed["main"]) == ([[], {"subarray_id": 1}], [[], {"d": 4}])
    (path,) = oda.glob("sbi/*/1.json")
    call = {"args": [], "kwargs": {"d": 4}}
    asked = json.loads(path.read_text())["activities"][0]["runtime_args"]
    assert asked == [{"function_name": "main", "function_args": call}]


def test_prepared_activity_waits_and_starts_with_its_own_arguments(client: Client) -> None:
    run(client, prepare_only=True)
    wait_for(client, 1, "PREPARED")
    client.start(1)
    wait_for(client, 1, "COMPLETE")
    assert read_printed(client, 1)["main"] == [[7], {"c": 3}]


def test_prepared_activity_started_with_other_arguments_still_finds_its_block(client: Client) -> None:
    sbi_id = run(client, prepare_only=True)["sbi_id"]
    wait_for(client, 1, "PREPARED")
    client.start(1, 8)
    wait_for(client, 1, "COMPLETE")
    printed = read_printed(client, 1)
    assert (printed["main"], printed["sbi"]) == ([[8], {}], sbi_id)


def test_busy_subarray_is_said_and_the_activity_can_be_started_later(client: Client) -> None:
    run(client, "sleep")
    wait_for(client, 1, "RUNNING")
    run(client)
    wait_until(lambda: "message" in client.ask("GET", "/activities/2"), 30, "nothing is said")
    refused = client.ask("GET", "/activities/2")
    assert refused["state"] == "PREPARED"
    assert refused["message"] == "Cannot start PID 2: PID #1 is RUNNING on subarray 1"
    with pytest.raises(Refused, match="PID #1 is RUNNING"):
        client.start(2)
    client.stop(1)
    assert wait_for(client, 1, "STOPPED")
    assert client.ask("GET", "/activities/2")["state"] == "PREPARED"
    client.start(2)
    assert wait_for(client, 2, "COMPLETE")["message"] == "main returned"
    assert read_printed(client, 2)["main"] == [[7], {"c": 3}]


def test_refused_activity_starts_at_the_first_asking_once_the_subarray_is_free(client: Client) -> None:
    run(client, "sleep")
    wait_for(client, 1, "RUNNING")
    run(client)
    wait_until(lambda: "message" in client.ask("GET", "/activities/2"), 30, "nothing is said")
    client.stop(1)
    client.start(2)
    wait_for(client, 2, "COMPLETE")


@pytest.mark.parametrize(
    ("fields", "status", "detail"),
    [
        pytest.param({"sbd_id": "sbd-9"}, 404, "No SBDefinition sbd-9 in", id="definition"),
        pytest.param(
            {"activity_name": "nope"}, 404, "Activity 'nope' not present in the SBDefinition sbd-1", id="activity"
        ),
        pytest.param({"create_env": True}, 409, "create_env is for activities whose script comes from git", id="env"),
        pytest.param(
            {"script_args": {"main": {"kwargs": {"subarray_id": 2}}}}, 409, "only one subarray", id="two_subarrays"
        ),
    ],
)
def test_what_cannot_be_run_is_refused_and_leaves_nothing(
    client: Client, oda: Path, fields: dict[str, Any], status: int, detail: str
) -> None:
    with pytest.raises(Refused, match=detail) as refused:
        client.ask("POST", "/activities/", {"sbd_id": "sbd-1", "activity_name": "observe", **fields})
    assert refused.value.status == status
    assert client.ask("GET", "/procedures/") == []
    assert not list(oda.glob("sbi/*"))


def test_activities_survive_a_crash_of_the_server(server: Server, client: Client) -> None:
    before = run(client)
    ended = wait_for(client, 1, "COMPLETE")
    run(client, "sleep")
    wait_for(client, 2, "RUNNING")
    server.kill()
    server.start()
    again = Client(server.port)
    assert again.ask("GET", "/activities/1") == ended
    assert again.ask("GET", "/activities/1")["sbi_id"] == before["sbi_id"]
    assert wait_for(again, 2, "FAILED")["activity_states"][-1][0] == "FAILED"
    assert run(again)["id"] == 3
    again.close()


def test_only_activities_are_listed_and_found(client: Client) -> None:
    client.prepare("def main(): pass", subarray=2)
    run(client)
    run(client, prepare_only=True)
    wait_for(client, 2, "COMPLETE")
    wait_for(client, 3, "PREPARED")
    assert [one["id"] for one in client.ask("GET", "/activities/")] == [2, 3]
    assert [one["id"] for one in client.ask("GET", "/activities/?state=PREPARED")] == [3]
    assert [one["id"] for one in client.ask("GET", "/activities/?after=1&limit=1")] == [2]
    for path in ("/activities/1", "/activities/99", "/activities/99999999999999999999"):
        with pytest.raises(Refused, match="No information available for ID=") as refused:
            client.ask("GET", path)
        assert refused.value.status == 404


@pytest.mark.parametrize(("name", "told"), [("observe", Topic.SB_SUCCEEDED), ("fail", Topic.SB_FAILED)])
def test_stream_tells_the_block_began_and_how_it_ended(server: Server, client: Client, name: str, told: Topic) -> None:
    stream = Stream(server.port)
    sbi_id = run(client, name)["sbi_id"]
    heard = []
    while not heard or heard[-1]["topic"] != told:
        heard.append(stream.read_event())
    stream.close()
    topics = [event["topic"] for event in heard]
    assert topics[0] == "procedure.lifecycle.statechange"
    for topic in (Topic.REQUEST_ACTIVITY_RUN, Topic.ACTIVITY_RUNNING, Topic.SB_STARTED):
        assert topics.count(topic) == 1
    asked = heard[topics.index(Topic.REQUEST_ACTIVITY_RUN)]["cmd"]
    assert (asked["activity_name"], asked["sbd_id"], asked["prepare_only"]) == (name, "sbd-1", False)
    started = topics.index(Topic.SB_STARTED)
    assert heard[started]["sbi_id"] == heard[-1]["sbi_id"] == sbi_id
    assert heard[started + 1]["new_state"] == "RUNNING"


def test_states_can_be_upstreams(tmp_path: Path, oda: Path) -> None:
    server = Server(tmp_path, ODA_DATA_DIR=str(oda), OET_ACTIVITY_STATES="todo")
    server.start()
    client = Client(server.port)
    try:
        run(client)
        client.wait_for(1, "COMPLETE")
        shown = client.ask("GET", "/activities/1")
        assert (shown["state"], [state for state, _ in shown["activity_states"]]) == ("TODO", ["TODO"])
    finally:
        client.close()
        server.stop()


def test_script_from_git_is_fetched_from_where_the_block_says(
    server: Server, client: Client, oda: Path, tmp_path: Path
) -> None:
    origin = Origin(tmp_path / "project")
    origin.commit({"scripts/observe.py": SCRIPT})
    sbd = build_sbd(tmp_path, version=2)
    sbd["activities"]["git"] = {"kind": "git", "path": "git://scripts/observe.py", "repo": origin.url}
    put_sbd(oda, sbd)
    run(client, "git")
    wait_for(client, 1, "COMPLETE")
    assert read_printed(client, 1)["sbd"] == "sbd-1"
    assert client.get(1)["script"]["git_args"]["git_repo"] == origin.url


def test_block_in_postgresql_runs_as_one_in_a_file(tmp_path: Path) -> None:
    with running_postgres() as postgres:
        url = postgres.make_database()
        sbd, sbi = build_tables(OdaSettings())
        engine = create_engine(url)
        sbd.metadata.create_all(engine)
        document = build_sbd(tmp_path, version=4)
        who = {"created_by": "x", "created_on": "2026-01-01", "last_modified_by": "x", "last_modified_on": "2026-01-01"}
        with engine.begin() as connection:
            connection.execute(sbd.insert().values(sbd_id="sbd-1", version=4, info=document, **who))
        parts = make_url(url)
        names = {
            "ODA_BACKEND_TYPE": "postgres",
            "POSTGRES_HOST": str(parts.host),
            "POSTGRES_PORT": str(parts.port),
            "POSTGRES_DB_NAME": str(parts.database),
            "ADMIN_POSTGRES_USER": str(parts.username),
        }
        server = Server(tmp_path, **names)
        server.start()
        client = Client(server.port)
        try:
            sbi_id = run(client)["sbi_id"]
            wait_for(client, 1, "COMPLETE")
            with engine.connect() as connection:
                row = connection.execute(select(sbi)).one()
            assert (row.sbi_id, row.sbd_id, row.sbd_version) == (sbi_id, "sbd-1", 4)
            postgres.kill()
            with pytest.raises(Refused, match="does not answer") as refused:
                run(client)
            assert refused.value.status == 503
            assert len(client.ask("GET", "/activities/")) == 1
        finally:
            client.close()
            server.stop()
            engine.dispose()


def test_commands_of_the_how_to_work(tmp_path: Path) -> None:
    blocks = read_blocks(ROOT / "docs/how-to/activities.md")
    (document,) = [json.loads(block.text) for block in blocks if block.language == "json"]
    document["activities"]["observe"]["path"] = f"file://{ROOT}/examples/block.py"
    put_sbd(tmp_path / "oda", document)
    server = Server(tmp_path, ODA_DATA_DIR=str(tmp_path / "oda"))
    server.start()
    try:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environ = {**os.environ, "PATH": path, "OET_URL": f"http://127.0.0.1:{server.port}{BASE}"}
        commands = "\n".join(block.text for block in blocks if block.language == "sh")
        done = subprocess.run(
            ["bash", "-eu"], input=commands, env=environ, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said = re.findall(r"Script message: sbi-oet-\S+: scan (\d) of (\d) of sbd-t0001-20261126-00001", done.stdout)
        assert said == [("1", "2"), ("2", "2"), ("1", "1")]
        assert "REQUESTED" in done.stdout
    finally:
        server.stop()
