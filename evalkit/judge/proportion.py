"""Intervals of a single rate, and what they really cover.

Outcomes are counts, so the coverage of an interval jumps as the true rate moves, and at some rates
no interval at all covers close to 95 %: with 20 seeds and a rate of .025, dropping or adding one
outcome takes the coverage from below 93.5 to above 97 %. `coverage_table` says how often that is so
(`attainable`) and what each method does. `rate_interval` is the one to use: never below 93.5 %.

Must not know what was counted; clusters are `intervals.wilson_clustered`'s.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evalkit.judge.distributions import beta_cdf, critical_z, require_level
from evalkit.judge.intervals import FloatArray, Floats, Interval, IntervalMethod, wilson

RateMethod = Callable[[int, int, float], Interval]

_STEPS = 60
_ROUNDING = 1e-12
_RATES = tuple(np.linspace(0.02, 0.98, 97).tolist())


def rate_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Blaker's interval at a slightly larger alpha: the recommended interval of a single rate.

    Alpha is multiplied by 1 + min(0.3, 1.3 / sqrt(n)). So the coverage is never below
    1 - 1.3 * alpha (93.5 % at 95 %), whatever the rate and `n`, and tends to at least `level`; it
    is near `level` on average, where an exact interval would be above it everywhere.
    Raises ValueError unless 0 <= `successes` <= `n`.
    """
    alpha = (1.0 - require_level(level)) * (1.0 + min(0.3, 1.3 / math.sqrt(max(1, n))))
    lo, hi = _blaker(successes, n, min(alpha, 0.999))
    return Interval(lo=lo, hi=hi, method=IntervalMethod.BLAKER_ADJUSTED, level=level)


def blaker(successes: int, n: int, level: float = 0.95) -> Interval:
    """Blaker's exact interval of a rate: covers at least `level`, inside Clopper and Pearson's.

    The hull of the rates that the two-sided test does not reject; [0, 1] when `n` is 0.
    Raises ValueError unless 0 <= `successes` <= `n`. Source: Blaker 2000, Can. J. Stat. 28:783.
    """
    lo, hi = _blaker(successes, n, 1.0 - require_level(level))
    return Interval(lo=lo, hi=hi, method=IntervalMethod.BLAKER, level=level)


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Clopper and Pearson's exact interval of a rate; [0, 1] when `n` is 0.

    Raises ValueError unless 0 <= `successes` <= `n`. Source: Clopper & Pearson 1934.
    """
    return _equal_tailed(successes, n, level, IntervalMethod.CLOPPER_PEARSON, at_least)


def mid_p(successes: int, n: int, level: float = 0.95) -> Interval:
    """Clopper and Pearson's interval with half of the observed outcome's probability; [0, 1] at 0.

    Raises ValueError unless 0 <= `successes` <= `n`. Source: Lancaster 1961, JASA 56:223.
    """

    def tail(count: int, size: int, rate: float) -> float:
        return 0.5 * (at_least(count, size, rate) + at_least(count + 1, size, rate))

    return _equal_tailed(successes, n, level, IntervalMethod.MID_P, tail)


def jeffreys(successes: int, n: int, level: float = 0.95) -> Interval:
    """Jeffreys's interval of a rate, with 0 and 1 as bounds where nothing or all succeeded.

    Raises ValueError unless 0 <= `successes` <= `n`. Source: Brown, Cai & DasGupta 2001.
    """

    def tail(count: int, size: int, rate: float) -> float:
        return beta_cdf(rate, count + 0.5, size - count + 0.5)

    return _equal_tailed(successes, n, level, IntervalMethod.JEFFREYS, tail)


def agresti_coull(successes: int, n: int, level: float = 0.95) -> Interval:
    """Agresti and Coull's interval of a rate, cut at 0 and 1; [0, 1] when `n` is 0.

    Raises ValueError unless 0 <= `successes` <= `n`. Source: Agresti & Coull 1998.
    """
    _require_counts(successes, n)
    square = critical_z(level) ** 2
    size = n + square
    rate = (successes + 0.5 * square) / size
    half = math.sqrt(square * rate * (1.0 - rate) / size)
    lo, hi = (max(0.0, rate - half), min(1.0, rate + half)) if n else (0.0, 1.0)
    return Interval(lo=lo, hi=hi, method=IntervalMethod.AGRESTI_COULL, level=level)


RATE_METHODS: dict[IntervalMethod, RateMethod] = {
    IntervalMethod.WILSON: wilson,
    IntervalMethod.AGRESTI_COULL: agresti_coull,
    IntervalMethod.JEFFREYS: jeffreys,
    IntervalMethod.MID_P: mid_p,
    IntervalMethod.CLOPPER_PEARSON: clopper_pearson,
    IntervalMethod.BLAKER: blaker,
    IntervalMethod.BLAKER_ADJUSTED: rate_interval,
}
"""Every interval of a single rate, by its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageRow:
    """Exact coverage of one method's intervals for `n` seeds, over a grid of true rates.

    `in_band` is the share of rates with a coverage between 93.5 and 97 % (in general, between the
    `band` asked for), `attainable` the share at which any interval could have that.
    """

    method: IntervalMethod
    n: int
    lowest: float
    mean: float
    highest: float
    in_band: float
    attainable: float


def coverage(method: RateMethod, n: int, rates: Floats, level: float = 0.95) -> FloatArray:
    """Compute, for each true rate, the exact chance that the interval of `n` seeds contains it."""
    bounds = [method(successes, n, level) for successes in range(n + 1)]
    lo, hi = (np.array([getattr(bound, end) for bound in bounds]) for end in ("lo", "hi"))
    true = np.asarray(rates, dtype=np.float64)[:, np.newaxis]
    held = (lo <= true + _ROUNDING) & (true <= hi + _ROUNDING)  # Blaker's 8 of 20 ends at .5
    return np.asarray(np.sum(held * _binomial(n, rates), axis=1))


def attainable(n: int, rates: Floats, band: tuple[float, float] = (0.935, 0.97)) -> FloatArray:
    """Say, for each true rate, whether a run of outcomes has a probability inside the band: 0 or 1.

    An interval whose bounds rise with the successes covers a rate for one run of outcomes.
    """
    weights = _binomial(n, rates)
    sums = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights, axis=1)], axis=1)
    reached = np.zeros(len(weights), dtype=np.bool_)
    for first in range(n + 1):
        runs = sums[:, first + 1 :] - sums[:, first : first + 1]
        reached |= np.any((runs >= band[0]) & (runs <= band[1]), axis=1)
    return reached.astype(np.float64)


def coverage_table(
    sizes: Sequence[int] = (20, 50, 100, 200, 500),
    rates: Floats = _RATES,
    methods: Sequence[IntervalMethod] = tuple(RATE_METHODS),
    band: tuple[float, float] = (0.935, 0.97),
) -> list[CoverageRow]:
    """Tabulate the coverage of the 95 % intervals of a rate: a row per size and method."""
    rows = []
    for n in sizes:
        possible = float(attainable(n, rates, band).mean())
        for method in methods:
            covered = coverage(RATE_METHODS[method], n, rates)
            rows.append(
                CoverageRow(
                    method=method,
                    n=n,
                    lowest=float(covered.min()),
                    mean=float(covered.mean()),
                    highest=float(covered.max()),
                    in_band=float(np.mean((covered >= band[0]) & (covered <= band[1]))),
                    attainable=possible,
                )
            )
    return rows


def at_least(successes: int, n: int, rate: float) -> float:
    """P(X >= successes) of n trials, as an incomplete beta."""
    if successes <= 0:
        return 1.0
    return beta_cdf(rate, successes, n - successes + 1) if successes <= n else 0.0


def _at_most(successes: int, n: int, rate: float) -> float:
    return at_least(n - successes, n, 1.0 - rate)


def _equal_tailed(
    successes: int,
    n: int,
    level: float,
    method: IntervalMethod,
    tail: Callable[[int, int, float], float],
) -> Interval:
    """Solve tail(successes) = alpha / 2 for the rate, and the same for failures."""
    _require_counts(successes, n)
    half = 0.5 * (1.0 - require_level(level))

    def lower(count: int) -> float:
        return _rising_root(lambda rate: tail(count, n, rate) - half) if count else 0.0

    return Interval(lo=lower(successes), hi=1.0 - lower(n - successes), method=method, level=level)


def _blaker(successes: int, n: int, alpha: float) -> tuple[float, float]:
    _require_counts(successes, n)
    return _blaker_lower(successes, n, alpha), 1.0 - _blaker_lower(n - successes, n, alpha)


def _blaker_lower(successes: int, n: int, alpha: float) -> float:
    """Find the smallest rate whose acceptability P(X >= s) + P(X <= k) exceeds alpha.

    k is the largest count with P(X <= k) <= P(X >= s); it grows with the rate, in jumps. Between
    jumps the acceptability falls and then rises, so that it exceeds alpha first at a jump, or where
    it has risen by the next one.
    """
    if successes == 0:
        return 0.0
    start = _rising_root(lambda rate: at_least(successes, n, rate) - 0.5 * alpha)
    end = _rising_root(lambda rate: at_least(successes, n, rate) - alpha)
    opposite, beyond = -1, successes  # at the start the other tail is the shorter one
    while beyond - opposite > 1:
        middle = (opposite + beyond) // 2
        short = _at_most(middle, n, start) <= 0.5 * alpha
        opposite, beyond = (middle, beyond) if short else (opposite, middle)
    while True:
        count = opposite

        def excess(rate: float, count: int = count) -> float:
            other = _at_most(count, n, rate) if count >= 0 else 0.0
            return at_least(successes, n, rate) + other - alpha

        def until_jump(rate: float, count: int = count) -> float:
            return at_least(successes, n, rate) - _at_most(count + 1, n, rate)

        if excess(start) > 0.0:
            return start
        stop = _rising_root(until_jump, start, end) if until_jump(end) > 0.0 else end
        if stop == end or excess(stop) > 0.0:
            return _rising_root(excess, start, stop)
        start, opposite = stop, opposite + 1


def _rising_root(excess: Callable[[float], float], low: float = 0.0, high: float = 1.0) -> float:
    """Bisect for the point where `excess` becomes positive."""
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if excess(middle) > 0.0:
            high = middle
        else:
            low = middle
    return high


def _binomial(n: int, rates: Floats) -> FloatArray:
    """Probabilities of 0 to n successes: shape (n_rates, n + 1), for rates in (0, 1)."""
    counts = np.arange(n + 1)
    logs = np.array([math.lgamma(count + 1.0) for count in counts])
    choose = logs[-1] - logs - logs[::-1]
    true = np.asarray(rates, dtype=np.float64)[:, np.newaxis]
    return np.asarray(np.exp(choose + counts * np.log(true) + (n - counts) * np.log1p(-true)))


def _require_counts(successes: int, n: int) -> None:
    if not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n, got {successes} of {n}")
