"""TOST: against statsmodels and scipy, duality with the interval, size at the margin."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from statsmodels.stats.weightstats import ttost_paired

from evalkit.judge.equivalence import tost_paired, tost_proportions
from evalkit.judge.paired import paired_difference_interval

_cells = st.integers(0, 40)


@settings(deadline=None)
@given(st.integers(2, 60), st.floats(-0.4, 0.4), st.floats(0.05, 1.0), st.integers(0, 10**6))
def test_paired_t_equals_statsmodels(n: int, shift: float, margin: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    of_a = rng.normal(0, 1, n)
    of_b = of_a + rng.normal(shift, 0.5, n)
    result = tost_paired(of_b - of_a, margin)
    p, lower, upper = ttost_paired(of_b, of_a, -margin, margin)
    assert result.p == pytest.approx(float(p), abs=1e-9)
    assert result.p_above_lower == pytest.approx(float(lower[1]), abs=1e-9)
    assert result.p_below_upper == pytest.approx(float(upper[1]), abs=1e-9)
    inside = -margin < result.interval.lo and result.interval.hi < margin
    assert inside == result.equivalent


def test_without_spread_the_mean_decides() -> None:
    assert tost_paired([0.125, 0.125, 0.125], 0.25).p == 0.0
    assert tost_paired([0.375, 0.375], 0.25).p == 1.0
    assert tost_paired([0.25, 0.25], 0.25).p == 0.5


@settings(max_examples=50, deadline=None)
@given(_cells, _cells, _cells, _cells, st.sampled_from([0.05, 0.1, 0.3]))
def test_proportions_agree_with_their_interval(
    both: int, a_only: int, b_only: int, neither: int, margin: float
) -> None:
    if not both + a_only + b_only + neither:
        return
    result = tost_proportions(both, a_only, b_only, neither, margin)
    expected = paired_difference_interval(both, a_only, b_only, neither, 0.9)
    assert result.interval == expected
    assert result.equivalent == (-margin < expected.lo and expected.hi < margin)
    mirrored = tost_proportions(both, b_only, a_only, neither, margin)
    assert mirrored.diff == -result.diff
    assert mirrored.p == pytest.approx(result.p, abs=1e-12)
    assert mirrored.p_above_lower == pytest.approx(result.p_below_upper, abs=1e-12)


def test_the_score_is_that_of_a_constrained_maximum() -> None:
    """Tango's variance from the likelihood of the three cells, maximised by force on a grid."""
    a_only, b_only, n, margin = 9, 14, 120, 0.08
    rates = np.linspace(1e-6, (1 - margin) / 2 - 1e-6, 400_001)
    log_likelihood = (
        b_only * np.log(rates + margin)
        + a_only * np.log(rates)
        + (n - a_only - b_only) * np.log(1 - 2 * rates - margin)
    )
    rate = float(rates[log_likelihood.argmax()])
    z = (b_only - a_only - n * margin) / np.sqrt(n * (2 * rate + margin * (1 - margin)))
    result = tost_proportions(50, a_only, b_only, 47, margin)
    assert result.p_below_upper == pytest.approx(float(stats.norm.cdf(z)), abs=1e-6)


@pytest.mark.parametrize(("a_only", "b_only", "n"), [(9, 14, 120), (0, 3, 40), (2, 0, 500)])
def test_the_score_equals_scipys_root_of_the_likelihood(a_only: int, b_only: int, n: int) -> None:
    margin = 0.08

    def slope(rate: float) -> float:
        rest = n - a_only - b_only
        return b_only / (rate + margin) + a_only / rate - 2 * rest / (1 - 2 * rate - margin)

    low, high = 1e-12, (1 - margin) / 2 - 1e-12
    rate = 0.0
    if a_only or slope(low) > 0:
        rate = float(optimize.brentq(slope, low, high, xtol=1e-16, rtol=1e-15))
    z = (b_only - a_only - n * margin) / np.sqrt(n * (2 * rate + margin * (1 - margin)))
    result = tost_proportions(n - a_only - b_only, a_only, b_only, 0, margin)
    assert result.p_below_upper == pytest.approx(float(stats.norm.cdf(z)), abs=1e-9)


def test_the_size_at_the_margin_is_alpha() -> None:
    """3,000 runs of 150 seeds whose true difference is the margin; standard error .004."""
    tables = np.random.default_rng(0).multinomial(150, [0.05, 0.15, 0.8], 3_000)
    cache: dict[tuple[int, int], bool] = {}
    for a_only, b_only, _ in tables.tolist():
        if (a_only, b_only) not in cache:
            result = tost_proportions(0, a_only, b_only, 150 - a_only - b_only, 0.1)
            cache[a_only, b_only] = result.equivalent
    rejected = [cache[a_only, b_only] for a_only, b_only, _ in tables.tolist()]
    assert 0.03 <= float(np.mean(rejected)) <= 0.065


def test_non_inferiority_is_one_of_the_two() -> None:
    better = tost_proportions(40, 2, 30, 28, 0.05)
    assert better.non_inferior
    assert not better.equivalent


@pytest.mark.parametrize(("margin", "alpha"), [(0.0, 0.05), (-1.0, 0.05), (0.1, 0.5), (0.1, 0.0)])
def test_margins_and_levels_are_checked(margin: float, alpha: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        tost_paired([0.1, 0.2], margin, alpha)
    with pytest.raises(ValueError, match="expected"):
        tost_proportions(1, 1, 1, 1, margin, alpha)


def test_data_are_needed() -> None:
    with pytest.raises(ValueError, match="two differences"):
        tost_paired([0.1], 0.2)
    with pytest.raises(ValueError, match="n >= 1"):
        tost_proportions(0, 0, 0, 0, 0.1)
    with pytest.raises(ValueError, match="margin"):
        tost_proportions(1, 1, 1, 1, 1.0)
