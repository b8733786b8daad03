"""G. Episodes stay where their prefix is cached; load goes where there is least of it."""

import threading
import time
from collections import Counter

from serve.pool.replicas import ReplicaState
from tests.faults.backend import Backend, Gate, completion, plain
from tests.faults.conftest import Worlds
from tests.faults.wire import chat, eventually, post
from tests.faults.world import World


def session(name: str) -> bytes:
    return b"X-Session-ID: %b\r\n" % name.encode()


def homes(world: World) -> dict[bytes, set[int]]:
    """Return for each session the backends that saw it."""
    found: dict[bytes, set[int]] = {}
    for number, backend in enumerate(world.backends):
        for seen in backend.seen:
            found.setdefault(seen.headers(b"x-session-id")[0], set()).add(number)
    return found


def test_case_45_every_turn_of_an_episode_is_on_one_replica(worlds: Worlds) -> None:
    world = worlds(Backend(), Backend(), Backend(), probe_s=0)
    with world.client() as client:
        for _ in range(5):
            for episode in range(30):
                assert client.ask(headers=session(f"e{episode}")).status == 200
    assert {len(where) for where in homes(world).values()} == {1}
    per_replica = Counter(min(where) for where in homes(world).values())
    assert max(per_replica.values()) - min(per_replica.values()) <= 1
    assert [replica.sessions for replica in world.pool.replicas] == [10, 10, 10]


def test_case_46_a_saturated_replica_s_session_moves_and_stays_moved(worlds: Worlds) -> None:
    gate = Gate()
    world = worlds(Backend(), Backend(), probe_s=0)
    with world.client() as client:
        assert client.ask(headers=session("s")).headers(b"x-replica") == [b"r0"]
        world.backend.then = (gate, plain(completion()))
        world.set(ReplicaState.DRAINING, 1)
        crowd = [world.client() for _ in range(20)]
        for one in crowd:
            one.send(post())
        eventually(lambda: world.backend.busy == 20, "r0 is full")
        world.set(ReplicaState.READY, 1)
        assert client.ask(headers=session("s")).headers(b"x-replica") == [b"r1"]
        gate.open()
        for one in crowd:
            assert one.answer().status == 200
            one.close()
        assert client.ask(headers=session("s")).headers(b"x-replica") == [b"r1"]
    assert [replica.sessions for replica in world.pool.replicas] == [0, 1]


def test_case_47_a_burst_of_new_sessions_spreads(worlds: Worlds) -> None:
    world = worlds(Backend(), Backend(), Backend(), Backend(), probe_s=0)
    gate = Gate()
    for backend in world.backends:
        backend.then = (gate, plain(completion()))
    clients = [world.client() for _ in range(1000)]
    for number, client in enumerate(clients):
        client.send(post(chat("same prefix"), headers=session(f"{number}")))
    eventually(lambda: world.seen == 1000, "all arrived", within_s=10)
    loads = [len(backend.seen) for backend in world.backends]
    gate.open()
    for client in clients:
        assert client.answer().status == 200
        client.close()
    print(f"max/mean {max(loads) / 250:.3f}")
    assert max(loads) / 250 <= 1.2


def test_case_48_a_session_that_ends_is_forgotten(worlds: Worlds) -> None:
    world = worlds(Backend(), probe_s=0)
    router = world.gateway.router
    with world.client() as client:
        for number in range(20):
            client.ask(headers=session(f"{number}"))
    assert (router.sessions, world.replica.sessions) == (20, 20)
    for number in range(20):
        world.call(router.finish, b"%d" % number)
    assert (router.sessions, world.replica.sessions) == (0, 0)


def test_case_49_only_the_sessions_of_who_left_move(worlds: Worlds) -> None:
    world = worlds(Backend(), Backend(), Backend(), probe_s=0)
    with world.client() as client:
        for episode in range(30):
            client.ask(headers=session(f"e{episode}"))
        before = homes(world)
        world.set(ReplicaState.DOWN)
        for episode in range(30):
            assert client.ask(headers=session(f"e{episode}")).status == 200
    for name, where in homes(world).items():
        assert (len(where) == 2) == (before[name] == {0})


def test_case_16_a_slow_replica_gets_less(worlds: Worlds) -> None:
    slow: tuple[float | bytes, ...] = (0.05, plain(completion()))
    quick: tuple[float | bytes, ...] = (0.005, plain(completion()))
    world = worlds(Backend(then=slow), Backend(then=quick), probe_s=0)
    stop = time.perf_counter() + 1.0

    def load() -> None:
        with world.client() as client:
            while time.perf_counter() < stop:
                assert client.ask().status == 200

    threads = [threading.Thread(target=load) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    few, many = (len(backend.seen) for backend in world.backends)
    print(f"slow {few}, quick {many}")
    assert many > 3 * few > 0
