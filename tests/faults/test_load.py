"""F. Many at once, and for long: nothing fails, nothing piles up, every count comes back to zero.

FAULTS_FULL=1 makes the leak test the long one, of 200,000 requests.
"""

import os
import random
import resource
import time

import pytest

from serve.front.relay import bodies
from tests.faults.backend import (
    EVENTS_HEAD,
    LAST_CHUNK,
    Backend,
    End,
    Gate,
    Script,
    chunk,
    completion,
    event,
    plain,
)
from tests.faults.conftest import Worlds
from tests.faults.test_streaming import resident_bytes
from tests.faults.wire import Client, chat, eventually, post
from tests.faults.world import World

FULL = bool(os.environ.get("FAULTS_FULL"))


def room_for(descriptors: int) -> int:
    """Raise the limit of open files where that is allowed; return how many there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, max(soft, descriptors)) if hard > 0 else descriptors
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def test_case_32_idle_connections_cost_little(worlds: Worlds) -> None:
    """5,000 of them, 10 kB each at most, both ends in this process; then traffic as ever."""
    count = min(5_000, (room_for(12_000) - 500) // 2)
    world = worlds(Backend(keeps_raw=False), probe_s=0)
    with world.client() as client:
        assert client.ask().status == 200
        before = resident_bytes()
        idle = [world.client() for _ in range(count)]
        eventually(lambda: world.gateway.connections == count + 1, "connected", within_s=20)
        each = (resident_bytes() - before) / count
        print(f"{count} idle connections, {each:.0f} bytes each, the clients' ends included")
        assert each < 10_000
        start = time.perf_counter()
        assert {client.ask().status for _ in range(300)} == {200}
        print(f"300 requests beside them in {time.perf_counter() - start:.3f} s")
        for number in (0, count // 2, count - 1):
            assert idle[number].ask().status == 200
        for one in idle:
            one.close()
    world.settle(20)


def test_case_33_too_many_connections_are_told_so(worlds: Worlds) -> None:
    world = worlds(Backend(), max_connections=3, probe_s=0)
    clients = [world.client() for _ in range(3)]
    eventually(lambda: world.gateway.connections == 3, "connected")
    with world.client() as client:
        answer = client.answer()
        assert (answer.status, answer.headers(b"retry-after")) == (503, [b"1"])
    clients[0].close()
    eventually(lambda: world.gateway.connections <= 3, "one left", within_s=4)
    with world.client() as client:
        eventually(lambda: world.gateway.connections == 3, "there is room", within_s=4)
        assert client.ask().status == 200
    for client in clients:
        client.close()


def test_case_40_thousands_in_flight(worlds: Worlds) -> None:
    """As many as this process has descriptors for, both ends of both hops; 6,000 in the bench."""
    count = min(2_000, (room_for(20_000) - 500) // 4)
    gate = Gate()
    world = worlds(Backend(then=(gate, plain(completion())), keeps_raw=False), probe_s=0)
    clients = [world.client() for _ in range(count)]
    for client in clients:
        client.send(post())
    eventually(lambda: world.backend.busy == count, "all are in flight", within_s=20)
    assert world.counts()["in_flight"] == count
    gate.open()
    assert {client.answer().status for client in clients} == {200}
    for client in clients:
        client.close()
    world.settle(20)
    assert len(world.backend.seen) == count


def test_case_41_a_long_prompt_does_not_hold_the_loop_up() -> None:
    """2 MB are read in a few milliseconds, and given another model's name in no more."""
    body = chat("lorem ipsum " * 170_000, return_token_ids=True)
    assert len(body) > 2_000_000
    took = []
    for _ in range(5):
        start = time.perf_counter()
        assert bodies.read(body).model == "m"
        bodies.with_model(body, b'"m-7"', is_named=True)
        took.append(time.perf_counter() - start)
    print(f"{1000 * min(took):.2f} ms")
    assert min(took) < 0.02


def test_case_42_the_loop_s_lag_is_measured(worlds: Worlds) -> None:
    world = worlds(Backend(), probe_s=0)
    world.call(time.sleep, 0.8)
    eventually(lambda: world.gateway.meters.loop_lag_s > 0.1, "the lag shows")
    eventually(lambda: world.gateway.meters.loop_lag_s < 0.1, "it is over")


STAYED: dict[bytes, Script] = {
    b"json": (plain(completion()),),
    b"stream": (EVENTS_HEAD + chunk(event("a")) * 20 + LAST_CHUNK,),
    b"paced": (EVENTS_HEAD, chunk(event("b")), 0.001, chunk(event("c")), LAST_CHUNK),
    b"refused": (plain(b'{"error": {}}', status=b"429 Too Many Requests"),),
}
LEFT: dict[bytes, Script] = {
    b"silent": (End.HANG,),
    b"begun": (EVENTS_HEAD, chunk(event("d")), End.HANG),
    b"half": (plain(completion())[:-9], End.HANG),
}


@pytest.mark.timeout(1200)
def test_case_43_no_leak(worlds: Worlds) -> None:
    """One request in five is aborted, at any moment; counts are exact, memory is flat."""
    count = 200_000 if FULL else 20_000
    world = worlds(Backend(keeps_raw=False, named=STAYED | LEFT), probe_s=0)
    rng = random.Random(1)
    clients = [world.client() for _ in range(32)]
    aborted = _run(world, clients, rng, count // 10)
    before = resident_bytes()
    start = time.perf_counter()
    aborted += _run(world, clients, rng, count - count // 10)
    took_s = time.perf_counter() - start
    for client in clients:
        client.close()
    world.settle(20)
    grown = resident_bytes() - before
    print(
        f"{count} requests, {aborted} aborted: {grown / 1e6:+.1f} MB, "
        f"{(count - count // 10) / took_s:.0f} requests/s, {world.counts()}"
    )
    meters = world.gateway.meters
    assert sum(route.requests for route in meters.routes.values()) == count
    assert meters.aborts == aborted
    assert world.account.requests == count
    assert world.gateway.router.sessions <= 500
    assert sum(replica.sessions for replica in world.pool.replicas) == world.gateway.router.sessions
    assert grown < 8_000_000


def _run(world: World, clients: list[Client], rng: random.Random, count: int) -> int:
    """Send `count` requests in rounds over all clients; return how many were aborted."""
    aborted = sent = 0
    stayed, left = list(STAYED), list(LEFT)
    while sent < count:
        batch = clients[: min(len(clients), count - sent)]
        leaves = [rng.random() < 0.2 for _ in batch]
        for client, leaving in zip(batch, leaves, strict=True):
            name = rng.choice(left if leaving else stayed)
            session = rng.randrange(500)
            body = chat("x" * rng.randrange(400), stream=leaving)
            client.send(
                post(body, headers=b"X-Session-ID: %d\r\nX-Script: %b\r\n" % (session, name))
            )
        for number, leaving in enumerate(leaves):
            if leaving:
                clients[number].close()
                clients[number] = world.client()
            else:
                clients[number].answer()
        aborted += sum(leaves)
        sent += len(batch)
        if len(world.backend.seen) > 5_000:
            _forget(world)
    _forget(world)
    return aborted


def _forget(world: World) -> None:
    """Let the backend see the last aborts, then drop what it keeps for us to look at."""
    world.settle_requests()
    world.backend.seen.clear()
