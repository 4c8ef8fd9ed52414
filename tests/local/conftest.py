"""A store in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from oet_crds.execution import InlineScript, ScriptExecution, ScriptExecutionSpec, ScriptSource
from oet_operator.local.database import Database
from oet_operator.local.records import build_execution
from oet_operator.local.store import LocalStore

SPEC = ScriptExecutionSpec(script=ScriptSource(inline=InlineScript(source="def main(): pass")))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "oet.sqlite3")
    yield database
    database.close()


@pytest.fixture
def store(database: Database) -> LocalStore:
    return LocalStore(database)


@pytest.fixture
def add(store: LocalStore) -> Callable[[], ScriptExecution]:
    """Store a new execution and return it."""

    def add_execution() -> ScriptExecution:
        with store.transaction(durable=True) as transaction:
            execution = build_execution(SPEC, transaction.allocate_procedure_id(), datetime.now(UTC))
            return transaction.put(execution)

    return add_execution
