"""A matrix in rows and words, by cells whose numbers are known."""

from __future__ import annotations

from typing import Any

import pytest

from evalkit.judge.multiple import holm
from evalkit.record.numbers import ArmNumbers, gather
from evalkit.record.references import Reference
from evalkit.record.testing import arms_of, played
from evalkit.show.matrix import Cell, Kept, matrix_markdown, matrix_rows, which_pays
from evalkit.show.report import make_report

REFERENCES = {
    name: Reference(policy=name, n_episodes=4, successes=1, return_mean=score, turns_mean=3.0)
    for name, score in (("random", 0.0), ("oracle", 1.0))
}
TURN_TOKENS = 11


def cell(
    numbers: dict[str, ArmNumbers], size: int = 3, notes: dict[str, Kept] | None = None
) -> Cell:
    """Make a cell whose arms are called by their strategies."""
    known: dict[str, dict[str, Any]] = {
        arm: {
            "run_id": f"run-{size}",
            "env": "key_door",
            "arm": arm,
            "model": "m",
            "base_url_host": "h",
            "strategy": arm,
            "guided": False,
            "n_seeds": 1,
            "k": 1,
            "usd_per_mtok_in": None,
            "usd_per_mtok_out": None,
        }
        for arm in numbers
    }
    report = make_report(numbers, known, REFERENCES)
    return Cell(swept={"size": size}, report=report, notes=notes or {})


def test_every_arm_is_compared_with_the_one_without_history_whatever_their_order() -> None:
    """WINDOW stands before its baseline, SUMMARY after it; both win ten seeds that it loses."""
    arms = arms_of(WINDOW="1" * 12, NO_HISTORY="11" + "0" * 10, SUMMARY="1" * 12)
    window, plain, summary = matrix_rows("id", [cell(arms)])
    same = ("baseline", "diff", "lo", "hi", "p", "p_holm", "verdict")
    assert [window[name] for name in same] == [summary[name] for name in same]
    assert (window["baseline"], window["verdict"]) == ("NO_HISTORY", "better")
    assert window["diff"] == pytest.approx(10 / 12)
    assert 0.0 < window["lo"] < window["diff"] < window["hi"] <= 1.0
    assert {plain[name] for name in same} == {None}


def test_holm_runs_over_the_whole_matrix() -> None:
    cells = [
        cell(arms_of(NO_HISTORY="0" * n, WINDOW="1" * n, SUMMARY="0" * n), size=n) for n in (6, 8)
    ]
    rows = [row for row in matrix_rows("id", cells) if row["baseline"]]
    p_values = [2 / 2**6, 1.0, 2 / 2**8, 1.0]
    assert [row["p"] for row in rows] == pytest.approx(p_values)
    assert [row["p_holm"] for row in rows] == pytest.approx(holm(p_values))
    assert [row["verdict"] for row in rows] == ["undecided", "undecided", "better", "undecided"]


def test_a_success_gained_costs_what_an_arm_takes_more() -> None:
    """Episodes of 2 turns against 2 of 3 times the prompt; 4 of 8 seeds are won more."""
    arms = gather(
        [played(seed, "NO_HISTORY", success=seed < 4) for seed in range(8)]
        + [played(seed, "WINDOW", success=True, prompt_tokens=30) for seed in range(8)],
        ["NO_HISTORY", "WINDOW"],
    )
    plain, window = matrix_rows("id", [cell(arms)])
    assert (plain["tokens_per_turn"], window["tokens_per_turn"]) == (TURN_TOKENS, 31)
    assert (plain["tokens_per_episode"], window["tokens_per_episode"]) == (22, 62)
    assert (plain["tokens_per_success"], window["tokens_per_success"]) == (44, 62)
    assert window["tokens_per_success_gained"] == (62 - 22) / (4 / 8)
    assert plain["tokens_per_success_gained"] is None


def test_notes_are_means_with_an_interval_over_seeds() -> None:
    kept = Kept(recall={0: [0.5, 1.0], 1: [0.0], 2: []}, precision={0: [1.0], 1: []})
    arms = arms_of(NO_HISTORY="01", SCRATCHPAD="11")
    _, pad = matrix_rows("id", [cell(arms, notes={"SCRATCHPAD": kept})])
    assert (pad["notes_recall"], pad["notes_precision"]) == (0.5, 1.0)
    assert (pad["notes_recall_lo"], pad["notes_recall_hi"]) == (0.0, 1.0)


def test_one_seed_that_is_repeated_has_no_interval_and_is_written_all_the_same() -> None:
    arms = gather(
        [
            played(7, arm, success=arm == "WINDOW", repetition=repetition)
            for arm in ("NO_HISTORY", "WINDOW")
            for repetition in range(3)
        ],
        ["NO_HISTORY", "WINDOW"],
    )
    cells = [cell(arms)]
    said = matrix_markdown("key_door: 1 cells", matrix_rows("id", cells), cells)
    assert "| +100.0 points | p=1.000 | undecided |" in said


def test_which_pays_is_the_cheapest_of_those_not_told_from_the_best() -> None:
    dear = [played(seed, "WINDOW", success=True, prompt_tokens=90) for seed in range(10)]
    cheap = [played(seed, "SUMMARY", success=seed > 0) for seed in range(10)]
    poor = [played(seed, "NO_HISTORY", success=False, prompt_tokens=1) for seed in range(10)]
    arms = gather(dear + cheap + poor, ["NO_HISTORY", "WINDOW", "SUMMARY"])
    (said,) = which_pays([cell(arms)])
    assert said == (
        "size=3: not told apart at the top: WINDOW 100.0 %, SUMMARY 90.0 %; SUMMARY pays: "
        "24 tokens a success, the dearest 182"
    )
