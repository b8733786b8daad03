"""I. Keys and limits at the door: exact, whatever way a request ends."""

import pytest

from serve.accounts.limits import Limits
from serve.pool.replicas import ReplicaState
from tests.faults.backend import Backend, End, Gate, completion, plain
from tests.faults.conftest import Worlds
from tests.faults.wire import KEY, chat, eventually, post


def test_case_58_requests_at_once(worlds: Worlds) -> None:
    gate = Gate()
    world = worlds(Backend(then=(gate, plain(completion()))), limits=Limits(concurrency=5))
    clients = [world.client() for _ in range(12)]
    for client in clients:
        client.send(post())
    eventually(lambda: sum(r.requests for r in world.gateway.meters.routes.values()) == 7, "7 gone")
    gate.open()
    statuses = sorted(client.answer().status for client in clients)
    assert statuses == [200] * 5 + [429] * 7
    for client in clients:
        client.close()
    world.settle()
    with world.client() as client:
        assert client.ask().status == 200
    assert world.seen == 6


def test_case_58_places_come_back_however_a_request_ends(worlds: Worlds) -> None:
    world = worlds(Backend(), limits=Limits(concurrency=1), probe_s=0)
    endings = (
        (End.HANG,),
        (End.CLOSE,),
        (plain(b"{}", status=b"500 Oh"),),
        (plain(b"x")[:-1], End.CLOSE),
    )
    for ending in endings:
        world.backend.scripts.append(ending)
        with world.client() as client:
            client.send(post())
            eventually(lambda: not world.backend.scripts, "it arrived")
        world.settle()
        world.set(ReplicaState.READY)
    with world.client() as client:
        assert client.ask(b"no json").status == 400
        assert client.ask().status == 200


def test_case_58_requests_a_minute(worlds: Worlds) -> None:
    world = worlds(Backend(), limits=Limits(rpm=50))
    with world.client() as client:
        answers = [client.ask() for _ in range(60)]
    assert [answer.status for answer in answers] == [200] * 50 + [429] * 10
    assert answers[-1].error["code"] == "rate_limit_exceeded"
    assert 1 <= int(answers[-1].headers(b"retry-after")[0]) <= 60
    assert world.seen == 50


def test_case_58_tokens(worlds: Worlds) -> None:
    """Each answer costs 5 tokens: a budget of 12 admits a third request, and no fourth."""
    world = worlds(Backend(), limits=Limits(budget_tokens=12))
    with world.client() as client:
        answers = [client.ask() for _ in range(5)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]
    assert answers[-1].error["code"] == "insufficient_quota"


@pytest.mark.parametrize("key", [b"ak_wrong", b"", KEY + b"x", None])
def test_case_60_a_wrong_key_gets_nowhere_and_is_not_repeated(
    worlds: Worlds, key: bytes | None
) -> None:
    world = worlds(Backend())
    with world.client() as client:
        answer = client.ask(chat(), key=key)
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert not key or key not in answer.head + answer.body
        assert client.ask().status == 200
    assert world.seen == 1
