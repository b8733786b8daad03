"""When to stop a comparison: after each pair, decided, equivalent, out of budget, or go on.

Pairs are differences B - A of one metric on one env seed, in any order that does not depend on
their values: of success (-1, 0, 1), of means over repetitions, or of returns within known limits.
The number of looks does not matter; `betting` says why. B is better or worse as soon as the
confidence sequence excludes 0; the arms are equivalent as soon as it lies inside the margin.

Must not know how pairs are played, nor how a stop is shown.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from evalkit.judge.betting import (
    anytime_p,
    bets,
    confidence_bounds,
    log_e_value,
    log_mixture,
    log_threshold,
)
from evalkit.judge.distributions import require_level
from evalkit.judge.intervals import FloatArray
from evalkit.judge.multiple import e_bh

_ROUNDING = 1e-9


class Verdict(StrEnum):
    """What a sequential comparison says after a pair, in the words of a report."""

    BETTER = "B is better"
    """The confidence sequence excludes 0 on the side that favours B."""
    WORSE = "B is worse"
    """The confidence sequence excludes 0 on the side that favours A."""
    EQUIVALENT = "equivalent"
    """The confidence sequence lies inside the margin on both sides of 0."""
    OUT_OF_BUDGET = "undecided, out of budget"
    """All pairs that were paid for have been played, and none of the above came true."""
    CONTINUE = "undecided"
    """Play the next pair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppingRule:
    """When a sequential comparison stops.

    The chance to ever call equal arms different is at most `alpha`, and so is the chance to call
    arms equivalent whose difference is beyond `margin` (in the metric's unit; None: never).
    `max_pairs` is the budget (None: none). `span` is the largest difference there can be: 1 for
    success and rates, highest less lowest return for returns.
    """

    alpha: float = 0.05
    margin: float | None = None
    max_pairs: int | None = None
    span: float = 1.0
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError for values out of range."""
        require_level(self.alpha)
        if not (self.span > 0.0 and math.isfinite(self.span)):
            raise ValueError(f"expected a span > 0, got {self.span}")
        if self.margin is not None and not 0.0 < self.margin < self.span:
            raise ValueError(f"expected 0 < margin < span {self.span}, got {self.margin}")
        if self.max_pairs is not None and self.max_pairs < 1:
            raise ValueError(f"expected max_pairs >= 1, got {self.max_pairs}")

    def split(self, n_comparisons: int) -> "StoppingRule":
        """Share `alpha` evenly among several comparisons that are read together (Bonferroni)."""
        if n_comparisons < 1:
            raise ValueError(f"expected at least one comparison, got {n_comparisons}")
        return replace(self, alpha=self.alpha / n_comparisons)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is known after `n_pairs` pairs; differences are B - A in the metric's unit.

    [`lo`, `hi`] is valid together with all earlier and later looks, as is `p_anytime`, the lowest
    so far. `log_e` is the natural logarithm of the e-value against equality, now.
    """

    n_pairs: int
    diff: float | None
    lo: float
    hi: float
    level: float
    log_e: float
    p_anytime: float
    verdict: Verdict

    @property
    def e_value(self) -> float:
        """The e-value itself; inf where it has no float."""
        return math.exp(self.log_e) if self.log_e < 709.0 else math.inf


class SequentialTest:
    """One comparison, one pair at a time; a verdict other than CONTINUE is final.

    A pair costs the time of a few hundred logarithms; a look that shows the interval costs that
    times the number of distinct differences.
    """

    def __init__(self, rule: StoppingRule) -> None:
        self.rule = rule
        self.verdict = Verdict.CONTINUE
        self.stopped_at: int | None = None
        self._counts: Counter[float] = Counter()
        self._n_pairs = 0
        self._highest = 0.0
        self._nearest = 0.0
        self._threshold = log_threshold(rule.alpha)
        self._bets = bets()[0]
        # Bets that the mean is above 0, below 0, above -margin and below margin, as rows
        margins = [] if rule.margin is None else [-rule.margin / rule.span] * 2
        self._means = np.array([0.0, 0.0, *margins])
        self._signs = np.array([1.0, -1.0, 1.0, -1.0])[: self._means.size]
        self._wealth = np.zeros((self._means.size, self._bets.size))

    @property
    def n_pairs(self) -> int:
        """How many pairs there were, those after the stop included."""
        return self._n_pairs

    @property
    def progress(self) -> float:
        """How far the evidence has come towards a verdict, by its logarithm: 0 to 1."""
        return min(1.0, max(0.0, self._nearest / self._threshold))

    def add(self, diff: float) -> Verdict:
        """Count one pair, and return what the rule says now.

        Raises ValueError for a difference that is not finite or exceeds the rule's span.
        """
        scaled = self._scaled(diff)
        self._n_pairs += 1
        self._counts[scaled] += 1
        gains = (self._signs * scaled - self._means) / (1.0 + self._means)
        self._wealth += np.log1p(gains[:, np.newaxis] * self._bets)
        above, below, *margins = log_mixture(self._wealth).tolist()
        self._highest = max(self._highest, above, below)
        self._nearest = max(above, below, *([min(margins)] if margins else []))
        if self.verdict is Verdict.CONTINUE:
            self.verdict = self._judge(above, below, margins)
            if self.verdict is not Verdict.CONTINUE:
                self.stopped_at = self._n_pairs
        return self.verdict

    def look(self) -> Look:
        """Say what is known now, with the interval."""
        values = np.array(list(self._counts), dtype=np.float64)
        counts = np.array(list(self._counts.values()), dtype=np.float64)
        lo, hi = confidence_bounds(values, counts, self.rule.alpha)
        span = self.rule.span
        return Look(
            n_pairs=self._n_pairs,
            diff=float(counts @ values) / self._n_pairs * span if self._n_pairs else None,
            lo=lo * span,
            hi=hi * span,
            level=1.0 - self.rule.alpha,
            log_e=log_e_value(*log_mixture(self._wealth[:2]).tolist()),
            p_anytime=anytime_p(self._highest),
            verdict=self.verdict,
        )

    def _judge(self, above: float, below: float, margins: Sequence[float]) -> Verdict:
        if max(above, below) >= self._threshold:
            favours_b = (above > below) == self.rule.higher_is_better
            return Verdict.BETTER if favours_b else Verdict.WORSE
        if margins and min(margins) >= self._threshold:
            return Verdict.EQUIVALENT
        if self.rule.max_pairs is not None and self._n_pairs >= self.rule.max_pairs:
            return Verdict.OUT_OF_BUDGET
        return Verdict.CONTINUE

    def _scaled(self, diff: float) -> float:
        scaled = diff / self.rule.span
        if not abs(scaled) <= 1.0 + _ROUNDING:
            raise ValueError(f"expected a difference within +-{self.rule.span}, got {diff}")
        return min(1.0, max(-1.0, scaled))


class SequentialFamily:
    """Several comparisons in one run, each at its even share of alpha: none is called falsely.

    `names` are those of the pairs of arms. A comparison that stopped takes no further pairs into
    its verdict; the run can end when `done`.
    """

    def __init__(self, names: Sequence[str], rule: StoppingRule) -> None:
        if not names or len(set(names)) != len(names):
            raise ValueError(f"expected one or more distinct names, got {list(names)}")
        self.rule = rule
        shared = rule.split(len(names))
        self.tests = {name: SequentialTest(shared) for name in names}

    @property
    def done(self) -> bool:
        """Whether no comparison asks for another pair."""
        return all(test.verdict is not Verdict.CONTINUE for test in self.tests.values())

    def add(self, name: str, diff: float) -> Verdict:
        """Count one pair of the named comparison. Raises KeyError for a name that is unknown."""
        return self.tests[name].add(diff)

    def looks(self) -> dict[str, Look]:
        """Say what is known of every comparison."""
        return {name: test.look() for name, test in self.tests.items()}

    def q_values(self) -> dict[str, float]:
        """Adjust the e-values by e-BH: q <= alpha bounds the false discovery rate at alpha."""
        e_values = [look.e_value for look in self.looks().values()]
        return dict(zip(self.tests, e_bh(e_values), strict=True))


def judge_sequence(diffs: Iterable[float], rule: StoppingRule) -> Look:
    """Take pairs in their order until the rule stops, and say what is known then."""
    test = SequentialTest(rule)
    for diff in diffs:
        if test.add(diff) is not Verdict.CONTINUE:
            break
    return test.look()


def look_path(diffs: Sequence[float] | FloatArray, rule: StoppingRule) -> list[Look]:
    """Look after every pair, for a plot of the interval and of the e-value."""
    test = SequentialTest(rule)
    looks = []
    for diff in diffs:
        test.add(diff)
        looks.append(test.look())
    return looks
