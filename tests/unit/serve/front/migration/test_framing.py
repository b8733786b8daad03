"""Chunked bodies that go on wherever they were cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.front.migration.framing import Framing, Unjoinable
from serve.front.scripted import chunked, unchunked


@given(
    payload=st.binary(max_size=80),
    rest=st.binary(min_size=1, max_size=80),
    sizes=st.lists(st.integers(1, 40), max_size=6),
    cut=st.integers(0, 400),
    steps=st.lists(st.integers(1, 30), min_size=1, max_size=20),
)
def test_framing_goes_on_at_any_byte(
    payload: bytes, rest: bytes, sizes: list[int], cut: int, steps: list[int]
) -> None:
    whole = chunked(payload, sizes)
    sent = whole[: min(cut, len(whole) - len(b"0\r\n\r\n"))]
    framing = Framing()
    seen, at = b"", 0
    for step in itertools.cycle(steps):
        if at >= len(sent):
            break
        seen += framing.payload(sent[at : at + step])
        at += step
    more = framing.wrap(rest)
    seen += framing.payload(more)
    assert seen.endswith(rest)
    assert payload.startswith(seen[: -len(rest)])
    assert unchunked(sent + more + framing.end()).rstrip(b"\n") == seen.rstrip(b"\n")


@pytest.mark.parametrize("cut", range(1, 6))
def test_framing_ends_what_has_begun_to_end(cut: int) -> None:
    framing = Framing()
    sent = b"3\r\nabc\r\n" + b"0\r\n\r\n"[:cut]
    assert framing.payload(sent) == b"abc"
    if cut < 5:
        assert sent + framing.end() == b"3\r\nabc\r\n0\r\n\r\n"
    if cut > 1:
        with pytest.raises(Unjoinable):
            framing.wrap(b"x")


def test_what_is_no_framing_cannot_be_joined() -> None:
    framing = Framing()
    with pytest.raises(Unjoinable, match="chunk's size"):
        framing.payload(b"zz\r\n")
