"""Holm against statsmodels, e-BH against its definition, tied sets against all subsets."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from evalkit.judge.multiple import e_bh, holm, tied_sets


@settings(max_examples=25, deadline=None)  # statsmodels takes 45 ms a call
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30))
def test_holm_equals_statsmodels(p_values: list[float]) -> None:
    expected = multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(expected.tolist(), abs=1e-12)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_p_values_are_probabilities(bad: float) -> None:
    with pytest.raises(ValueError, match="p-values"):
        holm([0.5, bad])


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=12), st.floats(0.001, 0.999))
def test_e_bh_rejects_as_defined(e_values: list[float], alpha: float) -> None:
    """The k largest, with the largest k such that the k-th is at least m / (k alpha)."""
    m, ranked = len(e_values), sorted(e_values, reverse=True)
    kept = [k for k in range(1, m + 1) if k * ranked[k - 1] * alpha >= m * (1 - 1e-12)]
    cut = ranked[max(kept) - 1] if kept else math.inf
    rejected = [q <= alpha * (1 + 1e-12) for q in e_bh(e_values)]
    assert rejected == [value >= cut for value in e_values]


def test_e_bh_by_hand() -> None:
    assert e_bh([40.0, 0.0, 30.0]) == pytest.approx([0.05, 1.0, 0.05])
    assert e_bh([math.inf, 1.0]) == [0.0, 1.0]
    assert e_bh([]) == []


def test_e_bh_bounds_false_discoveries_under_dependence() -> None:
    """2,000 families of ten, seven of them null, all driven by one draw; exp(tz - t^2/2) is one."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(2_000, 1))
    z = 0.8 * shared + 0.6 * rng.normal(size=(2_000, 10))
    z[:, 7:] += 3.0
    false_share, found = [], 0
    for family in np.exp(2.0 * z - 2.0):
        rejected = np.array(e_bh(family)) <= 0.1
        false_share.append(rejected[:7].sum() / max(1, rejected.sum()))
        found += int(rejected[7:].sum())
    assert float(np.mean(false_share)) <= 0.1
    assert found > 2_000


@pytest.mark.parametrize("bad", [-0.1, math.nan])
def test_e_values_are_not_negative(bad: float) -> None:
    with pytest.raises(ValueError, match="e-values"):
        e_bh([0.5, bad])


def test_tied_sets_by_hand() -> None:
    assert tied_sets("abcd", []) == [["a", "b", "c", "d"]]
    assert tied_sets("abc", [("a", "c")]) == [["a", "b"], ["b", "c"]]
    assert tied_sets("abc", [("a", "b"), ("c", "a"), ("b", "c")]) == [["a"], ["b"], ["c"]]
    assert tied_sets([], []) == []


@settings(deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda n: st.tuples(
            st.just(n), st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)
        )
    )
)
def test_tied_sets_are_all_that_cannot_grow(drawn: tuple[int, set[tuple[int, int]]]) -> None:
    n, pairs = drawn
    arms = "abcdef"[:n]
    differ = [(arms[i], arms[j]) for i, j in pairs if i != j and max(i, j) < n]
    told = {frozenset(pair) for pair in differ}
    tied = [
        set(chosen)
        for size in range(1, n + 1)
        for chosen in combinations(arms, size)
        if not any(frozenset(pair) in told for pair in combinations(chosen, 2))
    ]
    expected = sorted(sorted(one) for one in tied if not any(one < other for other in tied))
    assert tied_sets(arms, differ) == expected


def test_tied_sets_know_their_arms() -> None:
    with pytest.raises(ValueError, match="distinct"):
        tied_sets(["a", "a"], [])
    with pytest.raises(ValueError, match="expected two of"):
        tied_sets(["a", "b"], [("a", "x")])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=12))
def test_e_bh_of_inverse_p_values_equals_statsmodels(p_values: list[float]) -> None:
    """The procedure of Benjamini and Hochberg, whose p-values are the inverse of e-values."""
    expected = multipletests(p_values, method="fdr_bh")[1]
    found = e_bh([1.0 / p for p in p_values])
    assert found == pytest.approx(expected.tolist(), abs=1e-9)
