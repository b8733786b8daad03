import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.testing.framing import Malformed, Unfinished, header, read_body

CHUNKED = b"post / http/1.1\r\ntransfer-encoding: chunked"


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.binary(max_size=9))
def test_chunks_are_put_together_and_no_byte_less_is_enough(
    parts: list[bytes], rest: bytes
) -> None:
    body = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in parts)
    whole = body + b"0\r\nTrailer: x\r\n\r\n"
    assert read_body(whole + rest, CHUNKED, 0) == (b"".join(parts), len(whole))
    for size in range(len(whole)):
        with pytest.raises(Unfinished) as caught:
            read_body(whole[:size], CHUNKED, 0)
        assert size < caught.value.needed <= len(whole)


@pytest.mark.parametrize(
    ("lowered", "body"),
    [
        (b"\r\ncontent-length: x", b""),
        (b"\r\ncontent-length: +1", b"a"),
        (b"\r\ntransfer-encoding: gzip", b""),
        (b"\r\ntransfer-encoding: chunked\r\ncontent-length: 3", b"0\r\n\r\n"),
        (b"\r\ntransfer-encoding: chunked", b"-1\r\n"),
        (b"\r\ntransfer-encoding: chunked", b"\r\n"),
    ],
)
def test_malformed(lowered: bytes, body: bytes) -> None:
    with pytest.raises(Malformed):
        read_body(body, lowered, 0)


def test_headers() -> None:
    head = b"GET / HTTP/1.1\r\nX-Name:  Value \r\nLast: 1"
    assert header(head, head.lower(), b"x-name") == b"Value"
    assert header(head, head.lower(), b"last") == b"1"
    assert header(head, head.lower(), b"name") is None
