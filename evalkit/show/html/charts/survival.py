"""Survival: the share of episodes that have succeeded by each turn, by Kaplan-Meier."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from evalkit.judge.survival import Episode, SurvivalCurve, kaplan_meier
from evalkit.show.html.markup import Figure, arm_class, define, key, names
from evalkit.show.html.plot import (
    Point,
    Scale,
    amount,
    area,
    frame,
    line,
    number,
    percent,
    steps,
    stretched,
    tipped,
    whole_ticks,
)
from evalkit.show.report import Report
from evalkit.show.turns import Endings, endings
from evalkit.show.verdict import share

_HEIGHT = 220
_DASHES = 4


def survival(report: Report) -> Figure | None:
    """Draw every arm's curve; None where nothing was played."""
    arms = {arm: found for arm, found in report.numbers.items() if found.success}
    until = max((max(map(max, found.steps.values())) for found in arms.values()), default=0.0)
    if not until:
        return None
    played = {arm: episodes(endings(found), until) for arm, found in arms.items()}
    curves = {arm: kaplan_meier(of_arm) for arm, of_arm in played.items()}
    x, y = Scale(0.0, until), Scale(0.0, 1.0, _HEIGHT, 0.0)
    lines, marks = "", ""
    for index, arm in enumerate(report.numbers):
        if arm in curves:
            lines += _lines(curves[arm], index, x, y)
            ticks = _censored(arm, played[arm], curves[arm], x, y)
            marks += f'<g class="{arm_class(index)}">{ticks}</g>'
    body = frame(
        height=_HEIGHT,
        label=_finding(curves, until),
        marks=stretched(_HEIGHT, lines) + marks,
        x=x,
        x_ticks=[(tick, amount(tick)) for tick in whole_ticks(0.0, until, 6)],
        x_title="turns played",
        y=y,
        y_ticks=[(tick, percent(tick)) for tick in (0.0, 0.25, 0.5, 0.75, 1.0)],
        y_title="succeeded by then",
    )
    order = [(f"line {arm_class(i)} d{i % _DASHES}", arm) for i, arm in enumerate(report.numbers)]
    return Figure(
        name="survival",
        kind="Kaplan-Meier",
        finding=_finding(curves, until),
        body=key(order) + body,
        reading=(
            f"{define('Kaplan-Meier')} with its 95 % band. Ticks are episodes "
            f"{define('censored', 'that were never seen to succeed')}."
        ),
    )


def episodes(ends: Endings, until: float) -> list[Episode]:
    """Return (turns, succeeded) of every episode; one that never gets there is cut at `until`."""
    return [(min(turns, until), won) for of_seed in ends.values() for turns, won in of_seed]


def corners(curve: SurvivalCurve, horizon: float, x: Scale, y: Scale) -> list[Point]:
    """Return the corners of 1 - the curve, from turn 0 to the horizon."""
    points = [(x(0.0), y(0.0))]
    points += [
        (x(float(turn)), y(1.0 - float(left)))
        for turn, left in zip(curve.turns, curve.share, strict=True)
    ]
    return [*steps(points), (x(horizon), points[-1][1])]


def half_time(curve: SurvivalCurve) -> float | None:
    """Return the first turn by which half of the episodes have succeeded."""
    for turn, left in zip(curve.turns, curve.share, strict=True):
        if left <= 0.5:
            return float(turn)
    return None


def _lines(curve: SurvivalCurve, index: int, x: Scale, y: Scale) -> str:
    css = f"{arm_class(index)} d{index % _DASHES}"
    known = [
        (x(float(turn)), y(1.0 - float(lo)), y(1.0 - float(hi)))
        for turn, lo, hi in zip(curve.turns, curve.lo, curve.hi, strict=True)
        if not math.isnan(lo)
    ]
    band = ""
    if known:
        known.append((x(x.hi) if curve.share[-1] > 0 else x(float(curve.turns[-1])), 0.0, 0.0))
        lower = steps([(at, low) for at, low, _ in known])[:-1]
        upper = steps([(at, high) for at, _, high in known])[:-1]
        band = area(upper, lower, f"band {css}")
    return band + line(corners(curve, x.hi, x, y), f"curve {css}")


def _censored(arm: str, played: Sequence[Episode], curve: SurvivalCurve, x: Scale, y: Scale) -> str:
    """Return a tick where episodes without success end, and what the curve says there."""
    ends = Counter(turns for turns, won in played if not won)
    marks = ""
    for turn in sorted({*ends, x.hi}):
        past = curve.share[curve.turns <= turn]
        reached = 1.0 - float(past[-1]) if past.size else 0.0
        at, height = number(x(turn)), y(reached)
        content = f'<circle class="hit" cx="{at}%" cy="{number(height)}" r="9"/>'
        tip = f"{arm}: {share(reached)} have succeeded by turn {turn:g}"
        if ends[turn]:
            content += (
                f'<line class="censored" x1="{at}%" x2="{at}%" '
                f'y1="{number(height - 6)}" y2="{number(height + 6)}"/>'
            )
            tip += f"; {ends[turn]:,} without success are followed up to here"
        marks += tipped(tip, content)
    return marks


def _finding(curves: Mapping[str, SurvivalCurve], until: float) -> str:
    """Say when half had succeeded, or else how many had at the end, of the first three arms."""
    halves = {arm: half_time(curve) for arm, curve in curves.items()}
    if all(half is not None for half in halves.values()):
        first, *others = [f"half of {arm}'s by turn {half:g}" for arm, half in halves.items()][:3]
        first = first.replace("half of", "Half of", 1).replace("'s by", "'s episodes succeed by", 1)
        return names([first, *others])
    ends = {
        arm: 1.0 - float(curve.share[-1]) if curve.share.size else 0.0
        for arm, curve in curves.items()
    }
    said = names([f"{percent(end)} of {arm}'s episodes" for arm, end in ends.items()][:3])
    return f"By turn {until:g}, {said} have succeeded"
