"""Messages that the script publishes: datagrams of JSON, checked before they go on. Pure."""

from __future__ import annotations

import json

from oet_crds.topics import MAX_MESSAGE_BYTES, MAX_MESSAGE_DEPTH, is_deeper, is_topic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["build_message", "parse_message"]

MAX_DIGITS = 1000
"""Digits of an integer: Python refuses to read more than 4300."""


def _parse_int(text: str) -> int | str:
    return int(text) if len(text) <= MAX_DIGITS else text


def parse_message(datagram: bytes) -> tuple[str, dict[str, Any]]:
    """Return topic and data of a message.

    Raises:
        ValueError: It is not a message, or too large or too deep.
    """
    if len(datagram) > MAX_MESSAGE_BYTES:
        raise ValueError(f"longer than {MAX_MESSAGE_BYTES} bytes")
    try:
        # NaN and Infinity are not JSON: they go on as text.
        message = json.loads(datagram, parse_constant=str, parse_int=_parse_int)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(message, dict):
        raise ValueError("not a JSON object")
    topic, data = message.get("topic"), message.get("data")
    if not isinstance(topic, str) or not is_topic(topic):
        raise ValueError(f"topic {str(topic)[:80]!r} is not made of words with dots between them")
    if not isinstance(data, dict):
        raise ValueError("data is not a JSON object")
    if is_deeper(data, MAX_MESSAGE_DEPTH):
        raise ValueError(f"nested over {MAX_MESSAGE_DEPTH} levels")
    return topic, data


def build_message(topic: str, data: dict[str, Any]) -> bytes:
    """Build the datagram; values that are not JSON go as their `repr`.

    Raises:
        ValueError: It would be too large.
    """
    clean = {str(key): _make_plain(value) for key, value in data.items()}
    datagram = json.dumps({"topic": topic, "data": clean}).encode()
    if len(datagram) > MAX_MESSAGE_BYTES:
        raise ValueError(f"the message on {topic!r} is longer than {MAX_MESSAGE_BYTES} bytes")
    return datagram


def _make_plain(value: object) -> object:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return repr(value)
    return value
