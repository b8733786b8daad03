"""E-processes: evidence against an equal mean that may be read after every pair, and stopped on.

A gambler without capital of their own starts with 1 and bets, pair after pair, that the mean of B
minus A is larger (or smaller) than a supposed `mean`. Were the supposition true, the wealth would
exceed 1 / alpha at any time ever with a chance of at most alpha (Ville 1939): no matter how often
one looks. The means at which the wealth has not got that far are a confidence sequence.

Differences lie in [-1, 1]. The factor of one difference d is 1 + bet * (d - mean) / (1 + mean),
mixed over bets in (0, 1) with density proportional to sqrt(1 - bet^2); bets that the mean is
smaller are the same with all signs changed. At a supposed mean of 0, and with differences of -1, 0
and 1, the average of the two sides is the sequential McNemar e-process in closed form: a
Beta(3/2, 3/2) mixture over the chance that B wins a seed where exactly one arm does.

Must not know of arms, verdicts and budgets: `sequential` does.
Sources: Waudby-Smith & Ramdas 2024, JRSS B 86:1 (betting); Robbins 1970 (mixtures).
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from evalkit.judge.distributions import require_level
from evalkit.judge.intervals import FloatArray, Floats, require_finite

PRIOR = 1.5
"""Both parameters of the Beta mixture of the sequential McNemar test."""

_NODES = 256
_WIDTH = 1e-11
_CHUNK = 4096


def log_mcnemar_e(a_only: int, b_only: int, prior: float = PRIOR) -> float:
    """Log e-value of the sequential McNemar test: 2^n B(prior + a, prior + b) / B(prior, prior).

    A and B are the seeds where only that arm succeeded, n their sum. Valid at any stopping time.
    Raises ValueError for negative counts or a prior that is not positive.
    """
    if min(a_only, b_only) < 0 or not prior > 0.0:
        raise ValueError(f"expected counts >= 0 and a prior > 0, got {(a_only, b_only, prior)}")
    mixed = _log_beta(prior + a_only, prior + b_only) - _log_beta(prior, prior)
    return (a_only + b_only) * math.log(2.0) + mixed


def bets() -> tuple[FloatArray, FloatArray]:
    """Return the bets in (0, 1), and the log of their shares of the starting capital.

    They are the positive half of the Gauss-Chebyshev rule of the second kind, so that the mixture
    is exact for polynomials up to degree 511, and is a valid e-process whatever the degree.
    """
    nodes, log_shares = _bets()
    return nodes.copy(), log_shares.copy()


def log_factors(differences: Floats, mean: float) -> FloatArray:
    """Log factor of every bet that the mean is larger than `mean`: shape (..., n_bets).

    Raises ValueError for differences outside [-1, 1] or a mean outside (-1, 1).
    """
    values = require_bounded(differences)
    if not -1.0 < mean < 1.0:
        raise ValueError(f"expected a supposed mean in (-1, 1), got {mean}")
    stakes, _ = _bets()
    return np.log1p(stakes * ((values[..., np.newaxis] - mean) / (1.0 + mean)))


def log_mixture(log_wealth_by_bet: FloatArray) -> FloatArray:
    """Log of the total wealth from the sums of log factors: shape (..., n_bets) to (...)."""
    logs = log_wealth_by_bet + _bets()[1]
    highest = logs.max(axis=-1, keepdims=True)
    return np.asarray(np.log(np.exp(logs - highest).sum(axis=-1)) + highest[..., 0])


def log_wealth(values: Floats, counts: Floats, mean: float = 0.0) -> FloatArray:
    """Log wealth of betting that the mean of the differences is larger than `mean`.

    `values` of shape (V,) occurred `counts` of shape (..., V) times: one log wealth per row. For
    bets that the mean is smaller, call with `-values` and `-mean`. Falls as `mean` rises.
    Raises ValueError for values outside [-1, 1] or a mean outside (-1, 1).
    """
    occurrences = np.asarray(counts, dtype=np.float64)
    return log_mixture(occurrences @ log_factors(values, mean))


def log_e_value(log_above: float, log_below: float) -> float:
    """Log of the two-sided e-value: half of the capital was bet on either side."""
    return float(np.logaddexp(log_above, log_below)) - math.log(2.0)


def anytime_p(highest_log_side: float) -> float:
    """Return the p-value that is valid at any time, from the highest log wealth of either side."""
    return math.exp(min(0.0, math.log(2.0) - highest_log_side))


def log_threshold(alpha: float) -> float:
    """Log wealth at which one side decides: 2 / alpha, because there are two."""
    return math.log(2.0 / require_level(alpha))


def confidence_bounds(values: Floats, counts: Floats, alpha: float = 0.05) -> tuple[float, float]:
    """Return the current interval of the confidence sequence of the mean difference.

    The chance that it ever excludes the true mean, over all looks together, is at most `alpha`. It
    excludes a mean exactly where one side's wealth against that mean has reached 2 / `alpha`.
    Without data it is (-1, 1). `values` (V,) occurred `counts` (V,) times. Time grows with V.
    Raises ValueError for values outside [-1, 1].
    """
    occurred, number = require_bounded(values), np.asarray(counts, dtype=np.float64)
    return _lower_bound(occurred, number, alpha), -_lower_bound(-occurred, number, alpha)


def e_path(differences: Floats) -> tuple[FloatArray, FloatArray]:
    """Log e-values and anytime p-values after each of the differences, against a mean of 0.

    `differences` of shape (n,) lie in [-1, 1]; both results have shape (n,). Memory is bounded by
    chunks of 4,096 differences.
    """
    values = require_bounded(differences)
    above, below = _log_wealth_path(values), _log_wealth_path(-values)
    highest = np.maximum.accumulate(np.maximum(above, below))
    log_e = np.logaddexp(above, below) - math.log(2.0)
    return log_e, np.exp(np.minimum(0.0, math.log(2.0) - highest))


def _log_wealth_path(values: FloatArray) -> FloatArray:
    """Log wealth of betting on a mean above 0 after each value, shape (n,); ties change nothing."""
    moves = np.flatnonzero(values)
    path, wealth = np.zeros(moves.size + 1), np.zeros(_bets()[0].size)
    for start in range(0, moves.size, _CHUNK):
        chunk = moves[start : start + _CHUNK]
        sums = wealth + np.cumsum(log_factors(values[chunk], 0.0), axis=0)
        path[start + 1 : start + 1 + chunk.size] = log_mixture(sums)
        wealth = sums[-1]
    return np.asarray(path[np.cumsum(values != 0.0)])


def require_bounded(differences: Floats) -> FloatArray:
    """Return differences as an array. Raises ValueError for one that is not in [-1, 1]."""
    values = require_finite(np.asarray(differences, dtype=np.float64))
    if np.any(np.abs(values) > 1.0):
        worst = float(values.flat[int(np.abs(values).argmax())])
        raise ValueError(f"expected differences in [-1, 1] (divide by their span), got {worst}")
    return values


def _lower_bound(values: FloatArray, counts: FloatArray, alpha: float) -> float:
    """Find the largest mean that is rejected from above, or -1: by bisection, rounded outwards."""
    total = float(counts.sum())
    if not total:
        return -1.0
    threshold = log_threshold(alpha)

    def excess(mean: float) -> float:
        return float(log_wealth(values, counts, mean)) - threshold

    # Betting against the observed mean never pays: the search starts there and goes down
    high, step = min(float(counts @ values) / total, 1.0 - _WIDTH), 1.0 / math.sqrt(total)
    if high <= -1.0 + _WIDTH:
        return -1.0
    at_high = excess(high)
    while True:
        low = max(high - step, -1.0 + _WIDTH)
        at_low = excess(low)
        if at_low >= 0.0:
            return _falling_root(excess, low, high, at_low, at_high)
        if low <= -1.0 + _WIDTH:
            return -1.0
        high, at_high, step = low, at_low, 2.0 * step


def _falling_root(
    excess: Callable[[float], float], low: float, high: float, at_low: float, at_high: float
) -> float:
    """Find the last point of a narrow bracket where `excess` >= 0, by the Illinois method."""
    moved_low = moved_high = False
    for _ in range(200):
        if high - low <= _WIDTH:
            break
        guess = low + (high - low) * at_low / (at_low - at_high)
        guess = min(max(guess, low + 0.4 * _WIDTH), high - 0.4 * _WIDTH)
        value = excess(guess)
        if value >= 0.0:
            at_high *= 0.5 if moved_low else 1.0
            low, at_low, moved_low, moved_high = guess, value, True, False
        else:
            at_low *= 0.5 if moved_high else 1.0
            high, at_high, moved_low, moved_high = guess, value, False, True
    return low


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


@lru_cache(maxsize=1)
def _bets() -> tuple[FloatArray, FloatArray]:
    angles = np.arange(1, _NODES // 2 + 1) * (math.pi / (_NODES + 1))
    shares = np.sin(angles) ** 2
    return np.cos(angles), np.log(shares / shares.sum())
