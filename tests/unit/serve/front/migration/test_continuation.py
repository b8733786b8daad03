"""Streams that were cut anywhere, and went on: pure, without a socket."""

import itertools
import json
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serve.front.migration import ask as continuation_ask
from serve.front.migration.continuation import Continuation
from serve.front.migration.framing import Unjoinable
from serve.front.migration.seam import Seam
from serve.front.migration.tail import END, Tail
from serve.front.scripted import Script, chunked, stream, unchunked

CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "hello"}],
    "stream": True,
    "temperature": 0,
    "max_tokens": 40,
    "return_token_ids": True,
}
TEXT: dict[str, Any] = {k: v for k, v in CHAT.items() if k != "messages"} | {"prompt": [1, 2, 3]}


def _ask(body: dict[str, Any]) -> continuation_ask.Ask | None:
    path = continuation_ask.CHAT if "messages" in body else continuation_ask.TEXT
    return continuation_ask.read(path, json.dumps(body).encode())


# Whole streams.


def _read(payload: bytes) -> dict[str, Any]:
    """Return what a client makes of a stream."""
    *raws, rest = payload.split(END)
    assert rest.strip(b"\n") == b""
    raws = [raw.strip(b"\n") for raw in raws if raw.strip(b"\n")]
    assert raws.pop() == b"data: [DONE]"
    events = [json.loads(raw.removeprefix(b"data: ")) for raw in raws]
    choices = [choice for event in events for choice in event["choices"]]
    return {
        "text": "".join(c["delta"]["content"] if "delta" in c else c["text"] for c in choices),
        "ids": [id_ for c in choices for id_ in c.get("token_ids") or []],
        "finish": [c["finish_reason"] for c in choices if c["finish_reason"]],
        "stop_reason": choices[-1]["stop_reason"],
        "usage": [e["usage"] for e in events if not e["choices"]],
        "last_usage": [e["usage"] for e in events if "usage" in e][-1:],
        "heads": {(e["id"], e["object"], e["created"], e["model"]) for e in events},
    }


def _go_on(tail: Tail, script: Script, group: int, cut: int | None) -> bytes:
    """Let another engine go on, which may be cut too; return what the client gets."""
    tail.digest()
    sent = b""

    def write(payload: bytes) -> None:
        nonlocal sent
        tail.digest()
        framed = tail.framing.wrap(payload)
        if cut is not None:
            framed = framed[: max(0, cut - len(sent))]
        tail.feed(framed)
        sent += framed

    seam = Seam(tail)
    if tail.finished:
        if not tail.done:
            write(seam.ending(with_usage=tail.ask.include_usage and not tail.usage_sent))
    else:
        body = msgspec.json.decode(seam.body(b'"other"'))
        for raw in stream(script, body, group):
            if rest := seam.take(raw.removesuffix(END)):
                write(rest)
            if cut is not None and len(sent) >= cut:
                return sent
        assert seam.done
    tail.digest()
    return sent if cut is not None and len(sent) >= cut else sent + tail.framing.end()


def _pieces(text: str, sizes: list[int]) -> tuple[bytes, ...]:
    data = text.encode()
    out: list[bytes] = []
    for size in itertools.cycle(sizes):
        if not data:
            return tuple(out)
        out.append(data[:size])
        data = data[size:]
    raise AssertionError


ALPHABET = 'ab x\n"\\é漢😀�'
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "stop": st.sampled_from(["ab", ["x", "b a"], "é漢", ["aba", "\n\n"]]),
        "include_stop_str_in_output": st.booleans(),
        "min_tokens": st.integers(0, 12),
        "max_tokens": st.integers(1, 60),
        "stream_options": st.sampled_from(
            [
                {"include_usage": True},
                {"include_usage": True, "continuous_usage_stats": True},
                {"include_usage": False},
            ]
        ),
    },
)


@settings(max_examples=300, deadline=None)
@given(
    base=st.sampled_from([CHAT, TEXT]),
    more=BODIES,
    text=st.text(ALPHABET, min_size=1, max_size=40),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    groups=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    chunks=st.lists(st.integers(1, 400), max_size=5),
    at=st.tuples(st.floats(0, 1), st.none() | st.floats(0, 1)),
    steps=st.lists(st.integers(1, 300), min_size=1, max_size=8),
    at_event=st.booleans(),
)
@example(
    base=CHAT,
    more={},
    text="a漢b",
    sizes=[1],
    groups=(1, 1, 1),
    chunks=[],
    at=(0.5, None),
    steps=[100],
    at_event=True,
)
def test_a_stream_goes_on_wherever_it_was_cut(
    base: dict[str, Any],
    more: dict[str, Any],
    text: str,
    sizes: list[int],
    groups: tuple[int, int, int],
    chunks: list[int],
    at: tuple[float, float | None],
    steps: list[int],
    at_event: bool,
) -> None:
    body = base | more
    if body.get("min_tokens", 0) > body["max_tokens"]:
        body["min_tokens"] = body["max_tokens"]
    script = Script(pieces=_pieces(text, sizes))
    events = list(stream(script, body, groups[0]))
    payload = b"".join(events)
    if at_event:  # one event, one chunk, and the cut between two
        kept = events[: 1 + int(at[0] * (len(events) - 1))]
        sent = b"".join(b"%x\r\n%b\r\n" % (len(e), e) for e in kept)
    else:
        whole = chunked(payload, chunks)
        sent = whole[: int(at[0] * len(whole))]
    ask = _ask(body)
    assert ask is not None
    tail = Tail(ask)
    offset = 0
    for step in itertools.cycle(steps):
        if offset >= len(sent):
            break
        tail.feed(sent[offset : offset + step])
        tail.digest()
        offset += step
    try:
        if at[1] is not None and not sent.endswith(b"0\r\n\r\n"):
            sent += _go_on(tail, script, groups[1], int(at[1] * 600))
            tail.digest()
        if not sent.endswith(b"0\r\n\r\n"):
            sent += _go_on(tail, script, groups[2], None)
    except Unjoinable:
        # Only an event of which a part is out can be one that nobody makes the same way again,
        # and before the first one nobody knows the prompt.
        assert tail.partial or tail.prompt_ids is None
        assert not (at_event and at[1] is None)
        return
    got, uncut = _read(unchunked(sent)), _read(payload)
    assert got == uncut


def test_one_token_an_event_is_joined_even_in_the_middle_of_an_event() -> None:
    """As engines stream when they are not behind: then every cut after the first event heals."""
    script = Script(pieces=_pieces('a "b" 漢 é\n😀!', [1, 2]))
    for base in (CHAT, TEXT):
        events = list(stream(script, base))
        whole = b"".join(b"%x\r\n%b\r\n" % (len(e), e) for e in events) + b"0\r\n\r\n"
        first = len(events[0]) + len(b"%x\r\n" % len(events[0]))
        for cut in range(first, len(whole)):
            ask = _ask(base)
            assert ask is not None
            tail = Tail(ask)
            tail.feed(whole[:cut])
            healed = whole[:cut] + _go_on(tail, script, 1, None)
            assert unchunked(healed).rstrip(b"\n") == b"".join(events).rstrip(b"\n")
            if whole[:cut].endswith((b"}", b"}\n\n", b"}\n\n\r\n")):
                assert healed == whole


def test_other_tokens_are_never_joined() -> None:
    script = Script(pieces=(b"a", b"b", "漢".encode()[:1], "漢".encode()[1:], b"c"))
    other = Script(pieces=(b"a", b"b", "é".encode()[:1], "é".encode()[1:], b"c"))
    events = list(stream(script, CHAT))
    ask = _ask(CHAT)
    assert ask is not None
    tail = Tail(ask)
    tail.feed(chunked(b"".join(events[:4]))[: -len(b"0\r\n\r\n")])
    tail.digest()
    seam = Seam(tail)
    body = msgspec.json.decode(seam.body(b'"m"'))
    assert body["prompt"] == [1, 2, 3, 1000, 1001]
    assert body["max_tokens"] == 38
    changed = [raw.replace(b"[1002]", b"[1009]").removesuffix(END) for raw in stream(other, body)]
    with pytest.raises(Unjoinable, match="same tokens"):
        list(map(seam.take, changed))


@pytest.mark.parametrize(
    "raw",
    [
        b'data: {"error":{"message":"EngineDeadError"}}',
        b'data: {"choices":[{"index":0,"delta":{"reasoning":"hm"},"token_ids":[5]}]}',
        b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}',
        b'data: {"choices":[{"index":1,"delta":{"content":"x"},"token_ids":[5]}]}',
        b'data: {"choices":[{"index":0},{"index":1}]}',
        b'data: {"choi',
        b"event: ping",
    ],
)
def test_what_is_not_one_text_breaks_the_tail(raw: bytes) -> None:
    ask = _ask(CHAT)
    assert ask is not None
    tail = Tail(ask)
    tail.feed(chunked(raw + END)[: -len(b"0\r\n\r\n")])
    tail.digest()
    assert tail.broken
    assert not tail.is_clean


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("before", [(), (b"One", b" two", b" three", b" four. ")])
def test_a_stop_string_that_straddles_the_cut_is_found(
    before: tuple[bytes, ...], include: bool
) -> None:
    script = Script(pieces=(*before, b"Hu", b"man", b": no", b" more"))
    body = CHAT | {"stop": ["Human:"], "include_stop_str_in_output": include}
    events = list(stream(script, body))
    uncut = _read(b"".join(events))
    assert uncut["text"] == b"".join(before).decode() + "Human:" * include
    for count in range(1, len(events)):
        ask = _ask(body)
        assert ask is not None
        tail = Tail(ask)
        sent = chunked(b"".join(events[:count]))[: -len(b"0\r\n\r\n")]
        tail.feed(sent)
        assert _read(unchunked(sent + _go_on(tail, script, 1, None))) == uncut


def test_the_end_of_an_event_with_several_tokens_is_no_place_to_begin() -> None:
    """The last of them may be a character's first piece; an engine would repeat its prompt."""
    script = Script(pieces=(b"a", b"b\xc3", b"\xa9", b"c"))
    events = list(stream(script, CHAT, 2))
    for count in range(2, len(events)):
        ask = _ask(CHAT)
        assert ask is not None
        tail = Tail(ask)
        sent = chunked(b"".join(events[:count]))[: -len(b"0\r\n\r\n")]
        tail.feed(sent)
        healed = unchunked(sent + _go_on(tail, script, 1, None))
        assert _read(healed) == _read(b"".join(events))


def test_the_rest_is_asked_for_with_what_is_left() -> None:
    ask = _ask(CHAT | {"min_tokens": 9, "stop": ["zz"], "seed": 4})
    assert ask is not None
    tail = Tail(ask)
    events = list(stream(Script(pieces=(b"one", b"two", b"three")), CHAT))
    tail.feed(chunked(b"".join(events[:3]))[: -len(b"0\r\n\r\n")])
    tail.digest()
    seam = Seam(tail)
    assert msgspec.json.decode(seam.body(b'"m@7"')) == {
        "model": "m@7",
        "prompt": [1, 2, 3, 1000],
        "temperature": 0,
        "max_tokens": 39,
        "min_tokens": 8,
        "stop": ["zz"],
        "stream": True,
        "return_token_ids": True,
    }
    other = next(iter(stream(Script(pieces=(b"x",)), TEXT)))
    with pytest.raises(Unjoinable, match="same token ids"):
        seam.take(other.removesuffix(END))


def test_nothing_more_is_read_for_a_client_that_is_stuck() -> None:
    class Engine:
        replica = SimpleNamespace(host_line=b"host: h\r\n")
        did: list[str] = []  # noqa: RUF012  # one test's

        def send(self, recipient: object, head: bytes, body: bytes) -> None:
            self.did.append("send")

        def pause(self) -> None:
            self.did.append("pause")

    for is_stuck in (False, True):
        asked: Any = SimpleNamespace(
            path=continuation_ask.CHAT, forwarded=b"", client=SimpleNamespace(is_stuck=is_stuck)
        )
        engine: Any = Engine()
        ask = _ask(CHAT)
        assert ask is not None
        Continuation(asked, ask).send(engine)
    assert Engine.did == ["send", "send", "pause"]
