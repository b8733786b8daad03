"""From trajectories to rows, by hand-computed cases."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from evalkit.judge.intervals import bca_bootstrap, wilson, wilson_clustered
from evalkit.judge.passk import pass_at_k, pass_hat_k
from evalkit.judge.proportion import rate_interval
from evalkit.record.numbers import gather
from evalkit.record.references import Reference
from evalkit.record.testing import lost, played, turn
from evalkit.record.trajectory import Memory, Outcome, StopReason, Trajectory
from evalkit.show.summary import PASS, SUMMARY, pass_rows, summary_row

REFERENCES = {
    "random": Reference(
        policy="random", n_episodes=4, successes=1, return_mean=-0.4, turns_mean=30.0
    ),
    "oracle": Reference(
        policy="oracle", n_episodes=4, successes=4, return_mean=1.1, turns_mean=7.0
    ),
}
IDENTITY: dict[str, Any] = {
    name: name
    for name in (
        "format run_id arm model base_url_host model_fingerprint env env_version env_hash env_args "
        "strategy guided n_seeds k run_seed temperature max_tokens git_sha evalkit_version"
    ).split()
} | {"usd_per_mtok_in": None, "usd_per_mtok_out": None}


def row(
    trajectories: Iterable[Trajectory], until: float | None = None, **known: Any
) -> dict[str, Any]:
    numbers = gather(trajectories, ["A"])["A"]
    return summary_row({**IDENTITY, **known}, numbers, REFERENCES, until=until)


def test_a_row_by_hand() -> None:
    four = [Outcome.OK, Outcome.ILLEGAL, Outcome.TRUNCATED_TOKENS, Outcome.OK]
    found = row(
        [
            played(0, success=True, return_=1.1),
            played(1, success=True, return_=1.0, outcomes=four),
            played(2, return_=-0.5, outcomes=[Outcome.NO_ACTION], stop=StopReason.TRUNCATED),
            played(3, return_=-0.6, outcomes=[Outcome.EMPTY], stop=StopReason.CONTEXT_OVERFLOW),
            lost(4),
            lost(5, stop=StopReason.ENV_ERROR),
        ],
        until=4.0,
    )
    interval = rate_interval(2, 4)
    bca = bca_bootstrap([1.1, 1.0, -0.5, -0.6])
    assert (found.pop("return_bca_lo"), found.pop("return_bca_hi")) == (bca.lo, bca.hi)
    close = {name: found.pop(name) for name in ("return_se_cluster", "return_lo", "return_hi")}
    assert 0.0 < found.pop("steps_rmst_lo") < 10 / 3 < found.pop("steps_rmst_hi") <= 4.0
    assert found == {
        **IDENTITY,
        "n_episodes": 6,
        "n_ok": 4,
        "n_error": 2,
        "success_rate": 0.5,
        "success_lo": interval.lo,
        "success_hi": interval.hi,
        "ci_method": "blaker-adjusted",
        "success_lo_worst": 2 / 6,
        "success_hi_worst": 4 / 6,
        **dict.fromkeys(PASS[6:]),
        "return_mean": pytest.approx(0.25),
        "norm_score": pytest.approx(0.65 / 1.5),
        "random_success": 0.25,
        "oracle_success": 1.0,
        "random_return": -0.4,
        "oracle_return": 1.1,
        "spl": (1.0 + 0.5) / 4,
        "spl_lo": 0.0,
        "spl_hi": 1.0,  # that of t is 1.14
        "steps_mean": 8 / 4,
        # 2 turns that nobody ends, then 2 at which 1 of the 3 that were not cut off has succeeded
        "steps_rmst": pytest.approx(2.0 + 2.0 * 2 / 3),
        "steps_horizon": 4.0,
        "oracle_steps_mean": 7.0,
        "valid_action_rate": (1 + 2 / 4 + 0 + 0) / 4,
        "parse_fail_rate": 2 / 8,
        "illegal_rate": 1 / 8,
        "truncated_token_rate": 1 / 8,
        "truncated_step_rate": 1 / 4,
        "ctx_overflow_rate": 1 / 4,
        "scratchpad_missing_rate": None,
        "loop_rate": (1 + 3) / 8,
        "turns": 8,
        "prompt_tokens": 80,
        "completion_tokens": 8,
        "tokens_per_success": 44.0,
        "cost_usd": None,
        "cost_per_success": None,
    }
    # t interval of (1.1, 1.0, -0.5, -0.6): standard error sqrt(2.57 / 3 / 4), t(3) = 3.18245
    assert close == pytest.approx(
        {
            "return_se_cluster": 0.4627814,
            "return_lo": 0.25 - 3.1824463 * 0.4627814,
            "return_hi": 0.25 + 3.1824463 * 0.4627814,
        },
        rel=1e-6,
    )


def test_every_column_is_filled_and_none_is_left_over() -> None:
    assert sorted(row([played(0)])) == sorted(SUMMARY)
    assert len(set(SUMMARY)) == len(SUMMARY)
    assert SUMMARY[:3] == ["format", "run_id", "arm"]


def test_errors_never_become_a_score() -> None:
    scored = [played(0, success=True), played(1)]
    with_errors = row([*scored, lost(2), lost(3, stop=StopReason.ENV_ERROR)])
    without = row(scored)
    differing = {name for name in SUMMARY if with_errors[name] != without[name]}
    assert differing == {"n_episodes", "n_error", "success_lo_worst", "success_hi_worst"}


@pytest.mark.parametrize("trajectories", [[], [lost(0)]])
def test_without_a_scored_episode_there_are_no_numbers(trajectories: list[Trajectory]) -> None:
    found = row(trajectories)
    assert (found["n_ok"], found["success_lo"], found["success_hi"]) == (0, 0.0, 1.0)
    empty = {name for name, value in found.items() if value is None}
    assert empty >= set(
        "success_rate return_mean return_se_cluster return_lo return_hi norm_score spl steps_mean "
        "valid_action_rate tokens_per_success".split()
    )
    worst = (found["success_lo_worst"], found["success_hi_worst"])
    assert worst == ((0.0, 1.0) if trajectories else (None, None))


def test_repetitions_of_a_seed_are_a_cluster() -> None:
    trajectories = [
        played(seed, success=seed < 2, repetition=repetition)
        for seed in range(4)
        for repetition in range(5)
    ]
    found = row(trajectories)
    interval = wilson_clustered([5, 5, 0, 0], [5, 5, 5, 5])
    assert found["ci_method"] == "wilson-clustered"
    assert (found["success_lo"], found["success_hi"]) == (interval.lo, interval.hi)
    naive = wilson(10, 20)
    assert interval.hi - interval.lo > naive.hi - naive.lo


def test_notes_and_tokens_that_are_not_known_do_not_count() -> None:
    found = row(
        [
            played(0, memory=Memory.MISSING, prompt_tokens=None, completion_tokens=None),
            played(1, memory=Memory.REPLACED, prompt_tokens=None, completion_tokens=None),
        ]
    )
    assert found["scratchpad_missing_rate"] == 0.5
    assert (found["prompt_tokens"], found["tokens_per_success"]) == (0, None)


def test_a_turn_repeats_what_was_seen_and_done_before() -> None:
    found = row(
        [
            played(0, observation="a", action="go"),
            played(1, observation="a", action=None, outcomes=[Outcome.EMPTY] * 3),
            played(2, outcomes=[Outcome.OK]),
        ]
    )
    assert found["loop_rate"] == (1 + 2 + 0) / 6
    seen = [turn(0, observation="a"), turn(1, observation="b"), turn(2, observation="a")]
    elsewhere = replace(played(0), turns=tuple(seen))
    assert row([elsewhere])["loop_rate"] == 1 / 3


def test_prices_give_the_cost_of_a_success() -> None:
    trajectories = [played(0, success=True), played(1), lost(2)]
    prices = {"usd_per_mtok_in": 2_000.0, "usd_per_mtok_out": 50_000.0}
    found = row(trajectories, **prices)
    assert found["cost_usd"] == pytest.approx(40 * 2e-3 + 4 * 5e-2)
    assert found["cost_per_success"] == found["cost_usd"]
    assert row([played(0)], **prices)["cost_per_success"] is None
    unknown = row([played(0, prompt_tokens=None, completion_tokens=None)], **prices)
    assert unknown["cost_usd"] is None


def test_tries_at_a_seed_are_rows_by_their_number() -> None:
    trajectories = [
        played(seed, success=repetition < won, repetition=repetition)
        for seed, won in enumerate([0, 1, 3, 3])
        for repetition in range(3)
    ]
    numbers = gather(trajectories, ["A"])["A"]
    rows = pass_rows({**IDENTITY, "k": 3}, numbers)
    assert [list(found) for found in rows] == [PASS] * 3
    assert [(found["k"], found["n_seeds"], found["dropped"]) for found in rows] == [
        (1, 4, 0),
        (2, 4, 0),
        (3, 4, 0),
    ]
    assert [found["pass_at_k"] for found in rows] == pytest.approx(
        [7 / 12, (0 + 2 / 3 + 2) / 4, 3 / 4]
    )
    assert [found["pass_hat_k"] for found in rows] == pytest.approx([7 / 12, 0.5, 0.5])
    for name, estimate in (
        ("pass_at_k", pass_at_k([0, 1, 3, 3], [3] * 4, 2)),
        ("pass_hat_k", pass_hat_k([0, 1, 3, 3], [3] * 4, 2)),
    ):
        assert estimate.interval is not None
        bounds = (estimate.interval.lo, estimate.interval.hi)
        assert (rows[1][f"{name}_lo"], rows[1][f"{name}_hi"]) == bounds
    whole = summary_row({**IDENTITY, "k": 3}, numbers, REFERENCES, rows[-1])
    assert {name: whole[name] for name in PASS[6:]} == {name: rows[-1][name] for name in PASS[6:]}
    assert pass_rows({**IDENTITY, "k": 1}, numbers) == []
