"""The head of the page: the headline in words, the numbers behind it, and the other verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evalkit.judge.compare import Decision
from evalkit.judge.sequential import Verdict
from evalkit.show.html.markup import arm_class, define, esc, sentence, unbroken
from evalkit.show.pairs import Compared
from evalkit.show.report import Report
from evalkit.show.sequential import Sequential, savings_words
from evalkit.show.verdict import p_value, share

_POINTS = frozenset({"success", "valid_action_rate"})
_TERMS = {
    "success": "success",
    "return": "return",
    "steps": "turns",
    "valid_action_rate": "valid actions",
}


def headline(report: Report) -> str:
    """Return the head: for one arm what it scores, for several the first verdict."""
    if report.compared:
        first, *others = report.verdicts
        claim, _, evidence = first.partition(": ")
        one_pair = len(report.pairs) == 1
        tiles = _differences(report) if one_pair else _rates(report)
        more = _saved(report) + ("" if one_pair else _claims(others[: len(report.pairs) - 1]))
        more += _others([line for line in others if line not in set(_savings(report))])
    else:
        row = report.summary[0]
        claim, evidence = _alone(row)
        tiles, more = _own(row), ""
    return (
        '<section class="hero" aria-labelledby="headline">'
        f'<p class="kind">{esc(" against ".join(report.numbers))}, {esc(report.env)}</p>'
        f'<h1 id="headline" class="{"" if len(claim) < 50 else "long"}">'
        f"{unbroken(_capital(claim, report))}</h1>"
        f'<p class="evidence">{sentence(evidence)}</p>'
        f'<dl class="tiles">{tiles}</dl>{more}</section>'
    )


def _capital(claim: str, report: Report) -> str:
    """Begin with a capital, unless it is an arm's name that begins."""
    if any(claim.startswith(f"{arm} ") for arm in report.numbers):
        return claim
    return claim[:1].upper() + claim[1:]


def _alone(row: Mapping[str, Any]) -> tuple[str, str]:
    if row["success_rate"] is None:
        return f"{row['arm']} finished no episode", "All episodes were lost to errors."
    claim = f"{row['arm']} succeeds in {share(row['success_rate'])} of its episodes"
    interval = f"95 % CI {share(row['success_lo'])} to {share(row['success_hi'])}"
    evidence = f"{interval}, {row['n_ok']:,} episodes"
    if row["random_success"] is not None:
        evidence += f"; random play gets {share(row['random_success'])}"
        evidence += f", the oracle {share(row['oracle_success'])}"
    return claim, evidence + "."


def _savings(report: Report) -> list[str]:
    """Return what stopping early saved, a line for each pair of arms where it can be said."""
    return [words for each in report.sequential if (words := savings_words(each))]


def _saved(report: Report) -> str:
    return "".join(f'<p class="soft note">{sentence(line)}.</p>' for line in _savings(report))


def _claims(verdicts: Sequence[str]) -> str:
    """Return what was decided between the other pairs of arms, without the evidence."""
    claims = "".join(f"<li>{esc(line.partition(': ')[0])}</li>" for line in verdicts)
    return f'<ul class="claims">{claims}</ul>'


def _others(verdicts: Sequence[str]) -> str:
    if not verdicts:
        return ""
    lines = "".join(f"<li>{sentence(line)}</li>" for line in verdicts)
    title = "<summary>All other comparisons</summary>"
    return f'<details class="others">{title}<ul>{lines}</ul></details>'


def _differences(report: Report) -> str:
    """Return a tile for each metric of the only pair; of the one that ended the run, as it did."""
    stopped = {each.deciding.value: each for each in report.sequential}
    return "".join(
        _stopped(stopped[name]) if (name := each.metric.name) in stopped else _difference(each)
        for each in report.compared
        if each.metric.name in _TERMS
    )


def _stopped(found: Sequential) -> str:
    name, look = found.deciding.value, found.last
    if look is None or look.diff is None:
        return _tile(_TERMS[name], "–", [], "open")
    facts = [f"{_amount(name, look.lo)} to {_amount(name, look.hi)}"]
    facts.append(f"anytime {_p(look.p_anytime)}")
    settled = found.verdict not in (Verdict.CONTINUE, Verdict.OUT_OF_BUDGET)
    return _tile(_TERMS[name], _valued(name, look.diff), facts, "" if settled else "open")


def _difference(compared: Compared) -> str:
    found, name = compared.found, compared.metric.name
    facts = []
    if found.lo is not None and found.hi is not None and found.lo != found.hi:
        facts.append(f"{_amount(name, found.lo)} to {_amount(name, found.hi)}")
    if found.p is not None:
        facts.append(_p(found.p))
    settled = compared.decision not in (Decision.UNDECIDED, Decision.NO_DATA)
    return _tile(_TERMS[name], _valued(name, found.diff), facts, "" if settled else "open")


def _valued(metric: str, diff: float | None) -> str:
    if diff is None:
        return "–"
    return _amount(metric, diff) + (" <small>points</small>" if metric in _POINTS else "")


def _p(p: float) -> str:
    return p_value(p).replace("=", "\u00a0=\u00a0").replace("<", "\u00a0<\u00a0")


def _rates(report: Report) -> str:
    """Return a tile for each of the first arms."""
    tiles = ""
    for index, row in enumerate(report.summary[:8]):
        interval = [f"{share(row['success_lo'])} to {share(row['success_hi'])}"]
        title = f'<i class="swatch {arm_class(index)}" aria-hidden="true"></i>{esc(row["arm"])}'
        tiles += _titled(title, esc(share(row["success_rate"]) or "–"), interval, "")
    return tiles


def _own(row: Mapping[str, Any]) -> str:
    """Return the tiles of a lone arm."""
    tiles = _tile("success", esc(share(row["success_rate"]) or "–"), [], "")
    for term, column, digits in (
        ("return", "return_mean", 2),
        ("norm. score", "norm_score", 2),
        ("turns", "steps_mean", 1),
    ):
        value = row[column]
        tiles += _tile(term, "–" if value is None else f"{value:.{digits}f}", [], "")
    return tiles


def _tile(term: str, value: str, facts: Sequence[str], css: str) -> str:
    return _titled(define(term, term.capitalize()), value, facts, css)


def _titled(title: str, value: str, facts: Sequence[str], css: str) -> str:
    said = ", ".join(facts)
    return (
        f'<div class="tile {css}"><dt>{title}</dt><dd class="number">{value}</dd>'
        f'<dd class="fact">{esc(said)}</dd></div>'
    )


def _amount(metric: str, value: float) -> str:
    text = f"{100 * value:+.1f}" if metric in _POINTS else f"{value:+.2f}"
    return text.replace("-", "−")
