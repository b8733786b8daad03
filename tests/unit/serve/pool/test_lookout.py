"""What a pool learns of replicas that are gateways, from a double that says what it is told to."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from serve.errors import EngineNotReady
from serve.pool.lookout import SERVICE, Lookout
from serve.pool.replicas import Replica, ReplicaState
from serve.pool.static import StaticPool
from tests.unit.serve.pool.fakes import until


class QuietPool(StaticPool):
    quiet = False

    @property
    def is_quiet(self) -> bool:
        return self.quiet


class Inner:
    """A gateway's two routes; `answers` has the status and the body of each."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {"/health": (200, {"service": SERVICE})}
        self.asked: list[str] = []
        self.say(1)

    def say(self, *versions: int, ready: bool = True, current: int | None = None) -> None:
        policy = {
            "current": current or max(versions, default=0),
            "versions": list(versions),
            "max_model_len": 64,
        }
        policies = {"p": policy} if versions else {}
        self.answers["/serving"] = (200, {"ready": ready, "policies": policies})

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ")[1].decode()
            self.asked.append(path)
            status, body = self.answers[path]
            payload = body if isinstance(body, bytes) else json.dumps(body).encode()
            writer.write(
                b"HTTP/1.1 %d X\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
                % (status, len(payload), payload)
            )
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def looking(**options: Any) -> AsyncIterator[tuple[Inner, QuietPool, Replica, Lookout]]:
    inner = Inner()
    server = await asyncio.start_server(inner.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = QuietPool([f"http://127.0.0.1:{port}"])
    replica = pool.replicas[0]
    replica.labels = True
    async with Lookout(pool, **{"every_s": 0.01, **options}) as lookout:
        yield inner, pool, replica, lookout
    server.close()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def test_gateways_are_known_by_their_health() -> None:
    async def test() -> None:
        async with looking() as (inner, _, replica, lookout):
            assert await lookout.recognises(replica)
            for status, body in ((200, b""), (404, b"{}"), (200, []), (200, {"service": "x"})):
                inner.answers["/health"] = (status, body)
                assert not await lookout.recognises(replica)
            inner.answers["/health"] = (503, b"")
            with pytest.raises(EngineNotReady, match="/health was answered with 503"):
                await lookout.recognises(replica)

    run(test())


def test_one_serves_what_it_says_once_it_is_ready() -> None:
    async def test() -> None:
        cards: dict[str, dict[str, Any]] = {}
        async with looking(cards=cards) as (inner, _, replica, lookout):
            inner.say(ready=False)
            preparing = asyncio.create_task(lookout.prepare(replica))
            await until(lambda: len(inner.asked) > 1)
            assert not preparing.done()
            inner.say(6, 7, current=6)
            await preparing
            assert replica.served == {"p": {6: b'"p@6"', 7: b'"p@7"'}}
            assert replica.current == {"p": 6}
            assert (lookout.names, cards) == ({"p"}, {"p": {"max_model_len": 64}})

    run(test())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, b"<html>"), "no gateway's"),
        ((200, {"ready": True}), "no gateway's"),
        ((200, {"ready": True, "policies": {"p": {"versions": ["x"]}}}), "no gateway's"),
        ((401, b"{}"), "answered with 401"),
    ],
)
def test_one_that_says_nothing_to_the_point_is_not_ready(answer: Any, said: str) -> None:
    async def test() -> None:
        async with looking() as (inner, _, replica, lookout):
            inner.answers["/serving"] = answer
            with pytest.raises(EngineNotReady, match=said):
                await lookout.prepare(replica)

    run(test())


def test_waiting_has_an_end() -> None:
    async def test() -> None:
        async with looking(ready_within_s=0.0) as (inner, _, replica, lookout):
            inner.say(ready=False)
            with pytest.raises(EngineNotReady, match="no engine became ready there within 0 s"):
                await lookout.prepare(replica)

    run(test())


def test_one_whose_engine_is_away_steps_aside_and_comes_back() -> None:
    async def test() -> None:
        async with looking() as (inner, pool, replica, lookout):
            await lookout.prepare(replica)
            told: list[str] = []
            pool.listeners.append(lambda changed: told.append(changed.state.value))
            replica.state = ReplicaState.READY
            inner.say(ready=False)
            await until(lambda: replica.state is ReplicaState.SYNCING)
            assert "its weights change" in replica.reason
            assert replica.served == {"p": {1: b'"p@1"'}}
            inner.say(2)
            await until(lambda: replica.is_ready)
            assert (replica.current, replica.reason, told) == ({"p": 2}, "", ["syncing", "ready"])
            assert lookout.in_use("p") == {
                1: "upstream-0 serves it",  # to which it may go back
                2: "upstream-0 serves it",
            }
            inner.say(3)
            await until(lambda: replica.current == {"p": 3})
            assert set(lookout.in_use("p")) == {2, 3}
            assert told[2:] == ["ready"]

    run(test())


def test_one_that_is_lost_while_aside_is_down() -> None:
    async def test() -> None:
        async with looking() as (inner, pool, replica, lookout):
            await lookout.prepare(replica)
            replica.state = ReplicaState.READY
            inner.say(ready=False)
            await until(lambda: replica.state is ReplicaState.SYNCING)
            inner.answers["/serving"] = (502, b"")
            await until(lambda: replica.state is ReplicaState.DOWN)
            assert replica.errors == 1
            inner.say(1)
            before = len(inner.asked)
            await asyncio.sleep(0.05)
            assert len(inner.asked) == before, "probes bring it back, not we"
            assert not pool.replicas[0].is_ready

    run(test())


def test_a_quiet_pool_is_asked_nothing_unless_something_was_published() -> None:
    async def test() -> None:
        async with looking() as (inner, pool, replica, lookout):
            await lookout.prepare(replica)
            replica.state = ReplicaState.READY
            await until(lambda: len(inner.asked) > 3)
            pool.quiet = True
            await asyncio.sleep(0.05)
            before = len(inner.asked)
            await asyncio.sleep(0.05)
            assert len(inner.asked) == before
            lookout.hurry()
            await until(lambda: len(inner.asked) > before)

    run(test())
