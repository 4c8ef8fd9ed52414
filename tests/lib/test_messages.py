"""What a script may call, here without a runner: it then prints, and refuses what it would refuse there."""

import json
import os
import socket

import pytest

import oet
from oet_crds.topics import MESSAGE_FD_VARIABLE, MESSAGE_INODE_VARIABLE


@pytest.fixture
def channel(monkeypatch):
    """The runner's end of a message channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setenv(MESSAGE_FD_VARIABLE, str(theirs.fileno()))
    monkeypatch.setenv(MESSAGE_INODE_VARIABLE, str(os.fstat(theirs.fileno()).st_ino))
    ours.settimeout(5)
    with ours, theirs:
        yield ours


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.delenv(MESSAGE_FD_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("call", "topic", "data"),
    [
        (lambda: oet.announce("text"), "script.announce", {"msg": "text"}),
        (lambda: oet.progress(1), "script.progress", {"fraction": 1.0, "text": ""}),
        (lambda: oet.progress(0.25, "a"), "script.progress", {"fraction": 0.25, "text": "a"}),
        (lambda: oet.publish("my.topic", a=(1, 2), topic=None), "my.topic", {"a": [1, 2], "topic": None}),
        (lambda: oet.publish("my.topic"), "my.topic", {}),
    ],
    ids=["announce", "done", "progress", "publish", "no-data"],
)
def test_message_goes_to_the_runner(channel, call, topic, data):
    call()
    assert json.loads(channel.recv(1 << 18)) == {"topic": topic, "data": data}


def test_message_of_a_script_run_by_hand_is_printed(alone, capsys):
    oet.announce("text")
    assert capsys.readouterr().err == 'oet: script.announce {"msg": "text"}\n'


@pytest.mark.parametrize(("fd", "inode"), [("x", "1"), ("-1", "1"), ("1", "1"), ("99999", "1")])
def test_channel_that_is_none_is_not_written_to(monkeypatch, capfd, fd, inode):
    monkeypatch.setenv(MESSAGE_FD_VARIABLE, fd)
    monkeypatch.setenv(MESSAGE_INODE_VARIABLE, inode)
    oet.announce("text")
    out, err = capfd.readouterr()
    assert (out, err) == ("", 'oet: script.announce {"msg": "text"}\n')


def build_nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: oet.announce(5), TypeError, "a string, not int"),
        (lambda: oet.announce("x" * 200_000), ValueError, "over 131072"),
        (lambda: oet.progress("half"), TypeError, "'half'"),
        (lambda: oet.progress(True), TypeError, "True"),
        (lambda: oet.progress(0.5, None), TypeError, "None"),
        (lambda: oet.progress(1.5), ValueError, "from 0.0 to 1.0"),
        (lambda: oet.progress(float("nan")), ValueError, "nan"),
        (lambda: oet.publish(5), TypeError, "a topic is a string"),
        (lambda: oet.publish("two words"), ValueError, "two words"),
        (lambda: oet.publish(""), ValueError, "''"),
        (lambda: oet.publish("a..b"), ValueError, "a..b"),
        (lambda: oet.publish("a.b\n"), ValueError, "dots"),
        (lambda: oet.publish("x" * 300), ValueError, "xxx"),
        (lambda: oet.publish("a", good=1, bad={1, 2}), TypeError, "'bad'"),
        (lambda: oet.publish("a", bad=float("inf")), ValueError, "'bad'"),
        (lambda: oet.publish("a", bad=build_nested(100)), ValueError, "'bad' is nested"),
        (lambda: oet.publish("a", bad=build_nested(100_000)), ValueError, "'bad'"),
    ],
)
def test_wrong_call_is_an_error_that_says_what_is_wrong(channel, call, error, words):
    with pytest.raises(error, match=words.replace("(", "\\(")):
        call()
