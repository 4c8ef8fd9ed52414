"""JSON that a client may send, and what is repeated of it in an answer."""

from __future__ import annotations

import pytest

from oet_api.limits import MAX_DEPTH, InvalidJsonError, parse_json, shorten


@pytest.mark.parametrize(
    ("body", "value"),
    [
        pytest.param(b'{"a": [1, 2.5, null, true]}', {"a": [1, 2.5, None, True]}, id="usual"),
        pytest.param(b'"\\u0000"', "\0", id="nul-in-a-text"),
        pytest.param('"ä\\ud83d\\ude00"'.encode(), "ä\U0001f600", id="surrogate-pair"),
        pytest.param(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, None, id="deepest"),
        pytest.param(b"9" * 4000, int("9" * 4000), id="large-integer"),
        pytest.param(b"1e308", 1e308, id="large-float"),
    ],
)
def test_allowed_json_is_parsed(body: bytes, value: object) -> None:
    parsed = parse_json(body)
    assert value is None or parsed == value


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b"{", "Expecting property name", id="cut-off"),
        pytest.param(b"", "Expecting value", id="empty"),
        pytest.param(b"\xff\xfe", "UTF-8", id="no-utf8"),
        pytest.param('{"a": 1}'.encode("utf-16"), "UTF-8", id="utf16"),
        pytest.param(b"[NaN]", "NaN", id="nan"),
        pytest.param(b"[-Infinity]", "Infinity", id="infinity"),
        pytest.param(b"1e400", "too large", id="float-overflow"),
        pytest.param(b"9" * 5000, "5000 digits", id="too-many-digits"),
        pytest.param(b'"\\ud800"', "surrogate", id="lone-surrogate"),
        pytest.param(b'{"\\udfff": 1}', "surrogate", id="lone-surrogate-in-a-name"),
        pytest.param(b'{"a": 1, "a": 2}', "twice", id="name-twice"),
        pytest.param(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "deeper", id="one-too-deep"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "deeper", id="far-too-deep"),
        pytest.param(b"[" * 500_000, "deeper", id="deep-and-cut-off"),
        pytest.param(b"1 2", "Extra data", id="two-values"),
    ],
)
def test_other_bytes_are_refused_with_the_reason(body: bytes, words: str) -> None:
    with pytest.raises(InvalidJsonError, match=words):
        parse_json(body)


@pytest.mark.parametrize(
    ("value", "short"),
    [
        pytest.param("a" * 1000, "a" * 200 + "...", id="text"),
        pytest.param(list(range(100)), [*range(10), "..."], id="list"),
        pytest.param({str(n): n for n in range(100)}, {**{str(n): n for n in range(10)}, "...": "..."}, id="object"),
        pytest.param([[[[[[1]]]]]], [[[["..."]]]], id="deep"),
        pytest.param(10**5000, "a huge integer", id="huge"),
        pytest.param("\ud800", "?", id="surrogate"),
        pytest.param(float("inf"), "inf", id="infinity"),
        pytest.param(None, None, id="null"),
        pytest.param(True, True, id="boolean"),
    ],
)
def test_echo_is_bounded(value: object, short: object) -> None:
    assert shorten(value) == short
