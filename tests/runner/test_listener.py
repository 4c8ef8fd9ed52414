"""What the supervisor hears on several channels is told in the order in which it was said."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator

import pytest

import oet_runner.listener as listener_module
from oet_crds.states import State
from oet_runner.channels import Channels
from oet_runner.listener import Listener
from oet_runner.spool import Spool


@pytest.fixture
def ends() -> Iterator[dict[str, int]]:
    control, child_control = socket.socketpair()
    control.setblocking(False)
    message, child_message = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    out, child_out = os.pipe()
    err, child_err = os.pipe()
    fds = {
        "control": control.detach(),
        "child_control": child_control.detach(),
        "message": message.detach(),
        "child_message": child_message.detach(),
    }
    fds.update(out=out, child_out=child_out, err=err, child_err=child_err)
    yield fds
    for fd in fds.values():
        os.close(fd)


PATH = [State.IDLE, State.LOADING, State.IDLE, State.READY, State.RUNNING]
SAID = {"message": json.dumps({"topic": "my.topic", "payload": {}}).encode(), "out": b"said\n", "err": b"said\n"}


class Script:
    """Speaks on the channels as a script's process does, and tells what was heard."""

    def __init__(self, ends: dict[str, int]) -> None:
        self._ends = ends
        self._spool = Spool()
        self.listener = Listener(Channels(ends["control"], ends["out"], ends["err"], ends["message"]), self._spool)

    def enter(self, *states: State) -> None:
        os.write(
            self._ends["child_control"], b"".join(json.dumps({"state": state}).encode() + b"\n" for state in states)
        )

    def say(self, channel: str) -> None:
        os.write(self._ends[f"child_{channel}"], SAID[channel])

    def receive(self, channel: str) -> None:
        self.listener.receive({self._ends[channel]: False})

    def read(self) -> list[str]:
        entries = json.loads(b"[" + self._spool.take_batch() + b"]")
        return [entry.get("state") or entry.get("line") or entry["topic"] for entry in entries]


@pytest.fixture
def script(ends: dict[str, int]) -> Script:
    return Script(ends)


@pytest.mark.parametrize("channel", SAID)
def test_state_that_poll_missed_comes_before_what_the_script_said_in_it(script: Script, channel: str) -> None:
    """poll asks one channel after the other: the state is sent after it was asked for, the message before it is."""
    script.enter(*PATH)
    script.say(channel)
    script.receive(channel)
    assert script.read()[:-1] == PATH


@pytest.mark.parametrize("channel", SAID)
@pytest.mark.parametrize("late", range(1, len(PATH) + 1))
def test_states_sent_between_two_reads_come_before_what_the_script_said_in_them(
    script: Script, ends: dict[str, int], monkeypatch: pytest.MonkeyPatch, channel: str, late: int
) -> None:
    """The records are read first: a state can be sent, and something said in it, before the other channels are."""
    read, is_late = listener_module._read, []

    def _read_late(fd: int, size: int) -> bytes | None:
        if fd != ends["control"] and not is_late:
            is_late.append(True)
            script.enter(*PATH[-late:])
            script.say(channel)
        return read(fd, size)

    monkeypatch.setattr(listener_module, "_read", _read_late)
    if late < len(PATH):
        script.enter(*PATH[:-late])
        script.receive("control")
    else:
        script.say(channel)
        script.receive(channel)
    told = script.read()
    assert [entry for entry in told if entry in PATH] == PATH
    assert told[-1] not in PATH


@pytest.mark.parametrize("channel", SAID)
def test_last_words_of_main_come_before_the_state_after_it(
    script: Script, ends: dict[str, int], monkeypatch: pytest.MonkeyPatch, channel: str
) -> None:
    read, is_late = listener_module._read, []

    def _read_late(fd: int, size: int) -> bytes | None:
        data = read(fd, size)
        if fd == ends["message"] and not is_late:
            is_late.append(True)
            script.say(channel)
            script.enter(State.READY)
        return data

    script.enter(*PATH)
    script.say(channel)
    monkeypatch.setattr(listener_module, "_read", _read_late)
    script.receive("control")
    told = script.read()
    assert (told[:5], told[7:]) == (PATH, [State.READY])


@pytest.mark.parametrize("channel", SAID)
def test_script_that_is_gone_at_once_said_its_words_after_the_state_they_belong_to(
    script: Script, channel: str
) -> None:
    script.enter(*PATH)
    script.say(channel)
    script.listener.drain()
    assert script.read()[:-1] == PATH


def test_records_without_end_do_not_keep_the_listener(
    script: Script, ends: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what lies sends so many: a stop must get through all the same."""
    read = listener_module._read

    def _read_and_write(fd: int, size: int) -> bytes | None:
        if fd == ends["control"]:
            script.enter(State.READY)
        else:
            script.say("out")
        return read(fd, size)

    monkeypatch.setattr(listener_module, "_read", _read_and_write)
    script.receive("control")
    assert len(script.read()) > 0


def test_what_was_said_while_loading_comes_before_main_also_when_states_follow_each_other_fast(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read before a state was sent cannot have been said in it."""
    late = [((State.IDLE, State.INITIALISING), "err"), ((State.READY, State.RUNNING), "message")]
    hear = script.listener._hear

    def _hear_and_go_on(*args: object, **options: object) -> list[tuple[int, bytes]]:
        heard = hear(*args, **options)  # type: ignore[arg-type]
        if late:
            states, channel = late.pop(0)
            script.enter(*states)
            script.say(channel)
        return heard

    monkeypatch.setattr(script.listener, "_hear", _hear_and_go_on)
    script.enter(State.IDLE, State.LOADING)
    script.say("out")
    script.receive("out")
    told = script.read()
    assert told[:5] == [State.IDLE, State.LOADING, State.IDLE, State.INITIALISING, "said"]
    assert [entry for entry in told if entry in list(State)] == [*PATH[:3], State.INITIALISING, *PATH[3:]]


def test_all_messages_that_the_channel_holds_come_before_the_state_after_them(
    script: Script, ends: dict[str, int]
) -> None:
    script.enter(*PATH)
    os.set_blocking(ends["child_message"], False)
    with contextlib.suppress(BlockingIOError):
        while True:
            script.say("message")
    script.enter(State.READY)
    script.receive("control")
    assert script.read()[-1] == State.READY


def test_states_to_and_fro_without_end_are_not_told(script: Script) -> None:
    """Each costs the driver a write: the next one would wait for all of them."""
    script.enter(*PATH)
    for _ in range(100):
        script.enter(State.READY, State.RUNNING)
        script.receive("control")
    told = [entry for entry in script.read() if entry in PATH]
    assert len(told) == listener_module.MAX_STATES
