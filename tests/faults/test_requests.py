"""D. Requests in odd pieces and sizes: pipelines, continues, chunks, limits, and the slow ones."""

import contextlib
import json
import time

import pytest

from serve.front.plane.exchange import Exchange
from serve.pool.replicas import ReplicaState
from tests.faults.backend import Backend, Gate, completion, plain
from tests.faults.conftest import Worlds
from tests.faults.wire import KEY, Cut, chat, eventually, post

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer %b\r\n" % KEY


@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize("pieces", [1, 7], ids=["at once", "in odd pieces"])
def test_case_27_pipelining(worlds: Worlds, count: int, pieces: int) -> None:
    """Answers come in the order of the requests, one by one; a slow first one holds the rest."""
    backend = Backend()
    backend.scripts.append((0.05, plain(b'{"n": 0}')))
    backend.scripts.extend((plain(b'{"n": %d}' % number),) for number in range(1, count))
    world = worlds(backend)
    data = b"".join(post(chat(f"{number}")) for number in range(count))
    step = len(data) // pieces + 1
    with world.client() as client:
        for at in range(0, len(data), step):
            client.send(data[at : at + step])
        bodies = [json.loads(client.answer().body)["n"] for _ in range(count)]
    assert bodies == list(range(count))
    assert [seen.body for seen in backend.seen] == [chat(f"{number}") for number in range(count)]


def test_case_27_answers_keep_their_order_whenever_requests_come(worlds: Worlds) -> None:
    """Requests arrive just as earlier answers leave: none may overtake one that is queued."""
    backend = Backend()
    world = worlds(backend)
    count = 400
    backend.scripts.extend((plain(b'{"n": %d}' % number),) for number in range(count))
    with world.client() as client:
        sent = 0
        for burst in range(count // 4):
            for _ in range(4):
                client.send(post(chat(f"{sent}")))
                sent += 1
            if burst >= 2:
                for _ in range(4):
                    client.answer()
        for _ in range(8):
            client.answer()
    assert [seen.body for seen in backend.seen] == [chat(f"{number}") for number in range(count)]


def test_case_27_who_comes_as_an_answer_ends_waits_behind_who_was_queued(worlds: Worlds) -> None:
    """Between the end of one answer and the next request's beginning, a third one arrives."""
    world = worlds(ready=False, probe_s=0)
    with world.client() as client:
        client.send(post(chat("1")) + post(chat("2")))
        eventually(lambda: world.counts()["held"] == 1, "the first is held, the second queued")

        def meet() -> None:
            (lane,) = world.gateway._lanes
            assert isinstance(lane._exchange, Exchange)
            lane._exchange.refuse(503, "over")
            lane.data_received(post(chat("3")))
            world.pool.set(world.replica, ReplicaState.READY)

        world.call(meet)
        assert [client.answer().status for _ in range(3)] == [503, 200, 200]
    assert [seen.body for seen in world.backend.seen] == [chat("2"), chat("3")]


def test_case_27_a_bad_request_behind_good_ones(worlds: Worlds) -> None:
    """The good one is answered whole; the bad one costs the connection, and nothing else."""
    gate = Gate()
    world = worlds(Backend(then=(gate, plain(completion()))))
    with world.client() as client:
        client.send(post() + b"GET / HTTP/1.1\nHost: x\n\n")
        eventually(lambda: world.seen == 1, "the first request")
        gate.open()
        assert client.answer().body == completion()
        assert client.rest() == b""
    assert world.seen == 1


def test_case_27_pipelines_are_bounded(worlds: Worlds) -> None:
    """A client that sends and sends waits in its socket, not in our memory."""
    gate = Gate()
    world = worlds(Backend(then=(gate, plain(completion()))))
    body = chat("x" * 100_000)
    with world.client() as client:
        client.socket.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            for _ in range(100):
                client.send(post(body))
        queued = world.call(lambda: [len(lane._queue or ()) for lane in world.gateway._lanes])
        assert 8 <= queued[0] < 16
        gate.open()


def test_case_28_expect_100_continue(worlds: Worlds) -> None:
    world = worlds(Backend())
    body = chat()
    head = HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    with world.client() as client:
        for _ in range(2):
            client.send(head)
            assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(body)
            assert client.answer().body == completion()
        client.send(HEAD + b"Expect: a miracle\r\nContent-Length: 9\r\n\r\n")
        assert client.answer().status == 417
    assert [seen.headers(b"expect") for seen in world.backend.seen] == [[], []]


def test_case_28_what_is_too_long_is_refused_instead_of_continued(worlds: Worlds) -> None:
    world = worlds(Backend())
    with world.client() as client:
        client.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n")
        assert client.answer().status == 413
        assert client.rest() == b""


def test_case_29_a_chunked_body(worlds: Worlds) -> None:
    world = worlds(Backend())
    body = chat("é" * 1000)
    with world.client() as client:
        client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(body), 97):
            piece = body[at : at + 97]
            client.send(b"%X;ext=1\r\n%b\r\n" % (len(piece), piece))
        client.send(b"0\r\n\r\n")
        assert client.answer().status == 200
    assert world.backend.seen[0].body == body


def test_case_30_a_body_of_20_mb_arrives_exact(worlds: Worlds) -> None:
    world = worlds(Backend())
    body = chat("0123456789abcdef" * (20 << 16), vllm_xargs={"a": [1, None]})
    assert len(body) > 20 << 20
    with world.client() as client:
        assert client.ask(body).status == 200
    assert world.backend.seen[0].body == body


def test_case_30_a_length_over_the_limit_is_refused_unread(worlds: Worlds) -> None:
    world = worlds(Backend())
    with world.client() as client:
        client.send(HEAD + b"Content-Length: %d\r\n\r\n" % ((64 << 20) + 1))
        answer = client.answer()
        assert (answer.status, answer.error["type"]) == (413, "invalid_request_error")
        assert answer.headers(b"connection") == [b"close"]
    assert world.seen == 0


def test_case_30_chunks_over_the_limit_are_refused_when_they_pass_it(worlds: Worlds) -> None:
    world = worlds(Backend(), max_body_bytes=1 << 20)
    chunk = b"10000\r\n%b\r\n" % (b"x" * 65_536)
    with world.client() as client:
        client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(17):
            client.send_what_goes(chunk)
        assert client.answer().status == 413
        assert client.rest() == b""
    assert world.seen == 0


def test_case_30_a_gzip_bomb_stays_packed(worlds: Worlds) -> None:
    import gzip

    world = worlds(Backend())
    bomb = gzip.compress(b" " * (50 << 20))
    with world.client() as client:
        answer = client.ask(bomb, headers=b"Content-Encoding: gzip\r\n")
        assert answer.status == 400
    assert world.seen == 0


BAD_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"hello",
    "half": b'{"model": "m"',
    "two": b'{"model": "m"}{"model": "m"}',
    "a list": b"[1]",
    "a string": b'"m"',
    "a number as the model": b'{"model": 5}',
    "a list as the model": b'{"model": ["m"]}',
    "no name": b'{"model": "m m"}',
    "no version": b'{"model": "m@x"}',
    "a surrogate as the model": b'{"model": "\\ud800"}',
    "a byte order mark": b'\xef\xbb\xbf{"model": "m"}',
    "UTF-16": '{"model": "m"}'.encode("utf-16"),
    "depth": b'{"model": "m", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "depth without an end": b'{"model": "m", "x": ' + b'{"a":' * 50_000,
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_invalid_json(worlds: Worlds, body: bytes) -> None:
    world = worlds(Backend())
    with world.client() as client:
        answer = client.ask(body)
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
        assert client.ask().status == 200  # the connection is as good as before
    assert world.seen == 1


@pytest.mark.parametrize("headers", [b"X: y\r\n" * 130, b"X: %b\r\n" % (b"y" * 65_500)])
@pytest.mark.parametrize("pieces", [1, 2, 50])
def test_case_33_headers_are_bounded(worlds: Worlds, headers: bytes, pieces: int) -> None:
    world = worlds(Backend())
    data = post(headers=headers)
    step = len(data) // pieces + 1
    with world.client() as client:
        for at in range(0, len(data), step):
            client.send_what_goes(data[at : at + step])
        answer = client.answer()
        assert (answer.status, answer.headers(b"connection")) == (431, [b"close"])
    assert world.seen == 0


def test_case_33_many_headers_are_fine(worlds: Worlds) -> None:
    world = worlds(Backend())
    headers = b"".join(b"X-%d: %b\r\n" % (number, b"y" * 400) for number in range(100))
    with world.client() as client:
        assert client.ask(headers=headers).status == 200
    assert len(world.backend.seen[0].head) > 40_000


SLOW: dict[str, tuple[bytes, bytes]] = {
    "head, silent": (HEAD, b""),
    "head, dripping": (HEAD, b"A"),
    "body, silent": (HEAD + b"Content-Length: 1000\r\n\r\n{", b""),
    "body, dripping": (HEAD + b"Content-Length: 1000\r\n\r\n{", b" "),
    "chunks, dripping": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
}


@pytest.mark.parametrize(("start", "drip"), SLOW.values(), ids=SLOW.keys())
def test_case_31_slow_loris(worlds: Worlds, start: bytes, drip: bytes) -> None:
    """Who does not get on is answered 408 and closed, however regularly the bytes drip."""
    world = worlds(Backend(), head_timeout_s=0.6, body_timeout_s=0.6)
    began_s = time.perf_counter()
    with world.client() as client:
        client.send(start)
        client.socket.settimeout(0.1)
        head = None
        while head is None:
            assert time.perf_counter() - began_s < 4, "it was not closed"
            client.send_what_goes(drip)
            try:
                head = client.until(b"\r\n\r\n")
            except TimeoutError:
                continue
            except Cut as cut:
                head = cut.got
        assert head.startswith(b"HTTP/1.1 408 ")
    assert time.perf_counter() - began_s > 0.5
    assert world.seen == 0


def test_case_31_a_large_body_may_take_longer(worlds: Worlds) -> None:
    """What moves is left alone: a body that comes in steadily outlives the limit."""
    world = worlds(Backend(), body_timeout_s=0.6)
    body = chat("x" * 1_000_000)
    data = post(body)
    with world.client() as client:
        for at in range(0, len(data), 50_000):
            client.send(data[at : at + 50_000])
            time.sleep(0.08)
        assert client.answer().status == 200
    assert world.backend.seen[0].body == body


def test_case_31_idle_connections_end(worlds: Worlds) -> None:
    world = worlds(Backend(), idle_timeout_s=0.5)
    with world.client() as fresh, world.client() as used:
        assert used.ask().status == 200
        assert (fresh.rest(), used.rest()) == (b"", b"")
    assert world.gateway.connections == 0
