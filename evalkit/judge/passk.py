"""k tries at a seed: the chance that one succeeds (pass@k), and that all do (pass^k).

The unit is the env seed; its chance is estimated without bias from its repetitions, and seeds are
resampled for the interval. Must not know what an episode is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evalkit.judge.intervals import Interval, bca_bootstrap, wilson


@dataclass(frozen=True, slots=True, kw_only=True)
class PassEstimate:
    """A mean over the seeds that have at least `k` repetitions; None without such a seed.

    `dropped` counts the seeds with fewer.
    """

    k: int
    value: float | None
    interval: Interval | None
    n_seeds: int
    dropped: int


def pass_at(successes: int, n: int, k: int) -> float:
    """Chance that at least one of k repetitions, drawn from these n without return, succeeded.

    The unbiased estimate for one seed. Raises ValueError unless 0 <= successes <= n, 1 <= k <= n.
    Source: Chen et al. 2021, arXiv 2107.03374.
    """
    return 1.0 - pass_all(n - successes, n, k)


def pass_all(successes: int, n: int, k: int) -> float:
    """Chance that all of k repetitions, drawn from these n without return, succeeded (pass^k).

    The unbiased estimate for one seed. Raises ValueError unless 0 <= successes <= n, 1 <= k <= n.
    Source: Yao et al. 2024, arXiv 2406.12045.
    """
    if not 0 <= successes <= n or not 1 <= k <= n:
        raise ValueError(f"expected 0 <= successes <= n and 1 <= k <= n, got {(successes, n, k)}")
    chance = 1.0
    for drawn in range(k):
        chance *= max(0, successes - drawn) / (n - drawn)
    return chance


def pass_at_k(
    successes_by_seed: Sequence[int],
    n_by_seed: Sequence[int],
    k: int,
    *,
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> PassEstimate:
    """Estimate pass@k over seeds, with a BCa bootstrap interval over seeds.

    Where all seeds have 0, or all have 1, the interval is Wilson's of as many seeds: a bootstrap
    would have no width. Raises ValueError for lengths that differ or counts out of range.
    """
    return _estimate(pass_at, successes_by_seed, n_by_seed, k, level, n_resamples, seed)


def pass_hat_k(
    successes_by_seed: Sequence[int],
    n_by_seed: Sequence[int],
    k: int,
    *,
    level: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> PassEstimate:
    """Estimate pass^k over seeds: as `pass_at_k`, for the chance that all k succeed."""
    return _estimate(pass_all, successes_by_seed, n_by_seed, k, level, n_resamples, seed)


def _estimate(
    of_seed: Callable[[int, int, int], float],
    successes_by_seed: Sequence[int],
    n_by_seed: Sequence[int],
    k: int,
    level: float,
    n_resamples: int,
    seed: int,
) -> PassEstimate:
    if k < 1:
        raise ValueError(f"expected k >= 1, got {k}")
    pairs = list(zip(successes_by_seed, n_by_seed, strict=True))
    values = np.array([of_seed(won, n, k) for won, n in pairs if n >= k], dtype=np.float64)
    dropped = len(pairs) - values.size
    if not values.size:
        return PassEstimate(k=k, value=None, interval=None, n_seeds=0, dropped=dropped)
    if np.all(values == 0.0) or np.all(values == 1.0):
        interval = wilson(int(values.sum()), values.size, level)
    else:
        interval = bca_bootstrap(values, level=level, n_resamples=n_resamples, seed=seed)
    value = float(values.mean())
    return PassEstimate(k=k, value=value, interval=interval, n_seeds=values.size, dropped=dropped)
