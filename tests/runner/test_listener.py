"""What the supervisor hears on several channels is told in the order in which it was said."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

import pytest

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


@pytest.mark.parametrize("seen", ["message", "out"])
def test_state_that_poll_missed_comes_before_what_the_script_said_in_it(ends: dict[str, int], seen: str) -> None:
    """poll asks one channel after the other: the state is sent after it was asked for, the message before it is."""
    spool = Spool()
    listener = Listener(Channels(ends["control"], ends["out"], ends["err"], ends["message"]), spool)
    path = [State.IDLE, State.LOADING, State.IDLE, State.READY, State.RUNNING]
    os.write(ends["child_control"], b"".join(json.dumps({"state": state}).encode() + b"\n" for state in path))
    said = {"message": json.dumps({"topic": "my.topic", "payload": {}}).encode(), "out": b"said\n"}
    os.write(ends[f"child_{seen}"], said[seen])
    listener.receive({ends[seen]: False})
    entries = json.loads(b"[" + spool.take_batch() + b"]")
    assert [entry.get("state") for entry in entries] == [*path, None], entries
