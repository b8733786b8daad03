"""The reader of responses and the header blocks, on bytes alone."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.play.http1 import Headers, Malformed, Reply, ResponseReader, header_block

BOUND_BYTES = 1 << 20
JSON = b"content-type: application/json\r\n"


def read(wire: bytes, *, cuts: tuple[int, ...] = (), max_body_bytes: int = BOUND_BYTES) -> Reply:
    """Feed `wire` cut at `cuts`, then its end."""
    reader = ResponseReader(max_body_bytes)
    places = [0, *sorted({cut for cut in cuts if 0 < cut < len(wire)}), len(wire)]
    for start, stop in pairwise(places):
        reply = reader.feed(wire[start:stop])
        if reply is not None:
            return reply
    ended = reader.eof()
    assert ended is not None, "the connection's end cut the response off"
    return ended


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Case:
    wire: bytes
    status: int
    body: bytes
    reusable: bool


@st.composite
def responses(draw: st.DrawFn) -> Case:
    """Every way a server may frame, announce and compress one body."""
    plain = draw(st.binary(max_size=300))
    coding = draw(st.sampled_from(["", "identity", "gzip", "deflate"]))
    compressed = {"gzip": gzip.compress(plain), "deflate": zlib.compress(plain)}
    coded = compressed.get(coding, plain)
    framing = draw(st.sampled_from(["length", "chunked", "end"]))
    version = draw(st.sampled_from([b"1.1", b"1.0"])) if framing != "chunked" else b"1.1"
    close = draw(st.booleans())
    status = draw(st.sampled_from([200, 404, 429, 503]))
    lines = draw(st.lists(st.sampled_from([b"X-A: b", b"x-a:c", b"Empty:", b"Date:  now "])))
    if coding:
        lines.append(b"Content-Encoding: " + coding.encode())
    if close:
        lines.append(b"Connection: close")
    if framing == "length":
        lines.append(b"Content-Length: %d" % len(coded))
    elif framing == "chunked":
        lines.append(b"Transfer-Encoding: chunked")
        coded = chunked(coded, draw(st.integers(1, 64)))
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n"]))
    end_of_line = draw(st.sampled_from([b"\r\n", b"\n"])) if framing != "chunked" else b"\r\n"
    head = end_of_line.join([b"HTTP/%b %d Words" % (version, status), *lines, b"", b""])
    reusable = framing != "end" and version == b"1.1" and not close
    return Case(interim + head + coded, status, plain, reusable)


@given(responses(), st.lists(st.integers(0, 800)))
def test_a_response_is_the_same_however_it_is_cut(case: Case, cuts: list[int]) -> None:
    reply = read(case.wire, cuts=tuple(cuts))
    assert (reply.status, reply.body, reply.reusable) == (case.status, case.body, case.reusable)
    assert reply == read(case.wire)
    assert reply == read(case.wire, cuts=tuple(range(len(case.wire))))


@given(responses(), st.integers(0, 800), st.binary(min_size=1, max_size=4), st.integers(1, 99))
def test_damage_is_malformed_cut_off_or_harmless(
    case: Case, place: int, damage: bytes, piece_bytes: int
) -> None:
    wire = case.wire[:place] + damage + case.wire[place + len(damage) :]
    reader = ResponseReader(BOUND_BYTES)
    try:
        for i in range(0, len(wire), piece_bytes):
            if reader.feed(wire[i : i + piece_bytes]) is not None:
                return
        reader.eof()
    except Malformed:
        return


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_garbage_is_malformed_or_incomplete(pieces: list[bytes]) -> None:
    reader = ResponseReader(BOUND_BYTES)
    try:
        for piece in pieces:
            reader.feed(piece)
    except Malformed:
        return
    assert reader.eof() is None


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", 204),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200),
        (b"HTTP/1.1 204 No Content\r\nContent-Encoding: gzip\r\n\r\n", 204),
    ],
)
def test_some_responses_have_no_body(head: bytes, status: int) -> None:
    reply = read(head)
    assert (reply.status, reply.body, reply.reusable) == (status, b"", True)


def test_interim_responses_are_passed_over_with_their_headers() -> None:
    wire = (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    )
    assert read(wire) == Reply(200, {b"content-length": b"2"}, b"hi", reusable=True)


def test_trailers_are_not_headers() -> None:
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Late: 1\r\n\r\n"
    assert read(wire) == Reply(200, {b"transfer-encoding": b"chunked"}, b"a", reusable=True)


def test_one_reader_reads_one_response_after_another() -> None:
    reader = ResponseReader(BOUND_BYTES)
    for body in (b"one", b"two!"):
        reader.start()
        reply = reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        assert reply is not None
        assert reply.body == body


@pytest.mark.parametrize(
    "surplus", [b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-Evil: 1\r\n\r\nbad", b"HTTP", b"junk"]
)
@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n"])
def test_what_follows_a_response_is_not_taken_for_one(surplus: bytes, close: bytes) -> None:
    reply = read(b"HTTP/1.1 200 OK\r\n%bContent-Length: 2\r\n\r\nhi%b" % (close, surplus))
    assert (reply.body, reply.reusable, b"x-evil" in reply.headers) == (b"hi", False, False)


@pytest.mark.parametrize(
    ("wire", "says"),
    [
        (b"HTTP/2 200\r\n\r\n", "HTTP/1.1"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "Content-Length"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "Content-Length",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "chunk size"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "Transfer-Encoding",
        ),
        (b"HTTP/1.1 101 Go\r\nUpgrade: ws\r\nConnection: upgrade\r\n\r\n", "HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx", "Encoding"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx", "gzip"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "at most 8 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789", "at most 8 bytes"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n123456789\r\n",
            "at most 8 bytes",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n123456789", "at most 8 bytes"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 17), "bytes of headers"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 9_000, "bytes of headers"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * (1 << 17),
            "bytes of headers",
        ),
    ],
)
def test_what_is_not_taken_is_named(wire: bytes, says: str) -> None:
    with pytest.raises(Malformed, match=says):
        read(wire, max_body_bytes=8)


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", " GZIP", "deflate", "raw deflate"])
def test_a_compressed_body_is_decoded(coding: str) -> None:
    raw = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    coded = {
        "deflate": zlib.compress(b"plain" * 9),
        "raw deflate": raw.compress(b"plain" * 9) + raw.flush(),
    }.get(coding, gzip.compress(b"plain" * 9))
    name = coding.removeprefix("raw ").encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n"
    assert read(head % (name, len(coded)) + coded).body == b"plain" * 9


@pytest.mark.parametrize(
    ("coded", "says"),
    [
        (gzip.compress(bytes(BOUND_BYTES + 1)), "decoded"),
        (gzip.compress(b"plain")[:-1], "whole"),
        (gzip.compress(b"plain") + b"more", "whole"),
        (gzip.compress(b"plain") * 2, "whole"),
    ],
    ids=["bomb", "cut off", "followed", "two members"],
)
def test_a_compressed_body_is_one_bounded_stream(coded: bytes, says: str) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(coded)
    with pytest.raises(Malformed, match=says):
        read(head + coded)


def test_many_small_pieces_of_a_body_stay_within_reason() -> None:
    body = b"x" * 20_000
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(body, 1)
    assert read(wire, cuts=tuple(range(0, len(wire), 7))).body == body


def test_headers_are_read_under_lower_case_names_and_joined() -> None:
    reply = read(b"HTTP/1.1 204 x\r\nX-A: 1\r\nx-a: 2\r\nName: caf\xe9\r\n\r\n")
    headers = Headers(reply.headers)
    assert dict(headers) == {"x-a": "1, 2", "name": "café"}
    assert headers.get("retry-after") is None
    assert repr(headers) == "Headers({'x-a': '1, 2', 'name': 'café'})"


def test_a_header_block_is_lines() -> None:
    block = header_block({"X-Session-ID": "a b\tc", "X-Empty": "", "Name": "café"})
    assert block == b"X-Session-ID: a b\tc\r\nX-Empty: \r\nName: caf\xe9\r\n"
    assert header_block(block) is block


@pytest.mark.parametrize(
    "headers",
    [
        {"X-A": "secret\r\nX-B: 1"},
        {"X-A": "secret\n"},
        {"X-A": "secret\0"},
        {"X-A\r\nX-B": "secret"},
        {"X A": "secret"},
        {"X-A:": "secret"},
        {"": "secret"},
        {"Content-Length": "secret"},
        {"transfer-encoding": "secret"},
        {"HOST": "secret"},
        {"Connection": "secret"},
        {"X-A": "secret snow\u2603"},
        b"X-A: secret",
        b"X-A: secret\r\n\r\nGET / HTTP/1.1\r\n",
        b"X-A: secret\nX-B: 1\r\n",
        b"content-length: 7\r\n",
    ],
)
def test_a_header_cannot_reach_beyond_its_line(headers: dict[str, str] | bytes) -> None:
    with pytest.raises(ValueError, match="header") as caught:
        header_block(headers)
    assert "secret" not in str(caught.value)
