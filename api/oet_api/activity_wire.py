"""The JSON of activities, in upstream's words, and how an execution is shown as one. Pure."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictBool

from oet_api.decisions import find_refusal
from oet_api.wire import Clean, FunctionArgs, Reason, Request, ScriptArgs, render_script_args
from oet_crds.activities import ActivityState, find_activity_state
from oet_crds.execution import ScriptExecution
from oet_crds.settings import ActivityStates
from oet_crds.states import Mode

__all__ = ["ActivityAnswer", "CreateActivity", "build_activity", "compute_activity_states"]


_Name = Annotated[str, Clean, Field(min_length=1, max_length=253, json_schema_extra={"pattern": "^[^\\u0000]+$"})]


class CreateActivity(Request):
    """Body of POST /activities/."""

    sbd_id: _Name = Field(description="Scheduling block definition, of which the latest version is taken.")
    activity_name: _Name = Field(description="Activity of that definition.")
    script_args: ScriptArgs | None = Field(
        None, description="Arguments that replace the definition's, for each function that is given; absent: none do."
    )
    prepare_only: StrictBool = Field(False, description="Do not start it when it is READY.")
    create_env: StrictBool = Field(False, description="Build the git script's own Python environment first.")
    mode: Mode = Field(Mode.OPERATION, description="Rehearsal: against a simulated telescope.")
    reason: Reason = None


class ActivityAnswer(BaseModel):
    """One activity: what of which scheduling block, and what became of it."""

    id: int = Field(description="The number of its procedure.")
    pid: int
    procedure_id: int
    sbd_id: str
    activity_name: str
    prepare_only: bool
    script_args: dict[str, FunctionArgs] = Field(description="Of init, and of main.")
    activity_states: list[tuple[ActivityState, float]] = Field(
        description="States and seconds since the epoch, oldest first."
    )
    state: ActivityState
    sbi_id: str
    uri: str
    mode: Mode | None = Field(None, description="Rehearsal. Absent: on the telescope.")
    message: str | None = Field(
        None, description="Why it is in this state, for example why its start was refused. Absent: nothing to say."
    )


def compute_activity_states(execution: ScriptExecution, states: ActivityStates) -> list[tuple[ActivityState, float]]:
    """Return the states of an execution's activity, and when (seconds since the epoch) they were reached."""
    history = execution.status.history
    if states is ActivityStates.TODO:
        return [(ActivityState.TODO, execution.metadata.creation_timestamp.timestamp())]
    reached: list[tuple[ActivityState, float]] = []
    for entry in history:
        state = find_activity_state(entry.state)
        # The READY after main is no second preparation.
        if state is not None and state not in [known for known, _ in reached]:
            reached.append((state, entry.time.timestamp()))
    return reached or [(ActivityState.REQUESTED, execution.metadata.creation_timestamp.timestamp())]


def build_activity(execution: ScriptExecution, base: str, states: ActivityStates) -> dict[str, Any]:
    """Return an execution as an activity, as clients see it; keys in upstream's order.

    Args:
        execution: What is shown; it has an activity.
        base: Base path of the API, which goes into `uri` behind upstream's literal host.
        states: Which states are shown.
    """
    activity, number = execution.spec.activity, execution.status.procedure_id
    assert activity is not None
    reached = compute_activity_states(execution, states)
    answer: dict[str, Any] = {
        "id": number,
        "pid": number,
        "procedure_id": number,
        "sbd_id": activity.sbd_id,
        "activity_name": activity.name,
        "prepare_only": activity.prepare_only,
        "script_args": render_script_args(execution),
        "activity_states": [[str(state), at] for state, at in reached],
        "state": str(reached[-1][0]),
        "sbi_id": activity.sbi_id,
        "uri": f"http://localhost{base}/activities/{number}",
    }
    if execution.spec.mode is Mode.REHEARSAL:
        answer["mode"] = str(execution.spec.mode)
    refusal = None if execution.is_finished else find_refusal(execution, 0)
    if message := (refusal.message if refusal else execution.status.message):
        answer["message"] = message
    return answer
