"""Simulated servers: what they give under load, in no time."""

from __future__ import annotations

import asyncio
import time

import pytest

from evalkit.simulated import (
    Distant,
    Fitful,
    Queueing,
    Refusing,
    SimulatedServer,
    now_s,
    run_simulated,
)


async def answers_per_s(server: SimulatedServer, callers: int, lasting_s: float) -> float:
    answered = 0

    async def ask() -> None:
        nonlocal answered
        while True:
            response = await server.post("", b"", timeout_s=1.0)
            answered += response.status == 200
            await asyncio.sleep(float(response.headers.get("retry-after", 0.0)))

    tasks = [asyncio.create_task(ask()) for _ in range(callers)]
    await asyncio.sleep(lasting_s)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert server.in_flight == 0
    return answered / lasting_s


def test_hours_pass_in_no_time() -> None:
    async def wait() -> float:
        await asyncio.sleep(36_000.0)
        return now_s()

    began_s = time.monotonic()
    assert run_simulated(wait()) == pytest.approx(36_000.0)
    assert time.monotonic() - began_s < 5.0


@pytest.mark.parametrize(
    ("server", "callers", "expected"),
    [
        (Queueing(slots=8, full_s=1.0, knee=16), 1, 1 / (0.5 + 0.5 / 8)),
        (Queueing(slots=8, full_s=1.0, knee=16), 8, 8.0),
        (Queueing(slots=8, full_s=1.0, knee=16), 16, 8.0),
        (Queueing(slots=8, full_s=1.0, knee=16, thrash=0.1), 26, 4.0),
        (Fitful(slots=8, spread=0.0), 8, 16.0),
        (Refusing(takes=4, latency_s=1.0), 4, 4.0),
        (Refusing(takes=4, latency_s=1.0), 40, 4.0),
        (Distant(latency_s=2.0), 40, 20.0),
    ],
)
def test_what_a_server_gives(server: SimulatedServer, callers: int, expected: float) -> None:
    measured = run_simulated(answers_per_s(server, callers, 400.0))
    assert measured == pytest.approx(expected, rel=0.08)
    assert server.most == callers
    assert bool(server.refused) == (isinstance(server, Refusing) and callers > 4)


def test_a_fitful_server_has_other_fits_with_another_seed_and_the_same_with_the_same() -> None:
    def took_s(seed: int) -> list[float]:
        async def one_after_the_other() -> list[float]:
            server = Fitful(spread=1.0, lasting_s=10.0, seed=seed)
            return [server.service_s(1.0) + await asyncio.sleep(10.0, 0.0) for _ in range(8)]

        return run_simulated(one_after_the_other())

    assert took_s(1) == took_s(1) != took_s(2)
    assert max(took_s(1)) > 3 * min(took_s(1))
