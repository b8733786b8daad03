"""Flips: for each pair of arms, the seeds that both, one or neither of them wins, as areas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evalkit.record.numbers import ArmNumbers
from evalkit.show.html.markup import Figure, arm_class, define, esc
from evalkit.show.html.plot import number, tipped
from evalkit.show.report import Report
from evalkit.show.verdict import share

_HEIGHT = 250
_MOST_PAIRS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """How many shared seeds ended how; with several repetitions, by the mean of each arm."""

    a: str
    b: str
    both: int
    a_only: int
    b_only: int
    neither: int
    graded: bool = False
    """Whether seeds were played several times, and arms can win one more or less often."""

    @property
    def total(self) -> int:
        """All shared seeds."""
        return self.both + self.a_only + self.b_only + self.neither


@dataclass(frozen=True, slots=True)
class Field:
    """A rectangle of the mosaic: x and width in per cent, y and height as shares of 1."""

    name: str
    count: int
    x: float
    y: float
    width: float
    height: float


def count_flips(a: str, b: str, left: ArmNumbers, right: ArmNumbers) -> Flips:
    """Sort the shared seeds; equal means count as both from one half on, else as neither."""
    counts: Counter[str] = Counter()
    for seed in left.success.keys() & right.success.keys():
        rate_a, rate_b = mean(left.success[seed]), mean(right.success[seed])
        if rate_a == rate_b:
            counts["both" if rate_a >= 0.5 else "neither"] += 1
        else:
            counts["a_only" if rate_a > rate_b else "b_only"] += 1
    return Flips(
        a=a,
        b=b,
        both=counts["both"],
        a_only=counts["a_only"],
        b_only=counts["b_only"],
        neither=counts["neither"],
        graded=any(len(values) > 1 for arm in (left, right) for values in arm.success.values()),
    )


def fields(flips: Flips) -> list[Field]:
    """Lay out the mosaic: left A wins, right A loses; above B wins, below B loses."""
    if not flips.total:
        return []
    laid, x = [], 0.0
    columns = (
        (("both", flips.both), ("a_only", flips.a_only)),
        (("b_only", flips.b_only), ("neither", flips.neither)),
    )
    for column in columns:
        wins = sum(count for _, count in column)
        width, y = 100.0 * wins / flips.total, 0.0
        for name, count in column:
            height = count / wins if wins else 0.0
            if count:
                laid.append(Field(name, count, x, y, width, height))
            y += height
        x += width
    return laid


def flips_figure(report: Report) -> Figure | None:
    """Draw a mosaic for each of the first pairs; None where no pair shares a seed."""
    found = [count_flips(a, b, report.numbers[a], report.numbers[b]) for a, b in report.pairs]
    found = [flips for flips in found if flips.total]
    if not found:
        return None
    shown = found[:_MOST_PAIRS]
    order, height = list(report.numbers), _HEIGHT if len(shown) == 1 else 110
    body = "".join(_mosaic(flips, height, order) for flips in shown)
    left_out = len(found) - len(shown)
    more = f"<p class='soft'>{left_out} more pairs are in paired.csv.</p>" if left_out else ""
    return Figure(
        name="flips",
        kind="Flips",
        finding=_finding(shown),
        body=f'<div class="mosaics">{body}</div>{more}',
        reading=(
            f"Areas are shares of the {define('paired seeds')}. Only the {define('flips')}, the "
            "coloured fields, speak for one arm or the other."
        ),
        wide=len(shown) > 1,
    )


def mean(values: Sequence[float]) -> float:
    """Return the mean of a seed's values."""
    return sum(values) / len(values)


def _mosaic(flips: Flips, height: int, order: Sequence[str]) -> str:
    words = _words(flips)
    css = {name: name for name in words}
    css["a_only"] = f"only {arm_class(order.index(flips.a))}"
    css["b_only"] = f"only {arm_class(order.index(flips.b))}"
    rects = "".join(
        _rect(field, css[field.name], words[field.name], height, flips.total)
        for field in fields(flips)
    )
    label = ", ".join(f"{words[name]}: {getattr(flips, name)}" for name in words)
    legend = "".join(
        f'<li><i class="swatch {css[name]}" aria-hidden="true"></i>'
        f"<span>{esc(words[name])}</span> <b>{getattr(flips, name):,}</b></li>"
        for name in words
    )
    return (
        f'<div class="mosaic"><svg role="group" aria-label="{esc(label)}" width="100%" '
        f'height="{height}">{rects}</svg><ul class="counts">{legend}</ul></div>'
    )


def _rect(field: Field, css: str, word: str, height: int, total: int) -> str:
    y, tall = field.y * height, field.height * height
    rect = (
        f'<rect class="{css}" x="{number(field.x)}%" y="{number(y)}" '
        f'width="{number(field.width)}%" height="{number(tall)}"/>'
    )
    if field.width > 14 and tall > 26:
        rect += (
            f'<text class="count {css}" x="{number(field.x + field.width / 2)}%" '
            f'y="{number(y + tall / 2 + 6)}" text-anchor="middle">{field.count:,}</text>'
        )
    return tipped(f"{word}: {field.count:,} of {total:,} seeds, {share(field.count / total)}", rect)


def _words(flips: Flips) -> Mapping[str, str]:
    if flips.graded:
        return {
            "both": "alike, mostly won",
            "a_only": f"{flips.a} wins more often",
            "b_only": f"{flips.b} wins more often",
            "neither": "alike, mostly lost",
        }
    return {
        "both": "both win",
        "a_only": f"only {flips.a} wins",
        "b_only": f"only {flips.b} wins",
        "neither": "neither wins",
    }


def _finding(found: Sequence[Flips]) -> str:
    flips = found[0]
    turned = flips.a_only + flips.b_only
    pair = "" if len(found) == 1 else f" between {flips.a} and {flips.b}"
    if not turned:
        return f"No seed flips{pair}: every one ends alike in both arms"
    verb = "end differently" if flips.graded else "flip"
    said = f"{turned:,} of {flips.total:,} seeds {verb}{pair}: "
    if not flips.a_only or not flips.b_only:
        return f"{said}all for {flips.b if flips.b_only else flips.a}"
    return f"{said}{flips.b_only:,} for {flips.b}, {flips.a_only:,} for {flips.a}"
