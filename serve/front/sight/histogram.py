"""Durations counted in buckets: one list of ints, four buckets to each doubling. Pure.

Wide enough for 0.5 ms to 1,000 s, fine enough for percentiles within 13 %; adding costs one
increment. Knows no labels and no clock.
"""

from collections.abc import Sequence
from math import frexp

_SMALLEST_S = 0.0005
_SCALE = 1 / _SMALLEST_S
_DOUBLINGS = 21
BUCKETS = 4 * _DOUBLINGS + 2
"""One below the smallest bound, four to each doubling, one above the largest."""
BOUNDS_S = tuple(_SMALLEST_S * (1 << doubling) for doubling in range(_DOUBLINGS))
"""The bounds that are shown to Prometheus: 0.5 ms, 1 ms, 2 ms, ... 524.288 s."""


def bucket(seconds: float) -> int:
    """Return the bucket of a duration. A bound itself belongs to the bucket above it."""
    mantissa, exponent = frexp(seconds * _SCALE)
    if exponent < 1:
        return 0
    if exponent > _DOUBLINGS:
        return BUCKETS - 1
    return (exponent << 2) + int(mantissa * 8) - 7


def lower_bound_s(index: int) -> float:
    """Return the shortest duration that falls into a bucket."""
    if index == 0:
        return 0.0
    doubling, quarter = divmod(index - 1, 4)
    return _SMALLEST_S * (1 << doubling) * (1 + quarter / 4)


def percentile_s(counts: Sequence[int], share: float) -> float | None:
    """Return the duration below which `share` of the counted ones lie; None if there are none.

    Linear within a bucket; of those beyond the last bound only that bound is known.
    """
    total = sum(counts)
    if not total:
        return None
    rank = share * total
    below = 0
    for index, count in enumerate(counts):
        if count and below + count >= rank:
            start_s = lower_bound_s(index)
            if index == BUCKETS - 1:
                return start_s
            return start_s + (lower_bound_s(index + 1) - start_s) * (rank - below) / count
        below += count
    raise AssertionError("the ranks end within the buckets")


def cumulative(counts: Sequence[int]) -> list[int]:
    """Return how many durations lie below each of BOUNDS_S, and at last how many there are."""
    sums = [counts[0]]
    for start in range(1, BUCKETS - 1, 4):
        sums.append(sums[-1] + sum(counts[start : start + 4]))
    sums[-1] += counts[-1]
    return sums
