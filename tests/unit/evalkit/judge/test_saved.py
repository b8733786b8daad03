"""Runs of fixed size that would have seen the same."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evalkit.judge.design import plan
from evalkit.judge.power import pairs_needed
from evalkit.judge.saved import fixed_sizes

# 200 seeds: 70 both, 30 only A, 50 only B, 50 neither
A = [1.0] * 100 + [0.0] * 100
B = [1.0] * 70 + [0.0] * 30 + [1.0] * 50 + [0.0] * 50


def test_rates_are_sized_as_before_a_run() -> None:
    found = fixed_sizes(A, B, binary=True)
    rho = float(np.corrcoef(A, B)[0, 1])
    planned = plan(0.5, 0.1, rho=rho)
    assert found is not None
    assert found.effect == pytest.approx(0.1)
    assert (found.paired, found.unpaired) == (planned.seeds, planned.unpaired_seeds)
    assert planned.discordant_rate == pytest.approx(0.4)
    assert found.unpaired == 385


def test_a_margin_is_sized_instead_of_what_was_seen() -> None:
    found = fixed_sizes(A, A, margin=0.02, binary=True)
    assert found is not None
    assert found.effect == pytest.approx(0.02)
    assert found.unpaired == plan(0.5, 0.02).unpaired_seeds
    always = fixed_sizes([1.0] * 50, [1.0] * 50, margin=0.02, binary=True)
    assert always is not None
    assert always.effect == pytest.approx(-0.02)


def test_a_perfect_difference_needs_what_an_exact_test_needs() -> None:
    found = fixed_sizes([0.0] * 9, [1.0] * 9, binary=True)
    assert found is not None
    assert (found.paired, found.unpaired) == (6, 4)
    assert 2.0 * 0.5**6 <= 0.05 < 2.0 * 0.5**5
    assert 2.0 / math.comb(8, 4) <= 0.05 < 2.0 / math.comb(6, 3)


def test_means_are_sized_by_their_spreads() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=80)
    a = (hard + rng.normal(size=80) / 2).tolist()
    b = (hard + rng.normal(size=80) / 2 + 0.4).tolist()
    found = fixed_sizes(a, b, binary=False, power=0.9, alpha=0.01)
    assert found is not None
    diff = np.subtract(b, a)
    assert found.effect == pytest.approx(float(diff.mean()))
    assert found.paired == pairs_needed(found.effect, float(diff.std(ddof=1)), 0.9, 0.01)
    apart = math.sqrt(float(np.var(a, ddof=1) + np.var(b, ddof=1)))
    assert found.unpaired == pairs_needed(found.effect, apart, 0.9, 0.01)
    assert found.unpaired > 3 * found.paired


def test_any_outcomes_have_sizes_or_none() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        n = int(rng.integers(2, 60))
        rates = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0], 2)
        a, b = (rng.random((2, n)) < rates[:, np.newaxis]).astype(float).tolist()
        margin = rng.choice([0.0, 0.02, 0.5])
        found = fixed_sizes(a, b, margin=float(margin) or None, binary=True)
        assert found is None or min(found.paired, found.unpaired) >= 4


def test_a_margin_that_no_rate_is_away_has_no_size() -> None:
    assert fixed_sizes(A, A, margin=0.6, binary=True) is None


@pytest.mark.parametrize(("a", "b"), [(A, A), ([1.0], [0.0]), ([], [])])
def test_nothing_to_see_has_no_size(a: list[float], b: list[float]) -> None:
    assert fixed_sizes(a, b, binary=True) is None
