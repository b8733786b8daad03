"""Two arms on shared seeds: what is paired, which test speaks, and what is left undefined."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evalkit.judge.compare import (
    Comparison,
    Decision,
    PairedTest,
    compare,
    decide,
    normalised_score,
)
from evalkit.judge.intervals import IntervalMethod
from evalkit.judge.paired import mcnemar, paired_difference_interval, sign_flip_permutation
from evalkit.judge.power import (
    mde_paired_proportion,
    minimum_detectable_effect,
    pairs_needed,
    pairs_needed_proportion,
)


def _arm(values: Sequence[float], first_seed: int = 0) -> dict[int, list[float]]:
    return {first_seed + i: [value] for i, value in enumerate(values)}


def _binary_arms(
    both: int, a_only: int, b_only: int, neither: int
) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
    a = [1.0] * both + [1.0] * a_only + [0.0] * b_only + [0.0] * neither
    b = [1.0] * both + [0.0] * a_only + [1.0] * b_only + [0.0] * neither
    return _arm(a), _arm(b)


def test_binary_with_one_repetition_is_mcnemar_with_tango() -> None:
    a, b = _binary_arms(40, 6, 24, 30)
    test, interval = mcnemar(6, 24), paired_difference_interval(40, 6, 24, 30)
    comparison = compare(a, b, binary=True)
    rho = float(np.corrcoef([1] * 46 + [0] * 54, [1] * 40 + [0] * 6 + [1] * 24 + [0] * 30)[0, 1])
    assert comparison == Comparison(
        n_pairs=100,
        dropped_a=0,
        dropped_b=0,
        mean_a=0.46,
        mean_b=0.64,
        diff=0.18,
        lo=interval.lo,
        hi=interval.hi,
        level=0.95,
        ci_method=IntervalMethod.TANGO,
        test=PairedTest.MCNEMAR_EXACT,
        p=test.p,
        p_mid=test.p_mid,
        both=40,
        a_only=6,
        b_only=24,
        neither=30,
        effect_size=None,
        rho=rho,
        var_reduction_vs_unpaired=comparison.var_reduction_vs_unpaired,
        mde80=mde_paired_proportion(0.3, 100, 0.8, 1 - 0.95),
        n_for_observed=pairs_needed_proportion(0.18, 0.3, 0.8, 1 - 0.95),
        decision=Decision.BETTER,
    )


def test_graded_values_are_a_sign_flip_test_with_t() -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(size=25)
    a_values, b_values = base + rng.normal(0, 0.3, 25), base + 0.4 + rng.normal(0, 0.3, 25)
    diffs = b_values - a_values
    comparison = compare(_arm(a_values.tolist()), _arm(b_values.tolist()), binary=False, seed=9)
    expected = stats.ttest_rel(b_values, a_values).confidence_interval(0.95)
    sd = float(diffs.std(ddof=1))
    unpaired = float(a_values.var(ddof=1) + b_values.var(ddof=1))
    assert (comparison.lo, comparison.hi) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert comparison.diff == pytest.approx(float(diffs.mean()))
    assert comparison.test is PairedTest.SIGN_FLIP
    assert comparison.ci_method is IntervalMethod.T
    assert comparison.p == sign_flip_permutation(diffs, seed=9)
    assert (comparison.p_mid, comparison.both, comparison.a_only) == (None, None, None)
    assert comparison.effect_size == pytest.approx(float(diffs.mean()) / sd)
    assert comparison.rho == pytest.approx(float(stats.pearsonr(a_values, b_values).statistic))
    assert comparison.var_reduction_vs_unpaired == pytest.approx(1 - sd**2 / unpaired)
    assert comparison.mde80 == pytest.approx(minimum_detectable_effect(sd, 25))
    assert comparison.n_for_observed == pairs_needed(float(diffs.mean()), sd)
    assert comparison.decision is Decision.BETTER


def test_repetitions_are_averaged_within_their_seed() -> None:
    a = {1: [0, 1, 1, 0], 2: [0, 0], 3: [1], 4: [0, 1]}
    b = {1: [1, 1, 1, 0], 2: [1], 3: [1, 1], 4: [1, 1, 0, 0]}
    repeated = compare(a, b, binary=True)
    means = compare(_arm([0.5, 0, 1, 0.5]), _arm([0.75, 1, 1, 0.5]), binary=False)
    assert repeated == means
    assert repeated.test is PairedTest.SIGN_FLIP
    assert repeated.a_only is None


def test_only_shared_seeds_are_paired_and_the_rest_is_counted() -> None:
    a = {1: [0.0], 2: [1.0], 3: [5.0], 4: [], 5: [9.0]}
    b = {2: [2.0], 3: [6.5], 4: [1.0], 7: [1.0], 8: [1.0]}
    comparison = compare(a, b, binary=False)
    assert (comparison.n_pairs, comparison.dropped_a, comparison.dropped_b) == (2, 2, 3)
    assert (comparison.mean_a, comparison.mean_b, comparison.diff) == (3.0, 4.25, 1.25)


def test_without_shared_seeds_there_is_no_data() -> None:
    expected = Comparison(n_pairs=0, dropped_a=1, dropped_b=2)
    assert compare({1: [0.0]}, {2: [1.0], 3: [1.0]}, binary=True) == expected
    assert expected.decision is Decision.NO_DATA
    assert compare({}, {}, binary=False).decision is Decision.NO_DATA


def test_one_pair_has_a_difference_and_no_interval() -> None:
    graded = compare({1: [1.0]}, {1: [3.0]}, binary=False)
    assert (graded.diff, graded.lo, graded.hi, graded.p) == (2.0, None, None, 1.0)
    assert (graded.effect_size, graded.rho, graded.mde80, graded.n_for_observed) == (None,) * 4
    binary = compare({1: [0]}, {1: [1]}, binary=True)
    assert (binary.diff, binary.p, binary.p_mid, binary.hi) == (1.0, 1.0, 0.5, 1.0)
    assert graded.decision is binary.decision is Decision.UNDECIDED


@pytest.mark.parametrize("binary", [True, False])
def test_a_run_against_itself_is_undecided(binary: bool) -> None:
    arm = _arm([0.0, 1.0, 1.0, 0.0, 1.0])
    comparison = compare(arm, arm, binary=binary)
    assert (comparison.diff, comparison.p, comparison.decision) == (0.0, 1.0, Decision.UNDECIDED)
    assert comparison.rho == pytest.approx(1.0)
    assert comparison.var_reduction_vs_unpaired == 1.0
    assert (comparison.mde80, comparison.n_for_observed) == (None, None)


def test_constant_arms_leave_what_needs_variance_undefined() -> None:
    comparison = compare(_arm([1.0] * 8), _arm([3.0] * 8), binary=False)
    assert (comparison.lo, comparison.hi) == (2.0, 2.0)
    assert comparison.p == pytest.approx(2 / 2**8)
    assert (comparison.effect_size, comparison.rho, comparison.var_reduction_vs_unpaired) == (
        None,
        None,
        None,
    )
    assert comparison.decision is Decision.BETTER
    half = compare(_arm([1.0] * 3), _arm([1.0, 2.0, 3.0]), binary=False)
    assert (half.rho, half.var_reduction_vs_unpaired) == (None, 0.0)


def test_rounding_is_not_a_difference() -> None:
    a = {seed: [0.1, 0.2, 0.3] for seed in range(20)}
    b = {seed: [0.2, 0.2, 0.2] for seed in range(20)}
    comparison = compare(a, b, binary=False)
    assert (comparison.diff, comparison.p, comparison.decision) == (0.0, 1.0, Decision.UNDECIDED)


def test_lower_can_be_better() -> None:
    a, b = _arm([5.0, 6, 7, 8, 9, 10, 11, 12]), _arm([4.0, 5, 5, 6, 8, 8, 10, 9])
    assert compare(a, b, binary=False).decision is Decision.WORSE
    assert compare(a, b, binary=False, higher_is_better=False).decision is Decision.BETTER


def test_level_moves_the_interval_and_the_decision() -> None:
    a, b = _binary_arms(10, 3, 12, 10)  # exact p = .035
    strict, usual = compare(a, b, binary=True, level=0.99), compare(a, b, binary=True)
    assert strict.lo is not None
    assert usual.lo is not None
    assert strict.lo < usual.lo
    assert strict.n_for_observed is not None
    assert usual.n_for_observed is not None
    assert strict.n_for_observed > usual.n_for_observed
    assert (strict.decision, usual.decision) == (Decision.UNDECIDED, Decision.BETTER)


def test_the_test_decides_where_the_interval_disagrees() -> None:
    a, b = _binary_arms(20, 3, 10, 20)  # exact p = .092; the score interval inverts p = .052
    comparison = compare(a, b, binary=True, level=0.94)
    assert comparison.lo is not None
    assert comparison.lo > 0.0
    assert comparison.decision is Decision.UNDECIDED


def test_five_pairs_cannot_be_decided_by_sign_flips() -> None:
    diffs = [1.0, 1.1, 0.9, 1.05, 0.95]
    comparison = compare(_arm([0.0] * 5), _arm(diffs), binary=False)
    assert comparison.lo is not None
    assert comparison.lo > 0.0
    assert comparison.p == pytest.approx(2 / 2**5)
    assert comparison.decision is Decision.UNDECIDED


@pytest.mark.parametrize(
    ("a", "b", "binary", "message"),
    [
        ({1: [math.nan]}, {1: [0.0]}, False, "got nan in arm a, env_seed=1"),
        ({1: [0.0]}, {7: [math.inf]}, False, "got inf in arm b, env_seed=7"),
        ({1: [0.5]}, {1: [1.0]}, True, "expected 0 or 1, got 0.5 in arm a"),
    ],
)
def test_bad_values_are_named(
    a: dict[int, list[float]], b: dict[int, list[float]], binary: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(a, b, binary=binary)


_outcome_pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)
_score_pairs = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=14)
_MIRROR = {
    Decision.BETTER: Decision.WORSE,
    Decision.WORSE: Decision.BETTER,
    Decision.UNDECIDED: Decision.UNDECIDED,
}


@settings(max_examples=50, deadline=None)
@given(st.one_of(_outcome_pairs.map(lambda p: (p, True)), _score_pairs.map(lambda p: (p, False))))
def test_swapping_the_arms_mirrors_the_comparison(
    case: tuple[list[tuple[float, float]], bool],
) -> None:
    pairs, binary = case
    a, b = _arm([float(x) for x, _ in pairs]), _arm([float(y) for _, y in pairs])
    forward, backward = compare(a, b, binary=binary), compare(b, a, binary=binary)
    assert forward.diff == -backward.diff if backward.diff is not None else forward.diff is None
    assert forward.p == pytest.approx(backward.p)
    assert forward.decision is _MIRROR[backward.decision]
    if forward.lo is not None:
        assert backward.hi is not None
        assert forward.lo == pytest.approx(-backward.hi, abs=1e-12)
    assert (forward.n_for_observed, forward.mde80) == (backward.n_for_observed, backward.mde80)
    reordered = dict(reversed(a.items()))
    assert compare(reordered, b, binary=binary) == forward


@pytest.mark.parametrize(
    ("diff", "p", "decision"),
    [
        (0.1, 0.05, Decision.BETTER),
        (-0.1, 0.01, Decision.WORSE),
        (0.1, 0.0501, Decision.UNDECIDED),
        (0.0, 0.01, Decision.UNDECIDED),
        (None, None, Decision.NO_DATA),
    ],
)
def test_the_rule(diff: float | None, p: float | None, decision: Decision) -> None:
    assert decide(diff, p) is decision


def test_normalised_score() -> None:
    assert normalised_score(0.75, random=0.5, oracle=1.0) == 0.5
    assert normalised_score(0.25, random=0.5, oracle=1.0) == -0.5
    assert normalised_score(0.5, random=1.0, oracle=1.0) is None
    assert normalised_score(math.nan, random=0.0, oracle=1.0) is None
