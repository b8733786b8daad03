"""Paired tests and intervals: against statsmodels, scipy, and definitions worked out by force."""

import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from evalkit.judge.intervals import Interval, IntervalMethod
from evalkit.judge.paired import (
    McNemar,
    clustered_difference,
    mcnemar,
    newcombe_difference_interval,
    paired_counts,
    paired_difference_interval,
    sign_flip_permutation,
    tango_score,
)

_counts = st.integers(0, 40)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_mcnemar_equals_statsmodels(a_only: int, b_only: int) -> None:
    expected = statsmodels_mcnemar([[5, a_only], [b_only, 5]], exact=True).pvalue
    assert mcnemar(a_only, b_only).p == pytest.approx(float(expected), rel=1e-9, abs=1e-300)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mid_p_equals_its_definition(a_only: int, b_only: int) -> None:
    n, low, high = a_only + b_only, min(a_only, b_only), max(a_only, b_only)
    weights = [math.comb(n, k) for k in range(n + 1)]
    as_extreme = [k <= low or k >= high for k in range(n + 1)]
    inside = [k in (low, high) for k in range(n + 1)]
    exact = sum(w for w, hit in zip(weights, as_extreme, strict=True) if hit) / 2**n
    half_of_observed = sum(w for w, hit in zip(weights, inside, strict=True) if hit) / 2 ** (n + 1)
    result = mcnemar(a_only, b_only)
    assert result.p == pytest.approx(exact, rel=1e-12)
    # Twice the one-sided mid-p; where both tails meet in one table, that is 1 by definition
    expected = 1.0 if low == high else exact - half_of_observed
    assert result.p_mid == pytest.approx(expected, rel=1e-12)


@given(st.integers(0, 500), st.integers(0, 500))
def test_mcnemar_does_not_care_which_arm_is_called_a(a_only: int, b_only: int) -> None:
    one, other = mcnemar(a_only, b_only), mcnemar(b_only, a_only)
    assert (one.p, one.p_mid) == (other.p, other.p_mid)
    assert 0.0 <= one.p_mid <= one.p <= 1.0


def test_mcnemar_without_discordant_seeds_decides_nothing() -> None:
    assert mcnemar(0, 0) == McNemar(a_only=0, b_only=0, p=1.0, p_mid=1.0)


@pytest.mark.parametrize(
    ("a_only", "b_only"),
    [(10**6, 10**6 + 3_000), (10**6, 10**6), (0, 10**6), (10**9, 10**9 + 10**5)],
)
def test_mcnemar_of_large_counts_is_exact_and_fast(a_only: int, b_only: int) -> None:
    started_s = time.perf_counter()
    p = mcnemar(a_only, b_only).p
    assert time.perf_counter() - started_s < 1.0
    expected = min(1.0, 2.0 * float(stats.binom.cdf(min(a_only, b_only), a_only + b_only, 0.5)))
    assert p == pytest.approx(expected, abs=1e-9)


def test_mcnemar_joins_its_exact_and_its_asymptotic_arithmetic() -> None:
    for n in (1000, 1001, 1002):
        expected = 2.0 * float(stats.binom.cdf(450, n, 0.5))
        assert mcnemar(450, n - 450).p == pytest.approx(expected, rel=1e-11)


def test_counts_are_not_negative() -> None:
    with pytest.raises(ValueError, match="counts"):
        mcnemar(-1, 2)
    with pytest.raises(ValueError, match="counts"):
        paired_difference_interval(1, 1, -1, 1)


def _score_by_force(difference: float, a_only: int, b_only: int, n: int) -> float:
    """The score statistic with the restricted maximum found by root finding on the likelihood."""
    concordant = n - a_only - b_only
    low, high = max(0.0, -difference), 0.5 * (1.0 - difference)

    def slope(q: float) -> float:
        return (
            (a_only / q if a_only else 0.0)
            + (b_only / (q + difference) if b_only else 0.0)
            - (2 * concordant / (1 - 2 * q - difference) if concordant else 0.0)
        )

    margin = 1e-14 * (high - low)
    if slope(low + margin) <= 0:
        q = low
    elif slope(high - margin) >= 0:
        q = high
    else:
        q = float(optimize.brentq(slope, low + margin, high - margin, xtol=1e-16, rtol=1e-15))
    variance = n * (2 * q + difference * (1 - difference))
    return (b_only - a_only - n * difference) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("both", "a_only", "b_only", "neither"),
    [(36, 12, 2, 0), (43, 0, 1, 0), (10, 3, 9, 18), (0, 1, 5, 4), (120, 20, 41, 19), (1, 0, 0, 4)],
)
def test_tango_limits_are_where_the_score_test_turns(
    both: int, a_only: int, b_only: int, neither: int
) -> None:
    n, z = both + a_only + b_only + neither, float(stats.norm.ppf(0.975))
    interval = paired_difference_interval(both, a_only, b_only, neither)
    for bound, side in ((interval.lo, z), (interval.hi, -z)):
        root = optimize.brentq(
            lambda d, side=side: _score_by_force(d, a_only, b_only, n) - side,
            bound - 1e-3,
            bound + 1e-3,
            xtol=1e-14,
        )
        assert bound == pytest.approx(float(root), abs=1e-9)
    between = np.linspace(interval.lo, interval.hi, 50)[1:-1]
    assert all(abs(_score_by_force(float(d), a_only, b_only, n)) < z for d in between)


@given(_counts, _counts, _counts, _counts)
def test_the_difference_interval_is_antisymmetric_and_holds_the_estimate(
    both: int, a_only: int, b_only: int, neither: int
) -> None:
    interval = paired_difference_interval(both, a_only, b_only, neither)
    swapped = paired_difference_interval(both, b_only, a_only, neither)
    n = both + a_only + b_only + neither
    assert (interval.lo, interval.hi) == (-swapped.hi, -swapped.lo)
    assert -1.0 <= interval.lo <= (b_only - a_only) / max(n, 1) <= interval.hi <= 1.0


@given(_counts, _counts, _counts)
def test_the_difference_interval_inverts_the_uncorrected_mcnemar_test(
    both: int, a_only: int, b_only: int
) -> None:
    if a_only == b_only:
        return
    interval = paired_difference_interval(both, a_only, b_only, 0)
    rejected = abs(b_only - a_only) / math.sqrt(a_only + b_only) > stats.norm.ppf(0.975)
    assert (interval.lo > 0 or interval.hi < 0) == rejected


def test_the_difference_interval_at_its_edges() -> None:
    assert paired_difference_interval(0, 0, 0, 0) == Interval(
        lo=-1.0, hi=1.0, method=IntervalMethod.TANGO
    )
    none_discordant = paired_difference_interval(5, 0, 0, 4)
    bound = 1.959963984540054**2 / (9 + 1.959963984540054**2)
    assert (none_discordant.lo, none_discordant.hi) == pytest.approx((-bound, bound), abs=1e-12)
    all_discordant = paired_difference_interval(0, 0, 9, 0)
    assert all_discordant.hi == 1.0
    assert 0.3 < all_discordant.lo < 0.5
    one_pair = paired_difference_interval(0, 0, 1, 0)
    assert one_pair.lo < 0.0
    assert one_pair.hi == 1.0


def test_clustered_difference_is_a_t_interval_over_seeds() -> None:
    diffs = [0.5, -0.25, 0.75, 0.0, 0.5]
    expected = stats.ttest_1samp(diffs, 0).confidence_interval(0.95)
    estimate = clustered_difference(diffs)
    assert (estimate.lo, estimate.hi) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert estimate.n_clusters == 5
    assert math.isnan(clustered_difference([1.0]).lo)


@settings(max_examples=40)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=10), st.sampled_from([1.0, 0.1, 1 / 3]))
def test_enumerated_sign_flips_equal_scipy(values: list[int], unit: float) -> None:
    # Scaled integers: many flips tie with the observed sum, up to rounding
    expected = stats.permutation_test(
        (np.array(values, dtype=float),),
        lambda x, axis: np.sum(x, axis=axis),
        permutation_type="samples",
        n_resamples=math.inf,
        vectorized=True,
    ).pvalue
    scaled = [value * unit for value in values]
    assert sign_flip_permutation(scaled) == pytest.approx(float(expected), abs=1e-12)


def test_zero_differences_do_not_move_the_p_value() -> None:
    diffs = [0.3, 0.1, -0.2, 0.4]
    assert sign_flip_permutation(diffs + [0.0] * 500) == sign_flip_permutation(diffs)
    assert sign_flip_permutation([0.0, 0.0]) == sign_flip_permutation([]) == 1.0


def test_drawn_sign_flips_agree_with_enumerated_ones() -> None:
    rng = np.random.default_rng(5)
    diffs = np.round(rng.normal(0.4, 1, size=17), 1)  # one more than is enumerated
    signs = 1.0 - 2.0 * (np.arange(1 << 17)[:, np.newaxis] >> np.arange(17) & 1)
    exact = float(np.mean(np.abs(signs @ diffs) >= abs(diffs.sum()) - 1e-9))
    drawn = sign_flip_permutation(diffs, n_resamples=100_000, seed=1)
    assert drawn == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 100_000))
    assert drawn == sign_flip_permutation(diffs, n_resamples=100_000, seed=1)
    assert drawn != sign_flip_permutation(diffs, n_resamples=100_000, seed=2)


def test_drawn_p_values_are_never_zero() -> None:
    assert sign_flip_permutation([1.0] * 60, n_resamples=999) == pytest.approx(1 / 1000)


def test_sign_flips_need_finite_differences() -> None:
    with pytest.raises(ValueError, match="finite"):
        sign_flip_permutation([0.1, math.nan])


def test_sign_flip_memory_is_bounded() -> None:
    diffs = np.random.default_rng(0).normal(size=2_000)
    tracemalloc.start()
    sign_flip_permutation(diffs, n_resamples=20_000)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 48 * 2**20  # all flips at once are 320 MiB as floats


def test_counts_of_pairs() -> None:
    assert paired_counts([1, 1, 0, 0, 1], [1, 0, 1, 0, 0]) == (1, 2, 1, 1)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ((36, 2, 12, 0), (0.0569, 0.3404)),  # Newcombe 1998, table II, method 10
        ((1, 7, 1, 12), (-0.507, -0.026)),  # Fagerland et al. 2014, airway hyper-responsiveness
    ],
)
def test_newcombe_equals_what_was_published(
    cells: tuple[int, int, int, int], expected: tuple[float, float]
) -> None:
    interval = newcombe_difference_interval(*cells)
    assert interval.method is IntervalMethod.NEWCOMBE
    assert (interval.lo, interval.hi) == pytest.approx(expected, abs=5e-4)


@settings(deadline=None)
@given(_counts, _counts, _counts, _counts)
def test_newcombe_is_symmetric_and_holds_the_difference(
    both: int, a_only: int, b_only: int, neither: int
) -> None:
    n = max(1, both + a_only + b_only + neither)
    interval = newcombe_difference_interval(both, a_only, b_only, neither)
    mirrored = newcombe_difference_interval(both, b_only, a_only, neither)
    flipped = newcombe_difference_interval(neither, b_only, a_only, both)
    assert -1.0 <= interval.lo <= (b_only - a_only) / n <= interval.hi <= 1.0
    assert (interval.lo, interval.hi) == pytest.approx((-mirrored.hi, -mirrored.lo), abs=1e-12)
    assert (flipped.lo, flipped.hi) == pytest.approx((-interval.hi, -interval.lo), abs=1e-12)


def test_newcombe_without_correlation_is_that_of_independent_arms() -> None:
    """With phi = 0 it is the unpaired hybrid interval, which statsmodels has."""
    expected = confint_proportions_2indep(20, 40, 10, 40, method="newcomb", compare="diff")
    interval = newcombe_difference_interval(5, 5, 15, 15)  # 5 * 15 = 5 * 15
    assert (interval.lo, interval.hi) == pytest.approx(expected, abs=1e-9)


def test_newcombe_without_data_says_nothing() -> None:
    interval = newcombe_difference_interval(0, 0, 0, 0)
    assert (interval.lo, interval.hi) == (-1.0, 1.0)
    with pytest.raises(ValueError, match="counts"):
        newcombe_difference_interval(0, -1, 0, 0)


@pytest.mark.parametrize("cells", [(10, 3, 9, 8), (50, 0, 4, 46), (0, 12, 1, 7)])
def test_the_interval_ends_where_the_score_is_critical(cells: tuple[int, int, int, int]) -> None:
    interval = paired_difference_interval(*cells)
    scores = [
        tango_score(end, cells[1], cells[2], sum(cells)) for end in (interval.lo, interval.hi)
    ]
    assert scores == pytest.approx([1.959963985, -1.959963985], abs=1e-6)
    assert tango_score(0.0, 4, 13, 40) == pytest.approx(9 / math.sqrt(17), abs=1e-12)
    with pytest.raises(ValueError, match="n >= 1"):
        tango_score(0.0, 3, 3, 5)


@pytest.mark.parametrize("cells", [(3, 20, 9, 4), (10, 30, 35, 12), (1, 7, 8, 0)])
def test_newcombe_with_correlation_equals_its_formula(cells: tuple[int, int, int, int]) -> None:
    """Arms that win on different seeds: there the correlation is taken as it is observed."""
    both, a_only, b_only, neither = cells
    n = sum(cells)
    a = np.repeat([1, 1, 0, 0], cells)
    b = np.repeat([1, 0, 1, 0], cells)
    phi = float(np.corrcoef(a, b)[0, 1])
    (lo_a, hi_a), (lo_b, hi_b) = (
        proportion_confint(int(x.sum()), n, 0.05, method="wilson") for x in (a, b)
    )
    rate_a, rate_b = a.mean(), b.mean()
    down, up = (rate_b - lo_b, hi_a - rate_a), (hi_b - rate_b, rate_a - lo_a)
    reach = [math.sqrt(x * x - 2 * phi * x * y + y * y) for x, y in (down, up)]
    diff = rate_b - rate_a
    interval = newcombe_difference_interval(both, a_only, b_only, neither)
    assert (interval.lo, interval.hi) == pytest.approx((diff - reach[0], diff + reach[1]), abs=1e-9)


@pytest.mark.parametrize("ties", [True, False])
def test_sign_flips_of_many_seeds_are_those_of_a_normal_sum(ties: bool) -> None:
    """20,000 seeds: the flipped sum is normal to within what 50,000 draws show."""
    rng = np.random.default_rng(2)
    diffs = rng.choice([-1.0, 0.5, 1.0], 20_000) if ties else rng.normal(size=20_000)
    diffs -= diffs.mean() if not ties else 0.0
    shift = 1.7 * math.sqrt(float(diffs @ diffs)) / diffs.size
    diffs = diffs + (0.0 if ties else shift)
    if ties:
        flipped = np.where(np.arange(diffs.size) % 2, diffs, -diffs)
        flipped[:150] = np.abs(flipped[:150])
        diffs = flipped
    z = abs(float(diffs.sum())) / math.sqrt(float(diffs @ diffs))
    expected = 2 * float(stats.norm.sf(z))
    assert 0.01 < expected < 0.9
    found = sign_flip_permutation(diffs, seed=3)
    assert found == pytest.approx(expected, abs=5 * math.sqrt(expected / 50_000))
