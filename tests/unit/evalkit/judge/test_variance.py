"""The split of variance: against scipy's F and simulated truth; the advice against all designs."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evalkit.judge.variance import Advice, advise, split_variance

_groups = st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=5), min_size=2, max_size=8)


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(2, 6), st.integers(0, 10**6))
def test_f_equals_scipy(n_seeds: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 1, (n_seeds, 1)) + rng.normal(0, 1, (n_seeds, k))
    split = split_variance(list(values))
    assert split.f == pytest.approx(float(stats.f_oneway(*values).statistic), rel=1e-9)
    assert split.within == pytest.approx(float(values.var(axis=1, ddof=1).mean()), rel=1e-9)
    expected = values.mean(axis=1).var(ddof=1) - values.var(axis=1, ddof=1).mean() / k
    assert split.between == pytest.approx(max(0.0, float(expected)), abs=1e-9)


def test_unequal_repetitions_equal_scipy_and_searle() -> None:
    groups = [[1.0, 2.0, 4.0], [3.0], [0.0, 1.0], [5.0, 7.0, 6.0, 9.0]]
    split = split_variance(groups)
    assert split.f == pytest.approx(float(stats.f_oneway(*groups).statistic), rel=1e-9)
    assert split.repetitions == pytest.approx((10 - (9 + 1 + 4 + 16) / 10) / 3)
    assert (split.n_seeds, split.n) == (4, 10)


def test_the_split_is_unbiased() -> None:
    """400 runs of 40 unevenly repeated seeds: true variances .3 and .7."""
    rng = np.random.default_rng(0)
    splits = []
    for _ in range(400):
        seeds = rng.normal(0, math.sqrt(0.3), 40)
        splits.append(
            split_variance(
                [rng.normal(mean, math.sqrt(0.7), 1 + i % 4) for i, mean in enumerate(seeds)]
            )
        )
    assert float(np.mean([s.within for s in splits if s.within])) == pytest.approx(0.7, abs=0.02)
    assert float(np.mean([s.between for s in splits])) == pytest.approx(0.3, abs=0.03)
    assert float(np.mean([s.icc for s in splits if s.icc])) == pytest.approx(0.3, abs=0.03)


def test_the_standard_error_of_a_design_is_what_happens() -> None:
    split = split_variance([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    assert split.within is not None
    assert split.se(100, 4) == math.sqrt((split.between + split.within / 4) / 100)
    rng = np.random.default_rng(1)
    means = [(rng.normal(0, 1, (50, 1)) + rng.normal(0, 2, (50, 3))).mean() for _ in range(2_000)]
    known = split_variance(list(rng.normal(0, 1, (20_000, 1)) + rng.normal(0, 2, (20_000, 3))))
    assert known.se(50, 3) == pytest.approx(float(np.std(means)), rel=0.06)


def test_seeds_come_before_repetitions() -> None:
    split = split_variance(list(np.random.default_rng(2).normal(0, 1, (30, 3))))
    assert advise(split, 120) == Advice(n_seeds=120, repetitions=1, se=split.se(120, 1))
    limited = advise(split, 120, max_seeds=30)
    assert (limited.n_seeds, limited.repetitions) == (30, 4)


@pytest.mark.parametrize("seed_cost", [1.0, 4.0, 20.0])
def test_dear_seeds_are_repeated_as_cochran_says(seed_cost: float) -> None:
    rng = np.random.default_rng(3)
    split = split_variance(list(rng.normal(0, 1, (400, 1)) + rng.normal(0, 2, (400, 5))))
    assert split.within is not None
    best = advise(split, 5_000, seed_cost=seed_cost)
    rule = math.sqrt(seed_cost * split.within / split.between)
    assert abs(best.repetitions - rule) <= 1.0
    designs = [
        split.se(int(5_000 / (k + seed_cost)), k) for k in range(1, 4_000) if k + seed_cost <= 5_000
    ]
    assert best.se == min(designs)


def test_single_repetitions_cannot_be_split() -> None:
    split = split_variance([[1.0], [2.0], [4.0]])
    assert (split.within, split.f, split.icc) == (None, None, None)
    assert split.between == pytest.approx(float(np.var([1, 2, 4], ddof=1)))
    assert split.se(3, 1) == pytest.approx(float(stats.sem([1, 2, 4])))
    with pytest.raises(ValueError, match="k >= 2"):
        split.se(3, 2)
    with pytest.raises(ValueError, match="k >= 2"):
        advise(split, 10)


def test_sameness_has_no_share() -> None:
    split = split_variance([[1.0, 1.0], [1.0, 1.0]])
    assert (split.between, split.within, split.f, split.icc) == (0.0, 0.0, None, None)


@given(_groups)
def test_shifts_do_not_matter(groups: list[list[float]]) -> None:
    one, other = split_variance(groups), split_variance([[x + 3 for x in g] for g in groups])
    assert one.between == pytest.approx(other.between, abs=1e-9)
    assert (one.within or 0.0) == pytest.approx(other.within or 0.0, abs=1e-9)


def test_inputs_are_checked() -> None:
    with pytest.raises(ValueError, match="two seeds"):
        split_variance([[1.0, 2.0], []])
    with pytest.raises(ValueError, match="finite"):
        split_variance([[math.nan], [1.0]])
    split = split_variance([[1.0, 2.0], [2.0, 4.0]])
    with pytest.raises(ValueError, match="budget"):
        advise(split, 2, seed_cost=3.0)
    with pytest.raises(ValueError, match="sizes"):
        split.se(0, 1)
