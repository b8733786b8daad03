"""The learning curve as a picture: one SVG, and a page of it with its table. Nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from evalkit.show.verdict import share
from evalkit.watch.curve import Status, sentence

WIDTH, HEIGHT = 880, 380
LEFT, RIGHT, TOP, BOTTOM = 56, 76, 44, 52
MOST_LABELS = 12
STYLE = """
.curve { --ink: #1f2933; --soft: #5f6c7b; --grid: #e3e7ec; --line: #2459a6; --bad: #b42318;
  --paper: #ffffff; font: 13px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { .curve { --ink: #e6eaf0; --soft: #9aa7b5; --grid: #2c3540;
  --line: #7fb0f5; --bad: #ff8a7a; --paper: #14191f; } }
.curve .paper { fill: var(--paper); } .curve text { fill: var(--soft); }
.curve .title { fill: var(--ink); font-weight: 600; font-size: 15px; }
.curve .grid { stroke: var(--grid); } .curve .reference { stroke: var(--soft); }
.curve .reference { stroke-dasharray: 5 4; }
.curve .path { fill: none; stroke: var(--line); stroke-width: 2; }
.curve .interval { stroke: var(--line); stroke-width: 2; opacity: .45; }
.curve .dot { fill: var(--line); } .curve .worse { fill: var(--bad); }
.curve .unplayed { stroke: var(--soft); stroke-width: 2; }
"""
PAGE_STYLE = """
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem; font: 15px/1.5 system-ui, sans-serif;
  color: #1f2933; background: #ffffff; }
svg { max-width: 100%; height: auto; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #e3e7ec; }
th:first-child, td:first-child, .said { text-align: left; }
.bad { color: #b42318; font-weight: 600; }
@media (prefers-color-scheme: dark) { body { color: #e6eaf0; background: #14191f; }
  th, td { border-color: #2c3540; } .bad { color: #ff8a7a; } }
"""
NOTE = (
    "Success with its 95 % interval, on the same seeds. A version is called worse by a one-sided "
    "paired test against the best before it, corrected for having looked at every version: the "
    "chance of any false call in the whole curve is at most 5 %."
)


def learning_curve_svg(
    rows: Sequence[Mapping[str, Any]], references: Mapping[str, float], title: str
) -> str:
    """Draw success by version; `references` are lines of a constant success, by name."""
    grid = "".join(_grid_line(level) for level in (0.0, 0.25, 0.5, 0.75, 1.0))
    lines = "".join(_reference(name, level) for name, level in references.items())
    played = [(n, row) for n, row in enumerate(rows) if row["status"] is Status.EVALUATED]
    path = " ".join(f"{_x(n, rows):.1f},{_y(row['success']):.1f}" for n, row in played)
    marks = "".join(_mark(n, row, rows) for n, row in enumerate(rows))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{escape(title)}"><style>{STYLE}</style>'
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>'
        f'<text class="title" x="{LEFT}" y="24">{escape(title)}</text>{grid}{lines}'
        f'<polyline class="path" points="{path}"/>{marks}{_labels(rows)}</svg>\n'
    )


def learning_curve_page(rows: Sequence[Mapping[str, Any]], svg: str, title: str) -> str:
    """Return the page: what the newest version says, the picture, every version in a table."""
    head = "version,success,95 % CI,n,return,against best,p worse".split(",")
    cells = "".join(_table_row(row) for row in reversed(rows))
    newest = escape(sentence(rows[-1])) if rows else "no version yet"
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{PAGE_STYLE}</style>\n"
        f"<h1>{escape(title)}</h1>\n<p><strong>{newest}</strong></p>\n{svg}<p>{NOTE}</p>\n"
        f'<div class="scroll"><table><thead><tr>'
        f"{''.join(f'<th>{each}</th>' for each in head)}</tr></thead>\n<tbody>{cells}</tbody>"
        f"</table></div></html>\n"
    )


def _table_row(row: Mapping[str, Any]) -> str:
    name = escape(row["version"])
    if row["status"] is not Status.EVALUATED:
        said = escape(f"{row['status'].value}: {row['message']}")
        return f'<tr><td>{name}</td><td class="said" colspan="6">{said}</td></tr>\n'
    gap = "" if row["diff_best"] is None else f"{100 * row['diff_best']:+.1f}"
    p = "" if row["p_worse"] is None else f"{row['p_worse']:.2g}"
    css = ' class="bad"' if row["worse"] else ""
    cells = (
        share(row["success"]),
        f"{share(row['lo'])} .. {share(row['hi'])}",
        f"{row['n']}",
        f"{row['return']:.3f}",
        gap,
        f"{p} worse" if row["worse"] else p,
    )
    return f"<tr{css}><td>{name}</td>{''.join(f'<td>{each}</td>' for each in cells)}</tr>\n"


def _x(n: int, rows: Sequence[object]) -> float:
    room = WIDTH - LEFT - RIGHT
    return LEFT + room * (n + 0.5) / len(rows)


def _y(level: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - level)


def _grid_line(level: float) -> str:
    y = _y(level)
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{level:.0%}</text>'
    )


def _reference(name: str, level: float) -> str:
    y = _y(level)
    return (
        f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{WIDTH - RIGHT + 8}" y="{y + 4:.1f}">{escape(name)}</text>'
    )


def _mark(n: int, row: Mapping[str, Any], rows: Sequence[object]) -> str:
    """Return a dot with its interval; a triangle where it is worse, a cross where not played."""
    x, tip = _x(n, rows), f"<title>{escape(sentence(row))}</title>"
    if row["status"] is not Status.EVALUATED:
        y = _y(0.0)
        return f'<g>{tip}<path class="unplayed" d="M{x - 4:.1f},{y - 4:.1f} l8,8 m0,-8 l-8,8"/></g>'
    y = _y(row["success"])
    shape = f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    if row["worse"]:
        shape = f'<path class="worse" d="M{x - 7:.1f},{y - 5:.1f} h14 l-7,12 z"/>'
    return (
        f'<g>{tip}<line class="interval" x1="{x:.1f}" x2="{x:.1f}" y1="{_y(row["lo"]):.1f}" '
        f'y2="{_y(row["hi"]):.1f}"/>{shape}</g>'
    )


def _labels(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the names below the axis: as many as there is room for, the newest among them."""
    step = -(-len(rows) // MOST_LABELS) if rows else 1
    shown = [n for n in range(len(rows)) if (len(rows) - 1 - n) % step == 0]
    return "".join(
        f'<text x="{_x(n, rows):.1f}" y="{HEIGHT - BOTTOM + 22}" text-anchor="middle">'
        f"{escape(str(rows[n]['version']).rpartition('@')[2])}</text>"
        for n in shown
    )
