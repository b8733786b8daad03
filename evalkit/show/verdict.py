"""Comparisons in words. The first line of a report, and often the only one that is read."""

from __future__ import annotations

from evalkit.judge.compare import Decision, PairedTest
from evalkit.judge.equivalence import Equivalence
from evalkit.show.pairs import Compared, Metric

_TESTS = {PairedTest.MCNEMAR_EXACT: "exact McNemar", PairedTest.SIGN_FLIP: "sign-flip permutation"}
_POINTS = frozenset({"success", "valid_action_rate"})
_WORDS = {
    "success": "success",
    "return": "return",
    "steps": "turns",
    "valid_action_rate": "valid actions",
}


def verdict(compared: Compared) -> str:
    """Say in one line what was found, how sure it is, and on how many seeds."""
    found, a, b = compared.found, compared.a, compared.b
    what = _WORDS[compared.metric.name]
    if found.n_pairs == 0:
        return f"no data: {a} and {b} share no finished seed"
    evidence = f"({', '.join(_evidence(compared))})"
    size = _amount(compared.metric, found.diff)
    if compared.decision is Decision.EQUIVALENT and compared.tost is not None:
        within = _amount(compared.metric, compared.tost.margin, signed=False)
        return f"{a} and {b} are equivalent within ±{within}: {size} {what} {evidence}"
    if compared.decision is Decision.UNDECIDED:
        return f"no decision between {a} and {b}: {size} {what} {evidence}{_outlook(compared)}"
    better = compared.decision is Decision.BETTER
    if compared.metric.name == "steps":  # to lose sooner is not to be better
        return f"{b} takes {'fewer' if better else 'more'} turns than {a}: {size} {evidence}"
    return f"{b} is {'better' if better else 'worse'} than {a}: {size} {what} {evidence}"


def _evidence(compared: Compared) -> list[str]:
    found, metric = compared.found, compared.metric
    facts = []
    if found.lo is None or found.hi is None:
        facts.append("too few pairs for an interval")
    elif found.lo == found.hi:
        facts.append("the same in every pair, so no interval")
    else:
        bounds = f"{_amount(metric, found.lo, unit=False)}..{_amount(metric, found.hi, unit=False)}"
        facts.append(f"{found.level:.0%} CI {bounds}".replace("%", " %"))
    if found.test is not None and found.p is not None:
        facts.append(f"{_TESTS[found.test]} {p_value(found.p)}")
    if compared.p_holm is not None and compared.p_holm != found.p:
        facts.append(f"{p_value(compared.p_holm)} after Holm")
    asked = compared.decision in (Decision.UNDECIDED, Decision.EQUIVALENT) or compared.within
    if asked and compared.tost is not None and compared.p_tost_holm is not None:
        facts.append(_equivalence(compared, compared.tost, compared.p_tost_holm))
    if found.a_only is not None and found.b_only is not None:
        facts.append(
            f"flips: {found.b_only} won only by {compared.b}, {found.a_only} only by {compared.a}"
        )
    facts.append(f"n={found.n_pairs} paired seeds")
    return facts


def _equivalence(compared: Compared, tost: Equivalence, p_holm: float) -> str:
    """Say how sure it is that the difference is smaller than the margin."""
    margin = _amount(compared.metric, tost.margin, signed=False)
    corrected = f", {p_value(p_holm)} after Holm" if p_holm != tost.p else ""
    return f"TOST of ±{margin} {p_value(tost.p)}{corrected}"


def _outlook(compared: Compared) -> str:
    """Say what these seeds could have shown, and what the observed difference would need."""
    found = compared.found
    if found.p is not None and found.p <= 1.0 - found.level:
        return "; decided alone, but not among as many pairs of arms as were compared"
    parts = []
    if found.mde80 is not None and found.mde80 <= compared.metric.most:
        least = _amount(compared.metric, found.mde80, signed=False)
        parts.append(f"these seeds show differences from {least} on")
    if found.n_for_observed is not None and found.n_for_observed > found.n_pairs:
        parts.append(f"the observed one would need {found.n_for_observed} seeds")
    return f"; with 80 % power {', '.join(parts)}" if parts else ""


def p_value(p: float) -> str:
    """Write a p-value the way papers do."""
    return "p<.001" if p < 0.001 else f"p={p:.3f}".replace("0.", ".", 1)


def _amount(metric: Metric, value: float | None, *, unit: bool = True, signed: bool = True) -> str:
    if value is None:
        return "?"
    sign = "+z" if signed else "z"  # z: no -0.0
    if metric.name in _POINTS:
        return f"{100 * value:{sign}.1f}" + (" points" if unit else "")
    return f"{value:{sign}.2f}"


def share(value: float | None, digits: int = 1) -> str:
    """Write a rate as a percentage."""
    return "" if value is None else f"{100 * value:.{digits}f} %"
