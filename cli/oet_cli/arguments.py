"""From words of the command line to arguments of a script, by the rules that users of OET know. Pure."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

__all__ = ["parse_flag", "parse_literal", "parse_words"]


def parse_literal(text: str) -> Any:
    """Return the Python literal that a word spells (`1`, `2.5`, `[1, 2]`, `{"a": 1}`, `True`), else the word itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def parse_flag(text: str) -> bool:
    """Return the truth value of a word such as `True`, `false`, `1` or `no`.

    Raises:
        ValueError: It is none; the text says which are.
    """
    word = text.strip().lower()
    if word in ("true", "1", "yes", "on", "y", "t"):
        return True
    if word in ("false", "0", "no", "off", "n", "f"):
        return False
    raise ValueError(f"{text!r} is neither True nor False")


def parse_words(words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Split the words after a command into positional and keyword arguments of a script.

    `--key=value` and `--key value` give a keyword argument, `--key` alone gives True and `--nokey` alone False; dashes in a
    key become underscores. After `--` everything is positional. A number below zero is a value, not a key.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            args += [parse_literal(one) for one in rest]
            break
        if not _is_key(word):
            args.append(parse_literal(word))
            continue
        key, has_value, value = word.lstrip("-").partition("=")
        key = key.replace("-", "_")
        if has_value:
            kwargs[key] = parse_literal(value)
        elif rest and not _is_key(rest[0]):
            kwargs[key] = parse_literal(rest.pop(0))
        elif key.startswith("no") and len(key) > 2:
            kwargs[key[2:].lstrip("_")] = False
        else:
            kwargs[key] = True
    return args, kwargs


def _is_key(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not word[1].isdigit() and word[1] != "."
