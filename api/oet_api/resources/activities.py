"""/activities/ and /activities/{activity_id}: run and look at activities of scheduling blocks."""

from __future__ import annotations

import falcon
from pydantic import BaseModel, ConfigDict, Field

from oet_api.activity_wire import ActivityAnswer, CreateActivity, build_activity
from oet_api.openapi import JSON, Operation, endpoint
from oet_api.origin import Origin, observe_user
from oet_api.resources.procedures import MAX_NUMBER, check_size
from oet_api.services import Services
from oet_api.wire import dump_json
from oet_crds.activities import ActivityState
from oet_crds.execution import ScriptExecution

__all__ = ["ActivitiesResource", "ActivityResource"]


class ActivitiesQuery(BaseModel):
    """Query of GET /activities/."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int | None = Field(None, ge=1, le=1000, description="At most so many; absent: all.")
    after: int = Field(0, ge=0, le=MAX_NUMBER, description="Only those with a greater id, for paging.")
    state: ActivityState | None = Field(None, description="Only those in this state.")


class _Resource:
    def __init__(self, services: Services) -> None:
        self._services = services

    def _render(self, execution: ScriptExecution) -> dict[str, object]:
        return build_activity(execution, self._services.base, self._services.oda.activity_states)


class ActivitiesResource(_Resource):
    """All activities."""

    @endpoint(Operation("list_activities", ActivityAnswer, query=ActivitiesQuery, is_list=True))
    def on_get(self, req: falcon.Request, resp: falcon.Response, query: ActivitiesQuery) -> None:
        """List activities, oldest first."""
        executions = self._services.activities.list()
        shown = [self._render(one) for one in executions if (one.procedure_id or 0) > query.after]
        chosen = [one for one in shown if query.state in (None, one["state"])][: query.limit]
        resp.content_type = JSON
        resp.data = dump_json(chosen)

    @endpoint(Operation("run_activity", ActivityAnswer, status=201, body=CreateActivity, errors=[403, 404, 409, 503]))
    def on_post(self, req: falcon.Request, resp: falcon.Response, body: CreateActivity) -> None:
        """Run an activity of a scheduling block definition: prepare its script, and start it when it is READY.

        The answer comes at once. A start that finds the subarray held is refused: the activity stays PREPARED, its
        message says why, and its procedure can be started later.
        """
        services = self._services
        check_size(body.script_args, services.settings.max_args_bytes)
        origin = Origin(observe_user(req, services.settings.user_header), body.reason)
        execution = services.activities.run(body, origin)
        resp.content_type = JSON
        resp.data = dump_json(self._render(execution))
        resp.status = falcon.HTTP_201
        resp.set_header("Location", f"{services.base}/activities/{execution.procedure_id}")


class ActivityResource(_Resource):
    """One activity."""

    @endpoint(Operation("get_activity", ActivityAnswer))
    def on_get(self, req: falcon.Request, resp: falcon.Response, activity_id: int) -> None:
        """Show an activity."""
        resp.content_type = JSON
        resp.data = dump_json(self._render(self._services.activities.get(activity_id)))
