"""Forest: every arm's success with its interval, and every pair's difference, on common scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalkit.judge.deciding import Deciding
from evalkit.record.references import Reference
from evalkit.show.html.markup import Figure, arm_class, define, esc, length, names
from evalkit.show.html.plot import Scale, amount, nice_ticks, number, percent, tipped
from evalkit.show.report import Report
from evalkit.show.verdict import share

_ROW = 34


def forest(report: Report) -> Figure | None:
    """Draw arms and differences; None where no episode counts."""
    rows = [row for row in report.summary if row["success_rate"] is not None]
    if not rows:
        return None
    indices = {arm: index for index, arm in enumerate(report.numbers)}
    scale = Scale(0.0, 1.0)
    body = _references(report.references, scale)
    body += "".join(_arm(row, indices[row["arm"]], report.references, scale) for row in rows)
    body += _axis(scale, [(tick, percent(tick)) for tick in (0.0, 0.25, 0.5, 0.75, 1.0)])
    differences = _found(report)
    body += _differences(differences) if differences else ""
    return Figure(
        name="forest",
        kind="Forest",
        finding=_finding(rows),
        body=f'<div class="forest {length(_names(report))}">{body}</div>',
        reading=(
            f"Dots are {define('success', 'success rates')}, lines their "
            f"{define('95 % CI', '95 % intervals')}; dashed, {define('random')} and "
            f"{define('oracle')} on the same seeds. A difference is decided by its test, on "
            f"{define('paired seeds')}."
        ),
        wide=True,
    )


def _names(report: Report) -> list[str]:
    return [*report.numbers, *(f"{b} − {a}" for a, b in report.pairs)]


def interval_marks(lo: float | None, at: float, hi: float | None, scale: Scale) -> str:
    """Return a dot with its interval; x in per cent of `scale`, in the middle of a row."""
    middle = _ROW / 2
    line = ""
    if lo is not None and hi is not None:
        line = (
            f'<line class="interval" x1="{number(scale(lo))}%" x2="{number(scale(hi))}%" '
            f'y1="{number(middle)}" y2="{number(middle)}"/>'
        )
    return f'{line}<circle class="dot" cx="{number(scale(at))}%" cy="{number(middle)}" r="5.5"/>'


def _arm(
    row: Mapping[str, Any], index: int, references: Mapping[str, Reference], scale: Scale
) -> str:
    rate, lo, hi = row["success_rate"], row["success_lo"], row["success_hi"]
    tip = f"{row['arm']}: {share(rate)} success, 95 % CI {share(lo)} to {share(hi)}"
    tip += f", {row['n_ok']} episodes that count"
    marks = _rules([0.0, 0.25, 0.5, 0.75, 1.0], scale, "grid")
    marks += _rules([found.success_rate for found in references.values()], scale, "reference")
    marks += tipped(tip, interval_marks(lo, rate, hi, scale))
    interval = "" if lo is None or hi is None else f"{100 * lo:.1f} to {100 * hi:.1f}"
    return _row(row["arm"], share(rate), interval, marks, arm_class(index))


@dataclass(frozen=True, slots=True)
class _Difference:
    """B minus A in success, with its interval and what that is."""

    name: str
    diff: float
    lo: float | None
    hi: float | None
    interval: str


def _found(report: Report) -> list[_Difference]:
    """Return the differences that are known: as a run was stopped on them, or of fixed size."""
    looks = {
        (each.a, each.b): each.last
        for each in report.sequential
        if each.deciding is Deciding.SUCCESS
    }
    rows = []
    for pair in report.compared:
        name, found, look = f"{pair.b} − {pair.a}", pair.found, looks.get((pair.a, pair.b))
        if pair.metric.name != "success" or found.diff is None:
            continue
        if look is not None and look.diff is not None:
            word = f"{100 * look.level:.3g} % confidence sequence"
            rows.append(_Difference(name, look.diff, look.lo, look.hi, word))
        else:
            rows.append(_Difference(name, found.diff, found.lo, found.hi, "95 % CI"))
    return rows


def _differences(rows: Sequence[_Difference]) -> str:
    ends = [0.0, *(row.diff for row in rows)]
    ends += [end for row in rows for end in (row.lo, row.hi) if end is not None]
    room = 0.05 * (max(ends) - min(ends)) or 0.05
    scale = Scale(max(-1.0, min(ends) - room), min(1.0, max(ends) + room))
    ticks = nice_ticks(100 * scale.lo, 100 * scale.hi)
    drawn = "".join(_difference(row, [tick / 100 for tick in ticks], scale) for row in rows)
    head = f'<h4 class="sub">Difference in {define("success")}, in {define("points")}</h4>'
    return head + drawn + _axis(scale, [(tick / 100, _signed(tick)) for tick in ticks])


def _difference(row: _Difference, ticks: Sequence[float], scale: Scale) -> str:
    range_ = ""
    if row.lo is not None and row.hi is not None:
        range_ = f"{100 * row.lo:+.1f} to {100 * row.hi:+.1f}"
    tip = f"{row.name}: {100 * row.diff:+.1f} points" + (range_ and f", {row.interval} {range_}")
    marks = _rules(ticks, scale, "grid") + _rules([0.0], scale, "zero")
    marks += tipped(tip, interval_marks(row.lo, row.diff, row.hi, scale))
    return _row(row.name, f"{100 * row.diff:+.1f}", range_, marks, "plain")


def _row(name: str, value: str, interval: str, marks: str, css: str) -> str:
    return (
        f'<div class="row {css}"><span class="name">{esc(name)}</span>'
        f'<svg role="group" aria-label="{esc(name)}" width="100%" height="{_ROW}">{marks}</svg>'
        f'<span class="value"><b>{esc(value)}</b> <small>{esc(interval)}</small></span></div>'
    )


def _rules(places: Sequence[float], scale: Scale, css: str) -> str:
    return "".join(
        f'<line class="{css}" x1="{number(scale(at))}%" x2="{number(scale(at))}%" '
        f'y1="0" y2="{_ROW}"/>'
        for at in places
    )


def _references(references: Mapping[str, Reference], scale: Scale) -> str:
    """Return the row above the arms that names the reference lines."""
    texts, before = "", -100.0
    for name, found in sorted(references.items(), key=lambda item: item[1].success_rate):
        at = scale(found.success_rate)
        height, before = (14 if at - before > 25 else 0), at  # one above the other where they meet
        anchor = "start" if at < 15 else "end" if at > 85 else "middle"
        texts += (
            f'<text class="tick" x="{number(at)}%" y="{height}" text-anchor="{anchor}">'
            f"{esc(name)} {percent(found.success_rate)}</text>"
        )
    return _bare_row(f'<svg aria-hidden="true" width="100%" height="20">{texts}</svg>')


def _axis(scale: Scale, ticks: Sequence[tuple[float, str]]) -> str:
    texts = "".join(
        f'<text class="tick" x="{number(scale(at))}%" y="14" text-anchor="middle">{text}</text>'
        for at, text in ticks
    )
    return _bare_row(f'<svg aria-hidden="true" width="100%" height="22">{texts}</svg>')


def _bare_row(content: str) -> str:
    return f'<div class="row bare"><span class="name"></span>{content}<span></span></div>'


def _signed(tick: float) -> str:
    return f"+{amount(tick)}" if tick > 0 else amount(tick).replace("-", "−")


def _finding(rows: Sequence[Mapping[str, Any]]) -> str:
    if len(rows) == 1:
        return f"{rows[0]['arm']} succeeds in {share(rows[0]['success_rate'])} of its episodes"
    ordered = sorted(rows, key=lambda row: -row["success_rate"])
    if len(rows) == 2:
        first, second = ordered
        if first["success_rate"] == second["success_rate"]:
            both = names([row["arm"] for row in rows])
            return f"{both} both succeed in {share(first['success_rate'])} of their episodes"
        said = f"{first['arm']} succeeds in {share(first['success_rate'])} of its episodes"
        return f"{said}, {second['arm']} in {share(second['success_rate'])}"
    first, last = ordered[0], ordered[-1]
    lead = f"{first['arm']} has the highest success, {share(first['success_rate'])}"
    return f"{lead}; {last['arm']} the lowest, {share(last['success_rate'])}"
