import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serve.engine.launch import ensure_free
from serve.errors import ConfigError, EngineDied, EngineNotReady, PortInUse
from serve.pool.base import Demand
from serve.pool.local import LocalPool, _held_port
from serve.pool.replicas import Replica, ReplicaState
from serve.pool.scaling import Scaling
from tests.unit.serve.pool.fakes import (
    HEALTH,
    Engines,
    Request,
    TestEngine,
    are_ready,
    dies,
    loads,
    until,
)

State = ReplicaState
Test = Callable[[LocalPool], Awaitable[None]]


def pooled(engines: Engines, test: Test, count: int = 1, **options: Any) -> None:
    """Run a test in a pool, and see that nothing of it is left."""

    async def run() -> None:
        scaling = options.pop("scaling", Scaling(least=count, most=count))
        quick = {"first_backoff_s": 0.01, "scale_every_s": 0.01, **HEALTH, **options}
        pool = LocalPool(engines, scaling, **quick)
        async with asyncio.timeout(60), pool:
            await test(pool)
        assert engines.up == 0, "an engine was leaked"
        assert pool.replicas == []
        await pool.stop()
        pool.wake()
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1, "a task was leaked"

    asyncio.run(run())


def test_engines_are_started_each_on_a_port_of_its_own() -> None:
    engines = Engines()

    async def test(pool: LocalPool) -> None:
        assert (pool.desired, pool.can_wake) == (3, True)
        await until(are_ready(pool, 3))
        assert [replica.id for replica in pool.replicas] == ["replica-0", "replica-1", "replica-2"]
        assert {r.base_url for r in pool.replicas} == {engine.root_url for engine in engines.made}
        assert len({replica.port for replica in pool.replicas}) == 3
        assert engines.indices == [0, 1, 2]

    pooled(engines, test, 3)


def test_one_that_dies_is_removed_and_another_one_started() -> None:
    engines = Engines()

    async def test(pool: LocalPool) -> None:
        await until(are_ready(pool, 2))
        first = pool.replicas[0]
        request = Request(first)
        told: list[tuple[str, str, bool]] = []
        pool.listeners.append(
            lambda one: told.append((one.id, one.state.value, one in pool.replicas))
        )
        engines.made[0].kill()
        await until(lambda: first not in pool.replicas)
        assert (first.state, first.active) == (ReplicaState.STOPPED, set())
        assert request.lost == ["its engine has ended"]
        assert pool.replicas[0].is_ready, "the other one goes on"
        await until(are_ready(pool, 2))
        new = pool.replicas[1]
        assert new is not first
        assert (new.id, new.base_url) == (first.id, engines.made[2].root_url)
        ways = ("starting", True), ("syncing", True), ("ready", True)
        assert [step for step in told if step[1] != "down"] == [
            ("replica-0", "stopped", False),
            *(("replica-0", *way) for way in ways),
        ]
        assert not pool.fatal.done()

    pooled(engines, test, 2)


def test_restarts_come_later_and_later_until_one_serves() -> None:
    engines = Engines(lambda engine: None, *[dies] * 5)

    async def test(pool: LocalPool) -> None:
        await until(are_ready(pool, 1))
        engines.made[0].kill()
        await until(lambda: len(engines.made) == 7)
        await until(are_ready(pool, 1))
        at_s = engines.asked_s
        waits_s = [b - a for a, b in itertools.pairwise(at_s[1:])]
        for waited_s, least_s in zip(waits_s, (0.02, 0.04, 0.08, 0.08, 0.08), strict=True):
            assert waited_s >= least_s
        assert not pool.fatal.done()
        reasons: list[str] = []
        pool.listeners.append(
            lambda one: reasons.append(one.reason) if one.state is State.STARTING else None
        )
        engines.made[-1].kill()
        await until(lambda: len(engines.made) == 8)
        await until(are_ready(pool, 1))
        assert reasons == ["restart 1: FakeEngine was killed"], "the earlier ones are forgotten"
        assert pool.replicas[0].reason == ""

    pooled(engines, test, most_backoff_s=0.08, steady_s=0.0)


def test_backing_off_never_overflows() -> None:
    pool = LocalPool(Engines(), Scaling(), first_backoff_s=1.0, most_backoff_s=60.0)
    waits_s = [pool._backoff_s(deaths) for deaths in (1, 2, 3, 7, 5000)]
    assert waits_s == [1.0, 2.0, 4.0, 60.0, 60.0]


@pytest.mark.parametrize(
    "plan",
    [dies, ConfigError("out of memory"), OSError("out of memory"), RuntimeError("out of memory")],
    ids=["death", "config", "os", "bug"],
)
def test_the_first_death_is_fatal(plan: Callable[[TestEngine], None] | Exception) -> None:
    engines = Engines(plan)

    async def test(pool: LocalPool) -> None:
        died = await pool.fatal
        assert isinstance(died, EngineDied)
        assert str(died) == "out of memory"
        await until(lambda: pool.replicas == [])
        assert not pool.can_wake
        await asyncio.sleep(0.05)
        pool.wake()
        assert len(engines.asked_s) == 1

    pooled(engines, test)


def test_an_engine_that_does_not_come_up_in_time_is_dead() -> None:
    def slow(engine: TestEngine) -> None:
        engine.fails = EngineNotReady("no answer within 900 s")

    async def test(pool: LocalPool) -> None:
        assert str(await pool.fatal) == "no answer within 900 s"

    pooled(Engines(slow), test)


def test_an_engine_that_dies_while_it_loads_is_seen_to() -> None:
    engines = Engines(loads)

    async def test(pool: LocalPool) -> None:
        await until(lambda: engines.up)
        engines.made[0].kill()
        assert str(await pool.fatal) == "FakeEngine was killed"

    pooled(engines, test)


def test_a_port_that_was_snatched_away_is_only_tried_again() -> None:
    engines = Engines(PortInUse("taken"), PortInUse("taken"))

    async def test(pool: LocalPool) -> None:
        await until(are_ready(pool, 1))
        assert len(engines.asked_s) == 3
        assert not pool.fatal.done()

    pooled(engines, test)


@pytest.mark.parametrize("error", [ConfigError("x"), PortInUse("x"), OSError("x"), KeyError("x")])
def test_later_nothing_that_goes_wrong_is_fatal(error: Exception) -> None:
    engines = Engines(lambda engine: None, error, error, dies)

    async def test(pool: LocalPool) -> None:
        await until(are_ready(pool, 1))
        engines.made[0].kill()
        await until(lambda: len(engines.asked_s) == 5)
        await until(are_ready(pool, 1))
        assert not pool.fatal.done()
        assert pool.can_wake

    pooled(engines, test)


def test_an_engine_that_hangs_is_started_anew() -> None:
    engines = Engines()
    hanging: set[int] = set()

    async def probe(replica: Replica, timeout_s: float) -> str | None:
        return "hangs" if replica.port in hanging else None

    async def test(pool: LocalPool) -> None:
        await until(are_ready(pool, 1))
        first = pool.replicas[0]
        hanging.add(first.port)
        await until(lambda: len(engines.made) == 2)
        assert engines.made[0].stops == 1
        await until(are_ready(pool, 1))
        assert pool.replicas[0] is not first
        assert not pool.fatal.done()

    pooled(engines, test, probe=probe, hung_s=0.1)


def test_one_that_is_to_be_renewed_is_started_anew_unless_it_serves() -> None:
    engines = Engines()

    async def prepare(replica: Replica) -> None:
        raise EngineNotReady("stale weights")

    async def test(pool: LocalPool) -> None:
        await until(are_ready(pool, 1))
        first = pool.replicas[0]
        pool.renew(first, "it refused 3 times")  # too late: it serves again
        pool.prepare = prepare
        pool.failed(first, "reset")
        pool.renew(first, "it refused 6 times")
        await until(lambda: bool(pool.replicas) and "restart 1" in pool.replicas[0].reason)
        assert "it refused 6 times" in pool.replicas[0].reason
        pool.prepare = None
        await until(are_ready(pool, 1))
        assert (len(engines.made), engines.made[0].stops) == (2, 1)
        assert not pool.fatal.done()

    pooled(engines, test)


def test_one_that_cannot_be_prepared_is_not_started_anew() -> None:
    engines = Engines()

    async def prepare(replica: Replica) -> None:
        raise EngineNotReady("a bad checkpoint")

    async def test(pool: LocalPool) -> None:
        await until(are_ready(pool, 1))
        pool.prepare = prepare
        pool.failed(pool.replicas[0], "reset")
        await asyncio.sleep(0.2)
        assert (len(engines.made), pool.replicas[0].is_ready) == (1, False)
        pool.prepare = None
        await until(are_ready(pool, 1))

    pooled(engines, test, hung_s=0.5)


def test_stopping_at_any_moment_leaves_nothing() -> None:
    for turns in range(25):
        engines = Engines(*[lambda engine: None, loads, dies] * 2)

        async def test(pool: LocalPool, turns: int = turns) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        pooled(engines, test, 3)


def test_stopping_amid_a_drain_waits_for_nobody() -> None:
    async def test(pool: LocalPool) -> None:
        await until(are_ready(pool, 1))
        replica = pool.replicas[0]
        requests = [Request(replica) for _ in range(3)]
        await pool.scale(0)
        await until(lambda: replica.state is ReplicaState.DRAINING)
        await pool.stop()
        assert [request.lost for request in requests] == [["its engine has ended"]] * 3

    pooled(Engines(), test, drain_s=1000.0)


def test_stopping_amid_backoff_and_preparation_leaves_nothing() -> None:
    engines = Engines()

    async def prepare(replica: Replica) -> None:
        if replica.id == "replica-2":
            await asyncio.sleep(1000)

    async def test(pool: LocalPool) -> None:
        pool.prepare = prepare
        await until(lambda: [r.is_ready for r in pool.replicas] == [True, True, False])
        engines.made[0].kill()
        await until(lambda: any(one.state is State.DOWN for one in pool.replicas))

    pooled(engines, test, 3, first_backoff_s=1000.0)


def test_what_is_held_goes_first_come_first_served() -> None:
    """As the gateway does it: whoever waits is sent on when a replica is ready."""
    engines = Engines()
    held, sent = list(range(100)), []

    def send(changed: Replica) -> None:
        if changed.is_ready:
            while held:
                sent.append(held.pop(0))
                changed.in_flight += 1

    async def test(pool: LocalPool) -> None:
        pool.listeners.append(send)
        pool.demand = lambda: Demand(held=len(held))
        await until(lambda: sent)
        first = pool.replicas[0]
        assert (sent, first.in_flight) == (list(range(100)), 100)
        engines.made[0].kill()
        held.extend(range(100, 200))
        await until(lambda: not held)
        assert sent == list(range(200))
        assert pool.replicas[0].in_flight == 100

    pooled(engines, test)


def test_a_port_is_kept_for_the_engine_that_will_listen_there() -> None:
    async def run() -> None:
        with _held_port() as port:
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
            ensure_free("127.0.0.1", port)  # as an engine asks
            async with TestEngine(port) as engine:
                assert engine.root_url == f"http://127.0.0.1:{port}"

    asyncio.run(run())
