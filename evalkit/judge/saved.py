"""What runs of fixed size would have taken to see what a sequential comparison saw.

Must not know what an episode costs, nor how this is shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evalkit.judge.design import savings
from evalkit.judge.intervals import FloatArray
from evalkit.judge.power import pairs_needed


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedSizes:
    """Seeds per arm of runs whose size is fixed beforehand, at the power and level given."""

    effect: float
    """The difference B - A that they are made to see, in the metric's unit."""
    paired: int
    """Seeds that both arms share."""
    unpaired: int
    """Seeds that each arm has of its own."""


def fixed_sizes(
    a: Sequence[float],
    b: Sequence[float],
    *,
    margin: float | None = None,
    binary: bool,
    power: float = 0.8,
    alpha: float = 0.05,
) -> FixedSizes | None:
    """Size runs that see the observed difference of paired values, both of shape (n,).

    Where a `margin` is given, that is the difference to be seen instead. `binary` values are 0
    and 1: McNemar's test against that of two independent rates, and never fewer seeds than an
    exact test needs. Others: t tests. None where there is no difference to see, or no rate that is
    the margin away, or no spread known.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.size < 2:
        return None
    mean_a, mean_b = float(left.mean()), float(right.mean())
    if margin is not None:
        mean_b = mean_a + (margin if mean_a + margin <= 1.0 or not binary else -margin)
    effect = mean_b - mean_a
    if not effect or (binary and mean_b < 0.0):
        return None
    if binary:
        known = savings(left.size, mean_a, mean_b, rho=_rho(left, right), power=power, alpha=alpha)
        paired = max(known.fixed_paired, _fewest_paired(alpha))
        unpaired = max(known.fixed_unpaired, _fewest_unpaired(alpha))
    else:
        apart = math.sqrt(float(left.var(ddof=1) + right.var(ddof=1)))
        together = float((right - left).std(ddof=1))
        paired = pairs_needed(effect, together, power, alpha)
        unpaired = pairs_needed(effect, apart, power, alpha)
    return FixedSizes(effect=effect, paired=paired, unpaired=unpaired)


def _rho(a: FloatArray, b: FloatArray) -> float:
    """Correlation of the two; 0 where one of them does not vary."""
    spread = float(a.std() * b.std())
    if not spread:
        return 0.0
    return min(1.0, max(-1.0, float(np.mean((a - a.mean()) * (b - b.mean()))) / spread))


def _fewest_paired(alpha: float) -> int:
    """Seeds with which the exact McNemar test can decide at all: 2 * 2^-n <= alpha."""
    return math.ceil(math.log2(2.0 / alpha))


def _fewest_unpaired(alpha: float) -> int:
    """Seeds per arm with which Fisher's exact test can decide at all: 2 / C(2n, n) <= alpha."""
    n = 1
    while 2.0 / math.comb(2 * n, n) > alpha:
        n += 1
    return n
