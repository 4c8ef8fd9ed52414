"""What an activity is made of: arguments that are merged, scripts of the definition, states that follow the procedure. Pure."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oet_api.activities import Activities, Block, build_activity_spec, build_sbi, build_sbi_id, merge_args
from oet_api.activity_wire import CreateActivity, compute_activity_states
from oet_api.decisions import complete_main
from oet_api.errors import BadRequestError
from oet_api.oda.files import FileOda
from oet_api.oda.limited import LimitedOda
from oet_api.oda.port import Sbd
from oet_api.origin import Origin
from oet_api.wire import ScriptArgs
from oet_crds.activities import ActivityState
from oet_crds.errors import NotFoundError, OverloadedError, RequestRefusedError, UnavailableError
from oet_crds.execution import (
    MAX_SB_JSON_CHARS,
    FunctionArgs,
    HistoryEntry,
    Metadata,
    ScriptExecution,
    ScriptExecutionSpec,
    ScriptExecutionStatus,
    WhenBusy,
)
from oet_crds.settings import ActivityStates, GitSettings
from oet_crds.states import FINAL_STATES, DesiredState, State

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
FILE = {"kind": "filesystem", "path": "file:///scripts/a.py"}
GIT = {"kind": "git", "path": "git://a.py", "repo": "https://h/r"}
CALL = {"args": [1], "kwargs": {"a": 1}}
OTHER = {"args": [], "kwargs": {"b": 2}}


def _block(**activity: Any) -> Block:
    document = {"sbd_id": "sbd-1", "telescope": "ska_low", "activities": {"observe": {**FILE, **activity}}}
    return Block(Sbd("sbd-1", 3, document), "{}", "sbi-1")


def _request(**fields: Any) -> CreateActivity:
    return CreateActivity.model_validate({"sbd_id": "sbd-1", "activity_name": "observe", **fields})


def _build(block: Block, **fields: Any) -> ScriptExecutionSpec:
    return build_activity_spec(_request(**fields), block, GitSettings())


# ---- arguments -------------------------------------------------------------------------------------------------------

DEFINED = {"absent": {}, "null": None, "given": CALL}
ASKED = {"no_request": None, "not_named": {}, "null": None, "empty": {}, "given": OTHER}


@pytest.mark.parametrize("function", ["init", "main"])
@pytest.mark.parametrize("defined", DEFINED)
@pytest.mark.parametrize("asked", ASKED)
def test_request_replaces_what_the_definition_says_of_a_function_and_nothing_else(
    function: str, defined: str, asked: str
) -> None:
    other = "main" if function == "init" else "init"
    definition = {other: CALL, **({} if defined == "absent" else {function: DEFINED[defined]})}
    request = (
        None
        if asked == "no_request"
        else ScriptArgs.model_validate({} if asked == "not_named" else {function: ASKED[asked]})
    )
    merged = merge_args(definition, request)
    replaced = {"empty": {"args": [], "kwargs": {}}, "given": OTHER}.get(asked)
    kept = CALL if defined == "given" else None
    assert merged.get(function) == (replaced if replaced is not None else kept)
    assert merged[other] == CALL


_CALLS = st.none() | st.fixed_dictionaries(
    {"args": st.lists(st.integers()), "kwargs": st.dictionaries(st.text(), st.integers())}
)


@given(_CALLS, _CALLS)
def test_merging_twice_gives_nothing_new(defined: Any, asked: Any) -> None:
    request = ScriptArgs.model_validate({"main": asked})
    once = merge_args({"init": defined, "main": defined}, request)
    assert merge_args(once, request) == once


def test_main_is_told_where_the_block_is_whatever_was_asked() -> None:
    mine = {"kwargs": {"sb_json": "/etc/passwd", "sbi_id": "other", "x": 1}}
    for spec in (_build(_block()), _build(_block(), script_args={"main": mine})):
        assert spec.args.main is not None
        assert spec.args.main.kwargs["sb_json"] == "/tmp/sbi-1.json"
        assert spec.args.main.kwargs["sbi_id"] == "sbi-1"
        assert spec.activity is not None
        assert (spec.activity.sb_path, spec.activity.sbd_version) == ("/tmp/sbi-1.json", 3)


@pytest.mark.parametrize("prepare_only", [True, False])
def test_start_comes_by_itself_unless_it_is_only_to_be_prepared_and_never_waits_for_a_subarray(
    prepare_only: bool,
) -> None:
    spec = _build(_block(), prepare_only=prepare_only)
    assert spec.desired_state is (DesiredState.READY if prepare_only else DesiredState.RUNNING)
    assert spec.when_busy is WhenBusy.REJECT


# ---- scripts ---------------------------------------------------------------------------------------------------------


def test_script_from_git_is_the_one_of_the_definition() -> None:
    spec = _build(_block(**GIT, branch="b", commit="c"), create_env=True)
    assert spec.script.git is not None
    wire = spec.script.git.to_wire()
    assert wire == {"repository": "https://h/r", "path": "a.py", "branch": "b", "commit": "c", "createEnv": True}


def test_script_from_git_without_a_repository_is_from_the_usual_one() -> None:
    spec = _build(_block(kind="git", path="git://a.py"))
    assert spec.script.git is not None
    assert (spec.script.git.repository, spec.script.git.branch) == (GitSettings().repository, GitSettings().branch)


@pytest.mark.parametrize(
    ("activity", "words"),
    [
        pytest.param({"kind": "inline", "path": "pass"}, "observe", id="kind"),
        pytest.param({"path": "/scripts/a.py"}, "Incorrect prefix for FileSystemScript: /scripts/a.py", id="prefix"),
        pytest.param({"path": None}, "observe.path", id="no_path"),
        pytest.param({"function_args": {"observe": CALL}}, "observe.observe", id="other_function"),
        pytest.param({"function_args": {"main": {"arguments": []}}}, "arguments", id="misspelt_arguments"),
        pytest.param(
            {"function_args": {name: {"kwargs": {"subarray_id": at}} for at, name in enumerate(("init", "main"), 1)}},
            "only one subarray",
            id="two_subarrays",
        ),
        pytest.param(
            {"function_args": {"init": {"kwargs": {"subarray_id": "x"}}}}, "must be an integer", id="subarray"
        ),
    ],
)
def test_definition_that_cannot_be_run_is_refused_with_its_place(activity: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestRefusedError, match="SBDefinition sbd-1") as refused:
        _build(_block(**activity))
    assert words in str(refused.value)


@pytest.mark.parametrize("activities", [None, [], {}, {"other": FILE}, {"observe": None}])
def test_activity_that_is_not_there_is_not_found(activities: Any) -> None:
    block = Block(Sbd("sbd-1", 1, {"activities": activities}), "{}", "sbi-1")
    with pytest.raises(NotFoundError, match="Activity 'observe' not present in the SBDefinition sbd-1"):
        _build(block)


# ---- the instance ----------------------------------------------------------------------------------------------------


def test_instance_says_what_was_run_by_whom_with_the_arguments_of_the_request_alone() -> None:
    sbi = build_sbi(_request(script_args={"main": OTHER}), _block(function_args={"init": CALL}), NOW, "alice")
    assert sbi["metadata"] == {
        "version": 1,
        "created_by": "alice",
        "created_on": NOW.isoformat(),
        "last_modified_by": "alice",
        "last_modified_on": NOW.isoformat(),
    }
    assert (sbi["sbi_id"], sbi["telescope"], sbi["sbd_ref"], sbi["sbd_version"]) == ("sbi-1", "ska_low", "sbd-1", 3)
    assert sbi["activities"] == [
        {
            "activity_ref": "observe",
            "executed_at": NOW.isoformat(),
            "runtime_args": [{"function_name": "main", "function_args": OTHER}],
        }
    ]
    assert build_sbi(_request(), _block(), NOW, None)["metadata"]["created_by"] == "oet"


def test_ids_of_instances_are_never_the_same() -> None:
    ids = {build_sbi_id(NOW) for _ in range(10_000)}
    assert len(ids) == 10_000
    assert all(one.startswith("sbi-oet-20261126-") for one in ids)


# ---- states ----------------------------------------------------------------------------------------------------------


def _execution(*states: State, **spec: Any) -> ScriptExecution:
    history = [
        HistoryEntry(seq=at, state=state, time=NOW + timedelta(seconds=at)) for at, state in enumerate(states, 1)
    ]
    status = ScriptExecutionStatus(procedure_id=5, history=history, state=states[-1] if states else State.CREATING)
    metadata = Metadata(name="p", uid="u", creation_timestamp=NOW)
    return ScriptExecution(metadata=metadata, spec=_build(_block(), **spec), status=status)


PREPARED = (State.CREATING, State.IDLE, State.LOADING, State.IDLE, State.INITIALISING, State.READY)


@pytest.mark.parametrize("end", sorted(FINAL_STATES))
@pytest.mark.parametrize(
    ("path", "shown"),
    [
        pytest.param(PREPARED[:3], "REQUESTED", id="not_prepared"),
        pytest.param(PREPARED, "REQUESTED PREPARED", id="prepared"),
        pytest.param((*PREPARED, State.RUNNING), "REQUESTED PREPARED RUNNING", id="running"),
        pytest.param((*PREPARED, State.RUNNING, State.READY), "REQUESTED PREPARED RUNNING", id="after_main"),
    ],
)
def test_activity_follows_its_procedure(path: tuple[State, ...], shown: str, end: State) -> None:
    for states, expected in ((path, shown), ((*path, end), f"{shown} {end}")):
        reached = compute_activity_states(_execution(*states), ActivityStates.PROCEDURE)
        assert " ".join(state for state, _ in reached) == expected
        times = [at for _, at in reached]
        assert times == sorted(times)


def test_every_final_state_is_one_of_an_activity_too() -> None:
    assert {str(state) for state in FINAL_STATES} <= set(ActivityState)


def test_activity_without_history_was_requested_when_it_was_created() -> None:
    assert compute_activity_states(_execution(), ActivityStates.PROCEDURE) == [("REQUESTED", NOW.timestamp())]


@pytest.mark.parametrize("states", [PREPARED[:1], PREPARED])
def test_upstreams_state_never_changes(states: tuple[State, ...]) -> None:
    assert compute_activity_states(_execution(*states), ActivityStates.TODO) == [("TODO", NOW.timestamp())]


# ---- the start of what was prepared ----------------------------------------------------------------------------------


def test_start_keeps_the_arguments_of_an_activity_or_completes_those_that_it_brings() -> None:
    activity = _execution(*PREPARED)
    plain = activity.model_copy(update={"spec": activity.spec.model_copy(update={"activity": None})})
    place = {"sb_json": "/tmp/sbi-1.json", "sbi_id": "sbi-1"}
    given_args = FunctionArgs(args=[1], kwargs={"a": 2})
    for execution, brought in itertools.product((activity, plain), (None, FunctionArgs(), given_args)):
        completed = complete_main(execution, brought)
        if execution is plain:
            assert completed == brought
        elif brought is given_args:
            assert completed == FunctionArgs(args=[1], kwargs={"a": 2, **place})
        else:
            assert completed is None


# ---- the archive -----------------------------------------------------------------------------------------------------


class SlowOda:
    """An archive that answers when it is let."""

    def __init__(self) -> None:
        self.is_let, self.is_asked = threading.Event(), threading.Event()

    def get_sbd(self, sbd_id: str) -> Sbd:
        self.is_asked.set()
        assert self.is_let.wait(30)
        return Sbd(sbd_id, 1, {})

    def add_sbi(self, sbi: Mapping[str, Any]) -> None:
        raise UnavailableError("away")


def test_archive_that_does_not_answer_holds_only_its_share_of_the_threads() -> None:
    slow = SlowOda()
    oda = LimitedOda(slow, 1)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(oda.get_sbd, "sbd-1")
        assert slow.is_asked.wait(30)
        for ask in (lambda: oda.get_sbd("sbd-2"), lambda: oda.add_sbi({})):
            with pytest.raises(OverloadedError, match="try again"):
                ask()
        slow.is_let.set()
        assert first.result(30).sbd_id == "sbd-1"
    for _ in range(2):
        with pytest.raises(UnavailableError, match="away"):
            oda.add_sbi({})
    assert oda.get_sbd("sbd-2").sbd_id == "sbd-2"


def test_block_that_is_too_large_for_an_execution_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "sbd/sbd-1"
    folder.mkdir(parents=True)
    (folder / "1.json").write_text(json.dumps({"activities": {"observe": FILE}, "x": "y" * MAX_SB_JSON_CHARS}))
    activities = Activities(NotImplemented, FileOda(tmp_path), GitSettings(), dict, dict)
    with pytest.raises(RequestRefusedError, match=f"{MAX_SB_JSON_CHARS}"):
        activities.run(_request(), Origin())
    assert not (tmp_path / "sbi").exists()


def test_script_that_may_not_come_from_there_is_forbidden_before_anything_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "sbd/sbd-1"
    folder.mkdir(parents=True)
    (folder / "1.json").write_text(json.dumps({"activities": {"observe": GIT}}))
    activities = Activities(NotImplemented, FileOda(tmp_path), GitSettings(allowed="gitlab.com"), dict, dict)
    with pytest.raises(BadRequestError) as refused:
        activities.run(_request(), Origin())
    assert refused.value.status == 403
    assert not (tmp_path / "sbi").exists()


def test_password_in_the_repository_of_a_definition_is_refused_and_not_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "sbd/sbd-1"
    folder.mkdir(parents=True)
    script = {**GIT, "repo": "https://me:geheim@h/x"}
    (folder / "1.json").write_text(json.dumps({"activities": {"observe": script}}))
    activities = Activities(NotImplemented, FileOda(tmp_path), GitSettings(), dict, dict)
    with pytest.raises(RequestRefusedError, match="password") as refused:
        activities.run(_request(), Origin())
    assert "geheim" not in str(refused.value)
    assert not (tmp_path / "sbi").exists()
