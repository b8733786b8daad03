"""Confidence intervals of one arm: rates and means, with the env seed as the cluster.

Knows numbers only: it must not know what a run, a seed's identity or a metric is.
No data is not an error: a rate then lies anywhere in [0, 1], and a mean has no interval (nan).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from evalkit.judge.distributions import (
    critical_t,
    critical_z,
    normal_quantile,
    require_level,
)

FloatArray = NDArray[np.float64]
Floats = Sequence[float] | FloatArray
Statistic = Callable[[FloatArray], FloatArray]

_CHUNK_ELEMENTS = 1 << 20
_MANY, _TIES = 2_000, 32
"""Of so many values, with so many equal on average, a mean is resampled by counts."""


class IntervalMethod(StrEnum):
    """How an interval was made; the value is what a report prints."""

    WILSON = "wilson"
    """Score interval of a rate."""
    WILSON_CLUSTERED = "wilson-clustered"
    """Score interval of a rate with the effective number of episodes."""
    T = "t"
    """Student's t, every cluster holding one value."""
    T_CLUSTERED = "t-clustered"
    """Student's t with the cluster-robust standard error."""
    BCA = "bca"
    """Bias-corrected and accelerated bootstrap over seeds."""
    TANGO = "tango"
    """Tango's score interval of a paired difference of rates."""
    NEWCOMBE = "newcombe"
    """Newcombe's hybrid of two Wilson intervals, for a paired difference of rates."""
    CLOPPER_PEARSON = "clopper-pearson"
    """Exact interval of a rate: inverts two one-sided binomial tests."""
    MID_P = "mid-p"
    """Clopper and Pearson's, counting half of the observed outcome's probability."""
    JEFFREYS = "jeffreys"
    """Equal-tailed posterior interval of a rate under a Beta(1/2, 1/2) prior."""
    AGRESTI_COULL = "agresti-coull"
    """Wald's interval of a rate after adding z^2 / 2 successes and failures."""
    BLAKER = "blaker"
    """Exact interval of a rate: inverts one two-sided binomial test."""
    BLAKER_ADJUSTED = "blaker-adjusted"
    """Blaker's at a slightly larger alpha, for coverage around the level rather than above it."""
    BETTING = "betting"
    """Confidence sequence: valid at all looks together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A two-sided confidence interval, in the unit of what it bounds."""

    lo: float
    hi: float
    method: IntervalMethod
    level: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanEstimate:
    """A mean over `n` values in `n_clusters` clusters, its standard error and its interval."""

    mean: float
    se: float
    lo: float
    hi: float
    n: int
    n_clusters: int
    method: IntervalMethod
    level: float = 0.95


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a success rate; [0, 1] when `n` is 0.

    Raises ValueError unless 0 <= `successes` <= `n`. Source: Wilson 1927, JASA 22:209.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n, got {successes} of {n}")
    z = critical_z(level)
    if n == 0:
        return Interval(lo=0.0, hi=1.0, method=IntervalMethod.WILSON, level=level)
    lo, hi = _score_bounds(successes / n, n, z)
    return Interval(lo=lo, hi=hi, method=IntervalMethod.WILSON, level=level)


def wilson_clustered(
    successes_per_cluster: Sequence[int], n_per_cluster: Sequence[int], level: float = 0.95
) -> Interval:
    """Wilson's interval of a success rate when each cluster (env seed) holds several episodes.

    Both sequences have one entry per cluster; clusters of size 0 are left out. The number of
    episodes n is replaced by n / deff * (t[n-1] / t[G-1])^2, with G clusters and deff the
    cluster-robust variance over the binomial one, never below 1. With one episode in every cluster
    this is `wilson` itself. Where all episodes agree, deff cannot be estimated and each cluster
    counts once: agreement within a seed is not evidence. One cluster of several episodes says
    nothing about other seeds: [0, 1].

    Raises ValueError for lengths that differ or counts outside 0 <= successes <= n.
    Source: Korn & Graubard 1998, Survey Methodology 24:193; Wilson variant in Franco et al. 2019,
    J. Surv. Stat. Methodol. 7:334.
    """
    pairs = zip(successes_per_cluster, n_per_cluster, strict=True)
    counts = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    if np.any((counts[:, 0] < 0) | (counts[:, 0] > counts[:, 1])):
        raise ValueError("expected 0 <= successes <= n in every cluster")
    counts = counts[counts[:, 1] > 0]
    n_clusters, (total, n) = len(counts), map(int, counts.sum(axis=0))
    if n == n_clusters:
        return wilson(total, n, level)
    method = IntervalMethod.WILSON_CLUSTERED
    if n_clusters == 1:
        return Interval(lo=0.0, hi=1.0, method=method, level=require_level(level))
    rate = total / n
    if total in (0, n):
        effective = float(n_clusters)
    else:
        residuals = counts[:, 0] - rate * counts[:, 1]
        variance = _cluster_variance(residuals, n)
        design_effect = max(1.0, variance / (rate * (1.0 - rate) / (n - 1)))
        effective = n / design_effect
    effective *= (critical_t(level, n - 1) / critical_t(level, n_clusters - 1)) ** 2
    lo, hi = _score_bounds(rate, effective, critical_z(level))
    return Interval(lo=lo, hi=hi, method=method, level=level)


def clustered_mean(values_by_cluster: Sequence[Floats], level: float = 0.95) -> MeanEstimate:
    """Estimate the mean of all values: cluster-robust standard error, t interval with G - 1 df.

    One inner sequence per cluster (env seed); empty clusters are left out. Every value weighs the
    same, so larger clusters weigh more. With one value per cluster it is the ordinary t interval.
    One cluster has a mean but no interval (se, lo and hi are nan); without values all are nan.
    The interval covers too little on few clusters of skewed values: 90 % for 20 exponential ones.

    Raises ValueError for a value that is not finite.
    Source: Liang & Zeger 1986 with the G / (G - 1) correction; Miller 2024, arXiv 2411.00640.
    """
    require_level(level)
    clusters = [cluster for cluster in values_by_cluster if len(cluster)]
    sizes = list(map(len, clusters))
    n, n_clusters = sum(sizes), len(clusters)
    method = IntervalMethod.T if n == n_clusters else IntervalMethod.T_CLUSTERED
    mean = se = half = math.nan
    if clusters:
        values = require_finite(np.fromiter(chain.from_iterable(clusters), np.float64, n))
        mean = math.fsum(values) / n
        if n_clusters > 1:
            starts = np.cumsum([0, *sizes[:-1]])
            se = math.sqrt(_cluster_variance(np.add.reduceat(values - mean, starts), n))
            half = critical_t(level, n_clusters - 1) * se
    return MeanEstimate(
        mean=mean,
        se=se,
        lo=mean - half,
        hi=mean + half,
        n=n,
        n_clusters=n_clusters,
        method=method,
        level=level,
    )


def mean_over_last_axis(values: FloatArray) -> FloatArray:
    """Take the mean along the last axis: shape (..., n) to (...)."""
    return np.asarray(values.mean(axis=-1))


def bca_bootstrap(
    cluster_means: Floats,
    statistic: Statistic = mean_over_last_axis,
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Bias-corrected and accelerated bootstrap interval of a statistic of per-cluster means.

    `cluster_means` has shape (G,), one value per env seed; `statistic` maps (..., G) to (...).
    Equal data give a point interval; fewer than two clusters give nan. Memory is bounded by
    chunks of 2^20 values (or one resample, if longer); time grows with G * (G + n_resamples), for
    a mean with G * n_resamples, and hardly with G where many of 2,000 or more values are equal.
    The draws are those of `Generator(PCG64(seed))`: the result depends on the seed alone.

    Raises ValueError for a value that is not finite. Source: Efron 1987, JASA 82:171.
    """
    require_level(level)
    values = require_finite(np.asarray(cluster_means, dtype=np.float64))
    if values.size < 2:
        return Interval(lo=math.nan, hi=math.nan, method=IntervalMethod.BCA, level=level)
    estimate = float(statistic(values[np.newaxis])[0])
    if np.all(values == values[0]):
        return Interval(lo=estimate, hi=estimate, method=IntervalMethod.BCA, level=level)
    replicates = _bootstrap_replicates(values, statistic, n_resamples, seed)
    below = (np.sum(replicates < estimate) + np.sum(replicates <= estimate)) / (2 * n_resamples)
    # A statistic such as the maximum can put every replicate on one side; half a draw keeps z0 real
    floor = 0.5 / n_resamples
    bias = normal_quantile(float(np.clip(below, floor, 1.0 - floor)))
    acceleration = _acceleration(_jackknife_replicates(values, statistic))
    z = critical_z(level)
    shares = [_bca_share(bias, acceleration, sign * z) for sign in (-1.0, 1.0)]
    lo, hi = np.quantile(replicates, shares)
    return Interval(lo=float(lo), hi=float(hi), method=IntervalMethod.BCA, level=level)


def require_finite(values: FloatArray) -> FloatArray:
    """Return the values themselves. Raises ValueError if one is nan or infinite."""
    if not np.all(np.isfinite(values)):
        position = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"expected finite values, got {values.flat[position]} at {position}")
    return values


def _score_bounds(rate: float, n: float, z: float) -> tuple[float, float]:
    shrink = 1.0 + z * z / n
    centre = (rate + z * z / (2.0 * n)) / shrink
    half = z * math.sqrt(rate * (1.0 - rate) / n + z * z / (4.0 * n * n)) / shrink
    lo = 0.0 if rate == 0.0 else max(0.0, centre - half)
    hi = 1.0 if rate == 1.0 else min(1.0, centre + half)
    return lo, hi


def _cluster_variance(residual_sums: FloatArray, n: int) -> float:
    """Variance of a mean over n values from the sum of residuals of each cluster, shape (G,)."""
    n_clusters = len(residual_sums)
    return float(residual_sums @ residual_sums) * n_clusters / (n_clusters - 1) / (n * n)


def _bootstrap_replicates(
    values: FloatArray, statistic: Statistic, n_resamples: int, seed: int
) -> FloatArray:
    rng = np.random.Generator(np.random.PCG64(seed))
    n = values.size
    distinct, counts = np.unique(values, return_counts=True)
    if statistic is mean_over_last_axis and n >= _MANY and distinct.size * _TIES <= n:
        return np.asarray(rng.multinomial(n, counts / n, n_resamples) @ distinct / n)
    return np.concatenate(
        [
            statistic(values[rng.integers(0, n, size=(rows.stop - rows.start, n))])
            for rows in _chunks(n_resamples, n)
        ]
    )


def _jackknife_replicates(values: FloatArray, statistic: Statistic) -> FloatArray:
    """Compute the statistic with each value left out in turn, shape (n,)."""
    n = values.size
    if statistic is mean_over_last_axis:
        return np.asarray((values.sum() - values) / (n - 1))
    kept = np.arange(n - 1)
    replicates = []
    for rows in _chunks(n, n):
        left_out = np.arange(rows.start, rows.stop)[:, np.newaxis]
        replicates.append(statistic(values[kept + (kept >= left_out)]))
    return np.concatenate(replicates)


def _chunks(n_rows: int, n_columns: int) -> Iterator[range]:
    step = max(1, _CHUNK_ELEMENTS // n_columns)
    return (range(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def _acceleration(jackknife: FloatArray) -> float:
    influence = jackknife.mean() - jackknife
    squares = float(np.sum(influence**2))
    return float(np.sum(influence**3)) / (6.0 * squares**1.5) if squares > 0.0 else 0.0


def _bca_share(bias: float, acceleration: float, z: float) -> float:
    shifted = bias + z
    corrected = bias + shifted / (1.0 - acceleration * shifted)
    return 0.5 * math.erfc(-corrected / math.sqrt(2.0))
