"""Publish messages from a script. The way to OET's runner is found through the environment only."""

from __future__ import annotations

import json
import os
import sys

from oet_crds.topics import MAX_MESSAGE_BYTES, MESSAGE_FD_VARIABLE, MESSAGE_INODE_VARIABLE, Topic, is_topic

__all__ = ["announce", "progress", "publish"]

MAX_DEPTH = 60
"""Nesting of a value: what reads messages later copes with a little more."""


def announce(msg: str) -> None:
    """Tell everyone who listens a text. It is also kept in the execution's timeline.

    Raises:
        TypeError: `msg` is not a string.
        ValueError: `msg` is too long.
    """
    if not isinstance(msg, str):
        raise TypeError(f"announce() takes a string, not {type(msg).__name__}")
    publish(Topic.ANNOUNCE, msg=msg)


def progress(fraction: float, text: str = "") -> None:
    """Tell how far the script is.

    Args:
        fraction: From 0.0 (begun) to 1.0 (done).
        text: What it is at; empty when there is nothing to say.

    Raises:
        TypeError: `fraction` is not a number, or `text` not a string.
        ValueError: `fraction` is not between 0 and 1.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not isinstance(text, str):
        raise TypeError(f"progress() takes a number and a string, not {fraction!r} and {text!r}")
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"progress() takes a fraction from 0.0 to 1.0, not {fraction!r}")
    publish(Topic.PROGRESS, fraction=float(fraction), text=text)


def publish(topic: str, /, **data: object) -> None:
    """Publish data on a topic: `publish("dish.pointing", azimuth=12.5)`.

    It waits while OET has more unsent messages than it keeps, because a message is never dropped.

    Args:
        topic: Words with dots between them.
        data: Values that JSON knows: None, booleans, finite numbers, strings, and lists and dicts of them.

    Raises:
        TypeError: A value is not one that JSON knows; the text names its key.
        ValueError: The topic is not words with dots between them, or the message is too large.
    """
    datagram = _build(topic, data)
    fd = _find_channel()
    if fd is None:
        print(f"oet: {topic} {json.dumps(data)}", file=sys.stderr)
        return
    os.write(fd, datagram)


def _build(topic: str, data: dict[str, object]) -> bytes:
    if not isinstance(topic, str):
        raise TypeError(f"a topic is a string, not {type(topic).__name__}")
    if not is_topic(topic):
        raise ValueError(f"topic {topic[:80]!r} is not made of words with dots between them, like 'dish.pointing'")
    for key, value in data.items():
        _check_value(key, value)
    datagram = json.dumps({"topic": str(topic), "data": data}).encode()
    if len(datagram) > MAX_MESSAGE_BYTES:
        raise ValueError(f"the message on {topic!r} has {len(datagram)} bytes as JSON, over {MAX_MESSAGE_BYTES}")
    return datagram


def _check_value(key: str, value: object) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except TypeError as error:
        raise TypeError(f"the value of {key!r} is not JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the value of {key!r} is not JSON: {error}") from error
    if _is_deeper(value, MAX_DEPTH):
        raise ValueError(f"the value of {key!r} is nested over {MAX_DEPTH} levels")


def _is_deeper(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [part for item in level for part in _get_parts(item)]
        if not level:
            return False
    return True


def _get_parts(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else []


def _find_channel() -> int | None:
    """Return the file descriptor to the runner; None without one, or when the number is something else by now."""
    try:
        fd = int(os.environ[MESSAGE_FD_VARIABLE])
        return fd if os.fstat(fd).st_ino == int(os.environ[MESSAGE_INODE_VARIABLE]) else None
    except (KeyError, ValueError, OSError):
        return None
