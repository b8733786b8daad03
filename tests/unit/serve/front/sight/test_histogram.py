"""Buckets, bounds and percentiles."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.front.sight.histogram import (
    BOUNDS_S,
    BUCKETS,
    bucket,
    cumulative,
    lower_bound_s,
    percentile_s,
)

durations = st.floats(min_value=0.0, max_value=2_000.0)


@given(durations)
def test_a_duration_lies_within_its_bucket(seconds: float) -> None:
    index = bucket(seconds)
    assert lower_bound_s(index) <= seconds
    assert index == BUCKETS - 1 or seconds < lower_bound_s(index + 1)


def test_buckets_grow_by_at_most_a_quarter() -> None:
    bounds = [lower_bound_s(index) for index in range(1, BUCKETS)]
    assert all(1 < above / below <= 1.25 for below, above in pairwise(bounds))
    assert (bounds[0], BOUNDS_S[0], BOUNDS_S[-1]) == (0.0005, 0.0005, 524.288)


@given(st.lists(durations, max_size=50))
def test_what_prometheus_gets_is_what_was_counted(values: list[float]) -> None:
    counts = [0] * BUCKETS
    for value in values:
        counts[bucket(value)] += 1
    assert cumulative(counts) == [
        *(sum(value < bound for value in values) for bound in BOUNDS_S),
        len(values),
    ]


@given(st.lists(st.floats(min_value=0.0005, max_value=500.0), min_size=1, max_size=200))
def test_percentiles_are_close_to_the_exact_ones(values: list[float]) -> None:
    counts = [0] * BUCKETS
    for value in values:
        counts[bucket(value)] += 1
    for share in (0.5, 0.9, 0.99):
        found = percentile_s(counts, share)
        exact = sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
        assert found is not None
        assert exact / 1.26 <= found <= exact * 1.26


@pytest.mark.parametrize(("filled", "expected"), [({}, None), ({BUCKETS - 1: 3}, 1048.576)])
def test_percentiles_at_the_edges(filled: dict[int, int], expected: float | None) -> None:
    counts = [filled.get(index, 0) for index in range(BUCKETS)]
    assert percentile_s(counts, 0.99) == expected
