"""bench/concurrency.py: whole runs in simulated time."""

from __future__ import annotations

import pytest

from bench.concurrency import SERVERS, simulated
from evalkit.simulated import Distant, run_simulated


def test_a_level_by_hand_gives_what_it_can() -> None:
    rate, settled = run_simulated(simulated(Distant(latency_s=0.5), 16, 10, 4))
    assert rate == pytest.approx(8.0, rel=0.2)
    assert settled == 0


@pytest.mark.parametrize("name", list(SERVERS))
def test_auto_settles_on_every_server(name: str) -> None:
    rate, settled = run_simulated(simulated(SERVERS[name](), 60, 10, None))
    assert rate > 0
    assert 1 <= settled <= 256
