"""A policy against itself: whether the tests behind a verdict keep what they promise.

Both arms are drawn from the same chances of success, seed by seed. Every difference that a test
then finds is false, and at most alpha of the comparisons may end so. A test that is repeated after
every pair without paying for it is run beside them, to show what that would do.

Must not know the command that shows it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evalkit.judge.betting import e_path
from evalkit.judge.distributions import require_level, student_t_quantile
from evalkit.judge.intervals import FloatArray
from evalkit.judge.paired import mcnemar, sign_flip_permutation

_FIRST_LOOK = 10
_FLIPS = 999


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCheck:
    """Shares of false decisions over `comparisons` of equal arms, on `n_seeds` seeds each.

    `fixed` is the test of the verdict, once, at the end; `sequential` the e-process, after every
    pair; `naive` a paired t test after every pair from the tenth. `allowed` is alpha and three
    standard errors of a share.
    """

    comparisons: int
    n_seeds: int
    k: int
    alpha: float
    fixed: float
    sequential: float
    naive: float

    @property
    def allowed(self) -> float:
        """The largest share that a correct test shows but for one check in a thousand."""
        return self.alpha + 3.0 * math.sqrt(self.alpha * (1.0 - self.alpha) / self.comparisons)

    @property
    def passed(self) -> bool:
        """Whether both tests that verdicts rest on keep their promise."""
        return max(self.fixed, self.sequential) <= self.allowed


def self_check(
    comparisons: int = 1_000,
    n_seeds: int = 200,
    k: int = 1,
    *,
    alpha: float = 0.05,
    rates: Sequence[float] | None = None,
    seed: int = 0,
) -> SelfCheck:
    """Compare a policy with itself, `comparisons` times, and count false decisions.

    `rates` are chances of success of seeds, to be drawn from with replacement (those observed in a
    run, say); without them they are uneven, Beta(0.6, 0.6). The draws are those of
    `Generator(PCG64(seed))`. Raises ValueError for sizes below 1 or rates outside [0, 1].
    """
    require_level(alpha)
    if min(comparisons, n_seeds, k) < 1:
        raise ValueError(f"expected sizes >= 1, got {(comparisons, n_seeds, k)}")
    rng = np.random.Generator(np.random.PCG64(seed))
    fixed = sequential = naive = 0
    for index in range(comparisons):
        chances = _chances(rng, n_seeds, rates)
        of_a, of_b = rng.binomial(k, chances, (2, n_seeds)) / k
        diffs = of_b - of_a
        fixed += _fixed_p(diffs, k, index) <= alpha
        sequential += bool(e_path(diffs)[1][-1] <= alpha)
        naive += _peeking_rejects(diffs, alpha)
    return SelfCheck(
        comparisons=comparisons,
        n_seeds=n_seeds,
        k=k,
        alpha=alpha,
        fixed=fixed / comparisons,
        sequential=sequential / comparisons,
        naive=naive / comparisons,
    )


def _chances(rng: np.random.Generator, n_seeds: int, rates: Sequence[float] | None) -> FloatArray:
    if rates is None:
        return rng.beta(0.6, 0.6, n_seeds)
    known = np.asarray(rates, dtype=np.float64)
    if not known.size or not np.all((known >= 0.0) & (known <= 1.0)):
        raise ValueError(f"expected rates in [0, 1], got {known.tolist()}")
    return np.asarray(rng.choice(known, n_seeds))


def _fixed_p(diffs: FloatArray, k: int, seed: int) -> float:
    if k == 1:
        return mcnemar(int(np.sum(diffs < 0.0)), int(np.sum(diffs > 0.0))).p
    return sign_flip_permutation(diffs, n_resamples=_FLIPS, seed=seed)


def _peeking_rejects(diffs: FloatArray, alpha: float) -> bool:
    n = np.arange(1, diffs.size + 1)
    mean = np.cumsum(diffs) / n
    squares = np.cumsum(diffs**2) - n * mean**2
    looks = slice(_FIRST_LOOK - 1, None)
    critical = [student_t_quantile(1.0 - 0.5 * alpha, int(size) - 1) for size in n[looks]]
    se = np.sqrt(np.maximum(squares[looks], 0.0) / np.maximum(n[looks] - 1, 1) / n[looks])
    return bool(np.any((np.abs(mean[looks]) > critical * se) & (se > 0.0)))
