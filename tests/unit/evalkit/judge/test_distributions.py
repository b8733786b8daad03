"""Quantiles and tails against scipy, over the whole range that intervals and power use."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evalkit.judge.distributions import (
    beta_cdf,
    critical_t,
    critical_z,
    normal_quantile,
    normal_tail,
    student_t_quantile,
    student_t_tail,
)

_DFS = [1, 1.5, 2, 3, 4, 5, 7, 10, 19, 20, 39.9, 40, 100, 499, 1e3, 1e4, 99_999, 1e5, 1e6, 1e8]
_PROBABILITIES = [1e-12, 0.001, 0.3, 0.501, 0.6, 0.75, 0.9, 0.95, 0.975, 0.995, 1 - 1e-6, 1 - 1e-9]


@pytest.mark.parametrize("df", _DFS)
@pytest.mark.parametrize("probability", _PROBABILITIES)
def test_t_quantile_equals_scipy(df: float, probability: float) -> None:
    expected = float(stats.t.ppf(probability, df))
    assert student_t_quantile(probability, df) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.floats(min_value=1, max_value=1e6), st.floats(min_value=0.51, max_value=0.9999))
def test_t_quantile_equals_scipy_between_the_grid(df: float, probability: float) -> None:
    expected = float(stats.t.ppf(probability, df))
    assert student_t_quantile(probability, df) == pytest.approx(expected, rel=1e-9)


@given(st.floats(min_value=0.5, max_value=1e6), st.floats(min_value=1e-6, max_value=0.5))
def test_t_quantile_is_odd(df: float, probability: float) -> None:
    upper = student_t_quantile(1.0 - probability, df)
    assert student_t_quantile(probability, df) == pytest.approx(-upper, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("probability", _PROBABILITIES)
def test_normal_quantile_equals_scipy(probability: float) -> None:
    expected = float(stats.norm.ppf(probability))
    assert normal_quantile(probability) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_series_for_large_df_joins_the_exact_inversion() -> None:
    below, above = student_t_quantile(0.975, 99_999.999), student_t_quantile(0.975, 100_000.0)
    assert below == pytest.approx(above, rel=1e-10)


def test_critical_values_are_two_sided() -> None:
    assert critical_z(0.95) == pytest.approx(1.959963984540054, abs=1e-12)
    assert critical_t(0.95, 9) == pytest.approx(2.262157162798205, abs=1e-12)


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1, 1.1, math.nan])
def test_a_probability_outside_the_open_interval_is_an_error(probability: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        student_t_quantile(probability, 3)


@pytest.mark.parametrize("df", [0.0, -1.0, math.nan])
def test_degrees_of_freedom_must_be_positive(df: float) -> None:
    with pytest.raises(ValueError, match="df > 0"):
        student_t_quantile(0.9, df)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_is_a_share(level: float) -> None:
    with pytest.raises(ValueError, match="confidence level"):
        critical_z(level)


@settings(deadline=None)
@given(st.floats(-60, 60), st.floats(0.5, 1e6))
def test_the_tail_of_t_equals_scipy(t: float, df: float) -> None:
    assert student_t_tail(t, df) == pytest.approx(float(stats.t.sf(t, df)), rel=1e-9, abs=1e-12)


def test_the_tail_of_t_at_its_ends() -> None:
    assert student_t_tail(math.inf, 3) == 0.0
    assert student_t_tail(-math.inf, 3) == 1.0
    assert student_t_tail(1.5, 1e13) == normal_tail(1.5)
    assert normal_tail(1.5) == pytest.approx(float(stats.norm.sf(1.5)), rel=1e-12)
    with pytest.raises(ValueError, match="df"):
        student_t_tail(1.0, 0.0)


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0.5, 500), st.floats(0.5, 500))
def test_the_incomplete_beta_equals_scipy(x: float, a: float, b: float) -> None:
    assert beta_cdf(x, a, b) == pytest.approx(float(stats.beta.cdf(x, a, b)), abs=1e-9)


@pytest.mark.parametrize(("x", "a", "b"), [(-0.1, 1, 1), (1.1, 1, 1), (0.5, 0, 1), (0.5, 1, 0)])
def test_the_incomplete_beta_is_checked(x: float, a: float, b: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        beta_cdf(x, a, b)
