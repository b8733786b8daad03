"""The promises that a report rests on, each held against a simulation or an exact sum.

A promise that is not made (an interval on skewed values of few seeds) is told beside the others.
Must not know the command that shows them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evalkit.judge.coverage import SimulatedCoverage, coverage_report
from evalkit.judge.intervals import IntervalMethod
from evalkit.judge.proportion import coverage_table
from evalkit.judge.selfcheck import SelfCheck, self_check

_LOWEST = 0.935
_NEWCOMBE_LOWEST = 0.92
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """A share that was found, and the limits it has to keep; None where there is no limit."""

    name: str
    case: str
    n_seeds: int
    found: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def made(self) -> bool:
        """Whether there is a limit."""
        return self.at_least is not None or self.at_most is not None

    @property
    def kept(self) -> bool:
        """Whether what was found keeps the limits."""
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= self.found <= high


def promises(
    simulations: int = 1_000,
    n_seeds: int = 200,
    k: int = 1,
    rates: Sequence[float] | None = None,
) -> Iterator[Promise]:
    """Yield every promise, as it is checked: about 10 seconds for 1,000 simulations.

    Equal arms are drawn from `rates` (a run's, by seed), `n_seeds` seeds played `k` times; without
    rates from uneven ones, once and four times. Intervals take half as many simulations. What is
    simulated may be three standard errors off. Raises ValueError for sizes below 1 or rates outside
    [0, 1].
    """
    repetitions = (k,) if rates is not None or k > 1 else (1, 4)
    for times in repetitions:
        yield from _of_tests(self_check(simulations, n_seeds, times, rates=rates))
    recommended = (IntervalMethod.BLAKER_ADJUSTED,)
    for row in coverage_table(sizes=(20, 50, 100, 200), methods=recommended):
        yield Promise(
            name="covers: success rate",
            case=f"{row.method.value}, lowest of rates .02 to .98, exact",
            n_seeds=row.n,
            found=row.lowest,
            at_least=_LOWEST - _ROUNDING,
        )
    for simulated in coverage_report(simulations=max(1, simulations // 2)):
        yield _of_interval(simulated)


def _of_tests(check: SelfCheck) -> Iterator[Promise]:
    case = f"a policy against itself, k={check.k}"
    for name, found in (
        ("false decisions: fixed test", check.fixed),
        ("false decisions: sequential test, a look after every pair", check.sequential),
    ):
        yield Promise(
            name=name, case=case, n_seeds=check.n_seeds, found=found, at_most=check.allowed
        )
    yield Promise(
        name="false decisions: t test, a look after every pair (not used)",
        case=case,
        n_seeds=check.n_seeds,
        found=check.naive,
    )


def _of_interval(simulated: SimulatedCoverage) -> Promise:
    lowest = _NEWCOMBE_LOWEST if simulated.method is IntervalMethod.NEWCOMBE else _LOWEST
    slack = 3.0 * math.sqrt(lowest * (1.0 - lowest) / simulated.simulations)
    return Promise(
        name="covers: " + _BOUNDED.get(simulated.method, "mean"),
        case=f"{simulated.method.value}, {simulated.case}",
        n_seeds=simulated.n,
        found=simulated.covered,
        at_least=None if simulated.case in _SKEWED else lowest - slack,
    )


_SKEWED = ("exponential", "lognormal")
_BOUNDED = {
    IntervalMethod.TANGO: "difference of success",
    IntervalMethod.NEWCOMBE: "difference of success",
    IntervalMethod.WILSON_CLUSTERED: "success rate, k=4",
    IntervalMethod.BETTING: "difference, at one look",
}
