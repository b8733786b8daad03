"""Rates of two arms without shared seeds."""

from __future__ import annotations

import math
import random

import pytest
from statsmodels.stats.proportion import confint_proportions_2indep

from evalkit.judge.unpaired import independent_difference_interval, independent_difference_p


def arm(successes: int, n: int, first: int = 0) -> dict[int, list[float]]:
    return {first + seed: [float(seed < successes)] for seed in range(n)}


@pytest.mark.parametrize(
    ("a", "b"), [((12, 40), (25, 50)), ((0, 20), (7, 30)), ((30, 30), (29, 31)), ((5, 9), (5, 9))]
)
def test_the_interval_is_newcombes(a: tuple[int, int], b: tuple[int, int]) -> None:
    found = independent_difference_interval(arm(*a), arm(*b, 1000))
    lo, hi = confint_proportions_2indep(*b, *a, method="newcomb", compare="diff")
    assert (found.lo, found.hi) == pytest.approx((lo, hi), abs=1e-9)


def test_the_p_value_is_where_the_interval_leaves_zero() -> None:
    a, b = arm(12, 40), arm(25, 50)
    p = independent_difference_p(a, b)
    wider = independent_difference_interval(a, b, 1.0 - p * 0.999)
    narrower = independent_difference_interval(a, b, 1.0 - p * 1.001)
    assert wider.lo <= 0.0 < narrower.lo
    assert independent_difference_p(b, a) == pytest.approx(p)


@pytest.mark.parametrize(
    ("a", "b", "p"), [(arm(3, 9), arm(3, 9), 1.0), ({}, arm(3, 9), 1.0), ({}, {}, 1.0)]
)
def test_without_a_difference_p_is_one(
    a: dict[int, list[float]], b: dict[int, list[float]], p: float
) -> None:
    assert independent_difference_p(a, b) == p


def test_equal_arms_are_told_apart_in_one_of_twenty() -> None:
    rng = random.Random(0)
    found: dict[tuple[int, int], float] = {}
    rejected = 0
    for _ in range(2000):
        a, b = (sum(rng.random() < 0.3 for _ in range(30)) for _ in range(2))
        if (a, b) not in found:
            found[a, b] = independent_difference_p(arm(a, 30), arm(b, 30))
        rejected += found[a, b] <= 0.05
    assert rejected / 2000 == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 2000) + 0.005)


def test_repetitions_that_agree_are_no_more_evidence() -> None:
    once = independent_difference_p(arm(8, 20), arm(14, 20))
    thrice = independent_difference_p(
        {seed: values * 3 for seed, values in arm(8, 20).items()},
        {seed: values * 3 for seed, values in arm(14, 20).items()},
    )
    assert once <= thrice < 0.1
    assert independent_difference_p(arm(24, 60), arm(42, 60)) < 0.01
