"""What a procedure waits for before its script runs, as the commands that wait for it tell it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from oet_support import wait_until

from oet_cli import following, interrupts
from oet_cli.texts import describe_event, describe_wait
from oet_crds.reasons import Reason
from oet_crds.states import State
from oet_crds.topics import Topic

Wait = tuple[str, str]

NO_NODE: Wait = (Reason.UNSCHEDULABLE, "0/1 nodes are available: 1 node(s) did not match")
QUOTA: Wait = (Reason.POD_REJECTED, "exceeded quota: cpu")
IMAGE: Wait = (Reason.IMAGE_PULL_FAILED, "no such image")
TOLD = "- Procedure 1 is CREATING: {1} ({0})"


class Procedure:
    """A procedure that waits for one thing after the other, each for three looks, and then goes its way."""

    def __init__(self, server: Any, waits: Sequence[Wait | None], path: Sequence[State]) -> None:
        self.waits = [wait for wait in waits for _ in range(3)]
        self.path, self.states = list(path), [State.CREATING]
        self.stops = 0
        server.play("POST /procedures/", self.show)
        server.play("GET /procedures/", lambda asked: [self.show(asked)])
        server.play("GET /procedures/1", self.look)
        server.play("GET /procedures/1/events", self.list_events)
        server.play("PUT /procedures/1", lambda asked: server.Answer({"detail": "not certain yet"}, 504))

    def show(self, _asked: Any) -> Any:
        history = {"process_states": [[state, 1.0] for state in self.states], "stacktrace": None}
        shown = {
            "id": 1,
            "script": {"script_type": "filesystem", "script_uri": "file:///a.py"},
            "script_args": {},
            "history": history,
            "state": self.states[-1],
            "uri": "u",
        }
        wait = self.waits[0] if self.waits else None
        return shown if wait is None else {**shown, "reason": wait[0], "message": wait[1]}

    def look(self, asked: Any) -> Any:
        shown = self.show(asked)
        if self.waits:
            self.waits.pop(0)
        elif self.path:
            self.states.append(self.path.pop(0))
        return shown

    def list_events(self, asked: Any) -> Any:
        if not self.waits and self.path:
            self.states.append(self.path.pop(0))
        topic = Topic.STATE_CHANGE
        events = [
            {"id": at, "kind": "state", "topic": topic, "payload": {"msg_src": "1", "new_state": state}}
            for at, state in enumerate(self.states, 1)
        ]
        return events[int(asked.query["after"]) :]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait is told at once."""
    monkeypatch.setattr(following, "WAIT_SECONDS", 0.0)


def find_told(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("- Procedure 1 is CREATING: ")]


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    "words",
    [
        ("procedure", "run", "file:///a.py"),
        ("procedure", "create", "file:///a.py", "--wait"),
        ("procedure", "create", "file:///a.py", "--wait", "--output=json"),
        ("procedure", "wait", "--pid=1"),
    ],
)
def test_each_thing_that_is_waited_for_is_told_once_on_standard_error(
    server: Any, oet: Callable[..., Any], words: Sequence[str]
) -> None:
    # READY is passed at once: nobody has to start it.
    Procedure(server, [NO_NODE, QUOTA, QUOTA, None, IMAGE], [State.IDLE, State.READY, State.COMPLETE])
    server.play("PUT /procedures/1", lambda asked: server.Answer({"detail": "it has ended"}, 409))
    done = oet(*words)
    assert find_told(done.err) == [TOLD.format(*wait) for wait in (NO_NODE, QUOTA, IMAGE)]
    assert "is CREATING" not in done.out
    if "--output=json" in words:
        assert json.loads(done.out)["id"] == 1


@pytest.mark.parametrize("words", [("run", "file:///a.py"), ("create", "file:///a.py", "--wait"), ("wait", "--pid=1")])
def test_short_wait_is_not_told(server: Any, oet: Callable[..., Any], words: Sequence[str]) -> None:
    Procedure(server, [NO_NODE], [State.IDLE, State.FAILED])
    if words[0] == "run":
        server.play("GET /procedures/1", {**Procedure(server, [], []).show(None), "state": State.FAILED})
        Procedure(server, [], [State.IDLE, State.FAILED])
    done = oet("procedure", *words)
    assert find_told(done.err) == []


def test_list_shows_what_is_waited_for_and_is_as_ever_where_nothing_is(server: Any, oet: Callable[..., Any]) -> None:
    procedure = Procedure(server, [NO_NODE], [])
    shown = oet("procedure", "list").out.splitlines()
    assert shown[0].split() == ["ID", "Script", "Creation", "Time", "State", "Reason"]
    assert shown[2].endswith("CREATING  Unschedulable: " + NO_NODE[1])
    procedure.waits.clear()
    assert oet("procedure", "list").out.splitlines()[2].endswith("CREATING")


def test_description_shows_what_is_waited_for(server: Any, oet: Callable[..., Any]) -> None:
    Procedure(server, [QUOTA], [])
    assert f"{QUOTA[0]}  {QUOTA[1]}" in oet("procedure", "describe", "--pid=1").out


@pytest.mark.usefixtures("soon")
def test_stop_that_never_becomes_certain_is_left_with_what_it_waits_for(
    server: Any, oet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oet_cli.run.STOP_PATIENCE_SECONDS", 0.2)
    procedure = Procedure(server, [QUOTA] * 10_000, [])
    events = procedure.list_events

    def interrupt(asked: Any) -> Any:
        if int(asked.query["after"]) and not procedure.stops:
            procedure.stops += 1
            import _thread

            _thread.interrupt_main()
        return events(asked)

    server.play("GET /procedures/1/events", interrupt)
    done = oet("procedure", "run", "file:///a.py")
    assert done.code == 6
    assert "not certain yet" in done.err
    assert f"{QUOTA[1]} ({QUOTA[0]}); its stop is asked for" in done.err
    assert "oet procedure wait --pid=1" in done.err


@pytest.mark.parametrize(
    ("state", "reason", "is_told"),
    [
        (State.CREATING, Reason.POD_REJECTED, True),
        (State.CREATING, None, False),
        (State.READY, Reason.SUBARRAY_BUSY, True),
        # The engine takes it back in this moment.
        (State.READY, Reason.UNSCHEDULABLE, False),
        (State.FAILED, Reason.POD_REJECTED, False),
    ],
)
def test_reason_is_a_wait_only_before_the_script_runs(state: State, reason: Reason | None, is_told: bool) -> None:
    found = {"id": 1, "state": str(state), "reason": reason and str(reason), "message": "words"}
    assert describe_wait(found) == (f"Procedure 1 is {state}: words ({reason})" if is_told else "")


def test_event_of_a_wait_is_a_line() -> None:
    event = {
        "topic": Topic.WAITING,
        "msg_src": "5",
        "state": "CREATING",
        "reason": "Unschedulable",
        "message": "no node",
    }
    assert describe_event(event) == "Procedure 5 is CREATING: no node (Unschedulable)"


@pytest.mark.parametrize("is_long", [True, False])
def test_stop_that_takes_long_says_once_what_it_waits_for(
    server: Any, oet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, is_long: bool
) -> None:
    monkeypatch.setattr(interrupts, "TELL_SECONDS", 0.01)
    monkeypatch.setattr(following, "WAIT_SECONDS", 0.0 if is_long else 60.0)
    looks, told = [], following.StopWait.tell

    def tell(self: Any, seconds: float) -> None:
        looks.append(seconds)
        told(self, seconds)

    monkeypatch.setattr(following.StopWait, "tell", tell)

    def stop(asked: Any) -> dict[str, str]:
        wait_until(lambda: len(looks) > 3, 30, "nobody is told")
        return {"abort_message": "Successfully stopped script with ID 1"}

    server.play("PUT /procedures/1", stop)
    done = oet("procedure", "stop", "--pid=1")
    assert done.out == "Successfully stopped script with ID 1\n"
    assert done.err.count("is told to stop and has not ended yet") == is_long
    assert looks == sorted(looks)


@pytest.mark.parametrize("stderr", ["nobody reads it", "there is none"])
def test_stop_is_told_whatever_becomes_of_standard_error(
    server: Any, oet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, stderr: str
) -> None:
    monkeypatch.setattr(interrupts, "TELL_SECONDS", 0.01)
    monkeypatch.setattr(following, "WAIT_SECONDS", 0.0)
    tries: list[str] = []

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            tries.append(text)
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Broken() if stderr == "nobody reads it" else None)

    def stop(asked: Any) -> dict[str, str]:
        if sys.stderr is not None:
            wait_until(lambda: bool(tries), 30, "nobody is told")
        return {"abort_message": "Successfully stopped script with ID 1"}

    server.play("PUT /procedures/1", stop)
    done = oet("procedure", "stop", "--pid=1")
    assert (done.code, done.out) == (0, "Successfully stopped script with ID 1\n")
