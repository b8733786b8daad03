"""Evidence: the e-value and the confidence sequence, pair after pair, in the order of the seeds.

For a run of a fixed number of seeds this is what a look after every pair would have shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evalkit.judge.betting import confidence_bounds, log_threshold, log_wealth
from evalkit.judge.deciding import Deciding
from evalkit.judge.intervals import FloatArray
from evalkit.judge.sequential import Verdict
from evalkit.record.numbers import ArmNumbers
from evalkit.show.html.charts.flips import mean
from evalkit.show.html.markup import Figure, define, esc
from evalkit.show.html.plot import (
    Point,
    Scale,
    amount,
    area,
    frame,
    line,
    nice_ticks,
    number,
    stretched,
    thin,
    tipped,
    whole_ticks,
)
from evalkit.show.report import Report
from evalkit.show.sequential import Sequential

ALPHA = 0.05
_POINTS = 160
_CHUNK = 2048
_MOST_PAIRS = 3
_HEIGHT = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """What the looks at some of the pairs said; all of shape (n_looks,)."""

    n_pairs: FloatArray
    log_e: FloatArray
    diff: FloatArray
    lo: FloatArray
    hi: FloatArray
    decided_at: int | None
    """The first pair, of all of them, after which the arms were told apart."""
    alpha: float
    unit: float = 100.0
    """What differences are multiplied with to be shown: 100 for points, 1 for returns."""


def seed_differences(a: ArmNumbers, b: ArmNumbers) -> FloatArray:
    """Return B minus A in success for every shared seed, in their order: shape (n_pairs,)."""
    shared = sorted(a.success.keys() & b.success.keys())
    return np.array([mean(b.success[seed]) - mean(a.success[seed]) for seed in shared])


def evidence_path(differences: FloatArray, alpha: float = ALPHA, points: int = _POINTS) -> Path:
    """Look after at most `points` of the pairs, and after every one for the first decision.

    `differences` of shape (n_pairs,) lie in [-1, 1].
    """
    values, kinds = np.unique(np.round(differences, 12), return_inverse=True)
    hot = kinds[:, np.newaxis] == np.arange(values.size)
    counts = np.cumsum(hot, axis=0, dtype=np.float64)
    looks = np.array(thin(differences.size, points), dtype=np.intp)
    seen, n_pairs = counts[looks], looks.astype(np.float64) + 1.0
    bounds = np.array([confidence_bounds(values, row, alpha) for row in seen])
    above, below = log_wealth(values, seen), log_wealth(-values, seen)
    return Path(
        n_pairs=n_pairs,
        log_e=np.logaddexp(above, below) - math.log(2.0),
        diff=seen @ values / n_pairs,
        lo=bounds[:, 0],
        hi=bounds[:, 1],
        decided_at=_decided_at(values, counts, differences, alpha),
        alpha=alpha,
    )


def _decided_at(
    values: FloatArray, counts: FloatArray, differences: FloatArray, alpha: float
) -> int | None:
    """Return the first pair after which one side's wealth decides; equal ones change nothing."""
    places, threshold = np.flatnonzero(differences), log_threshold(alpha)
    for start in range(0, places.size, _CHUNK):
        some = places[start : start + _CHUNK]
        beyond = (log_wealth(values, counts[some]) >= threshold) | (
            log_wealth(-values, counts[some]) >= threshold
        )
        if beyond.any():
            return int(some[beyond.argmax()]) + 1
    return None


def stopped_path(found: Sequential) -> Path | None:
    """Return the looks by which a run was stopped; None where there was none."""
    looks = [seen.look for seen in found.looks if seen.look.diff is not None]
    if not looks:
        return None
    decided = found.verdict in {Verdict.BETTER, Verdict.WORSE}
    return Path(
        n_pairs=np.array([float(look.n_pairs) for look in looks]),
        log_e=np.array([look.log_e for look in looks]),
        diff=np.array([look.diff for look in looks], dtype=np.float64),
        lo=np.array([look.lo for look in looks]),
        hi=np.array([look.hi for look in looks]),
        decided_at=looks[-1].n_pairs if decided else None,
        alpha=1.0 - looks[-1].level,
        unit=1.0 if found.deciding is Deciding.RETURN else 100.0,
    )


def evidence(report: Report) -> Figure | None:
    """Draw the path of each of the first pairs of arms; None where none shares a seed."""
    found = list(_paths(report))
    if not found:
        return None
    several = len(found) > 1
    body = "".join(
        "<div>"
        + (f'<h4 class="sub">{esc(b)} against {esc(a)}</h4>' if several else "")
        + f"{_plots(path)}</div>"
        for a, b, path in found
    )
    path = found[0][2]
    what = "differences in success" if path.unit > 1.0 else "differences in return"
    return Figure(
        name="evidence",
        kind="Evidence",
        finding=_finding(*found[0]),
        body=f'<div class="paths">{body}</div>',
        wide=several,
        reading=(
            f"The {define('e-value')} of the {what}, in the order of the seeds. "
            f"Dashed: 1 / {define('alpha')} = {1 / path.alpha:.3g}. Below, the difference "
            f"with its {define('confidence sequence')}. A test that may be read at any time needs "
            "more pairs than one that is read once."
        ),
    )


def _paths(report: Report) -> Iterator[tuple[str, str, Path]]:
    """Yield the looks that stopped the run, or those that a run of fixed size could have had."""
    if report.sequential:
        for found in report.sequential[:_MOST_PAIRS]:
            path = stopped_path(found)
            if path is not None:
                yield found.a, found.b, path
        return
    for a, b in report.pairs[:_MOST_PAIRS]:
        differences = seed_differences(report.numbers[a], report.numbers[b])
        if differences.size:
            yield a, b, evidence_path(differences)


def _plots(path: Path) -> str:
    last = float(path.n_pairs[-1])
    x = Scale(0.0, last)
    ticks = [(tick, amount(tick)) for tick in whole_ticks(0.0, last, 4)]
    return _wealth(path, x, ticks) + _sequence(path, x, ticks)


def _wealth(path: Path, x: Scale, x_ticks: Sequence[tuple[float, str]]) -> str:
    log10 = path.log_e / math.log(10.0)
    bar = -math.log10(path.alpha)
    top, bottom = max(float(log10.max()), 1.5 * bar), min(float(log10.min()), -0.5)
    y = Scale(bottom, top, _HEIGHT, 0.0)
    points = [(x(0.0), y(0.0))]
    points += [(x(float(n)), y(float(value))) for n, value in zip(path.n_pairs, log10, strict=True)]
    at = number(y(bar))
    marks = f'<line class="threshold" x1="0" x2="100%" y1="{at}" y2="{at}"/>'
    marks += stretched(_HEIGHT, line(points, "curve plain"))
    if path.decided_at is not None:
        place = number(x(float(path.decided_at)))
        tip = f"decided after {path.decided_at:,} of {int(x.hi):,} pairs"
        content = f'<line class="decided" x1="{place}%" x2="{place}%" y1="0" y2="{_HEIGHT}"/>'
        content += f'<circle class="dot" cx="{place}%" cy="{at}" r="5"/>'
        marks += tipped(tip, content, "plain")
    return frame(
        height=_HEIGHT,
        label=f"e-value after each pair; at the end {_power(float(log10[-1]))}",
        marks=marks,
        x=x,
        x_ticks=x_ticks,
        x_title="",
        y=y,
        y_ticks=[(tick, _power(tick)) for tick in whole_ticks(bottom, top, 4)],
        y_title="e-value, log scale",
    )


def _sequence(path: Path, x: Scale, x_ticks: Sequence[tuple[float, str]]) -> str:
    lowest, highest = path.unit * float(path.lo[-1]), path.unit * float(path.hi[-1])
    reach = 2.5 * max(abs(lowest), abs(highest), 1e-9)
    reach = min(100.0, reach) if path.unit > 1.0 else reach
    y = Scale(-reach, reach, _HEIGHT, 0.0)

    def drawn(values: FloatArray) -> list[Point]:
        pairs = zip(path.n_pairs, path.unit * values, strict=True)
        return [(x(float(n)), y(float(value))) for n, value in pairs]

    zero = number(y(0.0))
    marks = f'<line class="zero" x1="0" x2="100%" y1="{zero}" y2="{zero}"/>'
    band = area(drawn(path.hi), drawn(path.lo), "band plain")
    marks += stretched(_HEIGHT, band + line(drawn(path.diff), "curve plain"))
    said = f"{path.unit * float(path.diff[-1]):+.1f}, {lowest:+.1f} to {highest:+.1f}"
    return frame(
        height=_HEIGHT,
        label=f"difference and confidence sequence after each pair; at the end {said}",
        marks=marks,
        x=x,
        x_ticks=x_ticks,
        x_title="pairs, in the order of the seeds",
        y=y,
        y_ticks=[(tick, f"{tick:+g}" if tick else "0") for tick in nice_ticks(-reach, reach, 4)],
        y_title="difference, points" if path.unit > 1.0 else "difference in return",
    )


def _power(log10: float) -> str:
    """Write a power of ten the way one reads it."""
    if abs(log10) < 4:
        value = 10.0**log10
        return f"{value:,.0f}" if value >= 1 else f"{value:.3g}"
    return f"1e{log10:.0f}"


def _finding(a: str, b: str, path: Path) -> str:
    total = int(path.n_pairs[-1])
    if path.decided_at is None:
        return f"Read after every pair, {total:,} pairs do not tell {a} and {b} apart"
    after = f"{path.decided_at:,}" + ("" if path.decided_at == total else f" of {total:,}")
    return f"Read after every pair, {after} pairs tell {a} and {b} apart"
