"""Taxonomy: how each arm's turns fared, and why its episodes ended, as bars of shares."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from evalkit.record.numbers import ArmNumbers
from evalkit.record.trajectory import Outcome, StopReason
from evalkit.show.html.markup import Figure, define, esc, length
from evalkit.show.html.plot import number, tipped
from evalkit.show.report import Report
from evalkit.show.verdict import share

_BAR = 18
Counts = Mapping[str, Mapping[StrEnum, int]]


def taxonomy(report: Report) -> Figure | None:
    """Draw outcomes of turns and ends of episodes; None where nothing was played."""
    arms = {arm: found for arm, found in report.numbers.items() if found.stops.total()}
    if not arms:
        return None
    ordered = [Outcome.OK, *(outcome for outcome in Outcome if outcome is not Outcome.OK)]
    outcomes: Counts = {
        arm: {member: found.outcomes[member] for member in ordered} for arm, found in arms.items()
    }
    stops: Counts = {
        arm: {member: found.stops[member] for member in StopReason} for arm, found in arms.items()
    }
    return Figure(
        name="taxonomy",
        kind="Taxonomy",
        finding=_finding(arms),
        body=_group("Turns, by outcome", outcomes) + _group("Episodes, by end", stops),
        reading="Every bar is a whole: all turns, then all episodes of an arm.",
    )


def _group(title: str, counts: Counts) -> str:
    bars = "".join(
        f'<div class="bar"><span class="name">{esc(arm)}</span>{_bar(arm, of_arm)}</div>'
        for arm, of_arm in counts.items()
    )
    drawn = f'<div class="bars {length(counts)}">{bars}</div>'
    return f'<h4 class="sub">{title}</h4>{drawn}{_table(counts)}'


def _bar(arm: str, counts: Mapping[StrEnum, int]) -> str:
    total, x, rects = sum(counts.values()), 0.0, ""
    for member, count in counts.items():
        if count:
            width = 100.0 * count / total
            rect = (
                f'<rect class="k-{member.value}" x="{number(x)}%" y="0" '
                f'width="{number(width)}%" height="{_BAR}"/>'
            )
            tip = f"{arm}, {member.value}: {count:,} of {total:,}, {share(count / total)}"
            rects += tipped(tip, rect)
            x += width
    label = f"{arm}: {total:,} in all"
    return f'<svg role="group" aria-label="{esc(label)}" width="100%" height="{_BAR}">{rects}</svg>'


def _table(counts: Counts) -> str:
    """Return what occurred at all, with its count in every arm."""
    members = next(iter(counts.values()))
    head = "".join(f'<th scope="col">{esc(arm)}</th>' for arm in counts)
    rows = "".join(
        f'<tr><th scope="row"><i class="swatch k-{member.value}" aria-hidden="true"></i>'
        f"{define(member.value)}</th>{''.join(_cell(of_arm, member) for of_arm in counts.values())}"
        "</tr>"
        for member in members
        if any(of_arm[member] for of_arm in counts.values())
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="counts">'
        f'<table class="small"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(counts: Mapping[StrEnum, int], member: StrEnum) -> str:
    count, total = counts[member], sum(counts.values())
    if not count:
        return '<td class="none">0</td>'
    return f"<td>{count:,} <small>{share(count / total)}</small></td>"


def _finding(arms: Mapping[str, ArmNumbers]) -> str:
    wrong = {arm: 1.0 - _share(found, Outcome.OK) for arm, found in arms.items() if found.turns}
    worst = max(wrong, key=lambda arm: wrong[arm], default=None)
    if worst is None:
        return "No turn was played to its end"
    if not wrong[worst]:
        return "Every turn held exactly one legal action"
    counts = arms[worst].outcomes
    most = max((one for one in Outcome if one is not Outcome.OK), key=lambda one: counts[one])
    kind = most.value.replace("_", " ")
    return f"{share(wrong[worst])} of {worst}'s turns went wrong, most often {kind}"


def _share(numbers: ArmNumbers, outcome: Outcome) -> float:
    return numbers.outcomes[outcome] / numbers.turns
