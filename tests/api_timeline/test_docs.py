"""What the documentation says of the timeline's database."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from oet_support_docs import ROOT, read_blocks
from oet_support_postgres import Postgres, find_programs
from oet_support_timeline import Start, build_execution

from oet_crds.states import State
from oet_crds.topics import Topic

PAGES = ("docs/how-to/production-postgresql.md", "docs/how-to/back-up.md")


def test_commands_of_the_pages_make_a_database_and_bring_it_back(
    postgres: Postgres, start: Start, tmp_path: Path
) -> None:
    make, back_up = (
        next(
            block.text for block in read_blocks(ROOT / page) if block.test.startswith("tests/api_timeline/test_docs.py")
        )
        for page in PAGES
    )
    server = f"127.0.0.1:{postgres.port}"
    restored = postgres.make_database()
    environ = {
        **os.environ,
        "PATH": f"{find_programs()}:{os.environ['PATH']}",
        "ADMIN": f"postgresql://oet@{server}/postgres",
        "PASSWORD": "it's secret",
        "DATABASE": f"postgresql://oet_timeline@{server}/oet_timeline",
        "RESTORED": restored.replace("+psycopg", ""),
    }
    subprocess.run(["sh", "-ec", make], env=environ, cwd=tmp_path, check=True)
    timeline = start(environ["DATABASE"])
    timeline.on_execution(build_execution("a", 1, State.CREATING, State.STOPPED))
    timeline.append(1, Topic.REQUEST_STOP, {"cmd": "x"})
    timeline.on_removed(1)
    timeline.stop()
    subprocess.run(["sh", "-ec", back_up], env=environ, cwd=tmp_path, check=True)
    again = start(restored)
    assert {entry.payload.get("new_state", "x") for entry in again.read(0, limit=9, procedure_id=1)} == {
        "CREATING",
        "STOPPED",
        "x",
    }
    found = again.find(1)
    assert found is not None
    assert found.status.state is State.STOPPED
