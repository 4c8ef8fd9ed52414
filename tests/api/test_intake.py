"""How long a request is, told from its first bytes."""

from __future__ import annotations

import pytest

from oet_api.intake import IntakeLimits, Refused, RequestBuffer, Verdict

LIMITS = IntakeLimits(head_bytes=200, body_bytes=50)


def _buffer(data: bytes) -> RequestBuffer:
    buffer = RequestBuffer(LIMITS)
    buffer.feed(data)
    return buffer


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        pytest.param(b"", Verdict.MORE, id="nothing"),
        pytest.param(b"\r\n", Verdict.MORE, id="empty-line"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n", Verdict.MORE, id="half-a-head"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Verdict.WHOLE, id="no-body"),
        pytest.param(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", Verdict.WHOLE, id="after-empty-lines"),
        pytest.param(b"PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab", Verdict.MORE, id="half-a-body"),
        pytest.param(b"PUT / HTTP/1.1\r\ncontent-length : 3\r\n\r\nabc", Verdict.WHOLE, id="body"),
        pytest.param(
            b"PUT / HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\n", Verdict.CONTINUE, id="expects"
        ),
        pytest.param(b"PUT / HTTP/1.1\r\nContent-Length: -3\r\n\r\n", Verdict.WHOLE, id="nonsense-is-for-the-parser"),
        pytest.param(b"A / B\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", Verdict.WHOLE, id="two-lengths"),
    ],
)
def test_bytes_have_a_verdict(data: bytes, verdict: Verdict) -> None:
    assert _buffer(data).check() is verdict


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"PUT / HTTP/1.1\r\nContent-Length: 51\r\n\r\n", 413, id="body-too-long"),
        pytest.param(b"PUT / HTTP/1.1\r\nContent-Length: " + b"9" * 100 + b"\r\n\r\n", 413, id="absurd-length"),
        pytest.param(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411, id="chunked"),
        pytest.param(b"GET /" + b"a" * 300, 414, id="long-request-line"),
        pytest.param(b"GET / HTTP/1.1\r\nA: " + b"a" * 300, 431, id="long-header"),
        pytest.param(b"GET / HTTP/1.1\r\nA: " + b"a" * 300 + b"\r\n\r\n", 431, id="long-whole-head"),
    ],
)
def test_request_that_is_too_much_is_refused(data: bytes, status: int) -> None:
    verdict = _buffer(data).check()
    assert isinstance(verdict, Refused)
    assert verdict.status == status


def test_bytes_one_by_one_make_the_same_request() -> None:
    data = b"PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
    buffer = RequestBuffer(LIMITS)
    for byte in data[:-1]:
        buffer.feed(bytes([byte]))
        assert buffer.check() is Verdict.MORE
    buffer.feed(data[-1:])
    assert buffer.check() is Verdict.WHOLE
    assert buffer.take() == data
    assert len(buffer) == 0


def test_continue_is_said_once() -> None:
    buffer = _buffer(b"PUT / HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert [buffer.check(), buffer.check()] == [Verdict.CONTINUE, Verdict.MORE]


def test_pipelined_requests_come_out_one_by_one() -> None:
    first, second = b"PUT /1 HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", b"GET /2 HTTP/1.1\r\n\r\n"
    buffer = _buffer(first + second)
    assert buffer.check() is Verdict.WHOLE
    assert buffer.take() == first
    assert buffer.check() is Verdict.WHOLE
    assert buffer.take() == second
    assert buffer.check() is Verdict.MORE
