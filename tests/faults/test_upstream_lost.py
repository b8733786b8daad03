"""B. A replica is lost: before a byte went out the request goes elsewhere, after it all can see."""

import time

import openai
import pytest

from serve.pool.replicas import ReplicaState
from tests.faults.backend import (
    EVENTS_HEAD,
    LAST_CHUNK,
    Backend,
    End,
    Script,
    chunk,
    completion,
    event,
    plain,
)
from tests.faults.conftest import Worlds
from tests.faults.wire import KEY, Cut, chat, eventually, post
from tests.faults.world import World

JSON = plain(completion())
HALF_STREAM = (EVENTS_HEAD, chunk(event("a")), chunk(event("b")))
TWO = {"probe_s": 0}

BEFORE_A_BYTE: dict[str, Script] = {
    "case_09 closes without a byte": (End.CLOSE,),
    "case_09 resets without a byte": (End.RESET,),
    "case_11 closes in the head": (JSON[:30], End.CLOSE),
    "case_11 closes after the head": (JSON.partition(b"\r\n\r\n")[0] + b"\r\n\r\n", End.CLOSE),
    "case_11 closes mid-JSON": (JSON[:-40], End.CLOSE),
    "case_11 resets mid-JSON": (JSON[:-40], 0.02, End.RESET),
    "case_15 garbage": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n",),
    "case_15 garbage without an end": (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        0.02,
        b"x" * 9,
    ),
    "case_15 a status line of words": (b"HTTP/1.1 fine\r\ncontent-length: 0\r\n\r\n",),
    "case_15 a head over 64 kB": (b"HTTP/1.1 200 OK\r\nx: %b\r\n\r\n" % (b"y" * 70_000),),
    "case_15 a head without an end": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 20_000),
    "case_15 a bad length": (b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",),
    "case_15 two lengths": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc",
    ),
    "case_15 a length and chunks": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n",
        b"2\r\n{}\r\n0\r\n\r\n",
    ),
    "case_15 a header without a colon": (b"HTTP/1.1 200 OK\r\nwhat\r\n\r\n",),
    "case_15 an unknown framing": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nxx",),
    "case_15 a negative first chunk": (EVENTS_HEAD + b"-5\r\nhello\r\n",),
}


@pytest.mark.parametrize("script", BEFORE_A_BYTE.values(), ids=BEFORE_A_BYTE.keys())
def test_retried_elsewhere_once(worlds: Worlds, script: Script) -> None:
    """One replica fails every request, the other is sound: the client sees one whole answer."""
    world = worlds(Backend(then=script), Backend(), **TWO)
    with world.client() as client:
        for _ in range(4):  # power of two choices: sooner or later the bad one comes first
            world.set(ReplicaState.READY)
            answer = client.ask(headers=b"X-Request-ID: r-1\r\n")
            assert (answer.status, answer.body) == (200, completion())
            assert answer.headers(b"x-replica") == [b"r1"]
    bad, good = world.backends
    assert len(good.seen) == 4
    assert len(bad.seen) == len(world.pool.failures) == world.gateway.meters.retries > 0
    assert {seen.headers(b"x-request-id")[0] for seen in bad.seen + good.seen} == {
        b"r-1"
    }  # case 24
    assert {seen.body for seen in bad.seen + good.seen} == {chat()}
    eventually(lambda: world.ledger.requests == 4, "the ledger")


@pytest.mark.parametrize("script", BEFORE_A_BYTE.values(), ids=BEFORE_A_BYTE.keys())
def test_two_attempts_are_all(worlds: Worlds, script: Script) -> None:
    """Where every replica fails, there is one error object after two attempts (cases 21 and 22)."""
    world = worlds(Backend(then=script), Backend(then=script), Backend(then=script), **TWO)
    with world.client() as client:
        answer = client.ask()
        assert answer.status == 502
        assert answer.error["code"] == "replica_lost"
        assert answer.headers(b"retry-after") == [b"1"]
        assert world.seen == 2
        for number in range(3):
            world.set(ReplicaState.READY, number)
        assert client.ask().status == 502  # the connection stayed
    assert world.ledger.requests == 0


def test_case_07_refused(worlds: Worlds) -> None:
    world = worlds(Backend(), Backend(), **TWO)
    world.run(world.backend.kill())
    with world.client() as client:
        for _ in range(4):
            world.set(ReplicaState.READY)
            assert client.ask().status == 200
    assert world.seen == 4
    assert {failed for failed, _ in world.pool.failures} == {"r0"}


def test_case_08_a_black_hole_holds_nobody_else_up(worlds: Worlds, full_port: int) -> None:
    world = worlds(Backend(), Backend(), **TWO)
    world.replica.port = full_port
    clients = [world.client() for _ in range(4)]
    start = time.perf_counter()
    for client in clients:
        client.send(post())
    stuck = world.replica.in_flight
    with world.client() as other:
        while not stuck:
            clients.append(world.client())
            clients[-1].send(post())
            time.sleep(0.01)
            stuck = world.call(lambda: world.replica.in_flight)
        assert other.ask().status == 200
        assert time.perf_counter() - start < 2
    for client in clients:
        assert client.answer().status == 200
        client.close()
    assert time.perf_counter() - start < 8
    assert len(world.backends[1].seen) == len(clients) + 1


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
def test_case_10_stale_connections_never_show(worlds: Worlds, end: End) -> None:
    """36 times a pooled connection ends as the next request is written: none of them fails."""
    backend = Backend(requests_a_connection=1, stale_end=end)
    world = worlds(backend)
    with world.client() as client:
        answers = [client.ask(chat(f"{number}")) for number in range(37)]
    assert [answer.status for answer in answers] == [200] * 37
    assert [seen.body for seen in backend.seen] == [chat(f"{number}") for number in range(37)]
    assert backend.stale == 36
    assert world.pool.failures == []
    assert world.replica.errors == 0


def test_case_10_idle_connections_closed_without_notice(worlds: Worlds) -> None:
    world = worlds(Backend())
    with world.client() as client:
        for _ in range(36):
            assert client.ask().status == 200
            world.call(world.backend.drop_idle)
    assert len(world.backend.seen) == 36
    assert world.pool.failures == []


def test_case_10_a_stale_connection_then_a_dead_replica(worlds: Worlds) -> None:
    """At most three attempts: on the stale connection, on a fresh one, elsewhere."""
    first = Backend(requests_a_connection=1)
    world = worlds(first, Backend(), **TWO)
    world.set(ReplicaState.DOWN, 1)
    with world.client() as client:
        assert client.ask().status == 200
        world.set(ReplicaState.READY, 1)
        first.then = (End.CLOSE,)
        world.replica.in_flight -= 100  # it looks idle: routing sends everything there
        answer = client.ask()
        world.replica.in_flight += 100
        assert (answer.status, answer.headers(b"x-replica")) == (200, [b"r1"])
    assert (first.stale, len(first.seen), len(world.backends[1].seen)) == (1, 2, 1)


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET])
def test_case_11_cut_at_an_event_s_end_is_an_error_event(worlds: Worlds, end: End) -> None:
    world = worlds(Backend(then=(*HALF_STREAM, 0.02, end)))
    with world.client() as client:
        answer = client.ask(chat(stream=True))
        whole = event("a") + event("b")
        assert answer.body.startswith(whole)
        last = answer.body.removeprefix(whole)
        assert last.startswith(b'data: {"error": {')
        assert last.endswith(b"\n\n")
        assert b'"code": "replica_lost"' in last
        assert client.rest() == b""
    assert world.seen == 1
    assert world.gateway.meters.retries == 0
    world.settle()
    assert ("/v1/chat/completions", 502, "m") in world.gateway.meters.routes


CUT: dict[str, Script] = {
    "in a chunk": (*HALF_STREAM, b"40\r\ndata: {", 0.02, End.CLOSE),
    "in a chunk's size": (*HALF_STREAM, b"4", 0.02, End.CLOSE),
    "between an event's chunks": (*HALF_STREAM, chunk(b'data: {"x'), 0.02, End.CLOSE),
    "before the end of the chunk": (*HALF_STREAM, chunk(event("c"))[:-2], 0.02, End.CLOSE),
    "in the trailer": (*HALF_STREAM, b"0\r\n", 0.02, End.CLOSE),
    "case_15 a negative chunk": (*HALF_STREAM, b"4", 0.02, b"\r\n{}{}\r\n-5\r\nhello", End.HANG),
    "case_15 a size that is none": (*HALF_STREAM, chunk(b"data: "), 0.02, b"zz\r\n", End.HANG),
    "case_15 a size line without end": (
        *HALF_STREAM,
        chunk(b"data: "),
        0.02,
        b"1" * 3000,
        End.HANG,
    ),
    "a long answer": (plain(b"x" * (2 << 20))[: 1 << 20], 0.02, End.CLOSE),
    "a chunked answer": (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
        chunk(completion()[:20]),
        0.02,
        End.CLOSE,
    ),
}


@pytest.mark.parametrize("script", CUT.values(), ids=CUT.keys())
def test_case_11_cut_elsewhere_is_a_broken_transfer(worlds: Worlds, script: Script) -> None:
    """Never a clean end, never a second answer, never an event inside an event."""
    world = worlds(Backend(then=script))
    with world.client() as client:
        client.send(post(chat(stream=True)))
        with pytest.raises(Cut) as cut:
            client.answer()
    assert b"replica_lost" not in cut.value.got
    assert world.seen == 1
    assert len(world.pool.failures) == 1


SDK_SEES: dict[str, Script] = {
    "at an event's end": (*HALF_STREAM, 0.02, End.CLOSE),
    "in an event": (*HALF_STREAM, b"40\r\ndata: {", 0.02, End.CLOSE),
}


@pytest.mark.parametrize("where", SDK_SEES)
def test_case_11_the_openai_sdk_raises(worlds: Worlds, where: str) -> None:
    """APIError, whose subclass APIConnectionError stands for a broken transfer."""
    script = SDK_SEES[where]
    is_event = where == "at an event's end"
    expected = openai.APIError if is_event else openai.APIConnectionError
    world = worlds(Backend(then=script))
    with sdk(world) as client:
        stream = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], stream=True
        )
        texts: list[str | None] = []
        with pytest.raises(expected):
            texts.extend(piece.choices[0].delta.content for piece in stream)
    assert texts == ["a", "b"]


def test_case_11_the_openai_sdk_raises_for_json_cut_everywhere(worlds: Worlds) -> None:
    world = worlds(Backend(then=(JSON[:-40], End.CLOSE)), Backend(then=(JSON[:-40], End.CLOSE)))
    with sdk(world) as client, pytest.raises(openai.InternalServerError) as raised:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert raised.value.status_code == 502
    assert raised.value.code == "replica_lost"
    assert world.seen == 2


def test_a_single_replica_that_comes_back_is_tried_again(worlds: Worlds) -> None:
    """There is nowhere else: the request is held until the probe has found the replica again."""
    backend = Backend()
    backend.scripts.append((End.CLOSE,))
    world = worlds(backend)
    with world.client() as client:
        assert client.ask().status == 200
    assert len(backend.seen) == 2


def test_an_answer_after_which_more_comes(worlds: Worlds) -> None:
    """What an engine says beyond its answer reaches nobody; its connection is not used again."""
    more = plain(b'{"stolen": true}')
    scripts: tuple[Script, ...] = (
        (JSON + more,),
        (EVENTS_HEAD + chunk(event("a")) + LAST_CHUNK + more,),
        (EVENTS_HEAD, chunk(event("a")), 0.01, LAST_CHUNK + more),
        (JSON, 0.02, more),
    )
    backend = Backend()
    world = worlds(backend, probe_s=0)
    with world.client() as client:
        for number, script in enumerate(scripts):
            backend.scripts.append(script)
            assert client.ask().body == (event("a") if number in (1, 2) else completion())
            eventually(lambda: not backend.open, "its connection is dropped")
            assert client.ask().body == completion()
            world.call(backend.drop_idle)
            eventually(lambda: not backend.open, "the other one is closed")
    assert backend.connections == 2 * len(scripts)


def sdk(world: World) -> openai.OpenAI:
    """The SDK as a user has it, without its retries."""
    host, port = world.gateway.address
    return openai.OpenAI(
        base_url=f"http://{host}:{port}/v1", api_key=KEY.decode(), max_retries=0, timeout=10
    )
