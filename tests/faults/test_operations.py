"""J. The gateway stops, or the machine runs out of descriptors: what is under way is not lost."""

import asyncio
import contextlib
import resource
import socket
from pathlib import Path

import pytest

from tests.faults.backend import (
    EVENTS_HEAD,
    LAST_CHUNK,
    Backend,
    End,
    Gate,
    chunk,
    completion,
    event,
    plain,
)
from tests.faults.conftest import Worlds
from tests.faults.wire import Client, chat, eventually, post


def test_case_61_stopping_finishes_what_is_in_flight(worlds: Worlds) -> None:
    """Nothing new is accepted, idle connections end, a stream goes to its last byte."""
    gate = Gate()
    stream = (EVENTS_HEAD, chunk(event("a")), gate, chunk(event("b")), LAST_CHUNK)
    world = worlds(Backend(), probe_s=0)
    world.backend.scripts.extend([stream, (gate, plain(completion()))])
    idle, streaming, waiting = world.client(), world.client(), world.client()
    streaming.send(post(chat(stream=True)))
    streaming.until(b"\n\n")
    waiting.send(post())
    eventually(lambda: world.backend.busy == 2, "both are in flight")
    stop = asyncio.run_coroutine_threadsafe(world.gateway.stop(10), world.loop)
    assert idle.rest() == b""
    with pytest.raises(ConnectionRefusedError):
        world.client()
    assert not stop.done()
    gate.open()
    assert streaming.until(LAST_CHUNK).endswith(chunk(event("b")) + LAST_CHUNK)
    assert waiting.answer().body == completion()
    stop.result(5)
    assert streaming.rest() == waiting.rest() == b""
    for client in (idle, streaming, waiting):
        client.close()


def test_case_61_what_outlives_the_grace_is_cut(worlds: Worlds) -> None:
    world = worlds(Backend(then=(EVENTS_HEAD, chunk(event("a")), End.HANG)), probe_s=0)
    with world.client() as client:
        client.send(post(chat(stream=True)))
        client.until(b"\n\n\r\n")
        world.run(world.gateway.stop(0.2))
        assert client.rest() == b""
    eventually(lambda: world.backend.aborted == 1, "the engine's work is aborted")


def test_case_66_out_of_descriptors(worlds: Worlds) -> None:
    """Connections beyond the limit wait or fail; those that are there work, and all recovers."""
    world = worlds(Backend(), probe_s=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    waiting: list[socket.socket] = []
    with world.client() as client, contextlib.ExitStack() as stack:
        assert client.ask().status == 200
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(20):
            one = stack.enter_context(socket.socket())
            one.settimeout(5)
            waiting.append(one)
        highest = max(int(one.name) for one in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 3, hard))
        for one in waiting:
            one.connect(world.gateway.address)
        for _ in range(20):
            assert client.ask().status == 200
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with Client(world.gateway.address) as late:
            assert late.ask().status == 200
    world.settle()
    world.errors.clear()
