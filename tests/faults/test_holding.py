"""B, G, H. No replica is ready, or not with that version: held in order, bounded, never lost."""

import threading
import time

import pytest

from serve.pool.replicas import ReplicaState
from tests.faults.backend import Backend, End, completion
from tests.faults.conftest import Worlds
from tests.faults.wire import Answer, chat, eventually, post
from tests.faults.world import World


def hold(world: World, count: int) -> list[Answer]:
    """Ask `count` times while nobody is ready; let one be, and return the answers."""
    clients = [world.client() for _ in range(count)]
    for number, client in enumerate(clients):
        client.send(post(chat(f"{number}")))
        eventually(lambda: world.counts()["held"] == number + 1, "held")  # noqa: B023
    world.set(ReplicaState.READY)
    answers = [client.answer() for client in clients]
    for client in clients:
        client.close()
    return answers


def test_case_19_held_until_a_replica_comes(worlds: Worlds) -> None:
    world = worlds(ready=False, probe_s=0)
    answers = hold(world, 30)
    assert {(answer.status, answer.body) for answer in answers} == {(200, completion())}
    assert [seen.body for seen in world.backend.seen] == [chat(f"{n}") for n in range(30)]
    assert world.pool.wakes >= 1


def test_case_19_a_thousand_held_none_lost(worlds: Worlds) -> None:
    world = worlds(ready=False, probe_s=0)
    clients = [world.client() for _ in range(1000)]
    for client in clients:
        client.send(post())
    eventually(lambda: world.counts()["held"] == 1000, "held", within_s=10)
    world.set(ReplicaState.READY)
    assert {client.answer().status for client in clients} == {200}
    assert world.seen == 1000
    for client in clients:
        client.close()


def test_case_19_the_deadline(worlds: Worlds) -> None:
    world = worlds(ready=False, probe_s=0, hold_s=0.5)
    start = time.perf_counter()
    with world.client() as client:
        answer = client.ask()
        assert answer.status == 503
        assert answer.error["code"] == "no_replica_ready"
        assert answer.headers(b"retry-after") == [b"5"]
        assert 0.4 < time.perf_counter() - start < 2.5
        world.set(ReplicaState.READY)
        assert client.ask().status == 200
    assert world.seen == 1


def test_case_19_the_bound(worlds: Worlds) -> None:
    world = worlds(ready=False, probe_s=0, max_held=2)
    first, second = world.client(), world.client()
    first.send(post())
    second.send(post())
    eventually(lambda: world.counts()["held"] == 2, "held")
    start = time.perf_counter()
    with world.client() as client:
        answer = client.ask()
        took_s = time.perf_counter() - start
        assert (answer.status, answer.headers(b"retry-after")) == (503, [b"5"])
        assert took_s < 0.1
    world.set(ReplicaState.READY)
    assert first.answer().status == second.answer().status == 200
    first.close()
    second.close()


def test_case_18_a_replica_is_back_in_rotation_at_once(worlds: Worlds) -> None:
    world = worlds(Backend())
    with world.client() as client:
        assert client.ask().status == 200
        world.run(world.backend.kill())
        client.send(post())
        eventually(lambda: not world.replica.is_ready, "it is down")
        world.run(world.backend.start())
        start = time.perf_counter()
        assert client.answer().status == 200
        took_s = time.perf_counter() - start
    print(f"usable {took_s:.3f} s after it was back")
    assert took_s < 1
    assert world.seen == 2


def test_a_hung_replica_loses_nothing(worlds: Worlds) -> None:
    """Frozen with 16 requests on it: the probe finds out, and all of them go elsewhere."""
    hung, sound = Backend(then=(End.HANG,)), Backend()
    world = worlds(hung, sound, probe_s=0.2, probe_timeout_s=0.5)
    world.call(lambda: world.pool.set(world.pool.replicas[1], ReplicaState.DRAINING))
    clients = [world.client() for _ in range(16)]
    for number, client in enumerate(clients):
        client.send(post(chat(f"{number}")))
    eventually(lambda: len(hung.seen) == 16, "all are on it")
    world.call(lambda: world.pool.set(world.pool.replicas[1], ReplicaState.READY))
    world.call(hung.freeze)
    assert [client.answer().status for client in clients] == [200] * 16
    for client in clients:
        client.close()
    assert sorted(seen.body for seen in sound.seen) == sorted(chat(f"{n}") for n in range(16))
    assert not world.replica.is_ready


VERSIONS = ({7: "m-7", 6: "m"}, {6: "m"})


@pytest.mark.parametrize(
    ("model", "constraint", "status", "version"),
    [
        ("m@7", b"", 200, b"7"),
        ("m@6", b"", 200, b"6"),
        ("m", b">=7", 200, b"7"),
        ("m", b"==6", 200, b"6"),
        ("m@5", b"", 409, b""),
        ("m", b">=8", 409, b""),
        ("m@7", b"==6", 400, b""),
        ("m", b"latest", 400, b""),
        ("n", b"", 404, b""),
    ],
)
def test_case_51_versions(
    worlds: Worlds, model: str, constraint: bytes, status: int, version: bytes
) -> None:
    """The version asked for answers, and says so; where there is none, a retryable 409."""
    world = worlds(Backend(), Backend(), versions=VERSIONS, probe_s=0)
    header = b"X-Policy-Constraint: %b\r\n" % constraint if constraint else b""
    body = chat().replace(b'"m"', b'"%b"' % model.encode(), 1)
    with world.client() as client:
        for _ in range(4):
            answer = client.ask(body, headers=header)
            assert answer.status == status
            assert answer.headers(b"x-policy-version") == ([version] if version else [])
            if status == 409:
                assert answer.error["code"] == "policy_version_not_ready"
                assert answer.headers(b"retry-after")
    name = {b"7": b'"m-7"', b"6": b'"m"'}.get(version)
    seen = [one for backend in world.backends for one in backend.seen]
    assert len(seen) == (4 if name else 0)
    assert {one.body for one in seen} <= {chat().replace(b'"m"', name or b"", 1)}


def test_case_50_no_request_reaches_a_replica_that_syncs(worlds: Worlds) -> None:
    world = worlds(Backend(), Backend(), probe_s=0)
    stop = threading.Event()
    statuses: list[int] = []

    def load() -> None:
        with world.client() as client:
            while not stop.is_set():
                statuses.append(client.ask().status)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(10):
        number = turn % 2
        world.set(ReplicaState.SYNCING, number)
        before = len(world.backends[number].seen)
        eventually(lambda: world.pool.replicas[number].in_flight == 0, "drained")  # noqa: B023
        drained = len(world.backends[number].seen)
        others = len(world.backends[1 - number].seen)
        eventually(lambda: len(world.backends[1 - number].seen) > others + 5, "others go on")  # noqa: B023
        assert len(world.backends[number].seen) == drained
        assert drained - before <= 4
        world.set(ReplicaState.READY, number)
    stop.set()
    for thread in threads:
        thread.join(5)
    assert set(statuses) == {200}
    assert world.seen == len(statuses)
