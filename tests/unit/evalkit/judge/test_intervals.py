"""Intervals of one arm: equal to scipy and statsmodels where those have them, and sane at edges."""

import math
import tracemalloc

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from evalkit.judge.intervals import (
    FloatArray,
    Interval,
    IntervalMethod,
    bca_bootstrap,
    clustered_mean,
    wilson,
    wilson_clustered,
)


@st.composite
def _counts(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(st.integers(1, 5000))
    return draw(st.integers(0, n)), n


@given(_counts(), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_wilson_equals_statsmodels(counts: tuple[int, int], level: float) -> None:
    successes, n = counts
    expected = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    interval = wilson(successes, n, level)
    assert (interval.lo, interval.hi) == pytest.approx(expected, abs=1e-9)


@given(_counts())
def test_wilson_holds_the_rate_and_mirrors_failures(counts: tuple[int, int]) -> None:
    successes, n = counts
    interval, mirrored = wilson(successes, n), wilson(n - successes, n)
    assert 0.0 <= interval.lo <= successes / n <= interval.hi <= 1.0
    assert (1 - mirrored.hi, 1 - mirrored.lo) == pytest.approx((interval.lo, interval.hi))


def test_wilson_at_its_edges() -> None:
    assert wilson(0, 0) == Interval(lo=0.0, hi=1.0, method=IntervalMethod.WILSON)
    assert wilson(0, 10).lo == 0.0
    assert wilson(10, 10).hi == 1.0


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, -1)])
def test_wilson_rejects_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


@given(st.lists(st.booleans(), min_size=0, max_size=60))
def test_clustered_wilson_of_single_episodes_is_wilson(outcomes: list[bool]) -> None:
    successes = [int(outcome) for outcome in outcomes]
    assert wilson_clustered(successes, [1] * len(outcomes)) == wilson(sum(successes), len(outcomes))


def test_clustered_wilson_follows_its_formula() -> None:
    successes, sizes = np.array([4, 0, 3, 1, 2, 4]), np.array([4, 3, 4, 4, 2, 5])
    outcomes = np.concatenate([np.arange(n) < s for s, n in zip(successes, sizes, strict=True)])
    groups = np.repeat(np.arange(6), sizes)
    fit = sm.OLS(outcomes.astype(float), np.ones(22)).fit(
        cov_type="cluster", cov_kwds={"groups": groups}
    )
    rate = float(successes.sum() / 22)
    design_effect = float(fit.bse[0]) ** 2 / (rate * (1 - rate) / 21)
    ratio = float(stats.t.ppf(0.975, 21) / stats.t.ppf(0.975, 5))
    effective = 22 / design_effect * ratio**2
    expected = proportion_confint(rate * effective, effective, method="wilson")
    interval = wilson_clustered(successes.tolist(), sizes.tolist())
    assert design_effect > 1
    assert (interval.lo, interval.hi) == pytest.approx(expected, abs=1e-9)
    assert interval.method is IntervalMethod.WILSON_CLUSTERED


def test_agreement_within_a_seed_is_not_evidence() -> None:
    unanimous = wilson_clustered([4] * 20, [4] * 20)
    assert unanimous.hi == 1.0
    assert unanimous.lo <= wilson(20, 20).lo
    identical = wilson_clustered([4, 0] * 10, [4, 4] * 10)
    assert identical.hi - identical.lo >= wilson(10, 20).hi - wilson(10, 20).lo


def test_repetitions_that_vary_less_than_chance_earn_no_bonus() -> None:
    balanced = wilson_clustered([2] * 20, [4] * 20)
    assert balanced.hi - balanced.lo >= wilson(40, 80).hi - wilson(40, 80).lo


def test_clustered_wilson_at_its_edges() -> None:
    assert wilson_clustered([], []) == wilson(0, 0)
    assert wilson_clustered([0, 1], [0, 1]) == wilson(1, 1)
    one = wilson_clustered([3], [5])
    assert (one.lo, one.hi) == (0.0, 1.0)
    with pytest.raises(ValueError, match="successes"):
        wilson_clustered([2], [1])
    with pytest.raises(ValueError, match="argument 2"):
        wilson_clustered([2], [2, 2])


@given(st.lists(st.floats(-60_000, 60_000, width=16), min_size=2, max_size=50))
def test_single_values_give_the_ordinary_t_interval(values: list[float]) -> None:
    estimate = clustered_mean([[value] for value in values])
    scale = max(abs(value) for value in values)
    se = float(stats.sem(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * se
    assert estimate.method is IntervalMethod.T
    assert estimate.mean == pytest.approx(float(np.mean(values)), abs=1e-9 * scale)
    assert estimate.se == pytest.approx(se, abs=1e-9 * scale)
    assert estimate.hi - estimate.mean == pytest.approx(half, rel=1e-9, abs=1e-9 * scale)


@given(
    st.lists(
        st.lists(st.floats(-100, 100, width=16), min_size=1, max_size=6), min_size=2, max_size=12
    )
)
def test_clustered_se_equals_statsmodels(clusters: list[list[float]]) -> None:
    values = np.concatenate([np.array(cluster) for cluster in clusters])
    groups = np.repeat(np.arange(len(clusters)), [len(cluster) for cluster in clusters])
    fit = sm.OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": groups})
    estimate = clustered_mean(clusters)
    assert estimate.mean == pytest.approx(float(fit.params[0]), abs=1e-9)
    assert estimate.se == pytest.approx(float(fit.bse[0]), abs=1e-9)
    half = float(stats.t.ppf(0.975, len(clusters) - 1)) * estimate.se
    assert (estimate.lo, estimate.hi) == pytest.approx(
        (estimate.mean - half, estimate.mean + half), abs=1e-9
    )
    assert (estimate.n, estimate.n_clusters) == (len(values), len(clusters))


def test_a_mean_without_enough_clusters_has_no_interval() -> None:
    one = clustered_mean([[1.0, 3.0], []])
    assert (one.mean, one.n, one.n_clusters) == (2.0, 2, 1)
    assert all(map(math.isnan, (one.se, one.lo, one.hi)))
    none = clustered_mean([])
    assert (none.n, none.n_clusters) == (0, 0)
    assert all(map(math.isnan, (none.mean, none.se, none.lo, none.hi)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_must_be_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        clustered_mean([[1.0], [bad]])
    with pytest.raises(ValueError, match="finite"):
        bca_bootstrap([1.0, bad], n_resamples=10)


def _median(values: FloatArray) -> FloatArray:
    return np.asarray(np.median(values, axis=-1))


@pytest.mark.parametrize("n", [5, 23, 400])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bca_equals_scipy_draw_for_draw(n: int, level: float) -> None:
    values = np.random.default_rng(n).exponential(size=n)
    expected = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=5_000,
        confidence_level=level,
        method="BCa",
        rng=np.random.Generator(np.random.PCG64(7)),
    ).confidence_interval
    interval = bca_bootstrap(values, n_resamples=5_000, seed=7, level=level)
    assert (interval.lo, interval.hi) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_bca_takes_any_statistic_of_the_last_axis() -> None:
    values = np.random.default_rng(0).normal(size=31)
    expected = stats.bootstrap(
        (values,), np.median, n_resamples=2_000, method="BCa", rng=np.random.default_rng(3)
    ).confidence_interval
    interval = bca_bootstrap(values, _median, n_resamples=2_000, seed=3)
    assert (interval.lo, interval.hi) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_bca_is_a_function_of_its_seed() -> None:
    values = np.random.default_rng(1).normal(size=30)
    first, second = (bca_bootstrap(values, n_resamples=500, seed=4) for _ in range(2))
    assert first == second
    assert first != bca_bootstrap(values, n_resamples=500, seed=5)


def test_bca_of_degenerate_data() -> None:
    point = bca_bootstrap([0.1] * 7, n_resamples=100)
    assert point.lo == point.hi == pytest.approx(0.1)
    assert all(math.isnan(bca_bootstrap(few).lo) for few in ([], [1.0]))


def test_bca_survives_a_statistic_with_every_replicate_on_one_side() -> None:
    def largest(values: FloatArray) -> FloatArray:
        return np.asarray(values.max(axis=-1))

    interval = bca_bootstrap([1.0, 2.0, 3.0, 4.0], largest, n_resamples=200)
    assert 1.0 <= interval.lo <= interval.hi == 4.0


def test_bca_memory_is_bounded() -> None:
    values = np.random.default_rng(0).normal(size=2_000)
    tracemalloc.start()
    bca_bootstrap(values, n_resamples=10_000)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 64 * 2**20  # all resamples at once are 320 MiB


def test_bca_of_many_equal_values_is_resampled_by_counts() -> None:
    values = np.repeat([0.0, 1.0, 4.0], [1_500, 1_400, 100])
    found = bca_bootstrap(values)
    # A statistic that is the mean, and is not known to be: every value is drawn
    expected = bca_bootstrap(values, lambda rows: np.asarray(np.mean(rows, axis=-1)))
    assert (found.lo, found.hi) == pytest.approx((expected.lo, expected.hi), abs=2e-3)
    assert (expected.hi - expected.lo) > 0.04
    assert found == bca_bootstrap(values)
