"""From words of the command line to arguments of a script, by the rules of python-fire that users of OET know. Pure."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Sequence
from typing import Any

__all__ = ["parse_flag", "parse_literal", "parse_words", "split_words"]

_UNPARSABLE = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)


class _BareWords(ast.NodeTransformer):
    """Makes texts of names, so that `[a, b]` is a list of two texts."""

    def visit_Name(self, node: ast.Name) -> ast.Constant:
        """Return the name as a text."""
        return ast.copy_location(ast.Constant(node.id), node)


def parse_literal(text: str) -> Any:
    """Return the Python literal that a word spells (`1`, `2.5`, `[1, 2]`, `{"a": 1}`, `True`), else the word itself.

    Words within a literal need no quotes (`[a, b]`). What JSON cannot carry to the server (a set, bytes, an infinite
    number) stays the text it is; a tuple arrives as a list.
    """
    try:
        with warnings.catch_warnings():
            # `'\d'` is a text like any other here, not a Python program to be warned of.
            warnings.simplefilter("ignore")
            tree = ast.parse(text, mode="eval")
        if isinstance(tree.body, ast.Name):
            return text
        value = ast.literal_eval(_BareWords().visit(tree))
        json.dumps(value, allow_nan=False)
    except _UNPARSABLE:
        return text
    return value


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


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, str | bool]]:
    """Split the words after a command into positional and keyword arguments, not parsed yet.

    `--key=value` and `--key value` give a keyword argument, `--key` alone gives True and `--nokey` alone False; dashes in a
    key become underscores. After `--` everything is positional. A number below zero is a value, not a key.
    """
    args: list[str] = []
    kwargs: dict[str, str | bool] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return args + rest, kwargs
        if not _is_key(word):
            args.append(word)
            continue
        key, has_value, value = word.lstrip("-").partition("=")
        key = key.replace("-", "_")
        if has_value:
            kwargs[key] = value
        elif rest and rest[0] != "--" and not _is_key(rest[0]):
            kwargs[key] = rest.pop(0)
        elif key.startswith("no") and len(key) > 2:
            kwargs[key[2:].lstrip("_")] = False
        else:
            kwargs[key] = True
    return args, kwargs


def parse_words(words: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and keyword arguments that words spell; see `split_words` and `parse_literal`."""
    args, kwargs = split_words(words)
    parsed = {key: value if isinstance(value, bool) else parse_literal(value) for key, value in kwargs.items()}
    return [parse_literal(word) for word in args], parsed


def _is_key(word: str) -> bool:
    """Tell whether a word names a keyword argument: dashes and a letter, or two dashes and anything."""
    name = word.lstrip("-")
    dashes = len(word) - len(name)
    return bool(name) and name[0] != "=" and (dashes >= 2 or (dashes == 1 and (name[0].isalpha() or name[0] == "_")))
