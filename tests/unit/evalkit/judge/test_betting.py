"""E-processes: closed forms, the mixture by quadrature, confidence sequences, Ville's promise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from evalkit.judge.betting import (
    anytime_p,
    bets,
    confidence_bounds,
    e_path,
    log_e_value,
    log_factors,
    log_mcnemar_e,
    log_wealth,
)
from evalkit.judge.intervals import FloatArray

_counts = st.integers(0, 400)
_DIFFS = [-1.0, 0.0, 1.0]


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(0, 5000), st.sampled_from([0.5, 1.0, 1.5, 3.0]))
def test_the_closed_form_equals_scipy(a_only: int, b_only: int, prior: float) -> None:
    expected = (a_only + b_only) * math.log(2) + float(
        special.betaln(prior + a_only, prior + b_only) - special.betaln(prior, prior)
    )
    assert log_mcnemar_e(a_only, b_only, prior) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(_counts, _counts)
def test_the_two_sides_average_to_the_closed_form(a_only: int, b_only: int) -> None:
    above = float(log_wealth(_DIFFS, [a_only, 7, b_only]))
    below = float(log_wealth([1.0, 0.0, -1.0], [a_only, 7, b_only]))
    assert log_e_value(above, below) == pytest.approx(log_mcnemar_e(a_only, b_only), abs=1e-9)


@pytest.mark.parametrize(("a_only", "b_only"), [(0, 3), (4, 11), (30, 12), (0, 60)])
def test_one_side_equals_its_incomplete_beta(a_only: int, b_only: int) -> None:
    """Half of a polynomial's mixture is not exact by quadrature, but close."""
    tail = float(stats.beta.sf(0.5, 1.5 + b_only, 1.5 + a_only))
    expected = log_mcnemar_e(a_only, b_only) + math.log(2.0 * tail)
    assert float(log_wealth([-1, 1], [a_only, b_only])) == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("mean", [-0.4, 0.0, 0.25])
def test_wealth_equals_numerical_integration(mean: float) -> None:
    diffs = np.array([0.3, -0.2, 0.9, 0.0, 0.5])

    def integrand(bet: float) -> float:
        density = 4.0 / math.pi * math.sqrt(1.0 - bet * bet)
        return density * float(np.prod(1.0 + bet * (diffs - mean) / (1.0 + mean)))

    expected = integrate.quad(integrand, 0.0, 1.0)[0]
    measured = float(log_wealth(diffs, np.ones(5), mean))
    assert measured == pytest.approx(math.log(expected), abs=2e-3)


def test_the_starting_capital_is_one() -> None:
    nodes, log_shares = bets()
    assert float(np.exp(log_shares).sum()) == pytest.approx(1.0, abs=1e-12)
    assert np.all((nodes > 0.0) & (nodes < 1.0))
    assert log_e_value(0.0, 0.0) == 0.0
    assert anytime_p(0.0) == 1.0


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6), st.floats(-0.9, 0.9))
def test_no_bet_gains_on_average_where_the_mean_is_the_supposed_one(
    values: list[float], mean: float
) -> None:
    """The factor's expectation is 1 for any distribution with that mean, here on two points."""
    value = values[0]
    other = 1.0 if value < mean else -1.0
    share = (mean - other) / (value - other)
    factors = np.exp(log_factors([value, other], mean))
    assert (share * factors[0] + (1.0 - share) * factors[1]).tolist() == pytest.approx(
        [1.0] * factors.shape[1], abs=1e-9
    )


@settings(deadline=None)
@given(st.tuples(_counts, _counts, _counts), st.floats(-0.98, 0.98), st.floats(-0.98, 0.98))
def test_wealth_falls_as_the_supposed_mean_rises(
    counts: tuple[int, int, int], one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert float(log_wealth(_DIFFS, counts, low)) >= float(log_wealth(_DIFFS, counts, high)) - 1e-9


@settings(max_examples=50, deadline=None)
@given(st.tuples(_counts, _counts, _counts), st.sampled_from([0.01, 0.05, 0.2]))
def test_bounds_are_where_one_side_reaches_its_threshold(
    counts: tuple[int, int, int], alpha: float
) -> None:
    lo, hi = confidence_bounds(_DIFFS, counts, alpha)
    total = max(1, sum(counts))
    assert -1.0 <= lo <= (counts[2] - counts[0]) / total <= hi <= 1.0
    threshold = math.log(2.0 / alpha)
    if lo > -1.0:
        assert float(log_wealth(_DIFFS, counts, lo)) >= threshold
        assert float(log_wealth(_DIFFS, counts, lo + 1e-8)) < threshold
    if hi < 1.0:
        assert float(log_wealth([1, 0, -1], counts, -hi)) >= threshold
        assert float(log_wealth([1, 0, -1], counts, -hi + 1e-8)) < threshold


def test_bounds_at_the_edges() -> None:
    assert confidence_bounds([], []) == (-1.0, 1.0)
    assert confidence_bounds([1.0], [30])[1] == 1.0
    assert confidence_bounds([-1.0], [30])[0] == -1.0
    lo, hi = confidence_bounds([0.0], [10_000])
    assert lo == -hi
    assert hi < 0.002


def test_a_path_is_the_wealth_after_each_pair() -> None:
    diffs = np.random.default_rng(0).choice(_DIFFS, 60, p=[0.1, 0.6, 0.3])
    log_e, p_values = e_path(diffs)
    b_only, a_only = np.cumsum(diffs > 0), np.cumsum(diffs < 0)
    expected = [log_mcnemar_e(int(a), int(b)) for a, b in zip(a_only, b_only, strict=True)]
    assert log_e.tolist() == pytest.approx(expected, abs=1e-9)
    assert np.all(np.diff(p_values) <= 0.0)
    assert np.all(p_values >= np.exp(-np.maximum.accumulate(log_e)) - 1e-12)


def _ever_excluded(diffs: FloatArray, mean: float, alpha: float = 0.05) -> float:
    """Share of runs (rows) whose confidence sequence excludes `mean` at any look."""
    factor = np.zeros(diffs.shape[0], dtype=np.bool_)
    for sign in (1.0, -1.0):
        nodes = bets()[0].size
        wealth = np.zeros((diffs.shape[0], nodes))
        log_shares = bets()[1]
        for column in diffs.T:
            wealth += log_factors(sign * column, sign * mean)
            factor |= np.logaddexp.reduce(wealth + log_shares, axis=1) >= math.log(2.0 / alpha)
    return float(factor.mean())


@pytest.mark.parametrize(("p_a_only", "p_b_only"), [(0.1, 0.2), (0.0, 0.05), (0.3, 0.05)])
def test_the_sequence_covers_at_every_look(p_a_only: float, p_b_only: float) -> None:
    """400 runs of 150 pairs; the standard error at 5 % is .011. A fixed-n interval fails this."""
    rng = np.random.default_rng(1)
    chances = [p_a_only, 1.0 - p_a_only - p_b_only, p_b_only]
    diffs = rng.choice(_DIFFS, (400, 150), p=chances)
    assert _ever_excluded(diffs, p_b_only - p_a_only) <= 0.05
    n = np.arange(1, 151)
    means = np.cumsum(diffs, axis=1) / n
    spread = np.sqrt(np.maximum(np.cumsum(diffs**2, axis=1) / n - means**2, 1e-12) / n)
    missed = np.abs(means - (p_b_only - p_a_only)) > 1.96 * spread
    assert float(missed[:, 20:].any(axis=1).mean()) > 0.2


def test_the_sequence_covers_graded_differences() -> None:
    rng = np.random.default_rng(2)
    base = rng.beta(1, 1, (200, 120))
    of_a = np.clip(base + rng.normal(0, 0.25, base.shape), 0, 1)
    of_b = np.clip(base**2 + rng.normal(0, 0.25, base.shape), 0, 1)
    mean = float(
        np.mean(
            np.clip(
                (draw := rng.beta(1, 1, 10**6)) ** 2 + (noise := rng.normal(0, 0.25, 10**6)), 0, 1
            )
            - np.clip(draw + noise, 0, 1)
        )
    )
    assert _ever_excluded(of_b - of_a, mean) <= 0.05
    assert _ever_excluded(of_b - of_a, 0.0) >= 0.95


@pytest.mark.parametrize("bad", [1.2, math.nan, -math.inf])
def test_differences_are_bounded(bad: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        e_path([0.1, bad])
    with pytest.raises(ValueError, match="mean"):
        log_wealth([0.0], [1], -1.0)
    with pytest.raises(ValueError, match="counts"):
        log_mcnemar_e(-1, 0)


def test_a_long_path_is_that_of_its_parts() -> None:
    rng = np.random.default_rng(0)
    diffs = rng.choice([-1.0, -0.25, 0.0, 1.0], 9_000, p=[0.05, 0.05, 0.8, 0.1])
    log_e, p = e_path(diffs)
    values, counts = np.unique(diffs, return_counts=True)
    expected = log_e_value(
        *(float(log_wealth(side, counts.tolist())) for side in (values, -values))
    )
    assert log_e[-1] == pytest.approx(expected, abs=1e-9)
    assert np.all(np.diff(p) <= 0.0)
    assert log_e[0] == pytest.approx(0.0 if diffs[0] == 0.0 else log_e[0])
    short, _ = e_path(diffs[:5_000])
    assert short.tolist() == pytest.approx(log_e[:5_000].tolist(), abs=1e-9)
