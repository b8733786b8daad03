"""pass@k and pass^k: against their definitions by force, and coverage of their intervals."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from evalkit.judge.intervals import bca_bootstrap, wilson
from evalkit.judge.passk import pass_all, pass_at, pass_at_k, pass_hat_k

_sizes = st.integers(1, 9).flatmap(
    lambda n: st.tuples(st.integers(0, n), st.just(n), st.integers(1, n))
)


@given(_sizes)
def test_one_seed_equals_all_draws(sizes: tuple[int, int, int]) -> None:
    successes, n, k = sizes
    draws = list(combinations([True] * successes + [False] * (n - successes), k))
    assert pass_at(successes, n, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)
    assert pass_all(successes, n, k) == pytest.approx(sum(map(all, draws)) / len(draws), abs=1e-12)


@given(st.integers(0, 500), st.integers(1, 500))
def test_one_seed_equals_binomial_coefficients(successes: int, k: int) -> None:
    n = 500
    expected = special.binom(successes, k) / special.binom(n, k) if k < 150 else None
    if expected is not None:
        assert pass_all(successes, n, k) == pytest.approx(float(expected), rel=1e-9, abs=1e-300)
    assert pass_at(successes, n, k) == 1.0 - pass_all(n - successes, n, k)


def test_over_seeds() -> None:
    estimate = pass_at_k([0, 1, 2, 4], [4, 4, 4, 4], 2, n_resamples=2_000, seed=3)
    assert estimate.value == pytest.approx((0 + 0.5 + 5 / 6 + 1) / 4)
    assert estimate.interval == bca_bootstrap([0, 0.5, 5 / 6, 1], n_resamples=2_000, seed=3)
    hat = pass_hat_k([0, 1, 2, 4], [4, 4, 4, 4], 2)
    assert hat.value == pytest.approx((0 + 0 + 1 / 6 + 1) / 4)
    once = pass_at_k([1, 0, 1], [1, 1, 1], 1)
    assert once.value == pytest.approx(2 / 3)


def test_seeds_with_too_few_repetitions_are_counted() -> None:
    estimate = pass_at_k([1, 1, 0], [3, 1, 3], 2)
    assert (estimate.n_seeds, estimate.dropped) == (2, 1)
    none = pass_hat_k([1], [1], 2)
    assert (none.value, none.interval, none.n_seeds, none.dropped) == (None, None, 0, 1)


def test_agreement_of_all_seeds_is_no_certainty() -> None:
    assert pass_at_k([4] * 12, [4] * 12, 2).interval == wilson(12, 12)
    assert pass_hat_k([0] * 12, [4] * 12, 2).interval == wilson(0, 12)


@pytest.mark.parametrize("estimate", [pass_at_k, pass_hat_k])
def test_the_interval_covers(estimate: object) -> None:
    """300 runs of 60 seeds with 6 repetitions, k = 3; the standard error of a coverage is .013."""
    assert callable(estimate)
    rng = np.random.default_rng(0)
    held = []
    chances = rng.beta(0.8, 0.8, 200_000)
    true = float(np.mean(1 - (1 - chances) ** 3 if estimate is pass_at_k else chances**3))
    for index in range(300):
        won = rng.binomial(6, rng.beta(0.8, 0.8, 60)).tolist()
        interval = estimate(won, [6] * 60, 3, n_resamples=500, seed=index).interval
        assert interval is not None
        held.append(interval.lo <= true <= interval.hi)
    assert 0.91 <= float(np.mean(held)) <= 0.98


@pytest.mark.parametrize("bad", [(3, 2, 1), (-1, 2, 1), (1, 2, 3), (1, 2, 0)])
def test_counts_are_checked(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        pass_all(*bad)
    with pytest.raises(ValueError, match="k >= 1"):
        pass_at_k([1], [1], 0)
