"""The learning curve: a row per version, and whether a version is worse than the best before it.

Pure numbers. The i-th version to be compared (from i = 1) is tested one-sidedly against the best of
the i before it. Which of them is best was found on the same seeds, so its p-value is multiplied by
i (Bonferroni); there is no last version, so it is multiplied by i (i + 1) as well: these shares of
alpha add up to alpha (Foster & Stine 2008, JRSS B 70:429). The chance that any version of the curve
is ever called worse, when none is, is then at most alpha, however many there are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from evalkit.judge.betting import log_wealth
from evalkit.judge.compare import Comparison, compare
from evalkit.judge.intervals import clustered_mean
from evalkit.judge.paired import mcnemar, paired_counts
from evalkit.record.numbers import ArmNumbers
from evalkit.show.summary import success_interval
from evalkit.show.verdict import share

FORMAT = "learning_curve/1"
ALPHA = 0.05
COLUMNS = (
    "format version status served run_id finished_at n n_error success lo hi return return_lo "
    "return_hi turns_mean prompt_tokens completion_tokens previous diff_previous lo_previous "
    "hi_previous p_previous best diff_best lo_best hi_best p_best first diff_first lo_first "
    "hi_first p_first p_worse worse message"
).split()
BySeed = Mapping[int, Sequence[float]]


class Status(StrEnum):
    """What became of a version."""

    EVALUATED = "evaluated"
    """It was played."""
    FAILED = "failed"
    """It could not be played; it is tried again when the watch is started again."""
    MISSED = "missed"
    """It was replaced between two looks, or before it was played to its end: nobody serves it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A version that was played."""

    version: str
    numbers: ArmNumbers

    @property
    def rate(self) -> float:
        """Mean success over seeds."""
        by_seed = self.numbers.success.values()
        return math.fsum(math.fsum(each) / len(each) for each in by_seed) / len(by_seed)


class Curve:
    """Versions in the order in which they were evaluated."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        """Rows of learning_curve.csv."""
        self._points: list[Point] = []

    def add(self, known: Mapping[str, Any], point: Point | None) -> dict[str, Any]:
        """Append a version and return its row; `known` holds its columns that are no statistics.

        `point` is None for a version that was not played.
        """
        row = {**dict.fromkeys(COLUMNS), **known, "format": FORMAT}
        if point is not None:
            row |= _own_columns(point) | self._compared(point)
            self._points.append(point)
        self.rows.append(row)
        return row

    def _compared(self, point: Point) -> dict[str, Any]:
        if not self._points:
            return {}
        best = max(self._points, key=lambda each: each.rate)  # of equal ones the first
        others = {"previous": self._points[-1], "best": best, "first": self._points[0]}
        columns: dict[str, Any] = {}
        for name, other in others.items():
            columns |= _difference_columns(name, other, point)
        n_before = len(self._points)
        raw = p_worse(best.numbers.success, point.numbers.success)
        corrected = min(1.0, raw * n_before * n_before * (n_before + 1))
        return {**columns, "p_worse": corrected, "worse": corrected <= ALPHA}


def p_worse(before: BySeed, now: BySeed) -> float:
    """Return the one-sided p-value of "`now` is not worse than `before`" on their shared seeds.

    Exact McNemar where every seed has one success or failure; with repetitions 1 over the e-value
    of betting on the difference of the seeds' means, which has no smallest value to get stuck at.
    1 without a shared seed.
    """
    shared = sorted(before.keys() & now.keys())
    if not shared:
        return 1.0
    was, is_ = (np.array([math.fsum(x[s]) / len(x[s]) for s in shared]) for x in (before, now))
    if all(len(each[seed]) == 1 for each in (before, now) for seed in shared):
        _, lost, won, _ = paired_counts(was, is_)
        return mcnemar(lost, won).p / 2.0 if lost > won else 1.0
    counted = Counter((was - is_).tolist())
    log_e = log_wealth(np.array(list(counted)), np.array(list(counted.values()), dtype=np.float64))
    return math.exp(-max(0.0, float(log_e)))


def printable(text: str) -> str:
    """Leave out what neither XML nor a terminal should be given."""
    return "".join(each for each in text if each.isprintable())


def sentence(row: Mapping[str, Any]) -> str:
    """Say in one line what a row says."""
    return printable(_sentence(row))


def _sentence(row: Mapping[str, Any]) -> str:
    if row["status"] is not Status.EVALUATED:
        return f"{row['version']} {row['status'].value}: {row['message']}"
    interval = f"95 % CI {share(row['lo'])} .. {share(row['hi'])}"
    lost = f", {row['n_error']} episodes lost to errors" if row["n_error"] else ""
    said = f"{row['version']}: {share(row['success'])} success ({interval}, n={row['n']}{lost})"
    if row["diff_best"] is None:
        return said
    gap = 100.0 * row["diff_best"]
    said += f", {gap:+.1f} points against the best so far, {row['best']}"
    verdict = "significantly worse" if row["worse"] else "not significantly worse"
    return f"{said}: {verdict} (one-sided p={row['p_worse']:.2g}, corrected for all looks)"


def _own_columns(point: Point) -> dict[str, Any]:
    numbers = point.numbers
    interval, returns = (
        success_interval(numbers.success),
        clustered_mean([*numbers.return_.values()]),
    )
    several = returns.n_clusters > 1
    return {
        "n": numbers.n_ok,
        "n_error": numbers.n_error,
        "success": numbers.n_success / numbers.n_ok,
        "lo": interval.lo,
        "hi": interval.hi,
        "return": returns.mean,
        "return_lo": returns.lo if several else None,
        "return_hi": returns.hi if several else None,
        "turns_mean": numbers.turns / numbers.n_ok,
        "prompt_tokens": numbers.prompt_tokens,
        "completion_tokens": numbers.completion_tokens,
    }


def _difference_columns(name: str, other: Point, point: Point) -> dict[str, Any]:
    found: Comparison = compare(other.numbers.success, point.numbers.success, binary=True)
    return {
        name: other.version,
        f"diff_{name}": found.diff,
        f"lo_{name}": found.lo,
        f"hi_{name}": found.hi,
        f"p_{name}": found.p,
    }
