"""What missing outcomes could at most change: worst-case bounds of a paired difference.

An episode lost to infrastructure has no outcome. Instead of guessing one, the difference is
computed as if all lost ones had favoured A, and as if all had favoured B. Must not know why an
outcome is missing.
Source: Manski 1990; Horowitz & Manski 2000, JASA 95:77.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evalkit.judge.distributions import require_level
from evalkit.judge.intervals import FloatArray, Floats
from evalkit.judge.paired import (
    clustered_difference,
    paired_counts,
    paired_difference_interval,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceBounds:
    """[`diff_lo`, `diff_hi`] holds the difference B - A whatever the lost outcomes were.

    [`lo`, `hi`] runs from the lower end of the interval when all favour A to the upper end when all
    favour B, so it covers at least `level`. It is nan where there is no interval.
    """

    n_seeds: int
    n_missing: int
    diff_lo: float
    diff_hi: float
    lo: float
    hi: float
    level: float

    @property
    def robust(self) -> bool:
        """Whether the sign of the difference is certain at `level` despite the lost outcomes."""
        return self.lo > 0.0 or self.hi < 0.0


def worst_case_difference(
    a: Sequence[float | None],
    b: Sequence[float | None],
    *,
    binary: bool,
    lowest: float = 0.0,
    highest: float = 1.0,
    level: float = 0.95,
) -> DifferenceBounds:
    """Bound the mean difference B - A over seeds, with None for an outcome that was lost.

    `a` and `b` have one entry per seed, in the same order; outcomes lie in [lowest, highest]. With
    `binary` they are 0 or 1, and the interval is Tango's; else it is Student's over seeds.
    Raises ValueError for lengths that differ, no seed, or an outcome outside its limits.
    """
    require_level(level)
    if binary and (lowest, highest) != (0.0, 1.0):
        raise ValueError(f"expected limits 0 and 1 where binary, got {lowest} and {highest}")
    pairs = list(zip(a, b, strict=True))
    if not pairs or not lowest < highest:
        raise ValueError(f"expected seeds and lowest < highest, got {len(pairs)}, {lowest=}")
    for value in (outcome for pair in pairs for outcome in pair if outcome is not None):
        if not lowest <= value <= highest or (binary and value not in (0.0, 1.0)):
            raise ValueError(f"expected outcomes in [{lowest}, {highest}], got {value}")
    # First as if every lost outcome had favoured A, then as if it had favoured B
    filled = [
        (_filled([x for x, _ in pairs], of_a), _filled([y for _, y in pairs], of_b))
        for of_a, of_b in ((highest, lowest), (lowest, highest))
    ]
    missing = sum(x is None or y is None for x, y in pairs)
    return _bounds(filled, missing, level, binary=binary)


def worst_case_repeated(
    a: Sequence[tuple[Floats, int]],
    b: Sequence[tuple[Floats, int]],
    *,
    binary: bool,
    lowest: float = 0.0,
    highest: float = 1.0,
    level: float = 0.95,
) -> DifferenceBounds:
    """Bound the mean difference B - A of seeds that were played several times.

    Per seed and arm, in the same order: the outcomes that are known, and how many were lost, at
    least one of both. Every seed weighs the same. With `binary` and one episode per seed and arm
    it is `worst_case_difference`. Raises ValueError as that.
    """
    lost_a, lost_b = ([lost for _, lost in arm] for arm in (a, b))
    pairs = list(zip(a, b, strict=True))
    if binary and all(len(values) + lost == 1 for arm in (a, b) for values, lost in arm):
        single_a, single_b = (
            [values[0] if len(values) else None for values, _ in x] for x in (a, b)
        )
        return worst_case_difference(single_a, single_b, binary=True, level=level)
    require_level(level)
    if not pairs or not lowest < highest:
        raise ValueError(f"expected seeds and lowest < highest, got {len(pairs)}, {lowest=}")
    filled = [
        (_means(a, of_a, lowest, highest), _means(b, of_b, lowest, highest))
        for of_a, of_b in ((highest, lowest), (lowest, highest))
    ]
    missing = sum(x + y > 0 for x, y in zip(lost_a, lost_b, strict=True))
    return _bounds(filled, missing, level, binary=False)


def _bounds(
    filled: Sequence[tuple[FloatArray, FloatArray]], missing: int, level: float, *, binary: bool
) -> DifferenceBounds:
    """Take the lower end of the first way to fill in, and the upper end of the second."""
    diffs = [values_b - values_a for values_a, values_b in filled]
    if binary:
        ends = [paired_difference_interval(*paired_counts(*arms), level=level) for arms in filled]
        lo, hi = ends[0].lo, ends[1].hi
    else:
        lo = clustered_difference(diffs[0], level).lo
        hi = clustered_difference(diffs[1], level).hi
    return DifferenceBounds(
        n_seeds=diffs[0].size,
        n_missing=missing,
        diff_lo=float(diffs[0].mean()),
        diff_hi=float(diffs[1].mean()),
        lo=lo,
        hi=hi,
        level=level,
    )


def _means(
    arm: Sequence[tuple[Floats, int]], lost_as: float, lowest: float, highest: float
) -> FloatArray:
    """Return the mean of each seed, with `lost_as` for every outcome that was lost."""
    for values, lost in arm:
        if lost + len(values) < 1 or any(not lowest <= value <= highest for value in values):
            raise ValueError(f"expected outcomes in [{lowest}, {highest}], got {values}, {lost=}")
    return np.array([(sum(values) + n * lost_as) / (len(values) + n) for values, n in arm])


def _filled(outcomes: Sequence[float | None], lost: float) -> FloatArray:
    return np.array([lost if outcome is None else outcome for outcome in outcomes])
