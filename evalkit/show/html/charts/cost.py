"""Cost: tokens per episode against success; nothing where no server counted tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evalkit.show.html.markup import Figure, arm_class, define, esc, key, length
from evalkit.show.html.plot import Scale, amount, frame, nice_ticks, number, percent, tipped
from evalkit.show.report import Report
from evalkit.show.verdict import share

_HEIGHT = 220


def tokens_per_episode(row: Mapping[str, Any]) -> float | None:
    """Return the tokens of an arm's scored episodes per episode; None where none were counted."""
    tokens = (row["prompt_tokens"] or 0) + (row["completion_tokens"] or 0)
    return tokens / row["n_ok"] if tokens and row["n_ok"] else None


def cost(report: Report) -> Figure | None:
    """Draw every arm that used tokens; None where there is none."""
    spent = {
        row["arm"]: (tokens, row)
        for row in report.summary
        if (tokens := tokens_per_episode(row)) is not None
    }
    if not spent:
        return None
    x = Scale(0.0, 1.15 * max(tokens for tokens, _ in spent.values()))
    y = Scale(0.0, 1.0, _HEIGHT, 0.0)
    marks, named = _reference(report, y), not length(spent) and len(spent) < 5
    entries = [(arm_class(i), arm) for i, arm in enumerate(report.numbers) if arm in spent]
    for index, arm in enumerate(report.numbers):
        if arm in spent:
            marks += f'<g class="{arm_class(index)}">{_mark(*spent[arm], x, y, named=named)}</g>'
    body = frame(
        height=_HEIGHT,
        label=_finding(spent),
        marks=marks,
        x=x,
        x_ticks=[(tick, amount(tick)) for tick in nice_ticks(x.lo, x.hi, 4)],
        x_title="tokens per episode",
        y=y,
        y_ticks=[(tick, percent(tick)) for tick in (0.0, 0.25, 0.5, 0.75, 1.0)],
        y_title="success",
    )
    return Figure(
        name="cost",
        kind="Cost",
        finding=_finding(spent),
        body=body if named else key(entries) + body,
        reading=(
            f"Further left is cheaper ({define('tokens per episode')}), further up is better "
            f"({define('success')}, with its {define('95 % CI')})."
        ),
    )


def _mark(tokens: float, row: Mapping[str, Any], x: Scale, y: Scale, *, named: bool) -> str:
    at, middle = number(x(tokens)), y(row["success_rate"])
    upper, lower = y(row["success_hi"]), y(row["success_lo"])
    right = x(tokens) > 70
    text = (
        f'<svg x="{at}%" y="{number(middle)}" overflow="visible">'
        f'<text class="label" x="{-11 if right else 11}" y="4.5" '
        f'text-anchor="{"end" if right else "start"}">{esc(row["arm"])}</text></svg>'
    )
    content = (
        f'<line class="interval" x1="{at}%" x2="{at}%" y1="{number(upper)}" y2="{number(lower)}"/>'
        f'<circle class="dot" cx="{at}%" cy="{number(middle)}" r="6"/>{text if named else ""}'
    )
    tip = f"{row['arm']}: {tokens:,.0f} tokens per episode, {share(row['success_rate'])} success"
    tip += f", 95 % CI {share(row['success_lo'])} to {share(row['success_hi'])}"
    if row["tokens_per_success"]:
        tip += f"; {row['tokens_per_success']:,.0f} tokens per success"
    return tipped(tip, content)


def _reference(report: Report, y: Scale) -> str:
    found = report.references.get("random")
    if found is None:
        return ""
    at = number(y(found.success_rate))
    return f'<line class="reference" x1="0" x2="100%" y1="{at}" y2="{at}"/>'


def _finding(spent: Mapping[str, Sequence[Any]]) -> str:
    ordered = sorted(spent, key=lambda arm: spent[arm][0])
    first, last = ordered[0], ordered[-1]
    said = f"{first} spends {spent[first][0]:,.0f} tokens per episode"
    return said if first == last else f"{said}, {last} {spent[last][0]:,.0f}"
