"""The files that people open: the CSVs and report.md, made from a run's trajectories.

Everything but performance.csv is a function of the trajectories alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from evalkit.record.chosen import Source
from evalkit.record.numbers import ArmNumbers, divergent_turns
from evalkit.record.references import Reference
from evalkit.record.trajectory import Outcome
from evalkit.show.pairs import Compared, compare_arms, decision_word
from evalkit.show.qualified import qualifications
from evalkit.show.sequential import STOPPED_NOTE, Sequential, decisions
from evalkit.show.summary import pass_rows, summary_row
from evalkit.show.turns import endings, horizon
from evalkit.show.verdict import share, verdict

INTERVALS_NOTE = (
    "Success intervals are Blaker's, adjusted (Wilson's, clustered by seed, where k > 1), those of "
    "returns are t. Pairs are env seeds that both arms finished."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run found."""

    run_id: str
    env: str
    summary: list[dict[str, Any]]
    """Rows of summary.csv."""
    compared: list[Compared]
    references: Mapping[str, Reference]
    numbers: Mapping[str, ArmNumbers]
    pairs: Sequence[tuple[str, str]]
    tries: list[dict[str, Any]] = field(default_factory=list)
    """Rows of pass.csv: none where each seed was played once."""
    sequential: Sequence[Sequential] = ()
    """One per pair of arms, where the run was to stop when decided."""
    unfinished: str = ""
    """What is not played yet, in a sentence; empty of a run that came to its end."""
    stopped: Sequence[str] = ()
    """Runs compared here that ended on what they saw."""
    sources: Mapping[str, Source] = field(default_factory=dict)
    """Where the episodes of each arm lie, for who shows some of them."""

    @property
    def verdicts(self) -> list[str]:
        """What a run stopped on, and what that saved; then one line per pair of arms and metric.

        Arms without a seed in common have one line for all metrics.
        """
        said = [*decisions(self.sequential), *map(verdict, self.of_fixed_size)]
        return list(dict.fromkeys(said))

    def word(self, compared: Compared) -> str:
        """Return a comparison's word in compare.csv; on what ended a run, that of its stop."""
        asked = (compared.a, compared.b, compared.metric.name)
        stops = {(each.a, each.b, each.deciding.value): each.word for each in self.sequential}
        return stops.get(asked) or decision_word(compared)

    @property
    def general_notes(self) -> list[str]:
        """What a reader must know of all intervals and p-values."""
        notes = [INTERVALS_NOTE, *([STOPPED_NOTE] if self.sequential else [])]
        if self.stopped:
            notes.append(
                f"Ended on what they saw: {', '.join(self.stopped)}. e-values and anytime p hold "
                "nevertheless; the other p-values and the intervals here are those of runs of "
                "fixed size, and say too much."
            )
        return notes

    @property
    def of_fixed_size(self) -> list[Compared]:
        """Comparisons that say how they were decided: none on the metric that ended the run."""
        stopped_on = {each.deciding.value for each in self.sequential}
        return [each for each in self.compared if each.metric.name not in stopped_on]


def make_report(
    numbers: Mapping[str, ArmNumbers],
    identities: Mapping[str, Mapping[str, Any]],
    references: Mapping[str, Reference],
    pairs: Sequence[tuple[str, str]] | None = None,
    margin: float | None = None,
) -> Report:
    """Work out what the arms' numbers say; `identities` holds the known columns of each row.

    `pairs` are the arms to compare; every two of them, in their order, where it is not given.
    `margin` is the difference of rates within which arms count as equivalent.
    """
    pairs = list(combinations(numbers, 2)) if pairs is None else pairs
    ends = {arm: endings(numbers[arm]) for arm in identities}
    until = horizon(ends.values())
    tries = {arm: pass_rows(identity, numbers[arm]) for arm, identity in identities.items()}
    summary = [
        summary_row(
            identity,
            numbers[arm],
            references,
            tries[arm][-1] if tries[arm] else None,
            until,
            ends[arm],
        )
        for arm, identity in identities.items()
    ]
    first = next(iter(identities.values()))
    return Report(
        run_id=first["run_id"],
        env=first["env"],
        summary=summary,
        compared=compare_arms(numbers, pairs, margin, ends),
        tries=[row for rows in tries.values() for row in rows],
        pairs=pairs,
        references=references,
        numbers=numbers,
    )


def markdown(report: Report) -> str:
    """Write report.md: the verdicts first, then the table, then what qualifies them."""
    lines = [f"# {report.env}: {' against '.join(report.numbers)}", ""]
    if report.unfinished:
        lines += [f"**{report.unfinished}**", ""]
    if report.compared:
        lines += [
            f"- **{line}**" if n == 0 else f"- {line}" for n, line in enumerate(report.verdicts)
        ]
        lines += [""]
    lines += markdown_table(table_cells(report))
    lines += [*_notes(report), ""]
    return "\n".join(lines)


def table_cells(report: Report) -> list[list[str]]:
    """Return the result table as texts, its head first: arms, then random and oracle."""
    head = [
        "arm",
        "strategy",
        "answers",
        "episodes",
        "success",
        "95 % CI",
        "return",
        "norm. score",
        "turns",
        "valid actions",
    ]
    rows = [head]
    for row in report.summary:
        interval = f"{share(row['success_lo'])} .. {share(row['success_hi'])}"
        rows.append(
            [
                row["arm"],
                row["strategy"],
                "guided" if row["guided"] else "free",
                str(row["n_ok"]),
                share(row["success_rate"]),
                interval,
                _number(row["return_mean"]),
                _number(row["norm_score"]),
                _number(row["steps_mean"], 1),
                share(row["valid_action_rate"]),
            ]
        )
    for name, reference in report.references.items():
        norm = {"random": "0.00", "oracle": "1.00"}[name]
        rows.append(
            [
                name,
                "",
                "",
                str(reference.n_episodes),
                share(reference.success_rate),
                "",
                _number(reference.return_mean),
                norm,
                _number(reference.turns_mean, 1),
                "",
            ]
        )
    return rows


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out rows as aligned text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out rows as a Markdown table."""
    head, *body = rows
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in body),
    ]


def _notes(report: Report) -> list[str]:
    """Return what a reader must know beside the numbers, a blank line before each."""
    notes: list[str] = []
    for line in report.general_notes:
        notes += ["", line]
    for arm, numbers in report.numbers.items():
        counted = ", ".join(
            f"{outcome.value} {numbers.outcomes[outcome]}"
            for outcome in Outcome
            if numbers.outcomes[outcome]
        )
        notes += ["", f"`{arm}`: {numbers.turns} turns: {counted or 'none'}."]
        if numbers.n_error:
            notes += ["", _error_note(arm, numbers)]
    for line in qualifications(report.summary, report.numbers, report.of_fixed_size):
        notes += ["", line]
    notes += _divergence_notes(report)
    return notes


def _error_note(arm: str, numbers: ArmNumbers) -> str:
    n_all = numbers.stops.total()
    low, high = numbers.n_success / n_all, (numbers.n_success + numbers.n_error) / n_all
    return (
        f"`{arm}`: {numbers.n_error} of {n_all} episodes were lost to errors and are not scored. "
        f"Had all of them failed, success would be {share(low)}; had all succeeded, {share(high)}."
    )


def _divergence_notes(report: Report) -> list[str]:
    """Say for every pair of arms whether any trajectory differs, and name the first ones."""
    notes = []
    rows = {row["arm"]: row for row in report.summary}
    for a, b in report.pairs:
        left, right = report.numbers[a], report.numbers[b]
        shared = len(left.traces.keys() & right.traces.keys())
        differing = divergent_turns(left, right)
        line = f"`{a}` and `{b}`: {shared - len(differing)} of {shared} episodes "
        line += "are identical, turn by turn."
        alike = all(rows[a][same] == rows[b][same] for same in ("strategy", "guided"))
        if differing and alike:
            several = rows[a]["k"] > 1 or rows[b]["k"] > 1
            named = [
                f"seed {seed} {f'repetition {repetition} ' * several}turn {turn}"
                for seed, repetition, turn in differing[:20]
            ]
            more = "..." if len(differing) > 20 else ""
            line += f" First turns that differ: {', '.join(named)}{more}"
        notes += ["", line]
    return notes


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"
