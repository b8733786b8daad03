"""Latency: the share of a served model's calls answered within each time.

The only chart that depends on the clock: two runs that are alike in all else differ here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evalkit.show.html.markup import Figure, arm_class, define, key, names
from evalkit.show.html.plot import (
    Scale,
    amount,
    frame,
    line,
    log_ticks,
    number,
    percent,
    stretched,
    thin,
    tipped,
)

_HEIGHT = 220
_POINTS = 200
_LEAST_MS = 0.01


def latency(order: Sequence[str], latencies_s: Mapping[str, Sequence[float]]) -> Figure | None:
    """Draw the distribution of every arm that waited for anything; None where none did."""
    known = {
        arm: sorted(max(1000.0 * taken, _LEAST_MS) for taken in latencies_s[arm])
        for arm in order
        if any(latencies_s.get(arm, ()))
    }
    if not known:
        return None
    lo, hi = min(ms[0] for ms in known.values()), max(ms[-1] for ms in known.values())
    x = Scale(lo / 1.1, hi * 1.1, log=True)
    y = Scale(0.0, 1.0, _HEIGHT, 0.0)
    lines, marks = "", ""
    for index, arm in enumerate(order):
        if arm in known:
            lines += line(_points(known[arm], x, y), f"curve {arm_class(index)} d{index % 4}")
            marks += f'<g class="{arm_class(index)}">{_quantiles(arm, known[arm], x, y)}</g>'
    entries = [
        (f"line {arm_class(i)} d{i % 4}", arm) for i, arm in enumerate(order) if arm in known
    ]
    plot = frame(
        height=_HEIGHT,
        label=_finding(known),
        marks=stretched(_HEIGHT, lines) + marks,
        x=x,
        x_ticks=[(tick, amount(tick)) for tick in log_ticks(x.lo, x.hi)],
        x_title="milliseconds, log scale",
        y=y,
        y_ticks=[(tick, percent(tick)) for tick in (0.0, 0.25, 0.5, 0.75, 1.0)],
        y_title="answered by then",
    )
    return Figure(
        name="latency",
        kind="Latency",
        finding=_finding(known),
        body=key(entries) + plot,
        reading=(
            f"{define('Latency', 'Cumulative distribution')} of the calls' times, all attempts "
            "included. Dots: median, 95th and 99th per cent."
        ),
    )


def quantile(ordered: Sequence[float], q: float) -> float:
    """Return a quantile of sorted values, the lower of two neighbours."""
    return ordered[int(q * (len(ordered) - 1))]


def _points(ordered: Sequence[float], x: Scale, y: Scale) -> list[tuple[float, float]]:
    total = len(ordered)
    points = [(x(ordered[0]), y(0.0))]
    return points + [(x(ordered[at]), y((at + 1) / total)) for at in thin(total, _POINTS)]


def _quantiles(arm: str, ordered: Sequence[float], x: Scale, y: Scale) -> str:
    marks = ""
    for q in (0.5, 0.95, 0.99):
        at = quantile(ordered, q)
        dot = f'<circle class="dot" cx="{number(x(at))}%" cy="{number(y(q))}" r="4.5"/>'
        marks += tipped(f"{arm}: {percent(q)} of {len(ordered):,} calls within {_time(at)}", dot)
    return marks


def _time(ms: float) -> str:
    return f"{ms / 1000:.2f} s" if ms >= 1000 else f"{ms:.3g} ms"


def _finding(known: Mapping[str, Sequence[float]]) -> str:
    said = [f"{arm}'s within {_time(quantile(ms, 0.5))}" for arm, ms in known.items()][:3]
    return f"Half of the answers came: {names(said)}"
