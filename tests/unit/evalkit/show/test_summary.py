"""From trajectories to rows, by hand-computed cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import pytest

from evalkit.errors import Failure
from evalkit.judge.compare import Decision
from evalkit.judge.intervals import bca_bootstrap, wilson, wilson_clustered
from evalkit.record.numbers import ArmNumbers, divergent_turns, gather
from evalkit.record.references import Reference
from evalkit.record.trajectory import Key, Memory, Outcome, StopReason, Trajectory, Turn
from evalkit.show.summary import (
    COMPARE,
    PAIRED,
    SUMMARY,
    Compared,
    compare_arms,
    compare_row,
    paired_rows,
    summary_row,
)

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
}


def compare_all(numbers: Mapping[str, ArmNumbers]) -> list[Compared]:
    return compare_arms(numbers, list(combinations(numbers, 2)))


def paired_all(run_id: str, numbers: Mapping[str, ArmNumbers]) -> Iterable[dict[str, Any]]:
    return paired_rows(run_id, numbers, list(combinations(numbers, 2)))


def turn(number: int, outcome: Outcome = Outcome.OK, **changes: Any) -> Turn:
    values: dict[str, Any] = {
        "turn": number,
        "observation": "o",
        "completion": outcome.value,
        "reasoning": None,
        "action": "go",
        "outcome": outcome,
        "valid": outcome is Outcome.OK,
        "reward": 0.0,
        "event": None,
        "error": None,
        "memory": None,
        "finish_reason": "stop",
        "prompt_tokens": 10,
        "completion_tokens": 1,
        "request_seed": 0,
        "prompt_digest": f"prompt {number}",
        "policy_version": None,
    }
    return Turn(**{**values, **changes})


def played(
    seed: int,
    arm: str = "A",
    *,
    success: bool = False,
    outcomes: Sequence[Outcome] = (Outcome.OK, Outcome.OK),
    return_: float | None = None,
    repetition: int = 0,
    stop: StopReason = StopReason.TERMINATED,
    **changes: Any,
) -> Trajectory:
    return Trajectory(
        key=Key(env_seed=seed, repetition=repetition, arm=arm),
        turns=tuple(turn(number, outcome, **changes) for number, outcome in enumerate(outcomes)),
        final_observation="",
        success=success,
        return_=float(success) if return_ is None else return_,
        optimal_turns=2,
        stop_reason=stop,
    )


def lost(seed: int, arm: str = "A", stop: StopReason = StopReason.INFRA_ERROR) -> Trajectory:
    return played(seed, arm, return_=-9.0, stop=stop)


def row(trajectories: Iterable[Trajectory]) -> dict[str, Any]:
    return summary_row(IDENTITY, gather(trajectories, ["A"])["A"], REFERENCES)


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
        ]
    )
    interval = wilson(2, 4)
    bca = bca_bootstrap([1.1, 1.0, -0.5, -0.6])
    assert (found.pop("return_bca_lo"), found.pop("return_bca_hi")) == (bca.lo, bca.hi)
    close = {name: found.pop(name) for name in ("return_se_cluster", "return_lo", "return_hi")}
    assert found == {
        **IDENTITY,
        "n_episodes": 6,
        "n_ok": 4,
        "n_error": 2,
        "success_rate": 0.5,
        "success_lo": interval.lo,
        "success_hi": interval.hi,
        "ci_method": "wilson",
        "success_lo_worst": 2 / 6,
        "success_hi_worst": 4 / 6,
        "return_mean": pytest.approx(0.25),
        "norm_score": pytest.approx(0.65 / 1.5),
        "random_success": 0.25,
        "oracle_success": 1.0,
        "random_return": -0.4,
        "oracle_return": 1.1,
        "spl": (1.0 + 0.5) / 4,
        "steps_mean": 8 / 4,
        "oracle_steps_mean": 7.0,
        "valid_action_rate": (1 + 2 / 4 + 0 + 0) / 4,
        "parse_fail_rate": 2 / 8,
        "illegal_rate": 1 / 8,
        "truncated_token_rate": 1 / 8,
        "truncated_step_rate": 1 / 4,
        "ctx_overflow_rate": 1 / 4,
        "scratchpad_missing_rate": None,
        "turns": 8,
        "prompt_tokens": 80,
        "completion_tokens": 8,
        "tokens_per_success": 44.0,
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


def arms_of(**successes: str) -> dict[str, ArmNumbers]:
    """Make arms from texts: the n-th character is "1" where seed n succeeds, "." where lost."""
    return gather(
        [
            lost(seed, arm) if mark == "." else played(seed, arm, success=mark == "1")
            for arm, marks in successes.items()
            for seed, mark in enumerate(marks)
        ],
        successes,
    )


def test_holm_runs_over_the_pairs_of_one_metric() -> None:
    compared = compare_all(arms_of(A="0" * 10, B="1" * 10, C="0" + "1" * 9))
    success = [found for found in compared if found.metric.name == "success"]
    assert [(c.a, c.b, c.found.p, c.p_holm, c.decision) for c in success] == [
        ("A", "B", 2 / 1024, 6 / 1024, Decision.BETTER),
        ("A", "C", 2 / 512, 4 / 512, Decision.BETTER),
        ("B", "C", 1.0, 1.0, Decision.UNDECIDED),
    ]
    assert [c.metric.name for c in compared] == [
        name for name in ("success", "return", "valid_action_rate", "steps") for _ in range(3)
    ]


def test_holm_can_take_a_decision_back() -> None:
    two = compare_all(arms_of(A="0" * 6, B="1" * 6))[0]
    three = compare_all(arms_of(A="0" * 6, B="1" * 6, C="0" * 6))[0]
    assert (two.found.p, two.p_holm) == pytest.approx((2 / 64, 2 / 64))
    assert (three.found.p, three.p_holm) == pytest.approx((2 / 64, 6 / 64))
    assert (two.decision, three.decision) == (Decision.BETTER, Decision.UNDECIDED)


def test_pairs_are_seeds_that_both_arms_finished() -> None:
    found = compare_all(arms_of(A="01.10", B="0.110"))[0].found
    assert (found.n_pairs, found.dropped_a, found.dropped_b) == (3, 1, 1)


def test_fewer_turns_are_better() -> None:
    one = [Outcome.OK]
    numbers = gather(
        [played(seed, "A", outcomes=one * 4) for seed in range(6)]
        + [played(seed, "B", outcomes=one) for seed in range(6)],
        ["A", "B"],
    )
    steps = compare_all(numbers)[-1]
    assert (steps.metric.name, steps.found.diff, steps.decision) == (
        "steps",
        -3.0,
        Decision.BETTER,
    )


def test_a_comparison_as_a_row() -> None:
    compared = compare_all(arms_of(A="0011", B="0111"))[0]
    found = compare_row("run", "key_door", "NO_HISTORY", compared)
    assert sorted(found) == sorted(COMPARE)
    assert {name: found[name] for name in COMPARE[:14]} == {
        "format": "compare/1",
        "run_id": "run",
        "a": "A",
        "b": "B",
        "env": "key_door",
        "strategy": "NO_HISTORY",
        "metric": "success",
        "slice": "all",
        "n_pairs": 4,
        "dropped_a": 0,
        "dropped_b": 0,
        "mean_a": 0.5,
        "mean_b": 0.75,
        "diff": 0.25,
    }
    assert {name: found[name] for name in ("both", "a_only", "b_only", "neither", "verdict")} == {
        "both": 2,
        "a_only": 0,
        "b_only": 1,
        "neither": 1,
        "verdict": "undecided",
    }
    assert (found["test"], found["ci_method"], found["p_holm"]) == ("mcnemar-exact", "tango", 1.0)


def test_pairs_as_rows() -> None:
    other = [Outcome.OK, Outcome.ILLEGAL]
    numbers = gather(
        [
            played(3, "A", success=True, return_=1.1),
            played(3, "B", return_=-0.5, outcomes=other),
            played(1, "A"),
            played(1, "B"),
            played(2, "A"),
            lost(2, "B"),
        ],
        ["A", "B"],
    )
    rows = list(paired_all("run", numbers))
    assert [list(found) for found in rows] == [PAIRED, PAIRED]
    same: dict[str, Any] = {"format": "paired/1", "run_id": "run", "a": "A", "b": "B"}
    assert rows == [
        {
            **same,
            "env_seed": 1,
            "success_a": 0.0,
            "success_b": 0.0,
            "return_a": 0.0,
            "return_b": 0.0,
            "steps_a": 2.0,
            "steps_b": 2.0,
            "valid_a": 1.0,
            "valid_b": 1.0,
            "diff": 0.0,
            "flip": "",
            "first_divergent_turn": None,
        },
        {
            **same,
            "env_seed": 3,
            "success_a": 1.0,
            "success_b": 0.0,
            "return_a": 1.1,
            "return_b": -0.5,
            "steps_a": 2.0,
            "steps_b": 2.0,
            "valid_a": 1.0,
            "valid_b": 0.5,
            "diff": -1.0,
            "flip": "a_only",
            "first_divergent_turn": 1,
        },
    ]


def test_repetitions_of_a_pair_are_averaged_and_the_earliest_difference_counts() -> None:
    late, early = [Outcome.OK, Outcome.ILLEGAL], [Outcome.ILLEGAL, Outcome.OK]
    numbers = gather(
        [
            played(0, "A", success=True),
            played(0, "A", repetition=1),
            played(0, "B", success=True, outcomes=late),
            played(0, "B", repetition=1, success=True, outcomes=early),
        ],
        ["A", "B"],
    )
    (found,) = paired_all("run", numbers)
    assert (found["success_a"], found["success_b"], found["diff"]) == (0.5, 1.0, 0.5)
    assert (found["flip"], found["first_divergent_turn"]) == ("b_only", 0)
    compared = compare_all(numbers)[0]
    assert (compared.found.n_pairs, compared.found.b_only) == (1, None)


def test_a_trace_that_ends_earlier_differs_at_its_end() -> None:
    numbers = gather([played(0, "A"), played(0, "B", outcomes=[Outcome.OK] * 3)], ["A", "B"])
    assert divergent_turns(numbers["A"], numbers["B"]) == [(0, 0, 2)]


def test_many_pairs_take_no_time() -> None:
    numbers = gather(
        [played(seed, arm, outcomes=[Outcome.OK]) for arm in "AB" for seed in range(5_000)],
        ["A", "B"],
    )
    assert len(list(paired_all("run", numbers))) == 5_000


def test_three_arms_give_three_pairs_of_rows() -> None:
    rows = list(paired_all("run", arms_of(A="01", B="01", C="01")))
    assert [(found["a"], found["b"], found["env_seed"]) for found in rows] == [
        ("A", "B", 0),
        ("A", "B", 1),
        ("A", "C", 0),
        ("A", "C", 1),
        ("B", "C", 0),
        ("B", "C", 1),
    ]


def test_a_failure_is_no_outcome_of_a_turn() -> None:
    assert {failure.value for failure in Failure}.isdisjoint(outcome.value for outcome in Outcome)
