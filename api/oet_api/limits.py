"""What a request may hold, checked before anything else looks at it: size, depth, numbers and characters.

Nothing a client sends may cost more than its bytes: JSON is checked here without recursion, and echoes are shortened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from oet_crds.git import mask_secrets

__all__ = [
    "MAX_DEPTH",
    "InvalidJsonError",
    "is_clean_text",
    "parse_json",
    "shorten",
]

MAX_DEPTH = 64
"""Levels of JSON a request may nest: far more than arguments need, far less than Python's stack of 1000 frames."""

MAX_ECHO_CHARS = 200
"""Length of a text that an answer repeats from the request."""

MAX_ECHO_ITEMS = 10
"""Items of a list or object that an answer repeats from the request."""


class InvalidJsonError(ValueError):
    """A body is not JSON that OET takes.

    Attributes:
        position: Where in the text, as far as known.
    """

    def __init__(self, message: str, position: int = 0) -> None:
        super().__init__(message)
        self.position = position


def parse_json(body: bytes, max_depth: int = MAX_DEPTH) -> Any:
    """Return the value of a JSON text.

    Raises:
        InvalidJsonError: Not UTF-8, not JSON, a name twice in one object, NaN or Infinity, a number too large, nesting
            deeper than `max_depth`, or a text that is no Unicode (half a surrogate pair).
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidJsonError("the body is not UTF-8", error.start) from error
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise InvalidJsonError(error.msg, error.pos) from error
    except RecursionError as error:
        raise InvalidJsonError(f"nested deeper than {max_depth} levels") from error
    _check_values(value, max_depth)
    return value


def _refuse_constant(name: str) -> Any:
    raise InvalidJsonError(f"{name} is not JSON; send null or a string instead")


def _parse_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise InvalidJsonError(f"the number {shorten(text)} is too large for a double")
    return value


def _parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InvalidJsonError(f"a number of {len(text)} digits is too large") from error


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        double = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidJsonError(f"the name {shorten(double)!r} is given twice in one object")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_build_object, parse_float=_parse_float, parse_int=_parse_int, parse_constant=_refuse_constant
)


def _check_values(value: Any, max_depth: int) -> None:
    """Check depth and texts without recursion. Raises InvalidJsonError."""
    layer: list[Any] = [value]
    for _ in range(max_depth + 1):
        for item in layer:
            if isinstance(item, str):
                _check_text(item)
        containers = [item for item in layer if isinstance(item, (dict, list))]
        if not containers:
            return
        layer = [child for item in containers for child in _children(item)]
    raise InvalidJsonError(f"nested deeper than {max_depth} levels")


def _children(item: dict[str, Any] | list[Any]) -> Iterator[Any]:
    if isinstance(item, dict):
        yield from item.keys()
        yield from item.values()
    else:
        yield from item


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidJsonError("a text has half a surrogate pair, which is not Unicode") from error


def is_clean_text(text: str) -> bool:
    """Tell whether a text can be a path, a URL or Python source: no NUL character."""
    return "\0" not in text


def shorten(value: Any, depth: int = 4) -> Any:
    """Return a value as an answer may repeat it: long, huge and deeply nested ones cut, passwords in URLs masked."""
    if isinstance(value, str):
        value = mask_secrets(value)
        text = value if len(value) <= MAX_ECHO_CHARS else value[:MAX_ECHO_CHARS] + "..."
        return text.encode("utf-8", "replace").decode("utf-8")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= 64 else "a huge integer"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (dict, list, tuple)):
        return _shorten_container(value, depth)
    return shorten(str(value))


def _shorten_container(value: Any, depth: int) -> Any:
    if depth == 0:
        return "..."
    if isinstance(value, dict):
        items = list(value.items())[:MAX_ECHO_ITEMS]
        short = {shorten(str(name)): shorten(item, depth - 1) for name, item in items}
        return short if len(value) <= MAX_ECHO_ITEMS else {**short, "...": "..."}
    items = [shorten(item, depth - 1) for item in value[:MAX_ECHO_ITEMS]]
    return items if len(value) <= MAX_ECHO_ITEMS else [*items, "..."]
