import asyncio
from typing import Any

import pytest

from serve.errors import ConfigError
from serve.pool.base import Demand
from serve.pool.local import LocalPool
from serve.pool.replicas import Replica, ReplicaState
from serve.pool.scaling import Scaling
from tests.unit.serve.pool.fakes import Engines, Request, are_ready, loads, until
from tests.unit.serve.pool.test_local import pooled

QUICK: dict[str, Any] = {"target_in_flight": 10, "up_after_s": 0.0, "down_after_s": 0.0}


async def ticks(count: int = 5) -> None:
    """Let the autoscaler look so often, at least: pools of `pooled` look each 10 ms."""
    await asyncio.sleep(count * 0.02)


def test_up_and_down_by_hand() -> None:
    engines = Engines()

    async def test(pool: LocalPool) -> None:
        await until(are_ready(pool, 1))
        await pool.scale(3)
        assert pool.desired == 3
        await until(are_ready(pool, 3))
        busy, *_ = pool.replicas
        busy.sessions = 5
        await pool.scale(1)
        await until(lambda: pool.replicas == [busy], "the idle ones to leave")
        await until(lambda: engines.up == 1)
        await pool.scale(0)
        await until(lambda: engines.up == 0)
        pool.wake()
        pool.wake()
        await until(are_ready(pool, 1))
        assert (pool.desired, len(engines.made)) == (1, 4)
        for count in (-1, 5):
            with pytest.raises(ConfigError, match=f"expected 0 to 4 replicas, got {count}"):
                await pool.scale(count)

    pooled(engines, test, scaling=Scaling(least=1, most=4), scale_every_s=1000.0)


def test_a_place_that_was_left_is_taken_again() -> None:
    engines = Engines()

    async def test(pool: LocalPool) -> None:
        await until(are_ready(pool, 3))
        pool.replicas[0].sessions = pool.replicas[2].sessions = 1
        await pool.scale(2)
        await until(lambda: engines.up == 2)
        await pool.scale(3)
        await until(are_ready(pool, 3))
        assert engines.indices == [0, 1, 2, 1]

    pooled(engines, test, 3)


def test_a_drain_waits_for_what_is_in_flight() -> None:
    engines = Engines()

    async def test(pool: LocalPool) -> None:
        await until(are_ready(pool, 1))
        replica = pool.replicas[0]
        request = Request(replica)
        told: list[ReplicaState] = []
        pool.listeners.append(lambda changed: told.append(changed.state))
        await pool.scale(0)
        await until(lambda: replica.state is ReplicaState.DRAINING)
        pool.failed(replica, "reset")
        await ticks()
        assert (replica.state, engines.up) == (ReplicaState.DRAINING, 1)
        assert replica in pool.replicas
        request.finish()
        await until(lambda: engines.up == 0)
        assert (request.lost, pool.replicas) == ([], [])
        assert told == [ReplicaState.DRAINING, ReplicaState.STOPPED]

    pooled(engines, test)


def test_a_drain_does_not_wait_for_ever() -> None:
    engines = Engines()

    async def test(pool: LocalPool) -> None:
        await until(are_ready(pool, 1))
        request = Request(pool.replicas[0])
        await pool.scale(0)
        await until(lambda: engines.up == 0)
        assert request.lost == ["its engine has ended"]

    pooled(engines, test, drain_s=0.05)


def test_an_engine_that_is_not_wanted_any_more_need_not_finish_loading() -> None:
    engines = Engines(loads)

    async def test(pool: LocalPool) -> None:
        await until(lambda: engines.up == 1)
        await pool.scale(0)
        await until(lambda: engines.up == 0)
        assert pool.replicas == []
        assert not pool.fatal.done()

    pooled(engines, test)


def test_leaving_ends_the_wait_for_a_restart() -> None:
    engines = Engines()

    async def test(pool: LocalPool) -> None:
        await until(are_ready(pool, 1))
        engines.made[0].kill()
        await until(lambda: [one.state for one in pool.replicas] == [ReplicaState.DOWN])
        await pool.scale(0)
        await ticks()
        pool.wake()
        await until(are_ready(pool, 1))

    pooled(engines, test, first_backoff_s=1000.0, most_backoff_s=1000.0)


def test_a_replica_that_leaves_while_it_is_prepared_stays_out() -> None:
    engines = Engines()
    began = asyncio.Event()

    async def prepare(replica: Replica) -> None:
        began.set()
        await asyncio.sleep(1000)

    async def test(pool: LocalPool) -> None:
        pool.prepare = prepare
        await began.wait()
        await pool.scale(0)
        await until(lambda: engines.up == 0)
        assert pool.replicas == []

    pooled(engines, test)


def test_there_are_never_more_engines_than_may_be() -> None:
    engines = Engines()

    async def test(pool: LocalPool) -> None:
        await until(are_ready(pool, 2))
        old = list(pool.replicas)
        requests = [Request(replica) for replica in old]
        await pool.scale(0)
        pool.wake()
        await pool.scale(2)
        await until(lambda: all(one.state is ReplicaState.DRAINING for one in old))
        await ticks()
        assert engines.up == 2
        requests[0].finish()
        await until(lambda: len(engines.made) == 3)
        requests[1].finish()
        await until(are_ready(pool, 2))
        assert (len(engines.made), engines.up) == (4, 2)

    pooled(engines, test, 2)


def test_stopping_wakes_nobody() -> None:
    """What is lost when the pool stops must not start an engine that nobody would stop."""
    engines = Engines()

    async def test(pool: LocalPool) -> None:
        await until(are_ready(pool, 1))
        pool.listeners.append(lambda changed: pool.wake() if not changed.is_ready else None)

    pooled(engines, test)
    assert len(engines.made) == 1


def test_demand_lets_it_grow_and_shrink() -> None:
    engines = Engines()
    demand = Demand()

    async def test(pool: LocalPool) -> None:
        nonlocal demand
        pool.demand = lambda: demand
        await until(are_ready(pool, 1))
        demand = Demand(in_flight=25)
        await until(are_ready(pool, 3))
        demand = Demand(in_flight=500)
        await until(are_ready(pool, 4))
        demand = Demand(in_flight=1)
        await until(are_ready(pool, 1))
        await until(lambda: engines.up == 1)
        assert pool.desired == 1

    pooled(engines, test, scaling=Scaling(least=1, most=4, **QUICK))


def test_to_zero_and_back() -> None:
    engines = Engines(lambda engine: None, loads)
    demand = Demand(in_flight=1)

    async def test(pool: LocalPool) -> None:
        nonlocal demand
        pool.demand = lambda: demand
        await until(are_ready(pool, 1))
        await ticks()
        assert engines.up == 1
        demand = Demand(idle_s=1000.0)
        await until(lambda: engines.up == 0)
        assert (pool.desired, pool.can_wake) == (0, True)
        await ticks()
        demand = Demand(held=1000, oldest_held_s=0.1)
        for _ in range(1000):
            pool.wake()
        await until(lambda: engines.up == 1)
        demand = Demand(idle_s=1000.0)  # who waited went away
        await ticks()
        assert engines.up == 1, "what loads is not stopped"
        demand = Demand(held=1000)
        await ticks()
        assert (engines.up, len(engines.made)) == (1, 2), "nor doubled"
        engines.made[1].loaded.set()
        await until(are_ready(pool, 1))

    pooled(engines, test, scaling=Scaling(least=1, most=1, idle_to_zero_s=0.2))


def test_loading_is_no_idleness() -> None:
    """An engine that took longer to load than it may be idle is not stopped at once."""
    engines = Engines(loads)

    async def test(pool: LocalPool) -> None:
        pool.demand = lambda: Demand(idle_s=1000.0)
        await ticks()
        engines.made[0].loaded.set()
        await until(are_ready(pool, 1))
        await ticks()
        assert engines.up == 1

    pooled(engines, test, scaling=Scaling(least=1, most=1, idle_to_zero_s=100))


def test_none_to_begin_with() -> None:
    engines = Engines()
    demand = Demand()

    async def test(pool: LocalPool) -> None:
        nonlocal demand
        pool.demand = lambda: demand
        await ticks()
        assert (engines.made, pool.can_wake) == ([], True)
        demand = Demand(held=1)
        await until(are_ready(pool, 1))

    pooled(engines, test, scaling=Scaling(least=0, most=2, **QUICK))


def test_a_death_amid_scaling_down_is_no_reason_to_restart() -> None:
    engines = Engines()

    async def test(pool: LocalPool) -> None:
        await until(are_ready(pool, 2))
        replica = pool.replicas[0]
        Request(pool.replicas[1])
        request = Request(replica)
        Request(pool.replicas[1])
        await pool.scale(1)
        await until(lambda: replica.state is ReplicaState.DRAINING)
        engines.made[0].kill()
        request.finish()
        await until(lambda: len(pool.replicas) == 1)
        await ticks()
        assert len(engines.made) == 2

    pooled(engines, test, 2)
