"""How much results vary between seeds and within a seed, and what that says about repetitions.

Between: seeds are unequally hard. Within: the same seed played again ends differently. More seeds
reduce both, more repetitions only the second. Must not know what was measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evalkit.judge.intervals import Floats, require_finite


@dataclass(frozen=True, slots=True, kw_only=True)
class VarianceSplit:
    """A one-way random-effects split: variances of one value, in the metric's unit squared.

    `f` is the ratio of the mean squares, `repetitions` the effective number per seed (n0 of the
    unbalanced case). `between` is cut at 0; where no seed was repeated, `within` is None, and
    `between` holds the sum.
    """

    between: float
    within: float | None
    f: float | None
    repetitions: float
    n_seeds: int
    n: int

    @property
    def icc(self) -> float | None:
        """Share of the variance that lies between seeds; None where it is not known."""
        if self.within is None or self.between + self.within == 0.0:
            return None
        return self.between / (self.between + self.within)

    def se(self, n_seeds: int, repetitions: int) -> float:
        """Return the standard error of the mean for a design of this many seeds and repetitions.

        Raises ValueError for a size below 1, or more than one repetition with `within` unknown.
        """
        if min(n_seeds, repetitions) < 1:
            raise ValueError(f"expected sizes >= 1, got {n_seeds} and {repetitions}")
        if self.within is None and repetitions > 1:
            raise ValueError("expected repeated seeds to tell between from within; play k >= 2")
        noise = (self.within or 0.0) / repetitions
        return math.sqrt((self.between + noise) / n_seeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """How to spend a number of episodes: seeds, repetitions each, and the standard error then."""

    n_seeds: int
    repetitions: int
    se: float


def split_variance(values_by_seed: Sequence[Floats]) -> VarianceSplit:
    """Split the variance of values over seeds: one inner sequence per seed, empty ones left out.

    Give it differences between two arms, per seed and repetition, to plan a comparison. Raises
    ValueError for fewer than two seeds or values that are not finite.
    Source: Searle, Casella & McCulloch 1992, ch. 3 (analysis of variance estimators).
    """
    groups = [np.asarray(values, dtype=np.float64) for values in values_by_seed]
    groups = [require_finite(group) for group in groups if group.size]
    if len(groups) < 2:
        raise ValueError(f"expected at least two seeds with values, got {len(groups)}")
    sizes = np.array([group.size for group in groups], dtype=np.float64)
    n, n_seeds = int(sizes.sum()), len(groups)
    means = np.array([group.mean() for group in groups])
    mean = float(np.concatenate(groups).mean())
    mean_square_between = float(sizes @ (means - mean) ** 2) / (n_seeds - 1)
    repetitions = (n - float(sizes @ sizes) / n) / (n_seeds - 1)
    if n == n_seeds:
        return VarianceSplit(
            between=mean_square_between, within=None, f=None, repetitions=1.0, n_seeds=n, n=n
        )
    squares = sum(float(np.sum((group - group.mean()) ** 2)) for group in groups)
    within = squares / (n - n_seeds)
    return VarianceSplit(
        between=max(0.0, (mean_square_between - within) / repetitions),
        within=within,
        f=mean_square_between / within if within else None,
        repetitions=repetitions,
        n_seeds=n_seeds,
        n=n,
    )


def advise(
    split: VarianceSplit, episodes: int, *, max_seeds: int | None = None, seed_cost: float = 0.0
) -> Advice:
    """Choose seeds and repetitions for the smallest standard error of a mean.

    `episodes` is the budget, in episodes; a new seed costs `seed_cost` episodes besides its own.
    Where seeds are free and there are enough of them, one repetition each is always best: this is
    the advice unless `max_seeds` (a fixed data set) or `seed_cost` stands against it.
    Raises ValueError where the budget does not pay for one seed, or `within` is not known.
    Source: Cochran 1977, ch. 10: the best k is about sqrt(seed_cost * within / between).
    """
    if split.within is None:
        raise ValueError("expected repeated seeds to tell between from within; play k >= 2")
    limit = episodes if max_seeds is None else max_seeds
    if limit < 1 or seed_cost < 0.0 or episodes < 1.0 + seed_cost:
        raise ValueError(
            f"expected a budget for one seed, got {episodes=}, {max_seeds=}, {seed_cost=}"
        )
    designs = []
    for repetitions in range(1, int(episodes - seed_cost) + 1):
        n_seeds = min(limit, int(episodes / (repetitions + seed_cost)))
        designs.append((split.se(n_seeds, repetitions), repetitions, n_seeds))
    se, repetitions, n_seeds = min(designs)
    return Advice(n_seeds=n_seeds, repetitions=repetitions, se=se)
