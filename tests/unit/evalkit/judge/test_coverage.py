"""Operating characteristics: coverage of the 95 % intervals and type-I error of the tests.

Where outcomes are counts, the probabilities are summed exactly; else they are simulated from fixed
seeds with the number of simulations stated. Bands are what each method is known to reach, not a
loosened 95 %: a Wilson interval oscillates around its level and dips at rates near 0 or 1, and t
and bootstrap intervals of a mean need larger samples the more the values are skewed.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from scipy import stats

from evalkit.judge.compare import Decision, compare
from evalkit.judge.intervals import (
    FloatArray,
    bca_bootstrap,
    clustered_mean,
    wilson,
    wilson_clustered,
)
from evalkit.judge.paired import mcnemar, paired_difference_interval, sign_flip_permutation

_RATES = np.linspace(0.02, 0.98, 97)
Draw = Callable[[np.random.Generator, tuple[int, int]], FloatArray]


@pytest.mark.parametrize(
    ("n", "lowest"), [(20, 0.92), (50, 0.92), (100, 0.93), (200, 0.93), (500, 0.94)]
)
def test_wilson_covers_exactly(n: int, lowest: float) -> None:
    successes = np.arange(n + 1)
    bounds = [wilson(int(s), n) for s in successes]
    lo, hi = np.array([[b.lo, b.hi] for b in bounds]).T
    held = (lo <= _RATES[:, np.newaxis]) & (_RATES[:, np.newaxis] <= hi)
    coverage = np.sum(held * stats.binom.pmf(successes, n, _RATES[:, np.newaxis]), axis=1)
    # Averaged over rates Wilson is nominal; single rates near the ends dip (Brown et al. 2001)
    assert 0.949 <= float(coverage.mean()) <= 0.955
    assert float(coverage.min()) >= lowest
    assert float(coverage.max()) <= 0.98


@cache
def _difference_bounds(a_only: int, b_only: int, n: int) -> tuple[float, float]:
    interval = paired_difference_interval(0, a_only, b_only, n - a_only - b_only)
    return interval.lo, interval.hi


def _difference_coverage(n: int, p_a_only: float, p_b_only: float) -> float:
    """Exact, but for tables with a probability below 1e-7, which are left out on both sides."""
    a_only, b_only = (counts.ravel() for counts in np.mgrid[: n + 1, : n + 1])
    possible = a_only + b_only <= n
    a_only, b_only = a_only[possible], b_only[possible]
    tables = np.stack([a_only, b_only, n - a_only - b_only], axis=-1)
    weights = stats.multinomial.pmf(tables, n, [p_a_only, p_b_only, 1 - p_a_only - p_b_only])
    likely = np.flatnonzero(weights > 1e-7)
    bounds = [_difference_bounds(int(a_only[i]), int(b_only[i]), n) for i in likely]
    lo, hi = np.array(bounds).T
    difference = p_b_only - p_a_only
    held = (lo <= difference) & (difference <= hi)
    return float(weights[likely] @ held / weights[likely].sum())


@pytest.mark.parametrize(
    ("n", "lowest", "mean"), [(20, 0.945, 0.985), (50, 0.94, 0.97), (100, 0.935, 0.96)]
)
def test_the_paired_difference_covers_exactly(n: int, lowest: float, mean: float) -> None:
    coverage = [
        _difference_coverage(n, discordant * (1 - share), discordant * share)
        for discordant in (0.02, 0.05, 0.1, 0.2, 0.4, 0.6)
        for share in (0.5, 0.65, 0.8, 0.95, 1.0)
    ]
    # With few discordant seeds expected the score interval is wide: it errs by covering too much
    assert min(coverage) >= lowest
    assert 0.95 <= float(np.mean(coverage)) <= mean


@pytest.mark.parametrize(("discordant", "share"), [(0.05, 0.5), (0.05, 1.0), (0.2, 0.8)])
def test_the_paired_difference_covers_at_500(discordant: float, share: float) -> None:
    coverage = _difference_coverage(500, discordant * (1 - share), discordant * share)
    assert 0.94 <= coverage <= 0.96


@pytest.mark.parametrize("n_clusters", [20, 50, 200])
@pytest.mark.parametrize("correlation", [0.0, 0.2, 0.6, 0.9])
def test_clustered_wilson_covers(n_clusters: int, correlation: float) -> None:
    sims, size = 1_000, 4
    coverage, naive = [], []
    for rate in (0.05, 0.2, 0.5, 0.8, 0.95):
        rng = np.random.default_rng(1)
        spread = 1 / max(correlation, 1e-9) - 1
        seed_rates = rng.beta(rate * spread, (1 - rate) * spread, (sims, n_clusters))
        successes = rng.binomial(size, seed_rates)
        clustered = [wilson_clustered(row.tolist(), [size] * n_clusters) for row in successes]
        pooled = [wilson(int(row.sum()), size * n_clusters) for row in successes]
        coverage.append(np.mean([i.lo <= rate <= i.hi for i in clustered]))
        naive.append(np.mean([i.lo <= rate <= i.hi for i in pooled]))
    # Standard error of one simulated coverage: .007. Never letting the effective size exceed n,
    # with few degrees of freedom, covers too much where the episodes of a seed are independent
    assert min(coverage) >= 0.92
    assert 0.945 <= float(np.mean(coverage)) <= (0.98 if n_clusters == 20 else 0.965)
    if correlation >= 0.2:  # what ignoring the seeds would do
        assert float(np.mean(naive)) <= 0.91


def _normal(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    return rng.normal(size=shape)


def _exponential(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    return rng.exponential(size=shape) - 1.0


def _lognormal(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    return rng.lognormal(size=shape) - math.exp(0.5)


_BANDS = [
    (_normal, 20, 0.935, 0.965),
    (_normal, 200, 0.935, 0.965),
    (_exponential, 20, 0.88, 0.93),
    (_exponential, 50, 0.91, 0.95),
    (_exponential, 500, 0.93, 0.965),
    (_lognormal, 20, 0.85, 0.90),
    (_lognormal, 500, 0.92, 0.96),
]


@pytest.mark.parametrize(("draw", "n_clusters", "lowest", "highest"), _BANDS)
def test_clustered_t_covers(draw: Draw, n_clusters: int, lowest: float, highest: float) -> None:
    """Three noisy repetitions on seeds of unequal value; 1,500 simulations, standard error .006."""
    rng = np.random.default_rng(2)
    seeds = draw(rng, (1_500, n_clusters))
    values = seeds[:, :, np.newaxis] + rng.normal(0, 0.1, (1_500, n_clusters, 3))
    estimates = [clustered_mean(list(run)) for run in values]
    coverage = np.mean([e.lo <= 0.0 <= e.hi for e in estimates])
    assert lowest <= coverage <= highest


@pytest.mark.parametrize(
    ("draw", "n_clusters", "sims", "lowest", "highest"),
    [
        (_normal, 20, 800, 0.90, 0.95),  # BCa has no small-sample correction: below t here
        (_normal, 100, 500, 0.925, 0.975),
        (_exponential, 20, 800, 0.88, 0.93),
        (_exponential, 100, 500, 0.915, 0.965),
        (_exponential, 500, 200, 0.905, 0.98),
    ],
)
def test_bca_covers(draw: Draw, n_clusters: int, sims: int, lowest: float, highest: float) -> None:
    """1,000 resamples; the standard error of a coverage is .008 (800) to .015 (200)."""
    values = draw(np.random.default_rng(3), (sims, n_clusters))
    bounds = [bca_bootstrap(run, n_resamples=1_000, seed=i) for i, run in enumerate(values)]
    coverage = np.mean([b.lo <= 0.0 <= b.hi for b in bounds])
    assert lowest <= coverage <= highest


@cache
def _conditional_errors(discordant: int) -> tuple[float, float]:
    weights = stats.binom.pmf(np.arange(discordant + 1), discordant, 0.5)
    tests = [mcnemar(k, discordant - k) for k in range(discordant + 1)]
    rejected = np.array([[t.p <= 0.05, t.p_mid <= 0.05] for t in tests], dtype=np.float64)
    exact, mid = weights @ rejected
    return float(exact), float(mid)


@pytest.mark.parametrize("n", [10, 20, 50, 100, 200])
def test_mcnemar_keeps_its_level(n: int) -> None:
    errors = np.array([_conditional_errors(k) for k in range(n + 1)])
    counts = np.arange(n + 1)
    rates = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0])
    exact, mid = (stats.binom.pmf(counts, n, rates[:, np.newaxis]) @ errors).T
    assert float(exact.max()) <= 0.05  # by construction, whatever the discordant rate
    assert float(mid.max()) <= 0.066  # not guaranteed: the reason it is not the headline
    assert float(mid.mean()) > float(exact.mean())


@pytest.mark.parametrize(
    ("draw", "n", "highest"),
    [
        (_normal, 10, 0.065),
        (_normal, 40, 0.065),
        (_exponential, 40, 0.09),  # differences that are not symmetric: asymptotically valid only
    ],
)
def test_sign_flips_keep_their_level(draw: Draw, n: int, highest: float) -> None:
    """2,000 simulations: the standard error at 5 % is .005."""
    diffs = draw(np.random.default_rng(4), (2_000, n))
    p_values = [sign_flip_permutation(d, n_resamples=999, seed=i) for i, d in enumerate(diffs)]
    assert 0.035 <= np.mean(np.array(p_values) <= 0.05) <= highest


@pytest.mark.parametrize(("n_seeds", "repetitions"), [(100, 1), (12, 3)])
def test_a_policy_against_itself_is_rarely_decided(n_seeds: int, repetitions: int) -> None:
    """1,000 comparisons of new samples on shared seeds; standard error at 5 %: .007."""
    rng = np.random.default_rng(6)
    rates = rng.beta(0.6, 0.6, (1_000, n_seeds, 1))
    arm_a, arm_b = (
        (rng.random((1_000, n_seeds, repetitions)) < rates).astype(float) for _ in range(2)
    )
    decisions = [
        compare(
            dict(enumerate(run_a.tolist())), dict(enumerate(run_b.tolist())), binary=True
        ).decision
        for run_a, run_b in zip(arm_a, arm_b, strict=True)
    ]
    assert decisions.count(Decision.UNDECIDED) >= 945
    assert decisions.count(Decision.BETTER) > 0
    assert decisions.count(Decision.WORSE) > 0
