"""Is B better than A? One metric of two arms, compared on the env seeds they share.

Which test: a binary metric with one repetition per seed in both arms gets the exact McNemar test
and Tango's interval; everything else is reduced to one mean per seed and gets the sign-flip
permutation test and the t interval over seeds.

Which decides: the test. It keeps its type-I error by construction and is what Holm corrects over
many comparisons; the interval says how large the difference may be. The two can disagree close to
the level, because they rest on different approximations: Tango's interval inverts a score test
that is less conservative than the exact one, and the t interval assumes a normal mean where the
permutation test assumes symmetric differences (and cannot reject at 5 % with fewer than 6 pairs
that differ). Then the decision is UNDECIDED even though the interval excludes 0, or the reverse.

Must not know where the numbers come from, nor how they are shown.
"""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain

import numpy as np

from evalkit.judge.distributions import require_level
from evalkit.judge.intervals import FloatArray, IntervalMethod
from evalkit.judge.paired import (
    clustered_difference,
    mcnemar,
    paired_counts,
    paired_difference_interval,
    sign_flip_permutation,
)
from evalkit.judge.power import (
    least_decidable,
    mde_one_way,
    mde_paired_proportion,
    minimum_detectable_effect,
    pairs_needed,
    pairs_needed_proportion,
)

Arm = Mapping[int, Sequence[float]]

_ROUNDING = 1e-12


class Decision(StrEnum):
    """What a comparison says, in the words of a report."""

    BETTER = "B is better"
    """The test rejects equality, and the difference favours B."""
    WORSE = "B is worse"
    """The test rejects equality, and the difference favours A."""
    EQUIVALENT = "equivalent"
    """The test does not reject equality, and another shows that the difference is within a margin.

    `decide` never says so: see `equivalence`.
    """
    UNDECIDED = "undecided"
    """The test does not reject equality. This is not evidence that the arms are equal."""
    NO_DATA = "no data"
    """The arms share no seed."""


class PairedTest(StrEnum):
    """The test behind a decision."""

    MCNEMAR_EXACT = "mcnemar-exact"
    """Exact two-sided McNemar test of one success or failure per seed and arm."""
    SIGN_FLIP = "sign-flip"
    """Two-sided sign-flip permutation test of the mean difference per seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Arm B against arm A on their shared seeds; None means that a quantity is not defined.

    `diff` is B minus A in the metric's unit, and [`lo`, `hi`] its interval at `level`. `p` is the
    headline p-value of `test`; `p_mid` stands beside an exact McNemar p only, as do the counts of
    seeds. `effect_size` is Cohen's d_z (graded only). `rho` correlates the per-seed values of the
    arms, and `var_reduction_vs_unpaired` is the share of variance that pairing removed.
    `mde80` is the smallest difference seen with 80 % power, given the observed spread, and
    `n_for_observed` the number of pairs that show the observed difference with 80 % power, both at
    alpha = 1 - `level`; graded metrics use the t test's power for the sign-flip test.
    `dropped_a` and `dropped_b` count the seeds which only that arm has.
    """

    n_pairs: int
    dropped_a: int
    dropped_b: int
    mean_a: float | None = None
    mean_b: float | None = None
    diff: float | None = None
    lo: float | None = None
    hi: float | None = None
    level: float = 0.95
    ci_method: IntervalMethod | None = None
    test: PairedTest | None = None
    p: float | None = None
    p_mid: float | None = None
    both: int | None = None
    a_only: int | None = None
    b_only: int | None = None
    neither: int | None = None
    effect_size: float | None = None
    rho: float | None = None
    var_reduction_vs_unpaired: float | None = None
    mde80: float | None = None
    n_for_observed: int | None = None
    decision: Decision = Decision.NO_DATA


def compare(
    a: Arm,
    b: Arm,
    *,
    binary: bool,
    higher_is_better: bool = True,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two arms, each a mapping from env seed to the metric's values over repetitions.

    A seed without values counts as absent. Only seeds present in both arms are compared, and each
    weighs the same whatever its number of repetitions. `binary` says that values are 0 or 1;
    `higher_is_better` is False for a metric such as turns; `seed` drives the permutation test. The
    decision is made at alpha = 1 - `level`. No shared seed gives `Decision.NO_DATA`.

    Raises ValueError for values that are not finite, or not 0 or 1 where `binary`.
    """
    require_level(level)
    _require_values("a", a, binary=binary)
    _require_values("b", b, binary=binary)
    seeds_a, seeds_b = _seeds(a), _seeds(b)
    shared = sorted(seeds_a & seeds_b)
    dropped_a, dropped_b = len(seeds_a) - len(shared), len(seeds_b) - len(shared)
    if not shared:
        return Comparison(n_pairs=0, dropped_a=dropped_a, dropped_b=dropped_b, level=level)
    means_a, means_b = seed_means(a, shared), seed_means(b, shared)
    diffs = differences(means_a, means_b)
    rho, var_reduction = _pairing_gain(means_a, means_b, diffs)
    described = Comparison(
        n_pairs=len(shared),
        dropped_a=dropped_a,
        dropped_b=dropped_b,
        mean_a=_mean(means_a),
        mean_b=_mean(means_b),
        rho=rho,
        var_reduction_vs_unpaired=var_reduction,
        level=level,
    )
    if binary and all(set(map(len, map(arm.__getitem__, shared))) == {1} for arm in (a, b)):
        judged = _judge_binary(described, means_a, means_b)
    else:
        judged = _judge_graded(described, diffs, seed)
    decision = decide(judged.diff, judged.p, alpha=1.0 - level, higher_is_better=higher_is_better)
    return replace(judged, decision=decision)


def decide(
    diff: float | None, p: float | None, *, alpha: float = 0.05, higher_is_better: bool = True
) -> Decision:
    """Decide by the rule of every comparison: where `p` <= `alpha`, by the sign of `diff`.

    Give it a Holm-adjusted p where several comparisons are read together.
    """
    if diff is None or p is None:
        return Decision.NO_DATA
    if p > alpha or diff == 0.0:
        return Decision.UNDECIDED
    return Decision.BETTER if (diff > 0.0) == higher_is_better else Decision.WORSE


def normalised_score(score: float, random: float, oracle: float) -> float | None:
    """Put a score on the scale where the random policy has 0 and the oracle 1, unclipped.

    None where the two do not differ, or anything is not finite: there is no scale then.
    """
    if not all(map(math.isfinite, (score, random, oracle))) or oracle == random:
        return None
    return (score - random) / (oracle - random)


def _judge_binary(described: Comparison, means_a: FloatArray, means_b: FloatArray) -> Comparison:
    both, a_only, b_only, neither = paired_counts(means_a, means_b)
    n, discordant, alpha = described.n_pairs, a_only + b_only, 1.0 - described.level
    test = mcnemar(a_only, b_only)
    interval = paired_difference_interval(both, a_only, b_only, neither, described.level)
    diff, discordant_rate = (b_only - a_only) / n, discordant / n
    return replace(
        described,
        diff=diff,
        lo=interval.lo,
        hi=interval.hi,
        ci_method=interval.method,
        test=PairedTest.MCNEMAR_EXACT,
        p=test.p,
        p_mid=test.p_mid,
        both=both,
        a_only=a_only,
        b_only=b_only,
        neither=neither,
        mde80=_defined(
            mde_paired_proportion(discordant_rate, n, 0.8, alpha)
            if discordant
            else mde_one_way(n, 0.8, alpha)
        ),
        n_for_observed=pairs_needed_proportion(diff, discordant_rate, 0.8, alpha) if diff else None,
    )


def _judge_graded(described: Comparison, diffs: FloatArray, seed: int) -> Comparison:
    estimate = clustered_difference(diffs, described.level)
    alpha = 1.0 - described.level
    spread = bool(np.any(diffs != diffs[0]))
    sd = float(diffs.std(ddof=1)) if spread else 0.0
    least = least_decidable(alpha)  # with fewer pairs no outcome of the sign-flip test decides
    known = spread and diffs.size >= least
    diff = estimate.mean
    if abs(diff) <= _ROUNDING * float(np.abs(diffs).max()):
        diff = 0.0
    return replace(
        described,
        diff=diff,
        lo=_defined(estimate.lo),
        hi=_defined(estimate.hi),
        ci_method=estimate.method,
        test=PairedTest.SIGN_FLIP,
        p=sign_flip_permutation(diffs, seed=seed),
        effect_size=diff / sd if spread else None,
        mde80=minimum_detectable_effect(sd, diffs.size, 0.8, alpha) if known else None,
        n_for_observed=(
            max(least, pairs_needed(diff, sd, 0.8, alpha)) if spread and diff else None
        ),
    )


def _pairing_gain(
    means_a: FloatArray, means_b: FloatArray, diffs: FloatArray
) -> tuple[float | None, float | None]:
    """Return the correlation of the arms over seeds, and 1 - var(B - A) / (var A + var B)."""
    if diffs.size < 2:
        return None, None
    varies = [bool(np.any(means != means[0])) for means in (means_a, means_b)]
    if not any(varies):
        return None, None
    var_a, var_b, var_diff = (float(x.var(ddof=1)) for x in (means_a, means_b, diffs))
    rho = float(np.corrcoef(means_a, means_b)[0, 1]) if all(varies) else None
    return rho, 1.0 - var_diff / (var_a + var_b)


def differences(means_a: FloatArray, means_b: FloatArray) -> FloatArray:
    """B minus A on each seed, shape (n_seeds,); what rounding alone set apart counts as equal."""
    diffs = means_b - means_a
    diffs[np.abs(diffs) <= _ROUNDING * np.maximum(np.abs(means_a), np.abs(means_b))] = 0.0
    return diffs


def _seeds(arm: Arm) -> Set[int]:
    """Return the seeds that have values."""
    if all(map(len, arm.values())):
        return arm.keys()
    return {env_seed for env_seed, values in arm.items() if len(values)}


def seed_means(arm: Arm, shared: Sequence[int]) -> FloatArray:
    """Return the mean of each of the seeds, shape (n_seeds,); each must have a value."""
    several = [arm[env_seed] for env_seed in shared]
    flat = np.fromiter(chain.from_iterable(several), np.float64)
    if flat.size == len(several):
        return flat
    return np.array([math.fsum(values) / len(values) for values in several])


def _mean(values: FloatArray) -> float:
    return math.fsum(values) / len(values)


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _require_values(name: str, arm: Arm, *, binary: bool) -> None:
    flat = np.fromiter(chain.from_iterable(arm.values()), np.float64)
    if np.all(np.isfinite(flat)) and not (binary and np.any((flat != 0.0) & (flat != 1.0))):
        return
    for env_seed, values in arm.items():
        for value in values:
            if not math.isfinite(value):
                raise ValueError(f"expected finite values, got {value} in arm {name}, {env_seed=}")
            if binary and value not in (0.0, 1.0):
                raise ValueError(f"expected 0 or 1, got {value} in arm {name}, {env_seed=}")
