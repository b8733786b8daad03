"""Seeds: a heat map of success and return, arms by env seeds, the easiest seeds first.

Many seeds are gathered into bins of neighbours, so that the chart keeps its size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from evalkit.judge.intervals import FloatArray
from evalkit.record.numbers import ArmNumbers
from evalkit.show.html.markup import Figure, arm_class, define, esc, length
from evalkit.show.html.plot import number, percent
from evalkit.show.report import Report

MOST_CELLS = 120
_ROW = 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """The columns of the heat map: seeds by column, and a mean per arm and column."""

    columns: Sequence[Sequence[int]]
    success: Mapping[str, FloatArray]
    """Of shape (n_columns,)."""
    return_: Mapping[str, FloatArray]
    """Scaled to [0, 1]: `lowest` is 0, `highest` is 1."""
    lowest: float
    highest: float
    always: int
    """Seeds that every arm always wins."""
    never: int
    """Seeds that no arm ever wins."""


def seed_cells(arms: Mapping[str, ArmNumbers], most: int = MOST_CELLS) -> Cells:
    """Sort the seeds that every arm finished by success, then return, and gather them."""
    shared = sorted(set.intersection(*(set(found.success) for found in arms.values())))
    wins = np.array([_by_seed(found.success, shared) for found in arms.values()])
    gains = np.array([_by_seed(found.return_, shared) for found in arms.values()])
    order = np.lexsort((-gains.sum(axis=0), *-wins[::-1], -wins.sum(axis=0)))  # the last one first
    cuts = np.linspace(0, len(shared), min(most, len(shared)) + 1).astype(np.intp)
    lowest, highest = (float(gains.min()), float(gains.max())) if shared else (0.0, 0.0)
    scaled = (gains - lowest) / (highest - lowest or 1.0)
    seeds = np.array(shared, dtype=np.int64)[order]
    return Cells(
        columns=[seeds[a:b].tolist() for a, b in pairwise(cuts)],
        success=dict(zip(arms, _means(wins[:, order], cuts), strict=True)),
        return_=dict(zip(arms, _means(scaled[:, order], cuts), strict=True)),
        lowest=lowest,
        highest=highest,
        always=int((wins.min(axis=0) == 1.0).sum()),
        never=int((wins.max(axis=0) == 0.0).sum()),
    )


def seeds_figure(report: Report) -> Figure | None:
    """Draw success and, where it says more, return; None where no seed is in every arm."""
    arms = {arm: found for arm, found in report.numbers.items() if found.success}
    cells = seed_cells(arms) if arms else None
    if cells is None or not cells.columns:
        return None
    body = _grid("success", cells.success, cells.columns, list(report.numbers), 0.0, 1.0)
    if cells.highest > cells.lowest:
        low, high = cells.lowest, cells.highest
        body += _grid("return", cells.return_, cells.columns, list(report.numbers), low, high)
    binned = max(map(len, cells.columns)) > 1
    each = "the mean of neighbouring seeds" if binned else "one seed"
    return Figure(
        name="seeds",
        kind="Seeds",
        finding=_finding(cells, len(arms)),
        body=body,
        reading=f"Every column is {each}, {define('Seeds', 'easiest first')}; darker is more.",
        wide=True,
    )


def _by_seed(values: Mapping[int, Sequence[float]], seeds: Sequence[int]) -> list[float]:
    """Return the mean of each seed."""
    found = [values[seed] for seed in seeds]
    return [of[0] if len(of) == 1 else sum(of) / len(of) for of in found]


def _means(by_arm: FloatArray, cuts: NDArray[np.intp]) -> FloatArray:
    """Return the means between the cuts: shape (n_arms, n_columns)."""
    if cuts.size < 2:
        return by_arm
    return np.asarray(np.add.reduceat(by_arm, cuts[:-1], axis=1) / np.diff(cuts))


def _grid(
    title: str,
    by_arm: Mapping[str, FloatArray],
    columns: Sequence[Sequence[int]],
    order: Sequence[str],
    low: float,
    high: float,
) -> str:
    rows = ""
    for arm, values in by_arm.items():
        rects = "".join(
            _cell(column, place, len(columns), value, f"{title} {_shown(title, value, low, high)}")
            for place, (column, value) in enumerate(zip(columns, values.tolist(), strict=True))
        )
        average = float(np.average(values, weights=[len(column) for column in columns]))
        label = f"{title} of {arm}, {_shown(title, average, low, high)} on average"
        rows += (
            f'<div class="bar {arm_class(order.index(arm))}">'
            f'<span class="name">{esc(arm)}</span>'
            f'<svg class="heat" role="img" aria-label="{esc(label)}" width="100%" '
            f'height="{_ROW}">{rects}</svg></div>'
        )
    ends = f"{_shown(title, 0.0, low, high)} to {_shown(title, 1.0, low, high)}"
    return (
        f'<h4 class="sub">{define(title, title.capitalize())} <small>{esc(ends)}</small></h4>'
        f'<div class="bars {length(by_arm)}">{rows}</div>'
    )


def _cell(column: Sequence[int], place: int, count: int, value: float, said: str) -> str:
    width = 100.0 / count
    covered = width if place + 1 == count else 1.1 * width  # by the next one, so that none shows
    named = ", ".join(map(str, column[:4])) + (f" and {len(column) - 4} more" * (len(column) > 4))
    tip = f"{'seed' if len(column) == 1 else 'seeds'} {named}: {said}"
    return (
        f'<rect x="{number(place * width)}%" y="0" width="{number(covered)}%" height="{_ROW}" '
        f'class="h{round(10 * value)}" data-seed="{column[0]}" '
        f'data-tip="{esc(tip)}"/>'
    )


def _shown(title: str, value: float, low: float, high: float) -> str:
    return percent(value) if title == "success" else f"{low + value * (high - low):.2f}"


def _finding(cells: Cells, n_arms: int) -> str:
    total = sum(map(len, cells.columns))
    if n_arms == 1:
        return f"{cells.always:,} of {total:,} seeds are always won, {cells.never:,} never"
    if cells.never == total:
        return f"No arm ever wins any of the {total:,} seeds"
    if cells.always == total:
        return f"Every arm wins all of the {total:,} seeds"
    return f"{cells.always:,} of {total:,} seeds are won by every arm, {cells.never:,} by none"
