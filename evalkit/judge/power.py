"""How many seeds a comparison needs, and how small a difference it can see.

Effects are absolute differences in the metric's unit; n counts seeds (pairs, or per arm where the
arms are unpaired). Tests are two-sided. An effect that no data of that size can show is inf.
"""

import math

import numpy as np

from evalkit.judge.distributions import normal_quantile, student_t_quantile

_LARGE_N = 1_000_000


def paired_t_power(effect: float, sd_of_differences: float, n: int, alpha: float = 0.05) -> float:
    """Compute the chance that a two-sided paired t test of n >= 2 pairs sees a mean of `effect`.

    Raises ValueError for n < 2, a standard deviation that is not positive, or alpha outside (0, 1).
    Source: the noncentral t distribution, integrated over the sample standard deviation.
    """
    _require_probability("alpha", alpha)
    if n < 2 or not sd_of_differences > 0.0:
        raise ValueError(f"expected n >= 2 and a positive sd, got {n} and {sd_of_differences}")
    return _t_power(effect / sd_of_differences * math.sqrt(n), n - 1, alpha)


def minimum_detectable_effect(
    sd_of_differences: float, n: int, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Find the mean paired difference that a two-sided t test of n pairs sees with this power.

    In the unit of `sd_of_differences`; inf for fewer than two pairs, 0 for a deviation of 0.
    Raises ValueError for a negative deviation or probabilities outside (0, 1), or power <= alpha.
    """
    _require_design(power, alpha)
    if not sd_of_differences >= 0.0:
        raise ValueError(f"expected a standard deviation >= 0, got {sd_of_differences}")
    if n < 2:
        return math.inf
    low, high = 0.0, 4.0
    while _t_power(high, n - 1, alpha) < power:
        low, high = high, 2.0 * high
    while high - low > 1e-12 * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if _t_power(middle, n - 1, alpha) >= power else (middle, high)
    return high / math.sqrt(n) * sd_of_differences


def pairs_needed(
    effect: float, sd_of_differences: float, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Find the fewest pairs with which a two-sided paired t test sees `effect` with this power.

    Never below 2. Beyond a million pairs the normal approximation is used: it is short by about
    two pairs. Raises ValueError for an effect of 0, which no number of pairs can show.
    """
    _require_design(power, alpha)
    if not effect or not math.isfinite(effect):
        raise ValueError(f"expected a finite effect other than 0, got {effect}")
    if not sd_of_differences >= 0.0:
        raise ValueError(f"expected a standard deviation >= 0, got {sd_of_differences}")
    standardised = abs(effect) / sd_of_differences if sd_of_differences else math.inf
    root = (_z_alpha(alpha) + normal_quantile(power)) / standardised
    n = max(2, math.ceil(root * root))
    if n > _LARGE_N:
        return n
    if math.isinf(standardised):
        return 2
    while _t_power(standardised * math.sqrt(n), n - 1, alpha) < power:
        n += 1
    while n > 2 and _t_power(standardised * math.sqrt(n - 1), n - 2, alpha) >= power:
        n -= 1
    return n


def mde_paired_proportion(
    discordant_rate: float, n: int, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Find the difference of success rates that McNemar's test of n shared seeds sees.

    `discordant_rate` is the share of seeds where exactly one arm succeeds; no difference exceeds
    it, and where that is too little the answer is inf. Includes the continuity correction of one
    flip, |b - a| - 1, which brings the formula close to the exact test that reports use.
    Raises ValueError for rates or probabilities out of range.
    Source: Connor 1987, Biometrics 43:207, solved for the difference.
    """
    _require_design(power, alpha)
    if not 0.0 < discordant_rate <= 1.0:
        raise ValueError(f"expected a discordant_rate in (0, 1], got {discordant_rate}")
    if n < 1:
        return math.inf
    z_power = normal_quantile(power)
    threshold = _z_alpha(alpha) * math.sqrt(discordant_rate) + 1.0 / math.sqrt(n)
    spread = discordant_rate * (n + z_power**2) - threshold**2
    if spread < 0.0:
        return math.inf
    effect = (threshold * math.sqrt(n) + z_power * math.sqrt(spread)) / (n + z_power**2)
    return effect if effect <= discordant_rate else math.inf


def least_decidable(alpha: float = 0.05) -> int:
    """Return the fewest pairs that, all differing one way, a two-sided sign test decides on.

    Raises ValueError for an alpha outside (0, 1).
    """
    _require_design(0.5, alpha)
    return max(1, math.ceil(1.0 - math.log2(alpha)))


def mde_one_way(n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """Find the difference that exact McNemar sees on n seeds if all flips go one way.

    The answer for arms that never differed yet: the rate of flips at which at least
    `least_decidable` of n seeds flip, with the power asked for. Beyond 1 the answer is inf.
    Raises ValueError for a power or alpha outside (0, 1).
    """
    _require_design(power, alpha)
    least = least_decidable(alpha)
    if n < least:
        return math.inf

    def seen(rate: float) -> float:
        return 1.0 - sum(math.comb(n, k) * rate**k * (1.0 - rate) ** (n - k) for k in range(least))

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if seen(middle) >= power else (middle, high)
    return high


def pairs_needed_proportion(
    effect: float, discordant_rate: float, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Count the shared seeds with which McNemar's test sees a success difference of `effect`.

    Includes the continuity correction of `mde_paired_proportion`. Raises ValueError for an effect
    of 0 or beyond `discordant_rate`, which is impossible, or probabilities outside (0, 1).
    """
    _require_design(power, alpha)
    size = abs(effect)
    if not 0.0 < size <= discordant_rate <= 1.0:
        raise ValueError(
            f"expected 0 < |effect| <= discordant_rate <= 1, got {effect} and {discordant_rate}"
        )
    threshold = _z_alpha(alpha) * math.sqrt(discordant_rate)
    root = (threshold + normal_quantile(power) * math.sqrt(discordant_rate - size**2)) / size
    corrected = 0.5 * (root + math.sqrt(root**2 + 4.0 / size))
    return math.ceil(corrected**2)


def mde_unpaired_proportion(p: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """Find the gain over a success rate `p` that two independent arms of n seeds each show.

    It is inf where even a rate of 1 would not be told from `p`. Raises ValueError for a rate
    outside [0, 1]. Source: Cohen 1988, ch. 6: the arcsine effect size h = (z + z') sqrt(2 / n).
    """
    _require_design(power, alpha)
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"expected a rate in [0, 1], got {p}")
    if n < 1:
        return math.inf
    h = (_z_alpha(alpha) + normal_quantile(power)) * math.sqrt(2.0 / n)
    angle = math.asin(math.sqrt(p)) + 0.5 * h
    return math.sin(angle) ** 2 - p if angle <= 0.5 * math.pi else math.inf


def _t_power(shift: float, df: int, alpha: float) -> float:
    """P(|T| > t[1 - alpha/2]) of a noncentral t, as E over s of P(|Z + shift| > t s).

    s is the sample deviation over the true one, with log-density df (v - exp(2v)/2) in v = ln s.
    That falls off smoothly on both sides, where the trapezoidal rule converges geometrically.
    """
    critical = student_t_quantile(1.0 - 0.5 * alpha, df)
    reach = math.sqrt(45.0 / df)
    v = np.linspace(-reach - 45.0 / df, reach, 800)
    log_weights = df * (v - 0.5 * np.expm1(2.0 * v))
    kept = log_weights > -45.0
    weights = np.exp(log_weights[kept])
    beyond = [
        math.erfc((bound - shift) / math.sqrt(2.0)) + math.erfc((bound + shift) / math.sqrt(2.0))
        for bound in (critical * np.exp(v[kept])).tolist()
    ]
    return 0.5 * float(weights @ np.array(beyond)) / float(weights.sum())


def _z_alpha(alpha: float) -> float:
    return normal_quantile(1.0 - 0.5 * alpha)


def _require_design(power: float, alpha: float) -> None:
    _require_probability("power", power)
    _require_probability("alpha", alpha)
    if power <= alpha:
        raise ValueError(f"expected power > alpha, got power={power}, alpha={alpha}")


def _require_probability(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise ValueError(f"expected {name} in (0, 1), got {value}")
