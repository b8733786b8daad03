import asyncio

import pytest

from serve.pool.local import LocalPool
from serve.pool.replicas import ReplicaState as State
from serve.pool.scaling import Scaling
from tests.unit.serve.pool.fakes import HEALTH, Engines, are_ready, until


@pytest.mark.parametrize(
    ("steady_s", "waits"), [(60.0, ["0.01", "0.02", "0.04"]), (0.0, ["0.01"] * 3)]
)
def test_what_dies_as_soon_as_it_serves_is_restarted_later_and_later(
    steady_s: float, waits: list[str]
) -> None:
    async def test() -> None:
        engines = Engines()
        pool = LocalPool(engines, Scaling(), first_backoff_s=0.01, steady_s=steady_s, **HEALTH)
        said: list[str] = []
        pool.listeners.append(
            lambda one: said.append(one.reason) if one.state is State.DOWN else None
        )
        async with pool:
            for count in range(1, 4):
                await until(are_ready(pool, 1))
                engines.made[-1].kill()
                await until(lambda c=count: len(engines.made) > c)  # type: ignore[misc]
            await until(are_ready(pool, 1))
        counts = (1, 2, 3) if steady_s else (1, 1, 1)
        expected = [
            f"restart {count} in {wait} s: FakeEngine was killed"
            for count, wait in zip(counts, waits, strict=True)
        ]
        assert [reason for reason in said if reason.startswith("restart")] == expected

    asyncio.run(test())


def test_a_crash_loop_is_seen_in_the_table_while_it_waits() -> None:
    async def test() -> None:
        engines = Engines()
        pool = LocalPool(
            engines, Scaling(), first_backoff_s=1000.0, most_backoff_s=1000.0, **HEALTH
        )
        async with pool:
            await until(are_ready(pool, 1))
            engines.made[0].kill()
            await until(lambda: [one.state for one in pool.replicas] == [State.DOWN])
            assert pool.replicas[0].reason == "restart 1 in 1000 s: FakeEngine was killed"
            await pool.scale(0)
            await until(lambda: pool.replicas == [])
        assert len(engines.made) == 1

    asyncio.run(test())


def test_nothing_is_sent_to_an_engine_that_is_being_stopped() -> None:
    async def test() -> None:
        engines = Engines()
        pool = LocalPool(engines, Scaling(), **HEALTH)
        async with pool:
            await until(are_ready(pool, 1))
            left: list[bool] = []
            pool.listeners.append(lambda one: left.append(engines.made[0].is_up))
            await pool.scale(0)
            await until(lambda: engines.up == 0)
            assert left == [True, True], "draining, then gone from the table, while it still ran"

    asyncio.run(test())


def test_who_asks_to_wake_a_pool_that_is_awake_changes_nothing() -> None:
    async def test() -> None:
        pool = LocalPool(Engines(), Scaling(least=1, most=2), scale_every_s=1000.0, **HEALTH)
        async with pool:
            await pool.scale(2)
            pool.wake()
            assert pool.desired == 2

    asyncio.run(test())
