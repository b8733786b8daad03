"""The table of bench/grpo.py: which steps count, and what is compared with what."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.grpo import LAST, MODES, WARM_UP, Result, config_of, main, summarize, table
from train.config import Mode


def row(step: int, **cells: float | None) -> dict[str, str]:
    told: dict[str, float | None] = {
        "step": step,
        "step_s": 2.0,
        "wait_s": 0.5,
        "learn_s": 1.0,
        "sync_s": 0.25,
        "tokens_trained": 300,
        "tokens_forwarded": 5000,
        "success": 0.5,
    }
    return {name: "" if cell is None else str(cell) for name, cell in (told | cells).items()}


def rows(*durations_s: float) -> list[dict[str, str]]:
    return [row(at, step_s=step_s) for at, step_s in enumerate(durations_s, 1)]


def result(mode: str, step_s: float, **told: Any) -> Result:
    about: dict[str, Any] = {
        "steps": 10,
        "shortest_s": step_s - 0.5,
        "longest_s": step_s + 0.5,
        "idle": 0.25,
        "wait_s": 0.5,
        "learn_s": 1.0,
        "sync_s": None,
        "forwarded": 11_184.0,
        "tokens_per_s": 1234.5,
        "success": 0.75,
        "foreign": 0.05,
    }
    return Result(mode=mode, step_s=step_s, **(about | told))


def test_the_first_steps_do_not_count() -> None:
    found = summarize("sync", rows(99, 99, 3, 1, 2), 0.1)
    assert WARM_UP == 2
    assert found.steps == 3
    assert (found.shortest_s, found.step_s, found.longest_s) == (1, 2, 3)


def test_shares_and_rates_are_over_all_the_time() -> None:
    kept = [
        row(3, step_s=1.0, wait_s=0.9, tokens_trained=100),
        row(4, step_s=3.0, wait_s=0.1, tokens_trained=700),
    ]
    found = summarize("async", [*rows(9, 9), *kept], 0.1)
    assert found.idle == pytest.approx(1.0 / 4.0)
    assert found.tokens_per_s == pytest.approx(800 / 4.0)
    assert found.forwarded == pytest.approx(5000)
    assert found.wait_s == pytest.approx(0.5)


def test_success_is_that_of_the_last_steps() -> None:
    kept = [row(at, success=0.0) for at in range(3, 9)]
    kept += [row(at, success=0.1 * (at - 8)) for at in range(9, 9 + LAST)]
    assert summarize("sync", [*rows(9, 9), *kept], 0.1).success == pytest.approx(0.25)


def test_what_a_mode_does_not_have_is_left_out() -> None:
    kept = [row(at, sync_s=None) for at in range(1, 5)]
    assert summarize("stock", kept, 0.1).sync_s is None


def test_a_run_of_warm_up_alone_is_no_measurement() -> None:
    with pytest.raises(ValueError, match="sync: 2 steps"):
        summarize("sync", rows(1, 1), 0.1)


def test_speeds_are_compared_with_stock() -> None:
    lines = table([result("stock", 4.0), result("sync", 2.0, sync_s=0.125), result("async", 5.0)])
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["1.00 x", "2.00 x", "0.80 x"]
    assert lines[2].split("|")[6].strip() == ""
    assert lines[3] == (
        "| sync | 2.00 (1.50..2.50) | 25% | 0.50 | 1.00 | 0.12 | 11,184 | 1,234 | 75% | 0.05 "
        "| 2.00 x |"
    )
    assert len({line.count("|") for line in lines}) == 1


def test_without_stock_nothing_is_compared() -> None:
    assert table([result("sync", 2.0)])[-1].endswith("75% | 0.05 |  |")


def test_all_modes_are_told_the_same() -> None:
    options = argparse.Namespace(steps=7, groups=3, group_size=5, lr=0.01, seed=4)
    config = config_of(options, Path("model"))
    assert config.learn.mode is Mode.ASYNC  # --mode says otherwise
    assert config.gateway.url is None
    assert config.rollouts.strategy == "FULL_HISTORY"
    assert (config.rollouts.groups_per_step, config.rollouts.group_size) == (3, 5)
    assert (config.learn.steps, config.learn.learning_rate, config.learn.seed) == (7, 0.01, 4)


@pytest.mark.parametrize("words", [["--steps", "2"], ["--only", "fast"]])
def test_what_cannot_be_measured_is_refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["grpo.py", *words])
    with pytest.raises(SystemExit):
        main()
    assert f"more than {WARM_UP} --steps, and --only from {', '.join(MODES)}" in (
        capsys.readouterr().err
    )


class Echo:
    """In the place of a model: says each prompt's last id, then the end, then more."""

    device = "cpu"

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []

    def generate(self, input_ids: Any, attention_mask: Any, **_: Any) -> Any:
        import torch

        self.batches.append(
            [
                [id_ for id_, real in zip(ids, mask, strict=True) if real]
                for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True)
            ]
        )
        end = torch.full_like(input_ids[:, :1], 1)
        return torch.cat([input_ids, input_ids[:, -1:], end, end + 6], dim=1)


def test_stock_answers_all_that_wait_in_one_batch() -> None:
    stock = stock_module()
    renderer: Any = SimpleNamespace(text=lambda ids: " ".join(map(str, ids)))
    told = argparse.Namespace(steps=3, groups=1, group_size=2, lr=0.1, seed=0)
    lockstep = stock.Lockstep(config_of(told, Path("model")), renderer)
    echo = Echo()
    lockstep.trainer = SimpleNamespace(
        processing_class=SimpleNamespace(pad_token_id=0, eos_token_id=1),
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        model=echo,
    )

    async def episode(prompt: list[int]) -> list[int]:
        first, _ = await lockstep.generate(None, prompt)
        second, _ = await lockstep.generate(None, [*first.prompt, *first.sampled, 9])
        return [*first.sampled, *second.sampled]

    async def play() -> list[list[int]]:
        return list(await asyncio.gather(episode([5]), episode([4, 3, 2]), episode([8, 6])))

    assert asyncio.run(play()) == [[5, 1, 9, 1], [2, 1, 9, 1], [6, 1, 9, 1]]
    assert echo.batches == [
        [[5], [4, 3, 2], [8, 6]],
        [[5, 5, 1, 9], [4, 3, 2, 2, 1, 9], [8, 6, 6, 1, 9]],
    ]


def stock_module() -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from bench import grpo_stock
    return grpo_stock
