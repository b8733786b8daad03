"""E. Streams pass byte for byte, at once, and never pile up; what they used is read on the way."""

import json
import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.backend import (
    EVENTS_HEAD,
    LAST_CHUNK,
    Backend,
    End,
    Gate,
    Script,
    Step,
    chunk,
    completion,
    event,
    plain,
    stream,
)
from tests.faults.conftest import Worlds
from tests.faults.wire import Answer, chat, eventually, post
from tests.faults.world import World

ODD = (
    b": a comment\n\n",
    b'event: piece\r\nid: 7\r\ndata: {"choices": []}\r\n\r\n',
    b"data: line one\ndata: line two\n\n",
    'data: {"text": "gr\u00fc\u00df \U0001f642"}\n\n'.encode(),
    b"data:no space\n\n",
    b"retry: 10\n\n",
    b'data: {"token_ids": [1, 2], "unknown": {"a": null}}\n\n',
    b"data: [DONE]\n\n",
)
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def ask(world: World, script: Script, **fields: Any) -> Answer:
    world.backend.scripts.append(script)
    with world.client() as client:
        return client.ask(chat(stream=True, **fields))


def pieces(data: bytes, size: int) -> list[Step]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("split", [1, 3, 40, 10_000])
def test_case_35_odd_events_arrive_byte_for_byte(worlds: Worlds, size: int, split: int) -> None:
    """In chunks of `split` bytes, which cut through letters, written `size` bytes at a time."""
    world = worlds(Backend())
    body = b"".join(ODD)
    framed = b"".join(chunk(body[at : at + split]) for at in range(0, len(body), split))
    steps: list[Step] = []
    for piece in pieces(EVENTS_HEAD + framed + LAST_CHUNK, size):
        steps += [piece, 0.0] if size > 2 else [piece]
    answer = ask(world, tuple(steps))
    assert answer.framed == framed + LAST_CHUNK
    assert answer.headers(b"content-type") == [b"text/event-stream; charset=utf-8"]


def test_case_35_heads_and_unknown_fields_survive_both_ways(worlds: Worlds) -> None:
    world = worlds(Backend())
    said = completion(token_ids=[1, 2], prompt_logprobs=None, kv={"x": 1.0e-5})
    extra = b"X-Engine: yes\r\nDate: today\r\nVary: a\r\nVary: b\r\nX-Replica: evil\r\n"
    world.backend.scripts.append((plain(said, headers=extra),))
    body = b'{ "model" : "m",\t"vllm_xargs":{"a":[1,null]},"return_token_ids":true,"n":1.0,"n":1}'
    with world.client() as client:
        answer = client.ask(body)
    assert world.backend.seen[0].body == body
    assert answer.body == said
    assert answer.head.split(b"\r\n") == [
        b"HTTP/1.1 200 OK",
        b"content-type: application/json",
        b"X-Engine: yes",
        b"Date: today",
        b"Vary: a",
        b"Vary: b",
        b"content-length: %d" % len(said),
        b"x-policy-version: 1",
        b"x-replica: r0",
    ]


@pytest.mark.parametrize("status", [b"400 Bad Request", b"404 Not Found", b"422 Odd", b"401 No"])
def test_case_13_errors_of_the_request_pass_as_they_are(worlds: Worlds, status: bytes) -> None:
    world = worlds(Backend(), Backend(), probe_s=0)
    said = b'{"error" : {"message":"too long","code":400}, "extra": 1}'
    for backend in world.backends:
        backend.then = (plain(said, status=status),)
    with world.client() as client:
        answer = client.ask()
    assert answer.head.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert answer.body == said
    assert world.seen == 1
    assert [replica.errors for replica in world.pool.replicas] == [0, 0]
    assert all(replica.is_ready for replica in world.pool.replicas)


@pytest.mark.parametrize("status", [b"429 Too Many Requests", b"503 Service Unavailable"])
def test_case_14_retry_after_is_passed_on_once(worlds: Worlds, status: bytes) -> None:
    said = b'{"error": {"message": "busy"}}'
    busy: Script = (plain(said, status=status, headers=b"Retry-After: 7\r\n"),)
    world = worlds(Backend(then=busy), Backend(then=busy), probe_s=0)
    with world.client() as client:
        answer = client.ask()
    assert (answer.status, answer.body) == (int(status[:3]), said)
    assert answer.headers(b"retry-after") == [b"7"]
    assert world.seen == 1
    assert world.pool.failures == []
    assert world.gateway.meters.retries == 0


def test_case_23_a_failed_run_is_not_run_again(worlds: Worlds) -> None:
    failed: Script = (plain(b'{"error": {}}', status=b"500 Internal Server Error"),)
    world = worlds(Backend(then=failed), Backend(then=failed), probe_s=0)
    with world.client() as client:
        assert client.ask().status == 500
    assert world.seen == 1


def test_case_36_nothing_is_waited_for(worlds: Worlds) -> None:
    """Each piece is with the client while the engine has said no more; the head is with the first.

    Until the first, an engine that is lost costs nothing: nothing of its answer went out.
    """
    gates = [Gate() for _ in range(4)]
    script = (
        EVENTS_HEAD,
        gates[0],
        chunk(b": \n\n"),
        gates[1],
        b"1",
        gates[2],
        b"\r\nx\r\n",
        gates[3],
    )
    world = worlds(Backend(then=(*script, LAST_CHUNK)))
    took: list[float] = []
    with world.client() as client:
        client.send(post(chat(stream=True)))
        for gate, expected in zip(gates, (b": \n\n", b"1", b"x", LAST_CHUNK), strict=True):
            start = time.perf_counter()
            gate.open()
            client.until(expected)
            took.append(time.perf_counter() - start)
    print(f"piece by piece in {', '.join(f'{1000 * one:.2f}' for one in took)} ms")
    assert min(took) < 0.02


def test_case_36_events_are_not_joined(worlds: Worlds) -> None:
    """Each of 50 paced events arrives before the next one is sent."""
    world = worlds(Backend(then=stream(*[event(f"{n}") for n in range(50)], gap_s=0.005)))
    gaps: list[float] = []
    with world.client() as client:
        client.send(post(chat(stream=True)))
        client.until(b"\r\n\r\n")
        for number in range(50):
            client.until(b'"content": "%d"' % number)
            gaps.append(time.perf_counter())
        client.until(LAST_CHUNK)
    waited = [later - earlier for earlier, later in pairwise(gaps)]
    assert sum(gap > 0.001 for gap in waited) > 40


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_case_37_a_client_that_reads_nothing(worlds: Worlds) -> None:
    """The engine is paused, memory stays flat, and in the end the connection is closed."""
    block = chunk(b"data: %b\n\n" % (b"x" * 60_000))
    world = worlds(Backend(then=(EVENTS_HEAD, *[block] * 20_000)), write_stall_s=3.0, probe_s=0)
    with world.client(receive_buffer_bytes=8192) as client:
        client.send(post(chat(stream=True)))
        eventually(lambda: any(lane.is_stuck for lane in list(world.gateway._lanes)), "stuck")
        before = resident_bytes()
        deadline = time.perf_counter() + 2.0
        most = 0
        while time.perf_counter() < deadline:
            most = max(most, resident_bytes() - before)
            time.sleep(0.05)
        assert world.counts()["in_flight"] == 1
        print(f"{most / 1e6:.1f} MB more in 2 s")
        assert most < 8_000_000
        eventually(lambda: world.backend.aborted == 1, "it is closed", within_s=5)


def test_case_37_a_slow_client_gets_everything(worlds: Worlds) -> None:
    block = chunk(b"data: %b\n\n" % (b"y" * 30_000))
    world = worlds(Backend(then=(EVENTS_HEAD, *[block] * 300, LAST_CHUNK)), probe_s=0)
    with world.client(receive_buffer_bytes=8192) as client:
        client.send(post(chat(stream=True)))
        eventually(lambda: any(lane.is_stuck for lane in list(world.gateway._lanes)), "stuck")
        assert client.answer().framed == block * 300 + LAST_CHUNK


@pytest.mark.parametrize("pause_s", [0.0, 0.01], ids=["at once", "one by one"])
def test_case_37_a_pipeliner_that_reads_nothing(worlds: Worlds, pause_s: float) -> None:
    """Answers that nobody reads are not made: a pipeline waits for its reader."""
    answer = plain(b'{"x": "%b"}' % (b"z" * 500_000))
    world = worlds(Backend(then=(answer,)), probe_s=0)
    with world.client(receive_buffer_bytes=8192) as client:
        for _ in range(60):
            client.send(post(chat("short")))
            time.sleep(pause_s)
        eventually(lambda: any(lane.is_stuck for lane in list(world.gateway._lanes)), "stuck")
        time.sleep(0.3)  # time enough to make all the others, were they made
        assert world.seen < 20
        for _ in range(60):
            assert len(client.answer().body) > 500_000
    assert world.seen == 60


def test_case_12_a_silent_stream_ends_with_a_named_error(worlds: Worlds) -> None:
    script: Script = (EVENTS_HEAD, chunk(event("a")), End.HANG)
    world = worlds(Backend(then=script), stall_timeout_s=0.5, probe_s=0)
    with world.client() as client:
        answer = client.ask(chat(stream=True))
    assert answer.body.startswith(event("a"))
    assert b"no byte came for" in answer.body.removeprefix(event("a"))
    eventually(lambda: world.backend.aborted == 1, "the engine's work is aborted")


@pytest.mark.parametrize("size", [1, 13, 100_000])
@pytest.mark.parametrize("streamed", [True, False])
def test_case_39_usage_is_read_on_the_way(worlds: Worlds, streamed: bool, size: int) -> None:
    world = worlds(Backend())
    if streamed:
        last = b"data: %b\n\n" % json.dumps({"choices": [], "usage": USAGE}).encode()
        data = EVENTS_HEAD + b"".join(map(chunk, (event("a"), last, b"data: [DONE]\n\n")))
        data += LAST_CHUNK
    else:
        data = plain(completion(usage=USAGE))
    ask(world, tuple(pieces(data, size)) if size > 1 or not streamed else (data,))
    world.settle()
    assert (world.ledger.prompt_tokens, world.ledger.completion_tokens) == (11, 7)
    assert (world.ledger.requests, world.ledger.estimated) == (1, 0)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=12), st.integers(1, 200))
def test_case_35_any_bytes_pass(world_35: World, chunks: list[bytes], size: int) -> None:
    framed = b"".join(map(chunk, chunks)) + LAST_CHUNK
    answer = ask(world_35, tuple(pieces(EVENTS_HEAD + framed, size)))
    assert answer.framed == framed


@pytest.fixture
def world_35(worlds: Worlds) -> World:
    return worlds(Backend())
