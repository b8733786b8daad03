"""Pairs of arms as rows, by hand-computed cases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import pytest

from evalkit.errors import Failure
from evalkit.judge.betting import log_mcnemar_e
from evalkit.judge.compare import Decision
from evalkit.judge.equivalence import tost_proportions
from evalkit.judge.multiple import e_bh
from evalkit.judge.paired import newcombe_difference_interval
from evalkit.judge.sequential import StoppingRule, judge_sequence
from evalkit.record.numbers import ArmNumbers, divergent_turns, gather
from evalkit.record.testing import arms_of, lost, played
from evalkit.record.trajectory import Outcome, StopReason
from evalkit.show.pairs import (
    COMPARE,
    PAIRED,
    Compared,
    compare_arms,
    compare_row,
    paired_rows,
)


def compare_all(numbers: Mapping[str, ArmNumbers], margin: float | None = None) -> list[Compared]:
    return compare_arms(numbers, list(combinations(numbers, 2)), margin)


def paired_all(run_id: str, numbers: Mapping[str, ArmNumbers]) -> Iterable[dict[str, Any]]:
    return paired_rows(run_id, numbers, list(combinations(numbers, 2)))


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
        "format": "compare/2",
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


def success_of(numbers: Mapping[str, ArmNumbers], margin: float | None = None) -> list[Compared]:
    return [each for each in compare_all(numbers, margin) if each.metric.name == "success"]


def test_newcombes_interval_stands_beside_tangos() -> None:
    compared = success_of(arms_of(A="0011", B="0111"))[0]
    interval = newcombe_difference_interval(2, 0, 1, 1)
    found = compare_row("run", "key_door", "NO_HISTORY", compared)
    assert (found["newcombe_lo"], found["newcombe_hi"]) == (interval.lo, interval.hi)


def test_the_e_value_is_that_of_the_sequential_test() -> None:
    numbers = arms_of(A="0" * 12, B="11011" + "1" * 7)
    compared = success_of(numbers)[0]
    look = judge_sequence([1.0, 1.0, 0.0] + [1.0] * 9, StoppingRule(alpha=1e-9))
    assert compared.e_value == pytest.approx(look.e_value)
    assert compared.e_value == pytest.approx(math.exp(log_mcnemar_e(0, 11)))
    assert compared.p_anytime == pytest.approx(look.p_anytime)
    assert compared.q_ebh == pytest.approx(1 / look.e_value)
    unbounded = {each.metric.name: each.e_value for each in compare_all(numbers)}
    assert (unbounded["return"], unbounded["steps"], unbounded["valid_action_rate"]) == (
        None,
        None,
        1.0,
    )


def test_e_values_are_corrected_over_the_pairs_of_one_metric() -> None:
    success = success_of(arms_of(A="0" * 20, B="1" * 20, C="0" + "1" * 19))
    e_values = [each.e_value for each in success]
    assert None not in e_values
    assert [each.q_ebh for each in success] == e_bh([value or 0.0 for value in e_values])


def test_a_margin_asks_whether_arms_are_equivalent() -> None:
    numbers = arms_of(A="01" * 100, B="01" * 98 + "1001")
    compared = success_of(numbers, margin=0.05)[0]
    expected = tost_proportions(99, 1, 1, 99, 0.05)
    found = compare_row("run", "key_door", "NO_HISTORY", compared)
    assert (found["equiv_margin"], found["p_tost"]) == (0.05, expected.p)
    assert (found["p_tost_holm"], found["verdict"]) == (expected.p, "equivalent")
    assert compared.decision is Decision.EQUIVALENT
    without = compare_row("run", "key_door", "NO_HISTORY", success_of(numbers)[0])
    assert (without["equiv_margin"], without["p_tost"], without["verdict"]) == (
        None,
        None,
        "undecided",
    )


def test_equivalence_is_claimed_of_several_pairs_together() -> None:
    one = success_of(arms_of(A="01" * 40, B="01" * 40), margin=0.04)[0]
    three = success_of(arms_of(A="01" * 40, B="01" * 40, C="01" * 40), margin=0.04)[0]
    assert one.tost is not None
    assert one.decision is Decision.EQUIVALENT
    assert three.tost == one.tost
    assert three.p_tost_holm == pytest.approx(3 * one.tost.p)
    assert three.decision is Decision.UNDECIDED


def test_agreement_without_spread_is_not_certainty() -> None:
    numbers = gather(
        [played(seed, arm, repetition=k) for arm in "AB" for seed in range(50) for k in range(2)],
        ["A", "B"],
    )
    compared = success_of(numbers, margin=0.05)[0]
    assert compared.tost is not None
    assert compared.tost.p == tost_proportions(50, 0, 0, 0, 0.05).p
    assert compared.decision is Decision.UNDECIDED
    always = gather(
        [
            played(seed, arm, success=arm == "B", repetition=k)
            for arm in "AB"
            for seed in range(9)
            for k in range(2)
        ],
        ["A", "B"],
    )
    assert success_of(always, margin=0.05)[0].tost is None


def test_lost_episodes_could_have_ended_either_way() -> None:
    compared = success_of(arms_of(A="00000000.", B="1111111.1"))[0]
    assert compared.worst is not None
    assert (compared.worst.n_seeds, compared.worst.n_missing) == (9, 2)
    found = compare_row("run", "key_door", "NO_HISTORY", compared)
    assert (found["diff_lo_worst"], found["diff_hi_worst"]) == pytest.approx((7 / 9, 1.0))
    assert found["lo_worst"] < found["lo"] < found["hi"] <= found["hi_worst"]
    whole = success_of(arms_of(A="0011", B="0111"))[0]
    row = compare_row("run", "key_door", "NO_HISTORY", whole)
    assert (row["diff_lo_worst"], row["diff_hi_worst"]) == (0.25, 0.25)
    assert (row["lo_worst"], row["hi_worst"]) == (row["lo"], row["hi"])


def test_a_repetition_that_was_lost_leaves_its_seed_in() -> None:
    numbers = gather(
        [
            played(0, "A", success=True),
            lost(0, "A"),
            *(played(0, "B", repetition=k) for k in range(2)),
            *(played(1, arm, repetition=k) for arm in "AB" for k in range(2)),
        ],
        ["A", "B"],
    )
    worst = success_of(numbers)[0].worst
    assert worst is not None
    assert (worst.n_missing, worst.diff_lo, worst.diff_hi) == (1, -0.5, -0.25)


def test_turns_to_success_are_compared_up_to_the_horizon() -> None:
    cut = StopReason.TRUNCATED
    numbers = gather(
        [played(seed, "A", outcomes=[Outcome.OK] * 6, stop=cut) for seed in range(4)]
        + [played(seed, "B", success=True, outcomes=[Outcome.OK] * 3) for seed in range(3)]
        + [played(3, "B", outcomes=[Outcome.OK] * 2)],
        ["A", "B"],
    )
    found = compare_row("run", "key_door", "NO_HISTORY", compare_all(numbers)[-1])
    assert (found["rmst_diff"], found["rmst_horizon"]) == (pytest.approx(15 / 4 - 6), 6.0)
    assert found["rmst_lo"] < 15 / 4 - 6 < found["rmst_hi"]
    assert found["diff"] == pytest.approx(11 / 4 - 6)  # to lose sooner takes fewer turns


def test_every_column_of_a_comparison_is_filled() -> None:
    for margin in (None, 0.1):
        for each in compare_all(arms_of(A="01.", B="..1", C="110"), margin):
            assert sorted(compare_row("run", "e", "s", each)) == sorted(COMPARE)


def test_anytime_evidence_counts_pairs_in_the_order_of_their_seeds() -> None:
    """B wins nine seeds and then loses five, or first loses five: the same evidence at the end."""
    wins_first = arms_of(A="0" * 9 + "1" * 5, B="1" * 9 + "0" * 5)
    losses_first = arms_of(A="1" * 5 + "0" * 9, B="0" * 5 + "1" * 9)
    shuffled = gather(
        [
            played(seed, arm, success=(seed < 9) == (arm == "B"))
            for seed in (12, 3, 0, 9, 1, 2, 11, 4, 5, 10, 6, 7, 13, 8)
            for arm in ("A", "B")
        ],
        ["A", "B"],
    )
    first, again, late = (compare_all(arms)[0] for arms in (wins_first, shuffled, losses_first))
    assert first.e_value == pytest.approx(late.e_value)
    assert first.p_anytime == again.p_anytime
    assert first.p_anytime is not None
    assert late.p_anytime is not None
    assert first.p_anytime < 0.05 < late.p_anytime


def test_what_rounding_alone_set_apart_is_no_difference() -> None:
    """B wins 2/3 more on one seed and 1 - 1/3 less on another, which are not the same floats."""
    won = {"A": ((0, 0, 0), (1, 1, 1)), "B": ((0, 1, 1), (0, 0, 1))}
    numbers = gather(
        [
            played(seed, arm, success=bool(each), repetition=repetition)
            for arm, seeds in won.items()
            for seed, tries in enumerate(seeds)
            for repetition, each in enumerate(tries)
        ],
        ["A", "B"],
    )
    found = compare_all(numbers)[0].found
    assert (found.diff, found.effect_size, found.n_for_observed) == (0.0, 0.0, None)
