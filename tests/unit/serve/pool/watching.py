"""A Health over a table of replicas, a probe that says what the test wants, and a hurried loop."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from serve.pool.health import Health
from serve.pool.replicas import Replica
from tests.unit.serve.pool.fakes import Table, run_hurried


class Patient:
    """A probe that says what the test wants; `None` is well, an exception is raised."""

    def __init__(self, verdict: str | Exception | None = None) -> None:
        self.verdict = verdict
        self.others_are_well = False
        """Whether only the first replica, r0, is what the test says."""
        self.at_s: list[float] = []

    async def __call__(self, replica: Replica, timeout_s: float) -> str | None:
        self.at_s.append(now_s())
        if self.others_are_well and replica.id != "r0":
            return None
        if isinstance(self.verdict, Exception):
            raise self.verdict
        if self.verdict == "hangs":
            await asyncio.sleep(timeout_s)
        return self.verdict


def now_s() -> float:
    return asyncio.get_running_loop().time()


def watched(
    test: Callable[[Table, Health, Patient], Awaitable[None]], count: int = 1, **options: Any
) -> None:
    """Run a test with a table of replicas that a Health watches, in a hurry."""

    async def run() -> None:
        pool, probe = Table(count), Patient()
        health = Health(pool, probe=probe, **options)
        await test(pool, health, probe)
        await health.stop()
        assert len(asyncio.all_tasks()) <= 2, "a task was leaked"

    run_hurried(run())


async def up(pool: Table, health: Health) -> Replica:
    """Watch all replicas until they are ready; return the first."""
    for replica in pool.replicas:
        health.watch(replica)
    await asyncio.sleep(0.1)
    assert all(replica.is_ready for replica in pool.replicas)
    pool.told.clear()
    return pool.replicas[0]
