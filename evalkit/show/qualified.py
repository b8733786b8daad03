"""What qualifies a report's numbers, in sentences: ties, turns, lost episodes, tries, costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from evalkit.judge.compare import Decision
from evalkit.judge.multiple import tied_sets
from evalkit.judge.variance import VarianceSplit, advise, split_variance
from evalkit.record.numbers import ArmNumbers
from evalkit.show.pairs import Compared
from evalkit.show.verdict import share

_FALSE_SHARE = 0.05


def qualifications(
    summary: Sequence[Mapping[str, Any]],
    numbers: Mapping[str, ArmNumbers],
    compared: Sequence[Compared],
) -> Iterator[str]:
    """Yield the sentences, a paragraph each, from rows of summary.csv and comparisons."""
    success = [each for each in compared if each.metric.name == "success"]
    yield from _tied(summary, success)
    yield from _turns(summary, compared)
    yield from _worst_cases(success)
    for row in summary:
        if row["pass_at_k"] is not None:
            yield _tries(row)
        yield from _repetitions(row, numbers[row["arm"]])
    yield from _costs(summary)


def _tied(summary: Sequence[Mapping[str, Any]], success: Sequence[Compared]) -> Iterator[str]:
    """Say which arms are not told apart, where there are three or more, each against each."""
    arms = [row["arm"] for row in summary]
    found = {frozenset((each.a, each.b)): each for each in success}
    every = {frozenset(pair) for pair in combinations(arms, 2)}
    if len(arms) < 3 or every - found.keys():
        return
    best = sorted(summary, key=lambda row: -(row["success_rate"] or 0.0))
    different = [
        (each.a, each.b) for each in success if each.decision in (Decision.BETTER, Decision.WORSE)
    ]
    sets = tied_sets([row["arm"] for row in best], different)
    written = "; ".join("{" + ", ".join(f"`{arm}`" for arm in tied) + "}" for tied in sets)
    yield (
        "Arms of one set are not told apart on success (Holm's correction, 5 % for a single false "
        f"difference), best first: {written}."
    )
    by_e = [each for each in success if each.q_ebh is not None and each.q_ebh <= _FALSE_SHARE]
    pairs = ", ".join(f"`{each.a}` and `{each.b}`" for each in by_e)
    yield (
        f"By e-values, however often one looked, {pairs or 'no two arms'} differ on success (e-BH: "
        "at most 5 % of such findings are false)."
    )


def _turns(summary: Sequence[Mapping[str, Any]], compared: Sequence[Compared]) -> Iterator[str]:
    """Say how long it took to succeed, where not all did."""
    known = [row for row in summary if row["steps_rmst"] is not None]
    if not known or all(row["success_rate"] == 1.0 for row in known):
        return
    means = ", ".join(
        f"`{row['arm']}` {_span(row['steps_rmst'], row['steps_rmst_lo'], row['steps_rmst_hi'])}"
        for row in known
    )
    yield (
        f"Mean turns to success within {known[0]['steps_horizon']:g} turns (an episode without "
        f"success counts as that many, one that was cut off earlier as censored there): {means}."
    )
    for each in compared:
        if each.turns is not None and each.turns.lo < each.turns.hi:
            apart = "" if each.turns.lo <= 0.0 <= each.turns.hi else ", an interval without 0"
            yield (
                f"`{each.b}` less `{each.a}`: "
                f"{_span(each.turns.value, each.turns.lo, each.turns.hi, '+')} turns{apart}."
            )


def _span(value: float, lo: float | None, hi: float | None, sign: str = "") -> str:
    """Write a number with its interval, where there is one that is wider than a point."""
    known = lo is not None and hi is not None and lo < hi
    bounds = f" (95 % CI {lo:{sign}z.2f}..{hi:{sign}z.2f})" if known else ""
    return f"{value:{sign}z.2f}{bounds}"


def _worst_cases(success: Sequence[Compared]) -> Iterator[str]:
    """Say what lost episodes could at most change of a difference."""
    for each in success:
        worst = each.worst
        if worst is None or not worst.n_missing:
            continue
        line = (
            f"`{each.b}` less `{each.a}`: {worst.n_missing} of {worst.n_seeds} seeds lack an "
            f"episode that was lost; however those had ended, the difference of success lies "
            f"between {100 * worst.diff_lo:+z.1f} and {100 * worst.diff_hi:+z.1f} points"
        )
        if each.decision in (Decision.BETTER, Decision.WORSE):
            held = "stands" if worst.robust else "does not stand"
            line += f", and the decision {held} in the worst case"
        yield line + "."


def _tries(row: Mapping[str, Any]) -> str:
    at_k, hat_k = (_rate(row, name) for name in ("pass_at_k", "pass_hat_k"))
    return (
        f"`{row['arm']}`: of {row['k']} tries at a seed at least one succeeds in {at_k} of seeds "
        f"(pass@{row['k']}), all in {hat_k} (pass^{row['k']})."
    )


def _rate(row: Mapping[str, Any], name: str) -> str:
    """Write a rate with its interval; one seed has none."""
    lo, hi = row[f"{name}_lo"], row[f"{name}_hi"]
    bounds = "" if lo is None or hi is None else f" ({share(lo)} .. {share(hi)})"
    return f"{share(row[name])}{bounds}"


def _repetitions(row: Mapping[str, Any], numbers: ArmNumbers) -> Iterator[str]:
    """Say whether the repetitions of seeds were worth their episodes."""
    values = list(numbers.success.values())
    if row["k"] < 2 or len(values) < 2:
        return
    split = split_variance(values)
    if split.within is None or split.icc is None:
        return
    yield (
        f"`{row['arm']}`: {split.icc:.0%} of the variance of success lies between seeds, the rest "
        f"between repetitions of one. {_advice(split, row['k'])}"
    ).replace("%", " %")


def _advice(split: VarianceSplit, k: int) -> str:
    """Compare the design that was played with the best of as many episodes."""
    played, best = split.se(split.n_seeds, k), advise(split, split.n_seeds * k)
    told = (
        f"{split.n_seeds} seeds, {k} times each, give a standard error of {played:.3f}; as many "
        f"episodes on {best.n_seeds} seeds, once each, would give {best.se:.3f}."
    )
    once = split.se(split.n_seeds, 1)
    if played > 0.95 * once:
        told += f" Repetitions gain little here: one each gives {once:.3f}."
    return told


def _costs(summary: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    priced = [row for row in summary if row["cost_usd"] is not None]
    costs = ", ".join(
        f"`{row['arm']}` ${row['cost_usd']:.4g}"
        + (f" (${row['cost_per_success']:.4g} a success)" if row["cost_per_success"] else "")
        for row in priced
    )
    if priced:
        yield f"Tokens of the scored episodes cost {costs}."
