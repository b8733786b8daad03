"""Are two arms the same within a margin? Two one-sided tests (TOST) on shared seeds.

Not finding a difference is not finding none: here the burden is on equivalence, and the p-value is
that of a difference at the margin or beyond. At alpha, the arms are equivalent exactly where the
interval at level 1 - 2 alpha lies inside the margin.
Sources: Schuirmann 1987; Tango 1998 for pairs of successes.
"""

import math
from dataclasses import dataclass

from evalkit.judge.distributions import normal_tail, student_t_tail
from evalkit.judge.intervals import Floats, Interval, IntervalMethod
from evalkit.judge.paired import clustered_difference, paired_difference_interval, tango_score


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivalence:
    """The outcome of two one-sided tests; differences are B - A in the metric's unit.

    `p_above_lower` tests that the difference is at most -margin (small: B is not worse by the
    margin), `p_below_upper` that it is at least +margin; `p` is the larger. `interval` has level
    1 - 2 alpha.
    """

    margin: float
    alpha: float
    diff: float
    p_above_lower: float
    p_below_upper: float
    interval: Interval

    @property
    def p(self) -> float:
        """The p-value of equivalence."""
        return max(self.p_above_lower, self.p_below_upper)

    @property
    def equivalent(self) -> bool:
        """Whether the arms are equivalent within the margin, at alpha."""
        return self.p < self.alpha

    @property
    def non_inferior(self) -> bool:
        """Whether B falls short of A by less than the margin, at alpha."""
        return self.p_above_lower < self.alpha


def tost_paired(diffs: Floats, margin: float, alpha: float = 0.05) -> Equivalence:
    """Test with paired t tests whether the mean difference per seed lies within +-`margin`.

    Raises ValueError for fewer than two seeds, values that are not finite, a margin that is not
    positive or an alpha outside (0, 0.5).
    """
    _require(margin, alpha)
    estimate = clustered_difference(diffs, 1.0 - 2.0 * alpha)
    if estimate.n < 2:
        raise ValueError(f"expected at least two differences, got {estimate.n}")
    df = estimate.n - 1
    return Equivalence(
        margin=margin,
        alpha=alpha,
        diff=estimate.mean,
        p_above_lower=student_t_tail(_standardised(estimate.mean + margin, estimate.se), df),
        p_below_upper=student_t_tail(_standardised(margin - estimate.mean, estimate.se), df),
        interval=Interval(
            lo=estimate.lo, hi=estimate.hi, method=IntervalMethod.T, level=estimate.level
        ),
    )


def tost_proportions(
    both: int, a_only: int, b_only: int, neither: int, margin: float, alpha: float = 0.05
) -> Equivalence:
    """Test with Tango's score whether the success rates differ by less than `margin`.

    The counts are seeds where both, only A, only B and neither succeed. Raises ValueError for
    negative counts, no seed, a margin outside (0, 1) or an alpha outside (0, 0.5).
    """
    _require(margin, alpha)
    if not margin < 1.0:
        raise ValueError(f"expected a margin in (0, 1), got {margin}")
    n = both + a_only + b_only + neither
    interval = paired_difference_interval(both, a_only, b_only, neither, 1.0 - 2.0 * alpha)
    return Equivalence(
        margin=margin,
        alpha=alpha,
        diff=(b_only - a_only) / max(1, n),
        p_above_lower=normal_tail(tango_score(-margin, a_only, b_only, n)),
        p_below_upper=normal_tail(-tango_score(margin, a_only, b_only, n)),
        interval=interval,
    )


def _standardised(distance: float, se: float) -> float:
    if se > 0.0:
        return distance / se
    return math.copysign(math.inf, distance) if distance else 0.0


def _require(margin: float, alpha: float) -> None:
    if not (margin > 0.0 and math.isfinite(margin)):
        raise ValueError(f"expected a margin > 0, got {margin}")
    if not 0.0 < alpha < 0.5:
        raise ValueError(f"expected alpha in (0, 0.5), got {alpha}")
