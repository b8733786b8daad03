"""Intervals of a rate: against scipy and statsmodels, by force, and what they cover exactly."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from evalkit.judge.intervals import IntervalMethod
from evalkit.judge.proportion import (
    RATE_METHODS,
    agresti_coull,
    attainable,
    blaker,
    clopper_pearson,
    coverage,
    coverage_table,
    jeffreys,
    mid_p,
    rate_interval,
)

_RATES = np.linspace(0.02, 0.98, 97)
_counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
_levels = st.sampled_from([0.8, 0.9, 0.95, 0.99])


@settings(max_examples=60, deadline=None)
@given(_counts, _levels)
def test_closed_forms_equal_statsmodels(counts: tuple[int, int], level: float) -> None:
    s, n = counts
    for ours, theirs in ((clopper_pearson, "beta"), (agresti_coull, "agresti_coull")):
        expected = proportion_confint(s, n, 1 - level, method=theirs)
        interval = ours(s, n, level)
        assert (interval.lo, interval.hi) == pytest.approx(expected, abs=1e-9)
    expected = proportion_confint(s, n, 1 - level, method="jeffreys")
    interval = jeffreys(s, n, level)
    assert interval.lo == pytest.approx(expected[0] if s else 0.0, abs=1e-9)
    assert interval.hi == pytest.approx(expected[1] if s < n else 1.0, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(_counts, _levels)
def test_mid_p_solves_its_equations(counts: tuple[int, int], level: float) -> None:
    s, n = counts
    interval = mid_p(s, n, level)
    if s:
        tail = stats.binom.sf(s, n, interval.lo) + 0.5 * stats.binom.pmf(s, n, interval.lo)
        assert float(tail) == pytest.approx((1 - level) / 2, abs=1e-9)
    if s < n:
        tail = stats.binom.cdf(s, n, interval.hi) - 0.5 * stats.binom.pmf(s, n, interval.hi)
        assert float(tail) == pytest.approx((1 - level) / 2, abs=1e-9)


def _acceptability(s: int, n: int, rate: float) -> float:
    """Blaker's p-value by its definition: all outcomes whose smaller tail is not larger."""
    counts = np.arange(n + 1)
    tails = np.minimum(stats.binom.cdf(counts, n, rate), stats.binom.sf(counts - 1, n, rate))
    return float(stats.binom.pmf(counts, n, rate)[tails <= tails[s] * (1 + 1e-9)].sum())


@pytest.mark.parametrize(("s", "n"), [(0, 20), (1, 20), (3, 20), (10, 20), (7, 50), (48, 50)])
def test_blaker_is_the_hull_of_what_its_test_accepts(s: int, n: int) -> None:
    interval = blaker(s, n)
    grid = np.linspace(0.0005, 0.9995, 2_000)
    accepted = grid[[_acceptability(s, n, rate) > 0.05 for rate in grid]]
    step = grid[1] - grid[0]
    assert interval.lo - 1e-9 <= accepted[0] <= interval.lo + 1.01 * step
    assert interval.hi - 1.01 * step <= accepted[-1] <= interval.hi + 1e-9
    for rate, inwards in ((interval.lo, 1e-9), (interval.hi, -1e-9)):
        if 0.0 < rate < 1.0:
            assert _acceptability(s, n, rate + inwards) > 0.05 - 1e-7
            assert _acceptability(s, n, rate - inwards) < 0.05 + 1e-7


@settings(max_examples=40, deadline=None)
@given(_counts, _levels)
def test_blaker_lies_inside_clopper_pearson(counts: tuple[int, int], level: float) -> None:
    s, n = counts
    inner, outer, ours = (
        blaker(s, n, level),
        clopper_pearson(s, n, level),
        rate_interval(s, n, level),
    )
    nested = [outer.lo, inner.lo, ours.lo, s / n, ours.hi, inner.hi, outer.hi]
    assert all(low <= high + 1e-12 for low, high in pairwise(nested))
    mirrored = rate_interval(n - s, n, level)
    assert (ours.lo, ours.hi) == pytest.approx((1 - mirrored.hi, 1 - mirrored.lo), abs=1e-12)


def test_coverage_is_the_binomial_sum() -> None:
    rates = [0.03, 0.4]
    expected = []
    for rate in rates:
        held = [(b := mid_p(s, 30)).lo <= rate <= b.hi for s in range(31)]
        expected.append(float(stats.binom.pmf(np.arange(31), 30, rate)[held].sum()))
    assert coverage(mid_p, 30, rates).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("n", "in_band"), [(20, 0.85), (50, 0.93), (100, 0.99), (200, 1.0)])
def test_the_recommended_interval_covers_at_every_rate(n: int, in_band: float) -> None:
    """Never below 93.5 %; above 97 % where hardly an interval could do otherwise."""
    covered = coverage(rate_interval, n, np.linspace(0.001, 0.999, 999))
    assert float(covered.min()) >= 0.935
    covered = coverage(rate_interval, n, _RATES)
    inside = (covered >= 0.935) & (covered <= 0.97)
    assert float(inside.mean()) >= in_band
    assert float(attainable(n, _RATES).mean()) - float(inside.mean()) <= 0.045
    assert 0.948 <= float(covered.mean()) <= 0.957


def test_no_interval_covers_near_its_level_at_some_rates() -> None:
    """At n = 50 and a rate of .02, runs of outcomes have .92 or .98, and nothing between."""
    reachable = {n: float(attainable(n, _RATES).mean()) for n in (20, 50, 100)}
    assert reachable == pytest.approx({20: 0.876, 50: 0.979, 100: 1.0}, abs=0.001)
    assert attainable(50, [0.02]).tolist() == [0.0]
    weights = stats.binom.pmf(np.arange(5), 50, 0.02)
    assert (weights[:3].sum(), weights[:4].sum()) == pytest.approx((0.9216, 0.9822), abs=1e-4)


def test_the_table_tells_methods_apart() -> None:
    rows = {row.method: row for row in coverage_table([20])}
    assert set(rows) == set(RATE_METHODS)
    assert rows[IntervalMethod.CLOPPER_PEARSON].lowest >= 0.95
    assert rows[IntervalMethod.BLAKER].lowest >= 0.95
    assert rows[IntervalMethod.JEFFREYS].lowest < 0.9
    assert rows[IntervalMethod.WILSON].lowest < 0.93
    best = max(rows.values(), key=lambda row: row.in_band)
    assert best.method is IntervalMethod.BLAKER_ADJUSTED
    assert all(row.attainable >= row.in_band for row in rows.values())


@pytest.mark.parametrize("method", list(RATE_METHODS.values()))
def test_the_edges(method: object) -> None:
    assert callable(method)
    empty = method(0, 0, 0.95)
    assert (empty.lo, empty.hi) == (0.0, 1.0)
    nothing, everything = method(0, 10, 0.95), method(10, 10, 0.95)
    assert nothing.lo == 0.0
    assert everything.hi == 1.0
    assert math.isclose(nothing.hi, 1.0 - everything.lo, abs_tol=1e-12)
    with pytest.raises(ValueError, match="successes"):
        method(3, 2, 0.95)
    with pytest.raises(ValueError, match="level"):
        method(1, 2, 1.0)
