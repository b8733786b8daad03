"""Power: the t formulas against statsmodels, those for success against exact power of the test."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import NormalIndPower, TTestPower
from statsmodels.stats.proportion import proportion_effectsize

from evalkit.judge.paired import mcnemar
from evalkit.judge.power import (
    least_decidable,
    mde_one_way,
    mde_paired_proportion,
    mde_unpaired_proportion,
    minimum_detectable_effect,
    paired_t_power,
    pairs_needed,
    pairs_needed_proportion,
)


@pytest.mark.parametrize("n", [2, 3, 5, 20, 100, 2_000, 100_000])
@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.001])
@pytest.mark.parametrize("effect", [-0.3, 0.0, 0.05, 0.3, 1.0, 2.0, 5.0])
def test_t_power_equals_statsmodels(n: int, alpha: float, effect: float) -> None:
    expected = float(TTestPower().power(effect, n, alpha))
    if not math.isnan(expected):  # scipy's noncentral t overflows at very large shifts
        assert paired_t_power(effect * 3.0, 3.0, n, alpha) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("n", [3, 10, 50, 200, 5_000])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_minimum_detectable_effect_equals_statsmodels(n: int, power: float) -> None:
    # Through their power, which is exact: their solver stops at about 1e-5
    effect = minimum_detectable_effect(0.4, n, power) / 0.4
    assert float(TTestPower().power(effect, n, 0.05)) == pytest.approx(power, abs=1e-9)


@pytest.mark.parametrize("effect", [0.05, 0.2, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("power", [0.6, 0.8, 0.99])
def test_pairs_needed_is_the_smallest_enough(effect: float, power: float) -> None:
    n = pairs_needed(effect, 1.0, power)
    assert n == pairs_needed(-effect, 1.0, power)
    assert float(TTestPower().power(effect, n, 0.05)) >= power
    assert n == 2 or float(TTestPower().power(effect, n - 1, 0.05)) < power


@given(st.floats(0.01, 2.0), st.integers(2, 3_000), st.sampled_from([0.7, 0.8, 0.9]))
def test_pairs_needed_inverts_the_minimum_detectable_effect(
    sd: float, n: int, power: float
) -> None:
    effect = minimum_detectable_effect(sd, n, power)
    assert pairs_needed(effect, sd, power) in (n, n + 1)  # n + 1 where rounding falls below power


def test_power_of_differences_at_the_edges() -> None:
    assert minimum_detectable_effect(1.0, 1) == math.inf
    assert minimum_detectable_effect(0.0, 10) == 0.0
    assert pairs_needed(0.1, 0.0) == 2
    assert pairs_needed(1e-6, 1.0) == pytest.approx(7.849e12, rel=1e-3)
    with pytest.raises(ValueError, match="effect other than 0"):
        pairs_needed(0.0, 1.0)
    with pytest.raises(ValueError, match="standard deviation"):
        pairs_needed(1.0, -1.0)
    with pytest.raises(ValueError, match="standard deviation"):
        minimum_detectable_effect(math.nan, 10)
    with pytest.raises(ValueError, match="power > alpha"):
        minimum_detectable_effect(1.0, 10, 0.05, 0.05)
    with pytest.raises(ValueError, match="n >= 2"):
        paired_t_power(1.0, 1.0, 1)


def _exact_mcnemar_power(n: int, discordant_rate: float, effect: float) -> float:
    """Power of the exact test at 5 %, summed over the number of discordant seeds."""
    share = (discordant_rate + effect) / (2 * discordant_rate)
    counts = np.arange(n + 1)
    weights = stats.binom.pmf(counts, n, discordant_rate)
    limits = stats.binom.ppf(0.025, counts, 0.5)
    limits = np.where(2 * stats.binom.cdf(limits, counts, 0.5) > 0.05, limits - 1, limits)
    rejected = stats.binom.cdf(limits, counts, share)
    rejected = rejected + stats.binom.sf(counts - limits - 1, counts, share)
    return float(weights @ np.where(limits >= 0, rejected, 0.0))


@pytest.mark.parametrize(
    ("effect", "discordant_rate"),
    [
        (effect, rate)
        for effect in (0.02, 0.05, 0.1, 0.2, 0.3)
        for rate in (0.05, 0.1, 0.2, 0.4, 0.6)
        if effect <= rate
    ],
)
def test_pairs_for_success_give_the_exact_test_its_power(
    effect: float, discordant_rate: float
) -> None:
    n = pairs_needed_proportion(effect, discordant_rate)
    achieved = _exact_mcnemar_power(n, discordant_rate, effect)
    # Never short. One-sided discordance (effect == rate) needs so few flips that steps are coarse
    assert 0.8 <= achieved <= (0.94 if effect == discordant_rate else 0.86)
    assert pairs_needed_proportion(-effect, discordant_rate) == n


@given(st.floats(0.05, 1.0), st.integers(50, 20_000), st.sampled_from([0.4, 0.7, 0.8, 0.95]))
def test_pairs_for_success_invert_the_detectable_difference(
    discordant_rate: float, n: int, power: float
) -> None:
    effect = mde_paired_proportion(discordant_rate, n, power)
    if math.isfinite(effect):
        assert pairs_needed_proportion(effect, discordant_rate, power) in (n, n + 1)


def test_power_for_success_at_the_edges() -> None:
    assert (
        mde_paired_proportion(0.02, 20) == math.inf
    )  # all discordance one way is still too little
    assert mde_paired_proportion(0.2, 0) == math.inf
    assert mde_paired_proportion(1e-6, 10) == math.inf
    with pytest.raises(ValueError, match="discordant_rate"):
        mde_paired_proportion(0.0, 20)
    with pytest.raises(ValueError, match="discordant_rate"):
        pairs_needed_proportion(0.3, 0.2)
    with pytest.raises(ValueError, match="discordant_rate"):
        pairs_needed_proportion(0.0, 0.2)


@pytest.mark.parametrize("p", [0.02, 0.3, 0.6])
@pytest.mark.parametrize("n", [100, 400, 2_000])
def test_unpaired_difference_equals_statsmodels(p: float, n: int) -> None:
    # One-sided at alpha / 2: statsmodels' two-sided power adds the far tail, about 1e-6 here
    h = proportion_effectsize(p + mde_unpaired_proportion(p, n), p)
    power = NormalIndPower().power(h, n, 0.025, alternative="larger")
    assert float(power) == pytest.approx(0.8, abs=1e-9)


def test_unpaired_difference_at_the_edges() -> None:
    assert mde_unpaired_proportion(0.99, 50) == math.inf
    assert mde_unpaired_proportion(0.5, 0) == math.inf
    with pytest.raises(ValueError, match="rate"):
        mde_unpaired_proportion(1.5, 10)


def test_pairing_pays() -> None:
    """At a success rate of .5 and correlation .5, pairs see smaller differences than two groups."""
    assert mde_paired_proportion(0.25, 200) < 0.75 * mde_unpaired_proportion(0.5, 200)


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.01, 0.001])
def test_least_decidable_is_where_exact_mcnemar_begins_to_reject(alpha: float) -> None:
    least = least_decidable(alpha)
    assert mcnemar(least, 0).p <= alpha < mcnemar(least - 1, 0).p


@pytest.mark.parametrize("n", [6, 20, 100, 2_000])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_one_way_flips_are_seen_with_the_power_asked_for(n: int, power: float) -> None:
    rate = mde_one_way(n, power)
    assert stats.binom.sf(least_decidable() - 1, n, rate) == pytest.approx(power, abs=1e-9)


def test_too_few_pairs_show_no_difference_at_all() -> None:
    assert mde_one_way(5) == math.inf
