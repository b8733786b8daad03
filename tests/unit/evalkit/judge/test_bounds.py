"""Worst cases: against every way in which the lost outcomes could have ended."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.judge.bounds import worst_case_difference, worst_case_repeated
from evalkit.judge.paired import clustered_difference, paired_counts, paired_difference_interval

_outcome = st.sampled_from([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, None])
_pairs = st.lists(st.tuples(_outcome, _outcome), min_size=1, max_size=14)


@settings(max_examples=60, deadline=None)
@given(_pairs)
def test_no_completion_is_outside(pairs: list[tuple[float | None, float | None]]) -> None:
    flat = [outcome for pair in pairs for outcome in pair]
    lost = [index for index, outcome in enumerate(flat) if outcome is None][:6]
    for index in [i for i, outcome in enumerate(flat) if outcome is None][6:]:
        flat[index] = 0.0
    bounds = worst_case_difference(flat[::2], flat[1::2], binary=True)
    ends = []
    for filling in product((0.0, 1.0), repeat=len(lost)):
        filled = list(flat)
        for index, value in zip(lost, filling, strict=True):
            filled[index] = value
        of_a, of_b = (np.array(filled[arm::2], dtype=np.float64) for arm in (0, 1))
        interval = paired_difference_interval(*paired_counts(of_a, of_b))
        ends.append((interval.lo, interval.hi, float((of_b - of_a).mean())))
    lows, highs, diffs = zip(*ends, strict=True)
    assert bounds.lo == pytest.approx(min(lows), abs=1e-9)
    assert bounds.hi == pytest.approx(max(highs), abs=1e-9)
    assert (bounds.diff_lo, bounds.diff_hi) == pytest.approx((min(diffs), max(diffs)), abs=1e-12)
    assert bounds.n_missing == len({index // 2 for index in lost})


def test_without_losses_it_is_the_interval() -> None:
    bounds = worst_case_difference([0, 1, 1, 0], [1, 1, 1, 0], binary=True)
    interval = paired_difference_interval(2, 0, 1, 1)
    assert (bounds.lo, bounds.hi) == (interval.lo, interval.hi)
    assert bounds.diff_lo == bounds.diff_hi == 0.25
    assert bounds.n_missing == 0


def test_graded_outcomes_use_their_limits() -> None:
    bounds = worst_case_difference(
        [2.0, None, 5.0], [3.0, 4.0, None], binary=False, lowest=-1.0, highest=9.0
    )
    low, high = clustered_difference([1.0, -5.0, -6.0]), clustered_difference([1.0, 5.0, 4.0])
    assert (bounds.diff_lo, bounds.diff_hi) == (low.mean, high.mean)
    assert (bounds.lo, bounds.hi) == (low.lo, high.hi)
    assert not bounds.robust


def test_a_large_difference_survives_few_losses() -> None:
    a: list[float | None] = [0.0] * 38 + [None, None]
    assert worst_case_difference(a, [1.0] * 30 + [0.0] * 10, binary=True).robust


def test_inputs_are_checked() -> None:
    with pytest.raises(ValueError, match="outcomes"):
        worst_case_difference([0.5], [1], binary=True)
    with pytest.raises(ValueError, match="outcomes"):
        worst_case_difference([3.0], [1.0], binary=False)
    with pytest.raises(ValueError, match="limits"):
        worst_case_difference([1], [1], binary=True, highest=2.0)
    with pytest.raises(ValueError, match="seeds"):
        worst_case_difference([], [], binary=True)


def test_seeds_played_once_are_the_single_case() -> None:
    a, b = [1.0, 0.0, None, 0.0], [1.0, 1.0, 1.0, None]
    found = worst_case_repeated(
        *([((), 1) if x is None else ([x], 0) for x in arm] for arm in (a, b)), binary=True
    )
    assert found == worst_case_difference(a, b, binary=True)


def test_lost_repetitions_move_their_seeds_mean() -> None:
    a: list[tuple[list[float], int]] = [([1.0], 1), ([0.0, 0.0], 0), ([0.0, 1.0], 0)]
    b: list[tuple[list[float], int]] = [([1.0, 1.0], 0), ([1.0, 0.0], 0), ([], 2)]
    found = worst_case_repeated(a, b, binary=True)
    assert (found.n_seeds, found.n_missing) == (3, 2)
    # A's lost one a success and B's two failures; then the reverse
    assert found.diff_lo == pytest.approx((0.0 + 0.5 - 0.5) / 3)
    assert found.diff_hi == pytest.approx((0.5 + 0.5 + 0.5) / 3)
    assert found.lo < found.diff_lo < found.diff_hi
    assert found.hi == pytest.approx(0.5)  # the same on every seed
    swapped = worst_case_repeated(b, a, binary=True)
    assert (swapped.diff_lo, swapped.diff_hi) == (-found.diff_hi, -found.diff_lo)


@pytest.mark.parametrize(
    ("a", "b"),
    [([], []), ([([], 0)], [([1.0], 0)]), ([([2.0, 0.0], 0)], [([1.0], 1)])],
)
def test_repeated_outcomes_are_checked(
    a: list[tuple[list[float], int]], b: list[tuple[list[float], int]]
) -> None:
    with pytest.raises(ValueError, match="expected"):
        worst_case_repeated(a, b, binary=False)
