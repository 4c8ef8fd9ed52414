"""What the CRD's rules allow, the models and the embedded engine allow as well, and nothing else.

The rules themselves run in the API server; `spec_changes.yaml` is for a test against a real one, too.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from oet_crds.errors import InvalidTransitionError
from oet_crds.execution import Grant, Metadata, ScriptExecution, ScriptExecutionSpec, ScriptExecutionStatus, StopOptions
from oet_crds.ports import SpecChange
from oet_crds.specs import validate_change
from oet_crds.states import DesiredState, State

CASES = yaml.safe_load(Path(__file__).with_name("spec_changes.yaml").read_text())
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _parse(spec: dict[str, Any]) -> ScriptExecutionSpec:
    script = spec.get("script", {"file": {"path": "a.py"}})
    if script.get("file") == {"path": "*long"}:
        script = {"file": {"path": "x" * 4097}}
    return ScriptExecutionSpec.model_validate({**spec, "script": script})


def _is_expressible(case: dict[str, Any]) -> bool:
    """Tell whether a change touches only what the port between API and engine can change at all."""
    if "before" not in case:
        return False
    try:
        before, after = _parse(case["before"]), _parse(case["after"])
    except ValidationError:
        return False  # The models refuse the outcome already.
    if case.get("placed"):
        return False  # What a Pod is made of cannot be changed at all through the port.
    if any(line in case["before"] and line not in case["after"] for line in ("desiredState", "whenBusy")):
        return False  # The port names what it wants, or leaves it as it is.
    fixed = {"desired_state", "when_busy", "stop", "args", "abort_of"}
    is_main_removed = before.args.main is not None and after.args.main is None
    return (
        before.model_dump(exclude=fixed) == after.model_dump(exclude=fixed)
        and before.args.init == after.args.init
        and not is_main_removed
        and not (before.abort_of and not after.abort_of)
    )


CREATIONS = [pytest.param(case, id=case["name"]) for case in CASES if "before" not in case]
CHANGES = [pytest.param(case, id=case["name"]) for case in CASES if _is_expressible(case)]


@pytest.mark.parametrize("case", CREATIONS)
def test_spec_is_accepted_exactly_when_the_crd_accepts_it(case: dict[str, Any]) -> None:
    if case["allowed"]:
        _parse(case["after"])
    else:
        with pytest.raises(ValidationError):
            _parse(case["after"])


@pytest.mark.parametrize("case", CHANGES)
def test_change_is_allowed_by_the_engine_exactly_when_the_crd_allows_it(case: dict[str, Any]) -> None:
    grant = Grant(time=NOW) if case.get("granted") else None
    execution = ScriptExecution(
        metadata=Metadata(name="one", uid="u", creation_timestamp=NOW),
        spec=_parse(case["before"]),
        status=ScriptExecutionStatus(procedure_id=1, grant=grant, state=State(case.get("state", State.CREATING))),
    )
    wanted = _parse(case["after"])
    change = SpecChange(wanted.desired_state, wanted.args.main, wanted.when_busy, wanted.stop, wanted.abort_of)
    if case["allowed"]:
        assert validate_change(execution, change) == wanted
    else:
        with pytest.raises(InvalidTransitionError):
            validate_change(execution, change)


@pytest.mark.parametrize("abort_of", [None, "other"])
def test_abort_script_is_not_started_by_hand_nor_for_another(abort_of: str | None) -> None:
    armed = {"purpose": "Abort", "desiredState": "Ready", "abortOf": "u" if abort_of else None}
    execution = ScriptExecution(
        metadata=Metadata(name="one", uid="u", creation_timestamp=NOW),
        spec=_parse(armed),
        status=ScriptExecutionStatus(procedure_id=1),
    )
    with pytest.raises(InvalidTransitionError):
        validate_change(execution, SpecChange(DesiredState.RUNNING, abort_of=abort_of))


@pytest.mark.parametrize(
    "before", [{}, {"args": {"init": {"kwargs": {"a": 1, "subarray_id": None}}}}, {"stop": {"abort": True}}]
)
def test_stop_with_abort_of_nothing_is_refused(before: dict[str, Any]) -> None:
    # The CRD's rules cannot look into arguments; an admission policy of the chart can.
    execution = ScriptExecution(
        metadata=Metadata(name="one", uid="u", creation_timestamp=NOW),
        spec=_parse(before),
        status=ScriptExecutionStatus(procedure_id=1),
    )
    with pytest.raises(InvalidTransitionError, match="stop it without abort"):
        validate_change(execution, SpecChange(DesiredState.STOPPED, stop=StopOptions(abort=True)))


def test_script_of_a_user_aborts_for_nobody() -> None:
    execution = ScriptExecution(
        metadata=Metadata(name="one", uid="u", creation_timestamp=NOW),
        spec=_parse({"desiredState": "Ready"}),
        status=ScriptExecutionStatus(procedure_id=1),
    )
    with pytest.raises(InvalidTransitionError):
        validate_change(execution, SpecChange(DesiredState.RUNNING, abort_of="u"))


def test_names_of_the_cases_are_unique_and_both_verdicts_occur() -> None:
    assert len({case["name"] for case in CASES}) == len(CASES)
    assert {param.values[0]["allowed"] for param in CHANGES} == {True, False}
