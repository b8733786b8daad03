"""What runs cost: before, while and after, and when they are told to stop."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from train.config import TrainConfig, dumps, resolve
from train.costs import (
    Meter,
    Spent,
    check_budget,
    ensure_budget_left,
    estimate,
    list_rates,
    read_costs,
)
from train.errors import BadConfig
from train.run import RunDir

CPU = 4 * 0.0000131 + 16 * 0.00000222


def config(**settings: Any) -> TrainConfig:
    tree = {"env": {"name": "key_door"}, "model": {"path": "m"}, "learn": {"steps": 10}}
    return resolve(tree, {key.replace("__", "."): value for key, value in settings.items()})


@pytest.mark.parametrize(
    ("settings", "usd_per_s"),
    [
        ({}, CPU),
        ({"compute__gpu": "H100"}, 0.001097 + CPU),
        ({"compute__gpu": "H100!:8"}, 8 * 0.001097 + CPU),
        ({"compute__gpu": "a10g"}, 0.000306 + CPU),
        ({"compute__gpu": "A100:2"}, 2 * 0.000583 + CPU),
        ({"compute__region": "us"}, 1.5 * CPU),
        ({"compute__region": "us-east"}, 1.75 * CPU),
        ({"compute__cpu": 1.0, "compute__memory_mib": 1024}, 0.0000131 + 0.00000222),
        ({"compute__gpu": "Z900"}, None),
    ],
)
def test_what_a_second_costs(settings: dict[str, Any], usd_per_s: float | None) -> None:
    found = list_rates().usd_per_s(config(**settings).compute)
    assert found == (None if usd_per_s is None else pytest.approx(usd_per_s))


def test_several_machines_cost_several_times() -> None:
    several = config(compute__nodes=3, learn__processes=3, gateway__url="http://h:1")
    assert list_rates().usd_per_s(several.compute) == pytest.approx(3 * CPU)
    assert Spent.of(several.compute, 3600, list_rates()).gpu_hours == 0


def test_an_account_s_rates_replace_those_of_the_list() -> None:
    told = {
        "gpu_hour_cost_a100_80gb": "3.6",
        "gpu_hour_cost_b900": "7.2",
        "cpu_hour_cost": "0.36",
        "mem_hour_cost": "0",
        "volume_gib_month_cost": "0.09",
    }
    rates = list_rates().of_account(told)
    a100 = config(compute__gpu="A100-80GB:2", compute__cpu=1.0).compute
    assert rates.usd_per_s(a100) == pytest.approx(2 * 0.001 + 0.0001)
    assert rates.usd_per_s(config(compute__gpu="B900").compute) == pytest.approx(0.002 + 4 * 0.0001)
    assert rates.usd_per_s(config(compute__gpu="H100", compute__cpu=1.0).compute) == pytest.approx(
        0.001097 + 0.0001
    )
    assert (rates.source, list_rates().of_account({})) == ("the account's own rates", list_rates())


def test_an_estimate_says_what_it_is_reckoned_from() -> None:
    told = config(compute__gpu="H100:2", out="/nowhere")
    assert estimate(told, list_rates()) == [
        "estimate: 0.30 GPU-hours, 1.23 USD on Modal, 0.15 h of H100:2",
        "10 steps of 30.0 s (assumed: no run of this kind is there yet), 240 s to begin",
        "prices: list prices of 2026-11-20",
    ]
    over = config(compute__gpu="H100:2", out="/nowhere", budget__usd=1, budget__gpu_hours=9)
    assert estimate(over, list_rates())[-1] == ("that is over the budget: 1.23 USD of budget.usd=1")


def test_the_newest_run_of_the_kind_says_what_a_step_takes(tmp_path: Path) -> None:
    told = config(out=str(tmp_path))
    took = {
        "grpo_20260101_000000": (told, [9, 9, 9]),
        "grpo_20260102_000000": (told, [2, 4, 3]),
        "grpo_20260103_000000": (told, [7, 7]),
        "grpo_20260104_000000": (config(out=str(tmp_path), rollouts__group_size=99), [5, 5, 5]),
    }
    for name, (kind, seconds) in took.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(dumps(kind))
        with (folder / "metrics.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["step", "step_s"])
            rows.writerows(enumerate(seconds, 1))
    assert estimate(told, list_rates())[1] == (
        "10 steps of 3.0 s (measured in grpo_20260102_000000), 240 s to begin"
    )


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_meter_goes_on_where_the_last_one_was_killed(tmp_path: Path) -> None:
    path, clock = tmp_path / "costs.json", Clock()
    told = config(compute__gpu="H100", budget__gpu_hours=1)
    meter = Meter(path, told, list_rates(), clock)
    clock.now_s += 5
    assert (meter.tick(), path.exists()) == ("", False)
    clock.now_s += 1795
    assert meter.tick() == ""
    assert json.loads(path.read_text()) == {
        "format": "train-costs/1",
        "seconds": 1800.0,
        "gpu_hours": 0.5,
        "usd": pytest.approx(1800 * (0.001097 + CPU), abs=1e-4),
        "rates": "list prices of 2026-11-20",
    }
    clock.now_s += 9  # not written any more
    again = Meter(path, told, list_rates(), clock)
    clock.now_s += 1799
    assert again.tick() == ""
    clock.now_s += 1
    assert again.tick() == "1.00 GPU-hours of budget.gpu_hours=1"


def test_a_run_whose_budget_is_spent_does_not_go_on(tmp_path: Path) -> None:
    path, clock = tmp_path / "costs.json", Clock()
    told = config(compute__gpu="H100", budget__usd=1)
    meter = Meter(path, told, list_rates(), clock)
    clock.now_s += 3600
    meter.write()
    with pytest.raises(BadConfig, match=r"the budget is spent: .* of budget\.usd=1; a higher one"):
        ensure_budget_left(path, told)
    ensure_budget_left(path, config(compute__gpu="H100", budget__usd=100))
    ensure_budget_left(tmp_path / "none.json", told)


def test_a_budget_without_a_price_is_refused() -> None:
    unknown = {"compute__gpu": "Z900"}
    check_budget(config(**unknown, budget__gpu_hours=1), list_rates())
    with pytest.raises(BadConfig, match=r"no price is known for compute\.gpu=Z900; there are A10,"):
        check_budget(config(**unknown, budget__usd=1), list_rates())
    assert str(Spent.of(config(**unknown).compute, 3600, list_rates())) == (
        "1.00 GPU-hours, an unknown price"
    )


@pytest.mark.parametrize("content", ["", "[]", '{"format": "else/1"}', "{"])
def test_a_damaged_file_counts_from_nothing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(content)
    assert read_costs(path) is None
    assert Meter(path, config(), list_rates(), Clock()).spent.seconds == 0


def test_a_run_has_a_place_for_it(tmp_path: Path) -> None:
    assert RunDir(tmp_path).costs_path == tmp_path / "costs.json"
