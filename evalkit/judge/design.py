"""Before a run: how many seeds, how small a difference, and when a sequential test would stop.

Outcomes are successes on shared seeds. `rho` is the correlation of one episode of A with one of B
on the same seed: 0 if seeds do not matter, higher the more unequally hard they are.

Knows rates only; `power` knows spreads. Must not know how a run is configured.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evalkit.judge.betting import log_threshold, log_wealth
from evalkit.judge.distributions import normal_quantile
from evalkit.judge.intervals import FloatArray
from evalkit.judge.power import pairs_needed, pairs_needed_proportion
from evalkit.judge.sequential import StoppingRule

Counts = NDArray[np.int64]

_LOOKS_FOR_EQUIVALENCE = 100
_CHUNK = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What it takes to see a difference of success rates with the power asked for.

    `seeds` are shared seeds, each played `k` times by both arms; `unpaired_seeds` what each arm
    would need on seeds of its own, k = 1; `saved` the share of episodes that pairing saves.
    """

    rate_a: float
    rate_b: float
    rho: float
    k: int
    power: float
    alpha: float
    discordant_rate: float
    sd_of_differences: float
    seeds: int
    episodes_per_arm: int
    unpaired_seeds: int
    saved: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedStop:
    """When and how sequential comparisons ended in a simulation.

    Pairs count up to the stop or to the budget; the shares of `better`, `worse`, `equivalent` and
    `undecided` ends add up to 1.
    """

    median_pairs: float
    mean_pairs: float
    better: float
    worse: float
    equivalent: float
    undecided: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """What stopping at `pairs` saved against designs of fixed size; negative: it took more.

    The fixed designs have the power asked for at the supposed rates. Shares are of episodes.
    """

    pairs: int
    fixed_unpaired: int
    fixed_paired: int
    saved_vs_unpaired: float
    saved_vs_paired: float


def discordant_rate(rate_a: float, rate_b: float, rho: float = 0.0) -> float:
    """Return the share of seeds on which exactly one arm succeeds.

    `rho` is cut to what these rates allow. Raises ValueError for a rate outside [0, 1] or a
    correlation outside [-1, 1].
    """
    return rate_a + rate_b - 2.0 * _both_rate(rate_a, rate_b, rho)


def unpaired_needed(rate_a: float, rate_b: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Count the seeds per arm with which two independent arms show this difference of rates.

    Raises ValueError for equal rates, or rates or probabilities out of range.
    Source: the normal approximation with unpooled variances (Fleiss 1981, without correction).
    """
    _require_rates(rate_a, rate_b)
    if rate_a == rate_b:
        raise ValueError(f"expected rates that differ, got {rate_a} twice")
    z = normal_quantile(1.0 - 0.5 * alpha) + normal_quantile(power)
    variance = rate_a * (1.0 - rate_a) + rate_b * (1.0 - rate_b)
    return max(1, math.ceil(z * z * variance / (rate_b - rate_a) ** 2))


def plan(
    baseline: float,
    effect: float,
    *,
    rho: float = 0.0,
    icc: float | None = None,
    k: int = 1,
    power: float = 0.8,
    alpha: float = 0.05,
) -> Plan:
    """Plan a comparison of B at `baseline` + `effect` with A at `baseline`.

    For k = 1 the test is McNemar's; for more it is the paired t test of the means per seed, where
    `icc` is the correlation of two episodes of one arm on a seed (`variance` measures it). Without
    it, it is `rho`: both arms find the same seeds hard, and B gains on all of them alike. `rho` is
    cut to what the rates allow. Raises ValueError for an effect of 0 or numbers out of range.
    """
    rate_a, rate_b = baseline, baseline + effect
    if k < 1 or not (icc is None or 0.0 <= icc <= 1.0):
        raise ValueError(f"expected k >= 1 and icc in [0, 1], got {k} and {icc}")
    unpaired = unpaired_needed(rate_a, rate_b, power, alpha)
    discordant = discordant_rate(rate_a, rate_b, rho)
    of_a, of_b = rate_a * (1.0 - rate_a), rate_b * (1.0 - rate_b)
    covariance = _both_rate(rate_a, rate_b, rho) - rate_a * rate_b
    actual = covariance / math.sqrt(of_a * of_b) if of_a * of_b else 0.0
    shared = max(0.0, actual) if icc is None else icc
    spread = (of_a + of_b) * (shared + (1.0 - shared) / k) - 2.0 * covariance
    sd = math.sqrt(max(0.0, spread))
    if k == 1:
        seeds = pairs_needed_proportion(effect, max(discordant, abs(effect)), power, alpha)
    else:
        seeds = pairs_needed(effect, sd, power, alpha)
    return Plan(
        rate_a=rate_a,
        rate_b=rate_b,
        rho=actual,
        k=k,
        power=power,
        alpha=alpha,
        discordant_rate=discordant,
        sd_of_differences=sd,
        seeds=seeds,
        episodes_per_arm=seeds * k,
        unpaired_seeds=unpaired,
        saved=1.0 - seeds * k / unpaired,
    )


def detectable(
    baseline: float,
    seeds: int,
    *,
    rho: float = 0.0,
    k: int = 1,
    power: float = 0.8,
    alpha: float = 0.05,
) -> float:
    """Find the smallest gain over `baseline` that `plan` gives at most this many seeds for.

    It is inf where not even a rate of 1 would be told from the baseline. Raises ValueError as
    `plan`.
    """
    low, high = 0.0, 1.0 - baseline
    if high <= 0.0 or seeds < 1:
        return math.inf

    def seen(effect: float) -> bool:
        return plan(baseline, effect, rho=rho, k=k, power=power, alpha=alpha).seeds <= seeds

    if not seen(high):
        return math.inf
    while high - low > 1e-9:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high


def rho_of_difficulty(rate_a: float, rate_b: float, sd: float) -> float:
    """Correlate the arms' successes when the log-odds of seeds are normal with this deviation.

    Both arms face the same difficulty of a seed and are otherwise independent. Raises ValueError
    for a rate outside (0, 1) or a negative deviation.
    """
    if not (0.0 < rate_a < 1.0 and 0.0 < rate_b < 1.0 and sd >= 0.0):
        raise ValueError(f"expected rates in (0, 1) and sd >= 0, got {rate_a}, {rate_b}, {sd}")
    points = np.linspace(-9.0, 9.0, 2001)
    weights = np.exp(-0.5 * points**2)
    weights /= weights.sum()
    chance_a, chance_b = (_chances(rate, sd * points, weights) for rate in (rate_a, rate_b))
    covariance = float(weights @ (chance_a * chance_b)) - rate_a * rate_b
    return covariance / math.sqrt(rate_a * (1.0 - rate_a) * rate_b * (1.0 - rate_b))


def expected_stop(
    rate_a: float,
    rate_b: float,
    rule: StoppingRule,
    *,
    rho: float = 0.0,
    n_sims: int = 2_000,
    seed: int = 0,
) -> ExpectedStop:
    """Simulate sequential comparisons of successes, one per seed and arm, under the rule.

    The rule needs a budget. Better and worse are looked for after every pair, equivalence at 100
    points up to the budget. The draws are those of `Generator(PCG64(seed))`. Memory is bounded by
    250 runs at once. Raises ValueError for a rule without a budget or with a span other than 1.
    """
    if rule.max_pairs is None or rule.span != 1.0 or n_sims < 1:
        raise ValueError(f"expected max_pairs, a span of 1 and n_sims >= 1, got {rule}, {n_sims}")
    both = _both_rate(rate_a, rate_b, rho)
    rng = np.random.Generator(np.random.PCG64(seed))
    bound = deciding_wins(rule.max_pairs, rule.alpha)
    ends: list[tuple[FloatArray, FloatArray]] = []
    for start in range(0, n_sims, _CHUNK):
        drawn = rng.random((min(_CHUNK, n_sims - start), rule.max_pairs))
        wins = np.cumsum(drawn < rate_b - both, axis=1, dtype=np.int64)
        losses = np.cumsum(drawn >= 1.0 - (rate_a - both), axis=1, dtype=np.int64)
        ends.append(_ends(wins, losses, bound, rule))
    stops, verdicts = (np.concatenate(parts) for parts in zip(*ends, strict=True))
    favours_b = 1.0 if rule.higher_is_better else -1.0
    return ExpectedStop(
        median_pairs=float(np.median(stops)),
        mean_pairs=float(stops.mean()),
        better=float(np.mean(verdicts == favours_b)),
        worse=float(np.mean(verdicts == -favours_b)),
        equivalent=float(np.mean(verdicts == 0.0)),
        undecided=float(np.mean(np.isnan(verdicts))),
    )


def savings(
    pairs: int,
    rate_a: float,
    rate_b: float,
    *,
    rho: float = 0.0,
    power: float = 0.8,
    alpha: float = 0.05,
) -> Savings:
    """Compare a stop after `pairs` with the fixed designs that see these rates with this power.

    Give it rates that were supposed before the run: those observed at a stop are too far apart.
    Raises ValueError as `plan`.
    """
    fixed = plan(rate_a, rate_b - rate_a, rho=rho, power=power, alpha=alpha)
    return Savings(
        pairs=pairs,
        fixed_unpaired=fixed.unpaired_seeds,
        fixed_paired=fixed.seeds,
        saved_vs_unpaired=1.0 - pairs / fixed.unpaired_seeds,
        saved_vs_paired=1.0 - pairs / fixed.seeds,
    )


def deciding_wins(max_discordant: int, alpha: float = 0.05) -> Counts:
    """Find the fewest wins that decide for their side, for 0 to `max_discordant` discordant seeds.

    Where not even wins alone decide, it is more than there are.
    """
    totals = np.arange(max_discordant + 1)
    low, high = (totals + 1) // 2 - 1, totals + 1  # low never decides, high is taken to
    while np.any(high - low > 1):
        middle = (low + high) // 2
        wealth = log_wealth([1.0, -1.0], np.stack([middle, totals - middle], axis=-1))
        decides = wealth >= log_threshold(alpha)
        low, high = np.where(decides, low, middle), np.where(decides, middle, high)
    return np.asarray(high, dtype=np.int64)


def _ends(
    wins: Counts, losses: Counts, bound: Counts, rule: StoppingRule
) -> tuple[FloatArray, FloatArray]:
    """Pairs at the end of each run, and 1 for B, -1 for A, 0 for equivalent, nan for undecided."""
    needed = bound[wins + losses]
    for_b, for_a = wins >= needed, losses >= needed
    budget = wins.shape[1]
    decided = for_b | for_a
    stops = np.where(decided.any(axis=1), decided.argmax(axis=1) + 1, budget + 1)
    rows = np.arange(len(wins))
    at_stop = np.minimum(stops, budget) - 1
    verdicts = np.where(for_b[rows, at_stop], 1.0, np.where(for_a[rows, at_stop], -1.0, np.nan))
    if rule.margin is not None:
        looks = np.unique(np.linspace(1, budget, _LOOKS_FOR_EQUIVALENCE).astype(int))
        b, a = wins[:, looks - 1], losses[:, looks - 1]
        counts = np.stack([b, looks - b - a, a], axis=-1).astype(np.float64)
        sides = [log_wealth(values, counts, -rule.margin) for values in ([1, 0, -1], [-1, 0, 1])]
        inside = np.minimum(*sides) >= log_threshold(rule.alpha)
        first = np.where(inside.any(axis=1), looks[inside.argmax(axis=1)], budget + 1)
        verdicts = np.where(first < stops, 0.0, verdicts)
        stops = np.minimum(stops, first)
    return np.minimum(stops, budget).astype(np.float64), verdicts


def _both_rate(rate_a: float, rate_b: float, rho: float) -> float:
    _require_rates(rate_a, rate_b)
    if not -1.0 <= rho <= 1.0:
        raise ValueError(f"expected rho in [-1, 1], got {rho}")
    spread = math.sqrt(rate_a * (1.0 - rate_a) * rate_b * (1.0 - rate_b))
    both = rate_a * rate_b + rho * spread
    return min(rate_a, rate_b, max(0.0, rate_a + rate_b - 1.0, both))


def _chances(rate: float, difficulty: FloatArray, weights: FloatArray) -> FloatArray:
    """Chances of success per difficulty, with the intercept that gives the rate on average."""
    low, high = -60.0, 60.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        chances = 1.0 / (1.0 + np.exp(-np.clip(middle + difficulty, -700.0, 700.0)))
        low, high = (middle, high) if float(weights @ chances) < rate else (low, middle)
    return np.asarray(chances)


def _require_rates(rate_a: float, rate_b: float) -> None:
    if not (0.0 <= rate_a <= 1.0 and 0.0 <= rate_b <= 1.0):
        raise ValueError(f"expected rates in [0, 1], got {rate_a} and {rate_b}")
