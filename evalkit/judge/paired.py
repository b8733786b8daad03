"""Two arms on the same seeds: tests and intervals of their difference, always B minus A.

Knows counts and differences only: which seeds are paired is decided in `compare`.
"""

import math
from dataclasses import dataclass

import numpy as np

from evalkit.judge.distributions import critical_z
from evalkit.judge.intervals import (
    FloatArray,
    Floats,
    Interval,
    IntervalMethod,
    MeanEstimate,
    clustered_mean,
    require_finite,
    wilson,
)

_ENUMERATED_BITS = 16
_TIES = 256
"""From so many equal magnitudes on, a binomial is faster drawn than their bits."""
_MANY = 2_000
"""From so many on, the rounding that a sum is allowed exceeds 13 digits of a magnitude."""


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """McNemar's test of paired successes: two-sided p-values and the counts they came from."""

    a_only: int
    b_only: int
    p: float
    p_mid: float


def mcnemar(a_only: int, b_only: int) -> McNemar:
    """McNemar's test that A and B win equally often on the seeds where exactly one succeeds.

    `p` is exact: its type-I error never exceeds the level. `p_mid` counts half of the observed
    table's probability, is less conservative, and may exceed the level slightly. Without
    discordant seeds both are 1. Time and memory grow with the root of the counts.

    Raises ValueError for negative counts.
    Source: McNemar 1947; mid-p of Lancaster 1961 as in Fagerland et al. 2013,
    BMC Med. Res. Methodol. 13:91.
    """
    if min(a_only, b_only) < 0:
        raise ValueError(f"expected counts >= 0, got a_only={a_only}, b_only={b_only}")
    smaller, discordant = min(a_only, b_only), a_only + b_only
    point = math.exp(_log_fair_binomial(smaller, discordant))
    both_tails = 2.0 * point * _tail_over_point(smaller, discordant)
    if a_only == b_only:  # the tails overlap in the observed table
        return McNemar(a_only=a_only, b_only=b_only, p=1.0, p_mid=1.0)
    return McNemar(
        a_only=a_only, b_only=b_only, p=min(1.0, both_tails), p_mid=min(1.0, both_tails - point)
    )


def paired_difference_interval(
    both: int, a_only: int, b_only: int, neither: int, level: float = 0.95
) -> Interval:
    """Tango's score interval of the success rate of B minus that of A on shared seeds.

    The four counts are seeds where both, only A, only B and neither succeed. The interval inverts
    the score test whose value at 0 is McNemar's (b - a) / sqrt(a + b) without correction. It stays
    within [-1, 1], is symmetric about 0 without discordant seeds, and is [-1, 1] without data.

    Raises ValueError for negative counts.
    Source: Tango 1998, Statistics in Medicine 17:891.
    """
    if min(both, a_only, b_only, neither) < 0:
        raise ValueError(f"expected counts >= 0, got {(both, a_only, b_only, neither)}")
    z = critical_z(level)
    n = both + a_only + b_only + neither
    if n == 0:
        lo, hi = -1.0, 1.0
    else:
        hi = _upper_difference(a_only, b_only, n, z)
        lo = -_upper_difference(b_only, a_only, n, z)
    return Interval(lo=lo, hi=hi, method=IntervalMethod.TANGO, level=level)


def newcombe_difference_interval(
    both: int, a_only: int, b_only: int, neither: int, level: float = 0.95
) -> Interval:
    """Newcombe's hybrid score interval of the success rate of B minus that of A on shared seeds.

    Joins the Wilson intervals of both arms, with the correlation of the pairs. Beside Tango's as a
    check in closed form; it covers slightly less. [-1, 1] without data.

    Raises ValueError for negative counts.
    Source: Newcombe 1998, Statistics in Medicine 17:2635, method 10.
    """
    if min(both, a_only, b_only, neither) < 0:
        raise ValueError(f"expected counts >= 0, got {(both, a_only, b_only, neither)}")
    method, n = IntervalMethod.NEWCOMBE, both + a_only + b_only + neither
    if n == 0:
        return Interval(lo=-1.0, hi=1.0, method=method, level=level)
    of_a, of_b = wilson(both + a_only, n, level), wilson(both + b_only, n, level)
    rate_a, rate_b = (both + a_only) / n, (both + b_only) / n
    phi = _corrected_phi(both, a_only, b_only, neither)

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one * one - 2.0 * phi * one * other + other * other))

    diff = rate_b - rate_a
    return Interval(
        lo=max(-1.0, diff - reach(rate_b - of_b.lo, of_a.hi - rate_a)),
        hi=min(1.0, diff + reach(of_b.hi - rate_b, rate_a - of_a.lo)),
        method=method,
        level=level,
    )


def clustered_difference(diffs_by_seed: Floats, level: float = 0.95) -> MeanEstimate:
    """Estimate the mean paired difference, with its t interval over seeds.

    `diffs_by_seed` has shape (n_seeds,): on each seed, the mean of B minus the mean of A. With one
    seed there is a mean but no interval (nan). Raises ValueError for a value that is not finite.
    """
    return clustered_mean([[diff] for diff in diffs_by_seed], level)


def sign_flip_permutation(diffs: Floats, *, n_resamples: int = 50_000, seed: int = 0) -> float:
    """Two-sided p of the mean paired difference, were each difference as likely to be negative.

    `diffs` has shape (n_seeds,). Zeros do not move the sum under any flip and are set aside; with
    at most 16 others all flips are enumerated, and the p-value is exact for symmetric differences.
    Otherwise `n_resamples` flips are drawn from `Generator(PCG64(seed))` and the observed one is
    counted among them, so p is at least 1 / (n_resamples + 1). Sums that differ by rounding alone
    count as equal. All zeros, or no differences, give 1. 50,000 seeds take half a second; memory
    grows with the seeds and with the resamples, not with their product.

    Raises ValueError for a value that is not finite.
    Source: Fisher 1935; +1 of Phipson & Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9:39.
    """
    values = require_finite(np.asarray(diffs, dtype=np.float64))
    magnitudes = np.abs(values[values != 0.0])
    n = magnitudes.size
    if n == 0:
        return 1.0
    # |sum of flipped| = |total - 2 * what is flipped down|; rounding is bounded by n * eps * total
    total = float(magnitudes.sum())
    observed = abs(float(values.sum())) - 2.0 * n * np.finfo(np.float64).eps * total
    if n <= _ENUMERATED_BITS:
        flips = np.arange(1 << n)[:, np.newaxis] >> np.arange(n) & 1
        return float(np.mean(np.abs(total - 2.0 * (flips @ magnitudes)) >= observed))
    rng = np.random.Generator(np.random.PCG64(seed))
    down = _subset_sums(magnitudes, n_resamples, rng)
    extreme = int(np.sum(np.abs(total - 2.0 * down) >= observed))
    return (extreme + 1) / (n_resamples + 1)


def paired_counts(a: Floats, b: Floats) -> tuple[int, int, int, int]:
    """Seeds where both, only A, only B and neither succeed, from 0/1 outcomes of equal length."""
    cells = [0, 0, 0, 0]
    for won_a, won_b in zip(a, b, strict=True):
        cells[(not won_a) * 2 + (not won_b)] += 1
    both, a_only, b_only, neither = cells
    return both, a_only, b_only, neither


def tango_score(difference: float, a_only: int, b_only: int, n: int) -> float:
    """Return Tango's standardised distance of the observed difference B - A from a supposed one.

    Standard normal if the supposition is true; `paired_difference_interval` inverts it.
    Raises ValueError for negative counts, more discordant seeds than `n`, or no seed at all.
    """
    if min(a_only, b_only) < 0 or n < max(1, a_only + b_only):
        raise ValueError(f"expected 0 <= a_only + b_only <= n, n >= 1, got {(a_only, b_only, n)}")
    return _score(difference, a_only, b_only, n)


def _subset_sums(magnitudes: FloatArray, n: int, rng: np.random.Generator) -> FloatArray:
    """Sum random halves of the magnitudes, each in or out with equal chance: shape (n,)."""
    if magnitudes.size >= _MANY:  # differences of equal decimals are equal, but for rounding
        unit = float(magnitudes.max())
        magnitudes = np.round(magnitudes / unit, 13) * unit
    values, counts = np.unique(magnitudes, return_counts=True)
    often = counts >= _TIES
    sums = np.zeros(n)
    for value, count in zip(values[often].tolist(), counts[often].tolist(), strict=True):
        sums += value * rng.binomial(count, 0.5, n)
    # Eight at a time: a random byte says which of a block are in, a table what they add up to
    seldom = np.repeat(values[~often], counts[~often])
    blocks = np.pad(seldom, (0, -seldom.size % 8)).reshape(-1, 8)
    for table in blocks @ (np.arange(256) >> np.arange(8)[:, np.newaxis] & 1):
        sums += table[rng.integers(0, 256, n, dtype=np.uint8)]
    return sums


def _corrected_phi(both: int, a_only: int, b_only: int, neither: int) -> float:
    margins = (both + a_only) * (b_only + neither) * (both + b_only) * (a_only + neither)
    if not margins:
        return 0.0
    association: float = both * neither - a_only * b_only
    if association > 0:
        association = max(0.0, association - 0.5 * (both + a_only + b_only + neither))
    return association / math.sqrt(margins)


def _upper_difference(a_only: int, b_only: int, n: int, z: float) -> float:
    """Find the largest difference in [-1, 1] that the score test does not reject, by bisection."""
    low, high = (b_only - a_only) / n, 1.0
    while True:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            return high
        if _score(middle, a_only, b_only, n) >= -z:
            low = middle
        else:
            high = middle


def _score(difference: float, a_only: int, b_only: int, n: int) -> float:
    """Tango's standardised distance of the observed difference from a supposed one."""
    rate_a_only = _restricted_a_only_rate(difference, a_only, b_only, n)
    variance = n * (2.0 * rate_a_only + difference * (1.0 - difference))
    distance = b_only - a_only - n * difference
    if variance <= 0.0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _restricted_a_only_rate(difference: float, a_only: int, b_only: int, n: int) -> float:
    """Maximum-likelihood P(only A succeeds) among tables with the supposed difference."""
    quadratic = 2.0 * n
    linear = (2.0 * n - b_only + a_only) * difference - a_only - b_only
    constant = -a_only * difference * (1.0 - difference)
    root = math.sqrt(max(0.0, linear * linear - 4.0 * quadratic * constant))
    if linear > 0.0:  # the same root of the quadratic, without cancellation
        return -2.0 * constant / (linear + root)
    return (root - linear) / (2.0 * quadratic)


def _log_fair_binomial(k: int, n: int) -> float:
    """Log of P(X = k) for n fair coin flips, for k <= n / 2, to about 1e-12."""
    if n <= 1000:
        return math.log(math.comb(n, k)) - n * math.log(2.0)
    if k == 0:
        return -n * math.log(2.0)
    imbalance = (n - 2 * k) / n
    divergence = k * math.log1p(-imbalance) + (n - k) * math.log1p(imbalance)
    spread = 0.5 * math.log(n / (2.0 * math.pi * k * (n - k)))
    return _stirling_error(n) - _stirling_error(k) - _stirling_error(n - k) - divergence + spread


def _stirling_error(n: int) -> float:
    """Log of n! less Stirling's approximation of it (Loader 2000)."""
    if n < 16:
        return math.lgamma(n + 1) - (n + 0.5) * math.log(n) + n - 0.5 * math.log(2.0 * math.pi)
    square = 1.0 / (n * n)
    tail = square * (1 / 1260 - square * (1 / 1680 - square / 1188))
    return (1 / 12 - square * (1 / 360) + square * tail) / n


def _tail_over_point(k: int, n: int) -> float:
    """P(X <= k) / P(X = k) of n fair coin flips, for k <= n / 2.

    Terms fall at least as fast as exp(-2 m^2 / n), so 5 roots of n are enough for 1e-21.
    """
    terms = min(k, 8 + math.isqrt(25 * n))
    lower: FloatArray = np.arange(k, k - terms, -1, dtype=np.float64)
    return 1.0 + float(np.cumprod(lower / (n + 1.0 - lower)).sum())
