"""What a matrix of runs says: strategies against sizes of an env, their price, and which one pays.

Works on the reports of the cells. Must not know how they were played.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from evalkit.judge.compare import Decision, decide
from evalkit.judge.intervals import MeanEstimate, clustered_mean
from evalkit.judge.multiple import holm
from evalkit.show.pairs import Compared
from evalkit.show.report import Report, markdown_table
from evalkit.show.verdict import p_value, share

MATRIX = (
    "format matrix_id run_id env swept arm model strategy guided n_seeds n_ok n_error success_rate "
    "success_lo success_hi turns_mean tokens_per_turn tokens_per_episode tokens_per_success "
    "valid_action_rate scratchpad_missing_rate notes_recall notes_recall_lo notes_recall_hi "
    "notes_precision baseline diff lo hi p p_holm verdict tokens_per_success_gained"
).split()
FORMAT = "matrix/1"
BASELINE = "NO_HISTORY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How well an arm's notes held what its episodes showed, by env seed and repetition."""

    recall: Mapping[int, Sequence[float]]
    precision: Mapping[int, Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One env of a matrix: the parameters that make it, what was found in it."""

    swept: Mapping[str, Any]
    report: Report
    notes: Mapping[str, Kept] = field(default_factory=dict)
    """By arm, where the arm keeps notes of its own and the env can read them."""

    @property
    def name(self) -> str:
        """The parameters in words: `size=3`."""
        return ", ".join(f"{name}={value}" for name, value in self.swept.items()) or "as it is"


def matrix_rows(matrix_id: str, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return the rows of matrix.csv: every arm of every cell.

    Each is compared on success with the arm of the same model that has `BASELINE`, or else with
    that model's first strategy; `p_holm` is corrected for all of these comparisons together.
    """
    against = [
        _against(cell, row, baseline)
        for cell in cells
        for row, baseline in _baselines(cell.report.summary)
    ]
    tested = iter(holm([c.found.p for c in against if c is not None and c.found.p is not None]))
    corrected = [
        None if compared is None or compared.found.p is None else next(tested)
        for compared in against
    ]
    pairs = iter(zip(against, corrected, strict=True))
    return [
        {
            **_cell_columns(matrix_id, cell, row),
            **_price_columns(row, baseline),
            **_notes_columns(cell.notes.get(row["arm"])),
            **_baseline_columns(row, baseline, *next(pairs)),
        }
        for cell in cells
        for row, baseline in _baselines(cell.report.summary)
    ]


def matrix_markdown(title: str, rows: Sequence[Mapping[str, Any]], cells: Sequence[Cell]) -> str:
    """Write matrix.md: which strategy pays where, then success, turns, tokens and notes."""
    lines = [f"# {title}", "", *(f"- {line}" for line in which_pays(cells)), ""]
    for heading, columns in _TABLES:
        shown = [[_text(row, column) for column in columns] for row in rows]
        if any(cell for row in shown for cell in row[2:]):
            lines += [f"## {heading}", "", *markdown_table([list(_HEADS[heading]), *shown]), ""]
    lines += [_NOTE, ""]
    return "\n".join(lines)


def matrix_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return success by arm and cell as texts, the head first, for a terminal."""
    swept = list(dict.fromkeys(_swept(row) for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    found = {(row["arm"], _swept(row)): row for row in rows}
    return [
        ["success", *swept],
        *([arm, *(_rate(found.get((arm, each))) for each in swept)] for arm in arms),
    ]


def which_pays(cells: Iterable[Cell]) -> list[str]:
    """Say for every cell which arms are at the top together, and which of them costs least."""
    return [f"{cell.name}: {_pays(cell)}" for cell in cells]


def _pays(cell: Cell) -> str:
    rows = {row["arm"]: row for row in cell.report.summary if row["n_ok"]}
    if not rows:
        return "no episode was scored"
    best = max(rows, key=lambda arm: rows[arm]["success_rate"])
    worse = {_loser(compared) for compared in _of(cell.report, best)}
    top = [arm for arm in rows if arm not in worse]
    rates = ", ".join(f"{arm} {share(rows[arm]['success_rate'])}" for arm in top)
    if len(top) == 1:
        found = f"{best} is best, {share(rows[best]['success_rate'])}"
    elif len(top) == len(rows):
        found = f"no arm is told from another ({rates})"
    else:
        found = f"not told apart at the top: {rates}"
    prices = {arm: rows[arm]["tokens_per_success"] for arm in top}
    known = {arm: price for arm, price in prices.items() if price is not None}
    if len(known) < 2:
        return found
    cheap = min(known, key=lambda arm: known[arm])
    dear = max(known.values())
    return f"{found}; {cheap} pays: {known[cheap]:,.0f} tokens a success, the dearest {dear:,.0f}"


def _loser(compared: Compared) -> str | None:
    """Return the arm that was found worse on success, if one was."""
    if compared.decision is Decision.BETTER:
        return compared.a
    return compared.b if compared.decision is Decision.WORSE else None


def _of(report: Report, arm: str) -> list[Compared]:
    return [c for c in report.compared if c.metric.name == "success" and arm in (c.a, c.b)]


def _baselines(
    summary: Sequence[Mapping[str, Any]],
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Give every arm the one that it is compared with, itself where it is that one."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in summary:
        groups.setdefault(_player(row), []).append(row)
    found = []
    for row in summary:
        group = groups[_player(row)]
        plain = next((each for each in group if each["strategy"] == BASELINE), group[0])
        found.append((row, plain))
    return found


def _player(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Name what stays when only the strategy changes."""
    strategy = re.sub(r"[^A-Za-z0-9_]+", "_", row["strategy"]).strip("_")
    label = [part for part in row["arm"].split(".") if part != strategy]
    return row["model"], row["base_url_host"], row["guided"], *label


def _against(cell: Cell, row: Mapping[str, Any], baseline: Mapping[str, Any]) -> Compared | None:
    arms = {row["arm"], baseline["arm"]}
    for compared in cell.report.compared:
        if compared.metric.name == "success" and {compared.a, compared.b} == arms:
            return compared
    return None


def _cell_columns(matrix_id: str, cell: Cell, row: Mapping[str, Any]) -> dict[str, Any]:
    same = (
        "run_id env arm model strategy guided n_seeds n_ok n_error success_rate success_lo "
        "success_hi valid_action_rate scratchpad_missing_rate"
    ).split()
    return {
        "format": FORMAT,
        "matrix_id": matrix_id,
        "swept": orjson.dumps(dict(cell.swept)).decode(),
        "turns_mean": row["steps_mean"],
        **{name: row[name] for name in same},
    }


def _price_columns(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an arm costs, and what each success costs that it wins over its baseline."""
    each, plain = _tokens_per_episode(row), _tokens_per_episode(baseline)
    gained = (row["success_rate"] or 0.0) - (baseline["success_rate"] or 0.0)
    tokens = row["prompt_tokens"] + row["completion_tokens"]
    known = each is not None and plain is not None and row is not baseline
    return {
        "tokens_per_turn": tokens / row["turns"] if tokens and row["turns"] else None,
        "tokens_per_episode": each,
        "tokens_per_success": row["tokens_per_success"],
        "tokens_per_success_gained": (
            (each - plain) / gained if known and gained > 0 else None  # type: ignore[operator]
        ),
    }


def _tokens_per_episode(row: Mapping[str, Any]) -> float | None:
    tokens = row["prompt_tokens"] + row["completion_tokens"]
    return tokens / row["n_ok"] if tokens and row["n_ok"] else None


def _notes_columns(kept: Kept | None) -> dict[str, float | None]:
    recall = None if kept is None else _mean(kept.recall)
    precision = None if kept is None else _mean(kept.precision)
    several = recall is not None and recall.n_clusters > 1
    return {
        "notes_recall": recall.mean if recall else None,
        "notes_recall_lo": max(0.0, recall.lo) if recall and several else None,
        "notes_recall_hi": min(1.0, recall.hi) if recall and several else None,
        "notes_precision": precision.mean if precision else None,
    }


def _mean(values: Mapping[int, Sequence[float]]) -> MeanEstimate | None:
    known = [list(each) for each in values.values() if each]
    return clustered_mean(known) if known else None


def _baseline_columns(
    row: Mapping[str, Any],
    baseline: Mapping[str, Any],
    compared: Compared | None,
    p_holm: float | None,
) -> dict[str, Any]:
    """Return the comparison with the baseline, B being the arm of this row."""
    none = dict.fromkeys(("baseline", "diff", "lo", "hi", "p", "p_holm", "verdict"))
    if compared is None or row is baseline:
        return none
    found, forward = compared.found, compared.b == row["arm"]
    sign = 1.0 if forward else -1.0
    bounds = (found.lo, found.hi) if forward else (found.hi, found.lo)
    diff = None if found.diff is None else sign * found.diff
    decision = decide(diff, p_holm, alpha=1.0 - found.level)
    return {
        **none,
        "baseline": baseline["arm"],
        "diff": diff,
        "lo": None if bounds[0] is None else sign * bounds[0],
        "hi": None if bounds[1] is None else sign * bounds[1],
        "p": found.p,
        "p_holm": p_holm,
        "verdict": decision.name.lower(),
    }


_NOTE = (
    "Every arm is compared on success with its baseline, the arm of its model that has no history "
    "(or else its model's first); p-values are Holm's over all of these. Notes: recall is the "
    "share of facts the episode had shown that the notes state rightly, precision the share of "
    "what they state that is right, both at the start of every turn but the first."
)
_HEADS = {
    "Success": ("env", "arm", "success", "95 % CI", "against its baseline", "p (Holm)", "verdict"),
    "Price": ("env", "arm", "turns", "tokens a turn", "tokens a success", "a success gained"),
    "Notes": ("env", "arm", "recall", "95 % CI", "precision", "replies without notes"),
}
_TABLES = (
    ("Success", ("swept", "arm", "success_rate", "success_ci", "diff", "p_holm", "verdict")),
    (
        "Price",
        (
            *("swept", "arm", "turns_mean", "tokens_per_turn", "tokens_per_success"),
            "tokens_per_success_gained",
        ),
    ),
    (
        "Notes",
        (
            *("swept", "arm", "notes_recall", "recall_ci", "notes_precision"),
            "scratchpad_missing_rate",
        ),
    ),
)
_SHARES = {"success_rate", "notes_recall", "notes_precision", "scratchpad_missing_rate"}


def _text(row: Mapping[str, Any], column: str) -> str:
    """Write one cell of a table for people."""
    if column == "swept":
        return _swept(row)
    if column.endswith("_ci"):
        stem = "success" if column == "success_ci" else "notes_recall"
        return _interval(row[f"{stem}_lo"], row[f"{stem}_hi"])
    value = row[column]
    if value is None or isinstance(value, str):
        return value or ""
    if column in _SHARES:
        return share(value)
    if column == "diff":
        known = row["lo"] is not None and row["hi"] is not None
        bounds = f" ({100 * row['lo']:+z.1f}..{100 * row['hi']:+z.1f})" if known else ""
        return f"{100 * value:+z.1f} points{bounds}"
    return {"p_holm": p_value, "turns_mean": "{:.1f}".format}.get(column, "{:,.0f}".format)(value)


def _swept(row: Mapping[str, Any]) -> str:
    swept = orjson.loads(row["swept"])
    return ", ".join(f"{name}={value}" for name, value in swept.items()) or "as it is"


def _rate(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else share(row["success_rate"])


def _interval(lo: float | None, hi: float | None) -> str:
    return "" if lo is None or hi is None else f"{share(lo)} .. {share(hi)}"
