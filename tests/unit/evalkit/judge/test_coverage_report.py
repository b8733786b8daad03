"""The simulated table of coverage: against exact sums, and intervals known to fail."""

import math

import numpy as np
import pytest
from scipy import stats

from evalkit.judge.coverage import (
    SimulatedCoverage,
    coverage_report,
    difference_coverage,
    mean_coverage,
)
from evalkit.judge.intervals import FloatArray, Interval, IntervalMethod
from evalkit.judge.paired import newcombe_difference_interval, paired_difference_interval


def test_a_difference_is_covered_as_the_exact_sum_says() -> None:
    """All tables of 12 seeds in four cells; 20,000 simulations, standard error .0015."""
    chances = (0.45, 0.1, 0.2, 0.25)
    for method in (paired_difference_interval, newcombe_difference_interval):
        exact = 0.0
        for both in range(13):
            for a_only in range(13 - both):
                for b_only in range(13 - both - a_only):
                    cells = (both, a_only, b_only, 12 - both - a_only - b_only)
                    interval = method(*cells)
                    if interval.lo <= 0.1 <= interval.hi:
                        exact += float(stats.multinomial.pmf(cells, 12, chances))
        measured = difference_coverage(12, chances, method, simulations=20_000)
        assert measured == pytest.approx(exact, abs=0.006)


def _wald(both: int, a_only: int, b_only: int, neither: int) -> Interval:
    n = both + a_only + b_only + neither
    diff = (b_only - a_only) / n
    half = 1.96 * math.sqrt(max(0.0, (a_only + b_only) / n - diff**2) / n)
    return Interval(lo=diff - half, hi=diff + half, method=IntervalMethod.T)


def test_a_bad_interval_is_seen() -> None:
    chances = (0.88, 0.0, 0.04, 0.08)
    assert difference_coverage(30, chances, _wald) < 0.75
    assert difference_coverage(30, chances, paired_difference_interval) > 0.93


def test_a_mean_is_covered_as_its_method_says() -> None:
    def known(values: FloatArray, _: int) -> tuple[float, float]:
        half = 1.96 / math.sqrt(values.size)
        return float(values.mean()) - half, float(values.mean()) + half

    def draw(rng: np.random.Generator, n: int) -> FloatArray:
        return rng.normal(size=n)

    assert mean_coverage(known, draw, 10, 0.0, simulations=4_000) == pytest.approx(0.95, abs=0.012)


def test_the_report_is_a_row_per_case() -> None:
    rows = coverage_report([20], simulations=60)
    assert {row.method for row in rows} == {
        IntervalMethod.TANGO, IntervalMethod.NEWCOMBE, IntervalMethod.WILSON_CLUSTERED,
        IntervalMethod.T, IntervalMethod.BCA, IntervalMethod.BETTING,
    }  # fmt: skip
    assert len({(row.method, row.case) for row in rows}) == len(rows) == 15
    assert all(row.covered > 0.7 for row in rows)
    row = SimulatedCoverage(
        method=IntervalMethod.T, case="normal", n=20, covered=0.9, simulations=100
    )
    assert row.se == pytest.approx(0.03)


def test_chances_are_checked() -> None:
    with pytest.raises(ValueError, match="add up"):
        difference_coverage(10, (0.5, 0.2, 0.2, 0.2))
