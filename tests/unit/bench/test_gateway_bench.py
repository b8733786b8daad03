from __future__ import annotations

from pathlib import Path

import pytest

from bench.gateway_parts import records
from bench.gateway_parts.records import Run
from bench.gateway_parts.tables import Results, claims, report

QUIET, NOISY = 0.01, 0.9


def cell(foreign: float = QUIET, **figures: float) -> dict[str, float]:
    return {"foreign": foreign, "errors": 0, "cut": 0, "refused": 0, "stuck": 0, **figures}


def run(peer: str, speed: float, *, round_: int = 0, foreign: float = QUIET, lost: int = 0) -> Run:
    """A run of a peer that does everything `speed` times as fast as ours."""
    rates = {load: cell(foreign, rps=1000 * speed) for load in ("c1", "c256", "64kB", "2000")}
    return Run(
        peer=peer,
        version="1.2.3",
        round=round_,
        figures={"anonymous_status": 401, "metrics_status": 200, "rss_idle_mb": 50},
        cells={
            **rates,
            "c32": cell(foreign, rps=1000 * speed, cpu_s_per_1k=0.02 / speed),
            "low": cell(foreign, latency_p50_us=100 / speed, latency_p99_us=300 / speed),
            "sse": cell(foreign, events_per_s=5000 * speed, cpu_s_per_1k_events=0.002),
            "paced": cell(foreign, events_per_s=12_800, cpu_s_per_1k_events=0.01 / speed),
            "6000": cell(foreign, rps=11_000, errors=lost, latency_p99_us=510_000),
        },
        problems={},
    )


def held(runs: list[Run]) -> dict[str, bool | None]:
    return {claim.goal: claim.held for claim in claims(Results(runs))}


def test_every_goal_holds_where_ours_is_ahead() -> None:
    runs = [run("direct", 10), run("nginx", 2), run("vllm-router", 0.5), run("ours", 1)]
    assert set(held(runs).values()) == {True}


def test_a_faster_peer_a_far_nginx_and_a_lost_request_are_told() -> None:
    runs = [run("direct", 10), run("nginx", 3), run("smg", 1.5), run("ours", 1, lost=2)]
    told = held(runs)
    assert told.pop("measured with keys and metrics on") is True
    assert set(told.values()) == {False}


def test_what_was_not_measured_is_not_claimed() -> None:
    missing = Run(
        peer="ours",
        version="",
        round=0,
        figures={},
        cells={},
        problems={"start": "not installed: ours"},
    )
    runs = [run("direct", 10), run("nginx", 2), run("smg", 0.5), missing]
    assert set(held(runs).values()) == {None}
    assert "- ours, start, round 1: not installed: ours" in report(Results(runs))


@pytest.mark.parametrize(
    ("rounds", "median"),
    [
        ([(1, QUIET), (3, QUIET), (9, NOISY)], 2000),
        ([(1, NOISY), (3, NOISY + 1)], 1000),
    ],
)
def test_noisy_rounds_count_only_where_there_is_no_quiet_one(
    rounds: list[tuple[float, float]], median: float
) -> None:
    runs = [run("ours", s, round_=i, foreign=f) for i, (s, f) in enumerate(rounds)]
    assert Results(runs).cell("ours", "c32", "rps") == median


def test_ratios_stand_beside_the_figures() -> None:
    runs = [run("direct", 10), run("nginx", 2), run("ours", 1)]
    rows = [line for line in report(Results(runs)).splitlines() if line.startswith("| ours 1.2.3")]
    requests = rows[0].split(" | ")
    assert requests[1:8] == ["1,000", "1,000", "0.10", "0.50", "1,000", "0.50", "1,000"]
    assert requests[8:12] == ["0.0200", "2.00", "90", "270"]


def test_runs_are_read_as_they_were_written(tmp_path: Path) -> None:
    runs, path = [run("nginx", 2), run("ours", 1)], tmp_path / "runs.json"
    records.save(path, runs, {"scale": 1.0})
    assert records.load(path) == runs
    path.write_text('{"format": "other/1"}')
    with pytest.raises(ValueError, match="gateway-bench/1"):
        records.load(path)
