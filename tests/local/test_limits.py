"""The embedded engine's limits in time, with real runners."""

from __future__ import annotations

from pathlib import Path

from oet_crds.execution import InlineScript, ScriptExecutionSpec, ScriptSource
from oet_crds.reasons import Reason
from oet_crds.settings import EngineSettings, GitSettings
from oet_crds.states import DesiredState, State
from oet_operator.local.engine import LocalEngine

SCRIPT = ScriptSource(inline=InlineScript(source="def main(): pass"))


def test_script_that_nobody_starts_is_stopped_and_says_by_which_setting(tmp_path: Path) -> None:
    settings = EngineSettings(state_dir=str(tmp_path), spares=0, isolation="none", ready_limit_seconds=0.5)
    engine = LocalEngine(settings, GitSettings(cache_dir=str(tmp_path / "cache")))
    engine.start()
    try:
        made = engine.create(ScriptExecutionSpec(script=SCRIPT, desired_state=DesiredState.READY))
        assert made.procedure_id is not None
        ended = engine.wait(made.procedure_id, lambda execution: execution.is_finished, 20)
    finally:
        engine.stop()
    assert (ended.status.state, ended.status.reason) == (State.STOPPED, Reason.NOT_STARTED)
    assert "[engine] ready_limit_seconds" in (ended.status.message or "")
    assert State.RUNNING not in [entry.state for entry in ended.status.history]
