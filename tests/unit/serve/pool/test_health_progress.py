"""Engines whose probes are good while nothing moves, and what is read of their metrics."""

import asyncio

import pytest

from serve.errors import EngineNotReady
from serve.pool.health import Health
from serve.pool.replicas import Replica, ReplicaState
from tests.unit.serve.pool.fakes import Request, Table
from tests.unit.serve.pool.watching import Patient, up, watched

State = ReplicaState


async def still(replica: Replica) -> dict[str, float]:
    """Counters that never move."""
    return {"running": 1.0}


def test_an_engine_without_counters_is_believed() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        replica = await up(pool, health)
        Request(replica)
        await asyncio.sleep(5000)
        assert replica.is_ready

    watched(test)


def test_a_wedge() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        replica = await up(pool, health)
        await asyncio.sleep(1000)
        assert replica.is_ready, "nobody waits"
        request = Request(replica)
        for _ in range(10):
            await asyncio.sleep(250)
            Request(replica).finish()
        assert replica.is_ready, "others were answered"
        await asyncio.sleep(299)
        assert replica.is_ready
        await asyncio.sleep(3)
        assert replica.state is State.DOWN
        assert request.lost == ["no request there has moved for 300 s"]
        await asyncio.sleep(110)
        assert replica.state is State.DOWN, "good probes say nothing now"
        await asyncio.sleep(15)
        assert replica.is_ready

    watched(test, scrape=still)


class Stream(Request):
    read_at = 0.0


def test_a_stream_that_goes_on_is_no_wedge() -> None:
    async def test(pool: Table, health: Health, probe: Patient) -> None:
        replica = await up(pool, health)
        stream = Stream(replica)
        for _ in range(10):
            await asyncio.sleep(200)
            stream.read_at += 1
        assert replica.is_ready
        await asyncio.sleep(700)
        assert stream.lost != []

    watched(test, scrape=still)


def test_an_engine_that_counts_on_is_no_wedge() -> None:
    tokens = 0.0

    async def scrape(replica: Replica) -> dict[str, float]:
        return {"kv_cache_usage": tokens}

    async def test(pool: Table, health: Health, probe: Patient) -> None:
        nonlocal tokens
        replica = await up(pool, health)
        request = Request(replica)
        for _ in range(10):
            await asyncio.sleep(200)
            tokens += 1
        assert replica.is_ready
        assert replica.metrics == {"kv_cache_usage": tokens - 1}
        await asyncio.sleep(400)
        assert request.lost != []

    watched(test, scrape=scrape)


@pytest.mark.parametrize("error", [EngineNotReady("x"), OSError("x"), ValueError("x"), None])
def test_metrics_that_cannot_be_read_harm_nothing(error: Exception | None) -> None:
    async def scrape(replica: Replica) -> dict[str, float]:
        if error is None:
            await asyncio.sleep(1000)  # it hangs
            return {}
        raise error

    async def test(pool: Table, health: Health, probe: Patient) -> None:
        replica = await up(pool, health)
        await asyncio.sleep(30)
        assert (replica.is_ready, replica.metrics) == (True, {})
        probe.verdict = "refused"
        await asyncio.sleep(6)
        assert replica.state is State.DOWN

    watched(test, scrape=scrape)
