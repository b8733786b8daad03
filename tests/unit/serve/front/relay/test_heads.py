"""Heads on their way through."""

from __future__ import annotations

import pytest

from serve.front.relay.heads import AnswerHead, BadAnswer, answer, connection_names, foreign


def test_an_answers_head_is_passed_on_without_what_is_between_us_and_the_engine() -> None:
    head = AnswerHead(
        b"HTTP/1.1 200 OK\r\nServer: uvicorn\r\nContent-Length: 12\r\nX-Odd: a:b\r\n"
        b"Connection: keep-alive\r\nx-policy-version: 99\r\nSet-Cookie: a=b"
    )
    assert (head.status, head.length, head.keeps_alive) == (200, 12, True)
    assert head.lines == [b"HTTP/1.1 200 OK", b"Content-Length: 12", b"X-Odd: a:b"]


@pytest.mark.parametrize(
    ("raw", "keeps_alive", "chunked", "streamed"),
    [
        (b"HTTP/1.1 200 OK\r\nconnection: Close", False, False, False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0", False, False, False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked", True, True, False),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8", True, False, True),
    ],
)
def test_framing_is_read(raw: bytes, keeps_alive: bool, chunked: bool, streamed: bool) -> None:
    head = AnswerHead(raw)
    assert (head.keeps_alive, head.chunked, head.streamed) == (keeps_alive, chunked, streamed)


@pytest.mark.parametrize(
    "raw",
    [
        b"garbage",
        b"HTTP/2 200 OK",
        b"HTTP/1.1 abc OK",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5",
    ],
)
def test_what_is_not_http_is_bad(raw: bytes) -> None:
    with pytest.raises(BadAnswer, match="expected"):
        AnswerHead(raw)


def test_our_own_answers_are_whole() -> None:
    assert answer(404, b"{}", keep_alive=False, extra=b"retry-after: 1\r\n") == (
        b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
        b"connection: close\r\ncontent-length: 2\r\n\r\n{}"
    )


def test_headers_named_by_connection_are_found() -> None:
    assert connection_names(b"close, X-Secret ,te") == {b"close", b"x-secret", b"te"}


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([(b"host", b"127.0.0.1:8000")], None),
        ([(b"host", b"localhost")], None),
        ([(b"host", b"[::1]:8000")], None),
        ([(b"host", b"localhost:8000"), (b"origin", b"http://localhost:8000")], None),
        ([(b"host", b"localhost:8000"), (b"origin", b"http://evil.example")], "other sites"),
        ([(b"host", b"evil.example:8000")], "only as localhost"),
        ([(b"host", b"10.0.0.1")], "only as localhost"),
        ([], "only as localhost"),
    ],
)
def test_without_keys_only_this_machines_programs_are_answered(
    headers: list[tuple[bytes, bytes]], reason: str | None
) -> None:
    said = foreign(headers)
    assert (said is None) if reason is None else (reason in (said or ""))
