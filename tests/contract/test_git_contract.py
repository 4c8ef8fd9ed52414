"""What every engine promises of scripts from git."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from oet_support_cluster import serving_in_a_pod
from oet_support_git import Origin, build_project, serving_daemon

from oet_api.kube.engine import KubeEngine
from oet_crds.execution import GitScript, ScriptExecution, ScriptExecutionSpec, ScriptSource
from oet_crds.ports import ExecutionStore, SpecChange
from oet_crds.reasons import Reason
from oet_crds.states import DesiredState, State
from oet_operator.local.engine import LocalEngine

SECONDS = 120.0
"""An environment is built in a Pod of a machine that does other things besides."""

SCRIPT = "import oet\ndef main(*args, **kwargs):\n    import observing\n    print('value', observing.VALUE)\n"
SLOW, BROKEN = "slow", "broken"


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    """A repository of a good project, with a branch whose build never ends and one whose build fails."""
    origin = Origin(tmp_path / "origins" / "scripts")
    origin.commit({"a.py": SCRIPT, **build_project()})
    for branch, hook in ((SLOW, "import time\ntime.sleep(600)\n"), (BROKEN, "raise SystemExit('no compiler here')\n")):
        origin.git("checkout", "--quiet", "-b", branch, "main")
        origin.commit({"hook.py": hook})
    origin.git("checkout", "--quiet", "main")
    return origin


@pytest.fixture
def url(engine: LocalEngine | KubeEngine, origin: Origin, request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the scripts of this engine can fetch the repository."""
    if isinstance(engine, KubeEngine):
        with serving_in_a_pod(request.getfixturevalue("namespace"), origin) as url:
            yield url
        return
    with serving_daemon(origin.folder.parent) as url:
        yield f"{url}/scripts/.git"


def _create(store: ExecutionStore, url: str, desired: DesiredState = DesiredState.RUNNING, **git: object) -> int:
    source = ScriptSource(git=GitScript(repository=url, path="a.py", create_env=True, **git))  # type: ignore[arg-type]
    created = store.create(ScriptExecutionSpec(script=source, desired_state=desired))
    assert created.procedure_id is not None
    return created.procedure_id


def _wait(store: ExecutionStore, procedure_id: int, *states: State) -> ScriptExecution:
    execution = store.wait(procedure_id, lambda one: one.status.state in states or one.is_finished, SECONDS)
    assert execution.status.state in states, execution.status
    return execution


def test_script_runs_in_the_environment_of_its_commit_which_the_status_tells(
    store: ExecutionStore, url: str, origin: Origin
) -> None:
    done = _wait(store, _create(store, url, branch="main"), State.COMPLETE)
    assert done.status.resolved is not None
    assert done.status.resolved.commit == origin.git("rev-parse", "main")
    states = [entry.state for entry in done.status.history]
    assert states[:5] == [State.CREATING, State.IDLE, State.PREP_ENV, State.IDLE, State.LOADING]


@pytest.mark.parametrize(
    ("git", "reason", "words"),
    [
        ({"branch": "no-such"}, Reason.FETCH_FAILED, "no branch or tag 'no-such'"),
        ({"commit": "0" * 40}, Reason.FETCH_FAILED, "0" * 40),
        ({"branch": BROKEN}, Reason.ENVIRONMENT_FAILED, "no compiler here"),
    ],
    ids=["branch", "commit", "build"],
)
def test_script_that_cannot_be_had_fails_with_the_reason(
    store: ExecutionStore, url: str, git: dict[str, object], reason: Reason, words: str
) -> None:
    status = _wait(store, _create(store, url, **git), State.FAILED).status
    assert status.reason is reason, status
    assert words in f"{status.message}{status.stacktrace}"


def test_protocol_that_is_not_allowed_is_refused_by_the_runner_as_well(store: ExecutionStore, url: str) -> None:
    status = _wait(store, _create(store, "file:///tmp/x"), State.FAILED).status
    assert status.reason is Reason.FETCH_FAILED
    assert "protocol file is not allowed" in (status.message or "")


def test_stop_while_the_environment_is_built_is_certain(store: ExecutionStore, url: str) -> None:
    number = _create(store, url, branch=SLOW)
    _wait(store, number, State.PREP_ENV)
    store.change(number, SpecChange(desired_state=DesiredState.STOPPED))
    _wait(store, number, State.STOPPED)
