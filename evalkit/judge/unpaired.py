"""Success rates of two arms that share no seeds.

For arms on the same seeds `paired` sees much smaller differences. Must not know what an arm is.
"""

import math
from collections.abc import Mapping, Sequence

from evalkit.judge.distributions import require_level
from evalkit.judge.intervals import Interval, IntervalMethod, wilson_clustered

Outcomes = Mapping[int, Sequence[float]]
_LEAST_P = 1e-12
_STEPS = 60


def independent_difference_interval(a: Outcomes, b: Outcomes, level: float = 0.95) -> Interval:
    """Newcombe's hybrid score interval of the success rate of B minus that of A.

    Both map a seed to its outcomes, 0 or 1. Joins the arms' Wilson intervals, clustered by seed
    where seeds have several outcomes. [-1, 1] where an arm has no data.
    Source: Newcombe 1998, Statistics in Medicine 17:873, method 10.
    """
    require_level(level)
    rate_a, of_a = _rate(a), _interval(a, level)
    rate_b, of_b = _rate(b), _interval(b, level)
    lo, hi = -1.0, 1.0
    if rate_a is not None and rate_b is not None:
        lo = rate_b - rate_a - math.hypot(rate_b - of_b.lo, of_a.hi - rate_a)
        hi = rate_b - rate_a + math.hypot(of_b.hi - rate_b, rate_a - of_a.lo)
    method = IntervalMethod.NEWCOMBE
    return Interval(lo=max(-1.0, lo), hi=min(1.0, hi), method=method, level=level)


def independent_difference_p(a: Outcomes, b: Outcomes) -> float:
    """Return the p-value of the same rate in both: the largest alpha whose interval holds 0.

    At least 1e-12; 1 where the rates are equal or an arm has no data.
    """
    rate_a, rate_b = _rate(a), _rate(b)
    if rate_a is None or rate_b is None or rate_a == rate_b:
        return 1.0
    low, high = math.log(_LEAST_P), math.log(1.0 - 1e-9)
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        found = independent_difference_interval(a, b, 1.0 - math.exp(middle))
        if found.lo <= 0.0 <= found.hi:
            low = middle
        else:
            high = middle
    return math.exp(high)


def _rate(outcomes: Outcomes) -> float | None:
    n = sum(map(len, outcomes.values()))
    return sum(map(sum, outcomes.values())) / n if n else None


def _interval(outcomes: Outcomes, level: float) -> Interval:
    counts = [(int(sum(values)), len(values)) for values in outcomes.values()]
    return wilson_clustered([won for won, _ in counts], [n for _, n in counts], level)
