"""Pairs of arms on the seeds they share: the rows of compare.csv and paired.csv.

Which statistic answers which question is decided in `evalkit.judge`; this module knows what the
metrics are, and that comparisons which are read together are corrected together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evalkit.judge.betting import e_path
from evalkit.judge.bounds import DifferenceBounds, worst_case_repeated
from evalkit.judge.compare import (
    Comparison,
    Decision,
    compare,
    decide,
    differences,
    seed_means,
)
from evalkit.judge.equivalence import Equivalence, tost_paired, tost_proportions
from evalkit.judge.intervals import FloatArray, Interval
from evalkit.judge.multiple import e_bh, holm
from evalkit.judge.paired import newcombe_difference_interval
from evalkit.judge.survival import RestrictedMean
from evalkit.record.numbers import ArmNumbers, divergent_turns
from evalkit.show.turns import Endings, endings, horizon, mean_turns_difference

COMPARE = (
    "format run_id a b env strategy metric slice n_pairs dropped_a dropped_b mean_a mean_b diff lo "
    "hi ci_method newcombe_lo newcombe_hi diff_lo_worst diff_hi_worst lo_worst hi_worst test p "
    "p_mid p_holm e_value p_anytime q_ebh equiv_margin p_tost p_tost_holm a_only b_only both "
    "neither effect_size rho var_reduction_vs_unpaired mde80 n_for_observed rmst_diff rmst_lo "
    "rmst_hi rmst_horizon verdict"
).split()

PAIRED = (
    "format run_id a b env_seed success_a success_b return_a return_b steps_a steps_b valid_a "
    "valid_b diff flip first_divergent_turn"
).split()

_FOUND = (
    "n_pairs dropped_a dropped_b mean_a mean_b diff lo hi p p_mid both a_only b_only neither "
    "effect_size rho var_reduction_vs_unpaired mde80 n_for_observed"
).split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number per episode on which arms are compared."""

    name: str
    values: Callable[[ArmNumbers], Mapping[int, Sequence[float]]]
    binary: bool = False
    higher_is_better: bool = True
    most: float = math.inf
    """The largest difference that there can be; a metric that has one lies in [0, `most`]."""

    @property
    def bounded(self) -> bool:
        """Whether there is a largest difference: e-values, margins and worst cases need one."""
        return math.isfinite(self.most)


METRICS = (
    Metric(name="success", values=lambda numbers: numbers.success, binary=True, most=1.0),
    Metric(name="return", values=lambda numbers: numbers.return_),
    Metric(name="valid_action_rate", values=lambda numbers: numbers.valid, most=1.0),
    Metric(name="steps", values=lambda numbers: numbers.steps, higher_is_better=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One comparison of a report: metric, arms, what was found; None is what was not asked.

    `p_holm`, `p_tost_holm` and `q_ebh` are corrected over the pairs of arms of one metric.
    `e_value` is against equality, `p_anytime` its p-value, valid however often one looked; pairs
    count in the order of their seeds. `turns` is the difference of the mean turns to success.
    """

    a: str
    b: str
    metric: Metric
    found: Comparison
    p_holm: float | None
    newcombe: Interval | None = None
    worst: DifferenceBounds | None = None
    e_value: float | None = None
    p_anytime: float | None = None
    q_ebh: float | None = None
    tost: Equivalence | None = None
    p_tost_holm: float | None = None
    turns: RestrictedMean | None = None

    @property
    def decision(self) -> Decision:
        """The verdict, corrected for the number of pairs that were compared."""
        decision = decide(
            self.found.diff,
            self.p_holm,
            alpha=1.0 - self.found.level,
            higher_is_better=self.metric.higher_is_better,
        )
        return Decision.EQUIVALENT if decision is Decision.UNDECIDED and self.within else decision

    @property
    def within(self) -> bool:
        """Whether the difference is shown to be smaller than the margin that was given."""
        return self.p_tost_holm is not None and self.p_tost_holm < 1.0 - self.found.level


def compare_arms(
    numbers: Mapping[str, ArmNumbers],
    pairs: Sequence[tuple[str, str]],
    margin: float | None = None,
    ends: Mapping[str, Endings] | None = None,
) -> list[Compared]:
    """Compare every pair of arms on every metric; Holm and e-BH are over the pairs of one.

    `margin` is the difference of rates that does not matter, for those who ask whether arms are
    equivalent; `ends` are the arms' `endings`, where they are known already.
    """
    ends = ends or {arm: endings(each) for arm, each in numbers.items()}
    until = horizon(ends.values())
    compared: list[Compared] = []
    for metric in METRICS:
        family = [_compare_pair(metric, a, b, numbers, margin) for a, b in pairs]
        if metric.name == "steps":
            family = [
                replace(each, turns=mean_turns_difference(ends[each.a], ends[each.b], until))
                for each in family
            ]
        compared += corrected(family)
    return compared


def corrected(family: Sequence[Compared]) -> list[Compared]:
    """Correct comparisons that are read together: Holm for p-values, e-BH for e-values."""
    p_holm = _adjusted(holm, [each.found.p for each in family])
    p_tost = _adjusted(holm, [each.tost.p if each.tost else None for each in family])
    q_ebh = _adjusted(e_bh, [each.e_value for each in family])
    return [
        replace(each, p_holm=p, p_tost_holm=tost, q_ebh=q)
        for each, p, tost, q in zip(family, p_holm, p_tost, q_ebh, strict=True)
    ]


def _adjusted(
    method: Callable[[Sequence[float]], list[float]], values: Sequence[float | None]
) -> list[float | None]:
    """Adjust the values that there are, and leave the others out."""
    known = iter(method([value for value in values if value is not None]))
    return [None if value is None else next(known) for value in values]


def _compare_pair(
    metric: Metric, a: str, b: str, numbers: Mapping[str, ArmNumbers], margin: float | None
) -> Compared:
    """Compare two arms; an interval ends where the metric does."""
    of_a, of_b = metric.values(numbers[a]), metric.values(numbers[b])
    found = compare(of_a, of_b, binary=metric.binary, higher_is_better=metric.higher_is_better)
    if found.lo is not None and found.hi is not None:
        found = replace(found, lo=max(found.lo, -metric.most), hi=min(found.hi, metric.most))
    compared = Compared(a=a, b=b, metric=metric, found=found, p_holm=None)
    if not metric.bounded or not found.n_pairs:
        return compared
    diffs = _differences(of_a, of_b)
    log_e, p_anytime = e_path(diffs / metric.most)
    with np.errstate(over="ignore"):  # what has no float is inf
        e_value = float(np.exp(log_e[-1]))
    return replace(
        compared,
        newcombe=_newcombe(found),
        worst=_worst_case(metric, numbers[a], numbers[b], found),
        e_value=e_value,
        p_anytime=float(p_anytime[-1]),
        tost=_tost(found, diffs, margin, 1.0 - found.level),
    )


def _differences(a: Mapping[int, Sequence[float]], b: Mapping[int, Sequence[float]]) -> FloatArray:
    """Return the difference of every shared seed, in the order of the seeds."""
    shared = sorted(a.keys() & b.keys())
    return differences(seed_means(a, shared), seed_means(b, shared))


def _newcombe(found: Comparison) -> Interval | None:
    cells = _cells(found)
    return cells and newcombe_difference_interval(*cells, found.level)


def _cells(found: Comparison) -> tuple[int, int, int, int] | None:
    """Return the counts of pairs of single successes, where there are any."""
    both, a_only, b_only, neither = found.both, found.a_only, found.b_only, found.neither
    if both is None or a_only is None or b_only is None or neither is None:
        return None
    return both, a_only, b_only, neither


def _tost(
    found: Comparison, diffs: FloatArray, margin: float | None, alpha: float
) -> Equivalence | None:
    cells = _cells(found)
    if cells is None and not diffs.any():  # no spread to go by: each seed counts as one agreement
        cells = (diffs.size, 0, 0, 0)
    if margin is None or (cells is None and np.all(diffs == diffs[0])):
        return None
    if cells is not None:
        return tost_proportions(*cells, margin, alpha)
    return tost_paired(diffs, margin, alpha)


def _worst_case(
    metric: Metric, a: ArmNumbers, b: ArmNumbers, found: Comparison
) -> DifferenceBounds | None:
    """Bound the difference on the seeds that both arms played, lost episodes included."""
    if not (a.lost or b.lost):
        return _nothing_lost(found)
    of_a, of_b = metric.values(a), metric.values(b)
    seeds = sorted((of_a.keys() | a.lost.keys()) & (of_b.keys() | b.lost.keys()))
    known_a, known_b = (
        [(values.get(seed, ()), arm.lost[seed]) for seed in seeds]
        for values, arm in ((of_a, a), (of_b, b))
    )
    worst = worst_case_repeated(known_a, known_b, binary=metric.binary, highest=metric.most)
    return replace(worst, lo=max(worst.lo, -metric.most), hi=min(worst.hi, metric.most))


def _nothing_lost(found: Comparison) -> DifferenceBounds | None:
    if found.diff is None:
        return None
    return DifferenceBounds(
        n_seeds=found.n_pairs,
        n_missing=0,
        diff_lo=found.diff,
        diff_hi=found.diff,
        lo=math.nan if found.lo is None else found.lo,
        hi=math.nan if found.hi is None else found.hi,
        level=found.level,
    )


def compare_row(
    run_id: str, env: str, strategy: str, compared: Compared, word: str | None = None
) -> dict[str, Any]:
    """Return a row of compare.csv; `strategy` is both arms', or "X | Y" where they differ.

    `word` is the verdict where something else decided: a sequential test.
    """
    found = compared.found
    return {
        "format": "compare/2",
        "run_id": run_id,
        "a": compared.a,
        "b": compared.b,
        "env": env,
        "strategy": strategy,
        "metric": compared.metric.name,
        "slice": "all",
        **{name: getattr(found, name) for name in _FOUND},
        "ci_method": found.ci_method and found.ci_method.value,
        "test": found.test and found.test.value,
        "p_holm": compared.p_holm,
        "e_value": compared.e_value,
        "p_anytime": compared.p_anytime,
        "q_ebh": compared.q_ebh,
        **_margin_columns(compared),
        **_bound_columns(compared),
        "verdict": word or decision_word(compared),
    }


def _margin_columns(compared: Compared) -> dict[str, float | None]:
    tost = compared.tost
    return {
        "equiv_margin": tost.margin if tost else None,
        "p_tost": tost.p if tost else None,
        "p_tost_holm": compared.p_tost_holm,
    }


def _bound_columns(compared: Compared) -> dict[str, float | None]:
    newcombe, worst, turns = compared.newcombe, compared.worst, compared.turns
    return {
        "newcombe_lo": newcombe.lo if newcombe else None,
        "newcombe_hi": newcombe.hi if newcombe else None,
        "diff_lo_worst": worst.diff_lo if worst else None,
        "diff_hi_worst": worst.diff_hi if worst else None,
        "lo_worst": known(worst.lo) if worst else None,
        "hi_worst": known(worst.hi) if worst else None,
        "rmst_diff": turns.value if turns else None,
        "rmst_lo": known(turns.lo) if turns else None,
        "rmst_hi": known(turns.hi) if turns else None,
        "rmst_horizon": turns.horizon if turns else None,
    }


def decision_word(compared: Compared) -> str:
    """Return the word of a decision.

    That is better, worse, equivalent, undecided or no_data; of turns, fewer or more.
    """
    word = compared.decision.name.lower()
    if compared.metric.name == "steps":
        return {"better": "fewer", "worse": "more"}.get(word, word)
    return word


def paired_rows(
    run_id: str, numbers: Mapping[str, ArmNumbers], pairs: Sequence[tuple[str, str]]
) -> Iterable[dict[str, Any]]:
    """Yield the rows of paired.csv: one per pair of arms and seed that both finished."""
    for a, b in pairs:
        left, right = numbers[a], numbers[b]
        divergent = _first_by_seed(divergent_turns(left, right))
        shared = sorted(left.success.keys() & right.success.keys())
        means = [
            seed_means(values, shared).tolist()
            for of_a, of_b in zip(_paired(left), _paired(right), strict=True)
            for values in (of_a, of_b)
        ]
        for seed, row in zip(shared, zip(*means, strict=True), strict=True):
            success_a, success_b = row[:2]
            yield {
                "format": "paired/1",
                "run_id": run_id,
                "a": a,
                "b": b,
                "env_seed": seed,
                **dict(zip(PAIRED[5:13], row, strict=True)),
                "diff": success_b - success_a,
                "flip": _flip(success_a, success_b),
                "first_divergent_turn": divergent.get(seed),
            }


def _paired(numbers: ArmNumbers) -> tuple[Mapping[int, Sequence[float]], ...]:
    """Return what paired.csv shows of both arms, in its order."""
    return numbers.success, numbers.return_, numbers.steps, numbers.valid


def known(value: float) -> float | None:
    """Return a number that there is, and None for nan."""
    return None if math.isnan(value) else value


def _first_by_seed(divergent: Iterable[tuple[int, int, int]]) -> dict[int, int]:
    """Return the earliest differing turn over the repetitions of every seed that has one."""
    first: dict[int, int] = {}
    for seed, _, turn in divergent:
        first[seed] = min(turn, first.get(seed, turn))
    return first


def _flip(success_a: float, success_b: float) -> str:
    if success_a == success_b:
        return ""
    return "b_only" if success_b > success_a else "a_only"
