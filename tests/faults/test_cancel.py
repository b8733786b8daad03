"""A. The client leaves: the engine's work is aborted at once, and every count comes back."""

import time

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
from tests.faults.wire import Client, chat, eventually, post
from tests.faults.world import World

PACED: Script = (chunk(event("x")), 0.01)
ABORT_S = 0.5
"""50 ms is the aim, and what is printed; a busy machine is allowed more."""


def leave(world: World, client: Client, how: str) -> float:
    """Close the client; return how long the backend took to notice, in seconds."""
    left_s = time.perf_counter()
    client.close() if how == "close" else client.reset()
    eventually(lambda: world.backend.aborted == 1, "the abort", within_s=ABORT_S)
    aborted_s = world.backend.seen[0].aborted_s
    assert aborted_s is not None
    print(f"aborted after {1000 * (aborted_s - left_s):.2f} ms")
    return aborted_s - left_s


def assert_clean(world: World) -> None:
    world.settle()
    assert world.seen == 1
    assert world.replica.errors == 0
    assert world.replica.is_ready
    assert world.gateway.meters.aborts == 1
    assert world.gateway.meters.retries == 0
    (route,) = world.gateway.meters.routes
    assert route == ("/v1/chat/completions", 499, "m")


@pytest.mark.parametrize("how", ["close", "reset"])
def test_case_01_mid_stream(worlds: Worlds, how: str) -> None:
    world = worlds(Backend(then=(EVENTS_HEAD, *PACED * 2000)))
    client = world.client()
    client.send(post(chat(stream=True)))
    client.until(b"\n\n")
    leave(world, client, how)
    assert_clean(world)
    assert world.ledger.requests == 1


@pytest.mark.parametrize("how", ["close", "reset"])
def test_case_02_while_an_answer_is_generated(worlds: Worlds, how: str) -> None:
    world = worlds(Backend(then=(End.HANG,)))
    client = world.client()
    client.send(post())
    eventually(lambda: world.seen == 1, "the request")
    leave(world, client, how)
    assert_clean(world)


@pytest.mark.parametrize("how", ["close", "reset"])
def test_case_02_in_the_middle_of_an_answer_that_is_held_back(worlds: Worlds, how: str) -> None:
    world = worlds(Backend(then=(plain(completion())[:-9], End.HANG)))
    client = world.client()
    client.send(post())
    eventually(lambda: bool(world.replica.active) and world.seen == 1, "the request")
    leave(world, client, how)
    assert_clean(world)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("before", [(), (EVENTS_HEAD,)], ids=["no head", "head"])
def test_case_03_before_the_first_token(
    worlds: Worlds, how: str, before: tuple[bytes, ...]
) -> None:
    world = worlds(Backend(then=(*before, End.HANG)))
    client = world.client()
    client.send(post(chat(stream=True)))
    eventually(lambda: world.seen == 1, "the request")
    leave(world, client, how)
    assert_clean(world)


def test_case_04_while_held(worlds: Worlds) -> None:
    world = worlds(ready=False, probe_s=0)
    client = world.client()
    client.send(post())
    eventually(lambda: world.counts()["held"] == 1, "held")
    client.close()
    eventually(lambda: world.counts()["held"] == 0, "it left the queue", within_s=ABORT_S)
    world.set(ReplicaState.READY)
    with world.client() as other:
        assert other.ask().status == 200
    assert world.seen == 1


def test_case_04_while_the_gateway_connects(worlds: Worlds, full_port: int) -> None:
    world = worlds(Backend())
    world.replica.port = full_port
    client = world.client()
    client.send(post())
    eventually(lambda: world.counts()["in_flight"] == 1, "connecting")
    client.close()
    world.settle(ABORT_S)
    assert world.seen == 0
    assert world.pool.failures == []


def test_case_04_the_queue_stays_in_order_around_who_left(worlds: Worlds) -> None:
    world = worlds(ready=False, probe_s=0)
    clients = [world.client() for _ in range(6)]
    for number, client in enumerate(clients):
        client.send(post(chat(f"{number}")))
        eventually(lambda: world.counts()["held"] == number + 1, "held")  # noqa: B023
    clients[2].close()
    eventually(lambda: world.counts()["held"] == 5, "it left the queue", within_s=ABORT_S)
    world.set(ReplicaState.READY)
    for number in (0, 1, 3, 4, 5):
        assert clients[number].answer().status == 200
        clients[number].close()
    assert [seen.body for seen in world.backend.seen] == [chat(f"{n}") for n in (0, 1, 3, 4, 5)]


def test_case_05_a_half_close_is_taken_for_leaving(worlds: Worlds) -> None:
    """Who closes looks the same until something is written; leaving is the far likelier of the two.

    A client that ends its side before it has read the answer gets none, as with nginx.
    """
    world = worlds(Backend(then=(End.HANG,)))
    with world.client() as client:
        client.send(post())
        eventually(lambda: world.seen == 1, "the request")
        client.half_close()
        assert client.rest() == b""
        eventually(lambda: world.backend.aborted == 1, "the abort", within_s=ABORT_S)


def test_case_06_a_thousand_cancels_in_a_burst(worlds: Worlds) -> None:
    moments: tuple[Script, ...] = (
        (End.HANG,),
        (EVENTS_HEAD, End.HANG),
        (EVENTS_HEAD, *PACED * 500),
    )
    backend = Backend()
    world = worlds(backend, probe_s=0)
    backend.scripts.extend(moments[number % 3] for number in range(1000))
    clients = [world.client() for _ in range(1000)]
    for client in clients:
        client.send(post(chat(stream=True), headers=b"X-Session-ID: s\r\n"))
    eventually(lambda: world.seen == 1000, "all arrive", within_s=10)
    start = time.perf_counter()
    for client in clients:
        client.close()
    world.settle(10)
    print(f"1,000 cancels settled in {time.perf_counter() - start:.3f} s")
    assert backend.aborted == 1000
    assert (world.replica.in_flight, world.replica.sessions) == (0, 1)
    assert world.gateway.meters.aborts == 1000
    eventually(lambda: not backend.open, "no connection is left")
    with world.client() as client:
        backend.scripts.append((EVENTS_HEAD, chunk(event("y")), LAST_CHUNK))
        assert client.ask(chat(stream=True)).body == event("y")
