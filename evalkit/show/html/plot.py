"""Scales, axes and marks of inline SVG.

A plot is as wide as its place: x is given in per cent, y in pixels, and texts and strokes keep
their size. Lines that need more than two points lie in a nested SVG of 100 units that is stretched.
Must not know what is plotted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from evalkit.show.html.markup import esc

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps [lo, hi] to [start, end], linearly or by logarithm; beyond the ends it stops."""

    lo: float
    hi: float
    start: float = 0.0
    end: float = 100.0
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        lo, hi, at = self.lo, self.hi, min(max(value, self.lo), self.hi)
        if self.log:
            lo, hi, at = math.log(lo), math.log(hi), math.log(at)
        share = (at - lo) / (hi - lo) if hi > lo else 0.5
        return self.start + share * (self.end - self.start)


def nice_ticks(lo: float, hi: float, about: int = 5) -> list[float]:
    """Return round numbers within [lo, hi], some `about` of them."""
    if not hi > lo:
        return [lo]
    raw = (hi - lo) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first, last = math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def whole_ticks(lo: float, hi: float, about: int = 5) -> list[float]:
    """Return round whole numbers within [lo, hi]."""
    return [tick for tick in nice_ticks(lo, hi, about) if tick == int(tick)]


def log_ticks(lo: float, hi: float) -> list[float]:
    """Return powers of ten within [lo, hi], with 2 and 5 times them where there are few."""
    powers = range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1)
    ticks = [10.0**power for power in powers if lo <= 10.0**power <= hi]
    if len(ticks) >= 3:
        return ticks[:: math.ceil(len(ticks) / 7)]
    some = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return [tick for tick in some if lo <= tick <= hi]


def number(value: float) -> str:
    """Write a coordinate: at most two decimals, none that are not needed."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def amount(value: float) -> str:
    """Write a tick: thousands with a comma, large powers as such."""
    if abs(value) >= 1e6:
        return f"1e{round(math.log10(value))}" if _is_power(value) else f"{value:.3g}"
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def percent(share: float) -> str:
    """Write a share as a whole percentage."""
    return f"{100 * share:.0f} %"


def _is_power(value: float) -> bool:
    return math.isclose(value, 10.0 ** round(math.log10(value)))


def frame(
    *,
    height: int,
    label: str,
    marks: str,
    x: Scale,
    x_ticks: Sequence[tuple[float, str]],
    x_title: str,
    y: Scale,
    y_ticks: Sequence[tuple[float, str]],
    y_title: str,
) -> str:
    """Return a plot with its axes; `label` is what a screen reader says of it."""
    lines = "".join(
        f'<line class="grid" x1="0" x2="100%" y1="{number(y(at))}" y2="{number(y(at))}"/>'
        f'<text class="tick" x="-8" y="{number(y(at) + 4)}" text-anchor="end">{esc(text)}</text>'
        for at, text in y_ticks
    )
    lines += "".join(
        f'<text class="tick" x="{number(x(at))}%" y="{height + 18}" text-anchor="middle">'
        f"{esc(text)}</text>"
        for at, text in x_ticks
    )
    return (
        f'<div class="plot"><p class="axis" aria-hidden="true">{esc(y_title)}</p>'
        f'<svg role="group" aria-label="{esc(label)}" width="100%" height="{height}">'
        f'{lines}<line class="base" x1="0" x2="100%" y1="{height}" y2="{height}"/>{marks}</svg>'
        f'<p class="axis x" aria-hidden="true">{esc(x_title)}</p></div>'
    )


def stretched(height: int, content: str) -> str:
    """Return a nested SVG whose x goes from 0 to 100 whatever the width; y stays in pixels."""
    return (
        f'<svg viewBox="0 0 100 {height}" width="100%" height="{height}" '
        f'preserveAspectRatio="none" aria-hidden="true">{content}</svg>'
    )


def line(points: Sequence[Point], css: str) -> str:
    """Return a line through points, for `stretched`."""
    return f'<path class="{css}" d="{path(points)}"/>'


def area(upper: Sequence[Point], lower: Sequence[Point], css: str) -> str:
    """Return the area between two lines, for `stretched`."""
    return f'<path class="{css}" d="{path([*upper, *reversed(lower)])}Z"/>' if upper else ""


def steps(points: Sequence[Point]) -> list[Point]:
    """Return the corners of a line that keeps its height until the next point."""
    corners = list(points[:1])
    for (_, before), (x, y) in pairwise(points):
        corners += [(x, before), (x, y)]
    return corners


def path(points: Sequence[Point]) -> str:
    """Return the data of an SVG path through points."""
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)


def tipped(tip: str, content: str, css: str = "") -> str:
    """Return marks that say `tip` on hover and focus."""
    return (
        f'<g class="mark {css}" tabindex="0" role="img" aria-label="{esc(tip)}" '
        f'data-tip="{esc(tip)}">{content}</g>'
    )


def thin(length: int, most: int) -> list[int]:
    """Return at most `most` indices of a sequence, evenly spread, its first and last among them."""
    if length <= most:
        return list(range(length))
    return sorted({round(place * (length - 1) / (most - 1)) for place in range(most)})
