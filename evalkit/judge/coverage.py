"""What the 95 % intervals of differences and means cover, simulated; of single rates: `proportion`.

Each case draws data whose true value is known, many times, and counts the intervals that hold it.
Must not know which interval a report shows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evalkit.judge.betting import confidence_bounds
from evalkit.judge.intervals import (
    FloatArray,
    Interval,
    IntervalMethod,
    bca_bootstrap,
    clustered_mean,
    wilson_clustered,
)
from evalkit.judge.paired import newcombe_difference_interval, paired_difference_interval

_BCA_RESAMPLES = 1_000
_REPETITIONS = 4

Draw = Callable[[np.random.Generator, int], FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCoverage:
    """The share of `simulations` intervals on `n` seeds that held the truth, and its error."""

    method: IntervalMethod
    case: str
    n: int
    covered: float
    simulations: int

    @property
    def se(self) -> float:
        """The standard error of `covered`."""
        return math.sqrt(self.covered * (1.0 - self.covered) / self.simulations)


def difference_coverage(
    n: int,
    chances: Sequence[float],
    method: Callable[[int, int, int, int], Interval] = paired_difference_interval,
    *,
    simulations: int = 2_000,
    seed: int = 0,
) -> float:
    """Simulate how often an interval of a paired difference of success rates holds the truth.

    `chances` are those of seeds where both, only A, only B and neither succeed. Raises ValueError
    unless they are four that add up to 1.
    """
    if len(chances) != 4 or not math.isclose(sum(chances), 1.0):
        raise ValueError(f"expected four chances that add up to 1, got {list(chances)}")
    rng = np.random.Generator(np.random.PCG64(seed))
    tables, numbers = np.unique(
        rng.multinomial(n, chances, simulations), axis=0, return_counts=True
    )
    truth = chances[2] - chances[1]
    held = [
        (bounds := method(*cells)).lo <= truth <= bounds.hi for cells in map(tuple, tables.tolist())
    ]
    return float(numbers @ np.array(held, dtype=np.float64)) / simulations


def mean_coverage(
    method: Callable[[FloatArray, int], tuple[float, float]],
    draw: Draw,
    n: int,
    truth: float,
    *,
    simulations: int = 500,
    seed: int = 0,
) -> float:
    """Simulate how often the bounds that `method` gives for `n` drawn values hold the truth.

    The method also gets the number of the simulation, to seed what it draws itself.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    held = 0
    for index in range(simulations):
        lo, hi = method(draw(rng, n), index)
        held += lo <= truth <= hi
    return held / simulations


def coverage_report(
    sizes: Sequence[int] = (20, 50, 200), *, simulations: int = 500, seed: int = 0
) -> list[SimulatedCoverage]:
    """Tabulate the coverage of the 95 % intervals of differences, clustered rates and means.

    A confidence sequence covers more than 95 % at one size: it pays for all looks.
    """
    return [
        SimulatedCoverage(method=method, case=case, n=n, covered=covered, simulations=simulations)
        for n in sizes
        for method, case, covered in _cases(n, simulations, seed)
    ]


def _cases(n: int, simulations: int, seed: int) -> Iterator[tuple[IntervalMethod, str, float]]:
    for a_only, b_only in ((0.02, 0.02), (0.05, 0.2), (0.2, 0.3)):
        rest = 1.0 - a_only - b_only
        chances, case = (0.5 * rest, a_only, b_only, 0.5 * rest), f"{a_only} against {b_only}"
        for name, interval in _DIFFERENCES.items():
            covered = difference_coverage(n, chances, interval, simulations=simulations, seed=seed)
            yield name, case, covered
    for rate in (0.1, 0.5):
        covered = mean_coverage(
            _clustered_rate, _repeated(rate), n, rate, simulations=simulations, seed=seed
        )
        yield IntervalMethod.WILSON_CLUSTERED, f"rate {rate}, icc 0.4", covered
    for name, bounds in _MEANS.items():
        for case, (draw, truth) in _VALUES.items():
            covered = mean_coverage(bounds, draw, n, truth, simulations=simulations, seed=seed)
            yield name, case, covered
    covered = mean_coverage(
        _betting, _bounded, n, 0.1, simulations=min(simulations, 100), seed=seed
    )
    yield IntervalMethod.BETTING, "graded differences", covered


def _t(values: FloatArray, _: int) -> tuple[float, float]:
    estimate = clustered_mean([[value] for value in values])
    return estimate.lo, estimate.hi


def _bca(values: FloatArray, index: int) -> tuple[float, float]:
    interval = bca_bootstrap(values, n_resamples=_BCA_RESAMPLES, seed=index)
    return interval.lo, interval.hi


def _clustered_rate(successes: FloatArray, _: int) -> tuple[float, float]:
    counts = successes.astype(int).tolist()
    interval = wilson_clustered(counts, [_REPETITIONS] * len(counts))
    return interval.lo, interval.hi


def _betting(differences: FloatArray, _: int) -> tuple[float, float]:
    return confidence_bounds(differences, np.ones(differences.size))


def _bounded(rng: np.random.Generator, n: int) -> FloatArray:
    """Draw differences in [-1, 1] with mean 0.1."""
    return 2.0 * rng.beta(2.2, 1.8, n) - 1.0


def _repeated(rate: float) -> Draw:
    """Successes of four repetitions, whose correlation on a seed is 0.4."""

    def draw(rng: np.random.Generator, n: int) -> FloatArray:
        chances = rng.beta(1.5 * rate, 1.5 * (1.0 - rate), n)  # 1 / (1 + 1.5) is the correlation
        return np.asarray(rng.binomial(_REPETITIONS, chances), dtype=np.float64)

    return draw


_DIFFERENCES = {
    IntervalMethod.TANGO: paired_difference_interval,
    IntervalMethod.NEWCOMBE: newcombe_difference_interval,
}
_MEANS = {IntervalMethod.T: _t, IntervalMethod.BCA: _bca}
_VALUES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, n: rng.normal(size=n), 0.0),
    "exponential": (lambda rng, n: rng.exponential(size=n), 1.0),
    "lognormal": (lambda rng, n: rng.lognormal(size=n), math.exp(0.5)),
}
