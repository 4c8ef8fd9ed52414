"""The parts of the client that touch nothing: arguments, events from bytes, tables, texts, exit codes."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oet_cli.arguments import parse_flag, parse_literal, parse_words
from oet_cli.client import describe_detail, is_loopback
from oet_cli.exits import EPILOG, Exit, compute_exit
from oet_cli.following import find_new_state
from oet_cli.listen import is_wanted
from oet_cli.options import merge_calls
from oet_cli.sse import EventStream
from oet_cli.tables import build_table, render_description, render_list
from oet_cli.texts import describe_event
from oet_crds.states import State, is_final
from oet_crds.topics import Topic


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-1.5", -1.5),
        ("[1,2]", [1, 2]),
        ('{"a":1}', {"a": 1}),
        ("True", True),
        ("None", None),
        ("abc", "abc"),
        ("a b", "a b"),
        ("file:///x.py", "file:///x.py"),
        ("1.2.3", "1.2.3"),
        ("'quoted'", "quoted"),
        ("", ""),
        (" 1", " 1"),
        ("[a, b]", ["a", "b"]),
        ("{a: [b, 1]}", {"a": ["b", 1]}),
        ("(1, 2)", (1, 2)),
        ("1,2", (1, 2)),
        ("2026-11-23", "2026-11-23"),
        ("1+2", "1+2"),
        ("true", "true"),
        ("print('x')", "print('x')"),
        ("{1, 2}", "{1, 2}"),
        ("b'x'", "b'x'"),
        ("1j", "1j"),
        ("1e999", "1e999"),
        ("...", "..."),
        (r"'\d'", r"\d"),
        ("\ufb01le", "\ufb01le"),
        ("x\0", "x\0"),
        ("(" * 500, "(" * 500),
    ],
)
def test_word_is_a_literal_or_itself(text: str, value: object) -> None:
    assert parse_literal(text) == value


@given(
    st.lists(
        st.one_of(st.text(max_size=8), st.from_regex(r"--?[a-z0-9=\[\]{}(),.'-]{0,8}", fullmatch=True)), max_size=6
    )
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_words_become_arguments_that_json_can_carry(words: list[str]) -> None:
    args, kwargs = parse_words(words)
    json.dumps([args, kwargs], allow_nan=False)
    assert len(args) + len(kwargs) <= len(words)


@pytest.mark.parametrize(
    ("words", "args", "kwargs"),
    [
        pytest.param(["1", "abc", "[1,2]", "True"], [1, "abc", [1, 2], True], {}, id="positional"),
        pytest.param(["--x=5", "--z=tom", "--flag"], [], {"x": 5, "z": "tom", "flag": True}, id="upstream_example"),
        pytest.param(["--x", "5", "6"], [6], {"x": 5}, id="value_after_a_space"),
        pytest.param(["--noflag"], [], {"flag": False}, id="no_flag"),
        pytest.param(["--a", "--b"], [], {"a": True, "b": True}, id="two_flags"),
        pytest.param(["--scan-id=3"], [], {"scan_id": 3}, id="dashes"),
        pytest.param(["-1", "--x", "-2"], [-1], {"x": -2}, id="negative_numbers"),
        pytest.param(["a", "--", "--x", "1"], ["a", "--x", 1], {}, id="after_two_dashes"),
        pytest.param(["--x=a=b"], [], {"x": "a=b"}, id="equals_in_value"),
        pytest.param(["--no"], [], {"no": True}, id="key_no"),
        pytest.param(["--flag", "--", "x"], ["x"], {"flag": True}, id="flag_before_two_dashes"),
        pytest.param(["-x", "5", "-", "-.5", "--9=1", "--=5"], ["-", -0.5, "--=5"], {"x": 5, "9": 1}, id="odd_dashes"),
        pytest.param([], [], {}, id="nothing"),
    ],
)
def test_words_become_arguments(words: list[str], args: list[Any], kwargs: dict[str, Any]) -> None:
    assert parse_words(words) == (args, kwargs)


@pytest.mark.parametrize(("text", "value"), [("True", True), ("false", False), ("1", True), ("no", False)])
def test_flag_is_read(text: str, value: bool) -> None:
    assert parse_flag(text) is value


def test_flag_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="neither True nor False"):
        parse_flag("maybe")


STREAM = (
    '\ufeff:comment\r\ndata:{"a": 1}\nid:7\n\nid: 8\rdata: é€\r\ndata:second\r\n\r\n\n\n'
    "data:no id of its own\n\nid:9\ndata:cut"
)
EVENTS = [('{"a": 1}', "7"), ("é€\nsecond", "8"), ("no id of its own", "8")]


@given(st.lists(st.integers(0, len(STREAM.encode())), max_size=12))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    data = STREAM.encode()
    places = [0, *sorted(cuts), len(data)]
    stream = EventStream(data[begin:end] for begin, end in pairwise(places))
    assert [(event, stream.last_id) for event in stream] == EVENTS
    # The id of an event that was cut off is not one to resume after.
    assert stream.last_id == "8"


@pytest.mark.parametrize(
    ("data", "last_id"),
    [
        pytest.param(b"", "3", id="nothing"),
        pytest.param(b"data:x\n\n", "3", id="event_without_an_id"),
        pytest.param(b"id:4\n\n", "4", id="id_without_an_event"),
        pytest.param(b"id:4\n", "3", id="cut_off"),
        pytest.param(b"id:4\0\ndata:x\n\n", "3", id="id_with_nul"),
        pytest.param(b"id\ndata:x\n\n", "", id="id_taken_back"),
        pytest.param(b":id:4\n\nevent:id\nretry:4\ndata\n\n", "3", id="other_fields"),
        pytest.param(b"id:4\ndata:\xff\n\n", "4", id="no_utf_8"),
    ],
)
def test_stream_knows_where_to_resume(data: bytes, last_id: str) -> None:
    stream = EventStream([data], "3")
    list(stream)
    assert stream.last_id == last_id


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"detail": "No information available for PID=9"}, "No information available for PID=9"),
        (
            {"detail": [{"loc": ["body", "script", "script_uri"], "msg": "Field required", "type": "missing"}]},
            "body.script.script_uri: Field required",
        ),
        ({"detail": [{"loc": ["body", "reason"], "msg": "Value error, say why"}]}, "body.reason: say why"),
        ({"detail": [{"msg": "bad"}, "odd", {"loc": 3}]}, "bad\nodd\nnot valid"),
        ({"detail": {"type": "x"}}, '{"type": "x"}'),
        (["x"], "x"),
        ({}, "{}"),
    ],
)
def test_error_of_the_server_is_put_in_words(body: object, text: str) -> None:
    assert describe_detail(body) == text


@pytest.mark.parametrize(
    ("topic", "topics", "excluded", "wanted"),
    [
        ("a.b", [], [], True),
        ("a.b", ["a.b"], [], True),
        ("a.b", ["a"], [], False),
        ("a.b", [], ["a"], False),
        ("ab.c", [], ["a"], True),
        ("procedure.pool.list", [], ["request", "procedure.pool"], False),
    ],
)
def test_topic_is_chosen(topic: str, topics: list[str], excluded: list[str], wanted: bool) -> None:
    assert is_wanted(topic, topics, excluded) is wanted


PROCEDURE: dict[str, Any] = {
    "id": 12,
    "script": {
        "script_uri": "git://a.py",
        "script_type": "git",
        "git_args": {"git_repo": "r", "git_branch": "b", "git_commit": None},
    },
    "script_args": {"init": {"args": [1], "kwargs": {"subarray_id": 2}}},
    "history": {
        "process_states": [["CREATING", 0.25], ["RUNNING", 1.0], ["FAILED", 2.0]],
        "stacktrace": "Traceback...\nError\n",
    },
    "state": "FAILED",
    "uri": "http://localhost/procedures/12",
    "reason": "MainFailed",
    "message": "Error",
}


UPSTREAM_LIST = """\
  ID  Script                                         Creation Time        State
----  ---------------------------------------------  -------------------  --------
   1  file:///tmp/scripts/hello_world_without_sb.py  2024-10-28 09:13:04  CREATING
 For more details:- oet procedure describe --pid=<id>"""


def test_list_looks_like_upstreams() -> None:
    script = {"script_type": "filesystem", "script_uri": "file:///tmp/scripts/hello_world_without_sb.py"}
    states = [["CREATING", 1730106784.0]]
    procedure = {"id": 1, "script": script, "history": {"process_states": states}, "state": "CREATING"}
    assert render_list([procedure]) == UPSTREAM_LIST


def test_list_has_the_columns_that_scripts_parse() -> None:
    lines = render_list([PROCEDURE, {**PROCEDURE, "id": 3, "history": {"process_states": []}}]).splitlines()
    assert lines[0].split() == ["ID", "Script", "Creation", "Time", "State"]
    assert set(lines[1]) == {"-", " "}
    assert lines[2].split() == ["12", "git://a.py", "1970-01-01", "00:00:00", "FAILED"]
    assert lines[-1] == " For more details:- oet procedure describe --pid=<id>"


def test_empty_list_has_header_and_rule_only() -> None:
    assert render_list([]).splitlines() == [
        "ID    Script    Creation Time    State",
        "----  --------  ---------------  -------",
    ]


def test_cell_of_several_lines_stays_in_its_row() -> None:
    assert build_table(["A"], [["x\ny"]]).splitlines() == ["A", "---", "x y"]


def test_description_has_everything_that_is_known() -> None:
    text = render_description(PROCEDURE)
    for part in (
        "RUNNING 1",
        "1970-01-01 00:00:00.250000",
        "Repository",
        "MainFailed",
        "Index  Method    Arguments    Keyword Arguments",
        "    1  init      [1]          {'subarray_id': 2}",
        "Stack Trace:\n------------\nTraceback",
    ):
        assert part in text


RESULT = {"id": 3, "script": {"script_type": "inline"}, "script_args": {"init": {"kwargs": {"subarray_id": 1}}}}


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ({"topic": Topic.ANNOUNCE, "msg": "hi"}, "Script message: hi"),
        ({"topic": Topic.STATE_CHANGE, "msg_src": "3", "new_state": "READY"}, "Procedure 3 is READY"),
        (
            {"topic": Topic.REQUEST_STOP, "cmd": {"process_uid": 3, "run_abort": True}},
            "User request: stop procedure #3 with abort",
        ),
        (
            {"topic": Topic.REQUEST_STOP, "cmd": {"process_uid": 3, "run_abort": False}},
            "User request: stop procedure #3 with no abort",
        ),
        ({"topic": Topic.REQUEST_START, "cmd": {"process_uid": 3}}, "User request: start execution of process #3"),
        (
            {
                "topic": Topic.REQUEST_CREATE,
                "cmd": {"script": {"script_uri": "file:///a"}, "init_args": {"kwargs": {"subarray_id": 1}}},
            },
            "User request: prepare file:///a for execution on subarray 1",
        ),
        ({"topic": Topic.STARTED, "result": RESULT}, "Procedure 3 (inline) started execution on subarray 1"),
        (
            {"topic": Topic.CREATED, "result": {**RESULT, "state": "CREATING"}},
            "Procedure 3 (inline) created for execution on subarray 1",
        ),
        (
            {"topic": Topic.CREATED, "result": {**RESULT, "state": "READY"}},
            "Procedure 3 (inline) ready for execution on subarray 1",
        ),
        ({"topic": Topic.COMPLETE, "result": {**RESULT, "script_args": {}}}, "Procedure 3 (inline) execution complete"),
        ({"topic": "request.procedure.list"}, "User request to list all the procedures is received"),
        ({"topic": "subarray.fault", "subarray_id": 1, "error": "{e}"}, "Subarray 1 error: {e}"),
        ({"topic": "subarray.fault", "subarray_id": 1}, 'subarray.fault: {"subarray_id": 1}'),
        (
            {"topic": "scan.lifecycle.configure.complete", "sb_id": "s", "scan_id": 2},
            "SB s: scan 2 configuration complete",
        ),
        ({"topic": Topic.STOPPED, "result": []}, "Procedure stopped"),
        (
            {"topic": Topic.ABORT_FAILED, "msg_src": "3", "severity": "ALARM", "message": "ALARM: it refused"},
            "ALARM of procedure 3: it refused",
        ),
        (
            {"topic": Topic.ARMING_FAILED, "msg_src": "4", "severity": "WARNING", "message": "none is held"},
            "WARNING of procedure 4: none is held",
        ),
        ({"topic": Topic.STOPPED, "result": [RESULT]}, "Procedure stopped; procedure 3 ran the abort script"),
        ({"topic": Topic.STACKTRACE, "msg_src": "3", "stacktrace": "T\n"}, "Procedure 3 failed:\nT"),
        ({"topic": Topic.PROGRESS, "fraction": 0.5, "text": ""}, "Progress: 50%"),
        ({"topic": "sb.lifecycle.started", "sbi_id": "s"}, "Observation for SB s started"),
        ({"topic": "my.own", "msg_src": "1", "a": 1}, 'my.own: {"msg_src": "1", "a": 1}'),
        ({"topic": Topic.ANNOUNCE}, "script.announce: {}"),
        ({"topic": Topic.STARTED, "result": None}, 'procedure.lifecycle.started: {"result": null}'),
    ],
)
def test_event_is_put_in_words(event: dict[str, Any], text: str) -> None:
    assert describe_event(json.loads(json.dumps(event))) == text


@pytest.mark.parametrize("state", State)
def test_exit_code_tells_the_outcome(state: State) -> None:
    code = compute_exit(state)
    assert (code is Exit.NOT_CERTAIN) == (not is_final(state))
    assert (code is Exit.OK) == (state is State.COMPLETE)


def test_exit_code_of_a_state_that_is_not_known_is_not_certain() -> None:
    assert compute_exit("A_LATER_VERSIONS_STATE") is Exit.NOT_CERTAIN


@pytest.mark.parametrize("code", Exit)
def test_every_exit_code_is_in_the_help(code: Exit) -> None:
    assert f" {int(code)} " in EPILOG


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:5000/x", True),
        ("http://localhost/x", True),
        ("http://[::1]:5000", True),
        ("http://oet-rest:5000", False),
        ("http://10.0.0.1", False),
        ("http://[::1", False),
        ("nonsense", False),
    ],
)
def test_this_machine_is_reached_without_a_proxy(url: str, loopback: bool) -> None:
    assert is_loopback(url) is loopback


def test_later_arguments_win() -> None:
    call = {"args": [1], "kwargs": {"a": 1, "b": 1}}
    assert merge_calls(call, [2], {"a": 2}) == {"args": [1, 2], "kwargs": {"a": 2, "b": 1}}


@pytest.mark.parametrize(
    ("entry", "state"),
    [
        ({"kind": "state", "topic": Topic.STATE_CHANGE, "payload": {"new_state": "READY"}}, State.READY),
        ({"kind": "state", "topic": Topic.STACKTRACE, "payload": {"stacktrace": "READY"}}, None),
        ({"kind": "message", "topic": Topic.STATE_CHANGE, "payload": {"new_state": "READY"}}, None),
        ({"kind": "state", "topic": Topic.STATE_CHANGE, "payload": {"new_state": "LATER"}}, None),
        ({"kind": "state", "topic": Topic.STATE_CHANGE}, None),
    ],
    ids=["state", "stacktrace", "message_of_a_script", "not_known", "no_payload"],
)
def test_only_the_engine_says_what_state_it_is(entry: dict[str, Any], state: State | None) -> None:
    assert find_new_state(entry) is state
