"""Designs: closed forms, and what simulated runs of the designed size really show."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from evalkit.judge.betting import log_wealth
from evalkit.judge.design import (
    ExpectedStop,
    deciding_wins,
    detectable,
    discordant_rate,
    expected_stop,
    plan,
    rho_of_difficulty,
    savings,
    unpaired_needed,
)
from evalkit.judge.paired import mcnemar, sign_flip_permutation
from evalkit.judge.power import pairs_needed_proportion
from evalkit.judge.sequential import StoppingRule

_rates = st.floats(0.05, 0.95)


@given(_rates, _rates, st.floats(-1, 1))
def test_discordance_is_that_of_correlated_outcomes(a: float, b: float, rho: float) -> None:
    discordant = discordant_rate(a, b, rho)
    both = (a + b - discordant) / 2
    assert max(0.0, a + b - 1) - 1e-12 <= both <= min(a, b) + 1e-12
    actual = (both - a * b) / math.sqrt(a * (1 - a) * b * (1 - b))
    inside = max(0.0, a + b - 1) + 1e-9 < both < min(a, b) - 1e-9
    assert not inside or actual == pytest.approx(rho, abs=1e-9)


def test_the_unpaired_design_is_the_textbook_one() -> None:
    """385 per arm at .60 against .50, and the power that scipy gives it."""
    assert unpaired_needed(0.5, 0.6) == 385
    n = unpaired_needed(0.3, 0.45, 0.9, 0.01)
    for size, reached in ((n, True), (n - 1, False)):
        se = math.sqrt((0.3 * 0.7 + 0.45 * 0.55) / size)
        power = float(stats.norm.sf(stats.norm.isf(0.005) - 0.15 / se))
        assert (power >= 0.9) is reached


@pytest.mark.parametrize("sd", [0.0, 1.0, 2.5])
def test_rho_of_difficulty_equals_integration(sd: float) -> None:
    def chance(intercept: float, z: float) -> float:
        return 1 / (1 + math.exp(-(intercept + sd * z)))

    def mean(f: object) -> float:
        assert callable(f)
        return float(integrate.quad(lambda z: f(z) * stats.norm.pdf(z), -9, 9, epsabs=1e-11)[0])

    of_a, of_b = (
        optimize.brentq(lambda x, r=r: mean(lambda z: chance(x, z)) - r, -15, 15, xtol=1e-12)
        for r in (0.5, 0.7)
    )
    covariance = mean(lambda z: chance(of_a, z) * chance(of_b, z)) - 0.35
    assert rho_of_difficulty(0.5, 0.7, sd) == pytest.approx(
        covariance / math.sqrt(0.25 * 0.21), abs=1e-8
    )


def _successes(
    rng: np.random.Generator, runs: int, seeds: int, k: int, rates: tuple[float, float]
) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    """Means per seed of k successes, seeds being hopeless, sure or as the rate says: icc .4."""
    kind = rng.random((runs, seeds, 1))
    arms = []
    for rate in rates:
        chance = np.where(kind < 0.4 * (1 - rate), 0.0, np.where(kind > 1 - 0.4 * rate, 1.0, rate))
        arms.append((rng.random((runs, seeds, k)) < chance).mean(axis=2))
    return arms


def test_a_planned_run_has_its_power() -> None:
    """2,000 runs; the standard error at 80 % is .009."""
    rng = np.random.default_rng(0)
    of_a, of_b = _successes(rng, 20, 100_000, 1, (0.5, 0.62))
    rho = float(np.corrcoef(of_a.ravel(), of_b.ravel())[0, 1])
    design = plan(0.5, 0.12, rho=rho)
    assert design.discordant_rate == pytest.approx(float((of_a != of_b).mean()), abs=0.003)
    of_a, of_b = _successes(rng, 2_000, design.seeds, 1, (0.5, 0.62))
    lost, won = (of_a > of_b).sum(axis=1).tolist(), (of_a < of_b).sum(axis=1).tolist()
    power = np.mean([mcnemar(a, b).p <= 0.05 for a, b in zip(lost, won, strict=True)])
    assert 0.77 <= float(power) <= 0.84


def test_a_planned_run_with_repetitions_has_its_power() -> None:
    """400 runs; the standard error at 80 % is .02."""
    rng = np.random.default_rng(1)
    of_a, of_b = _successes(rng, 1, 200_000, 1, (0.5, 0.62))
    rho = float(np.corrcoef(of_a.ravel(), of_b.ravel())[0, 1])
    design = plan(0.5, 0.12, rho=rho, icc=0.4, k=4)
    assert design.episodes_per_arm == 4 * design.seeds
    of_a, of_b = _successes(rng, 400, design.seeds, 4, (0.5, 0.62))
    assert float((of_b - of_a).std()) == pytest.approx(design.sd_of_differences, rel=0.03)
    rejected = [
        sign_flip_permutation(run, n_resamples=400, seed=i) <= 0.05
        for i, run in enumerate(of_b - of_a)
    ]
    assert 0.73 <= float(np.mean(rejected)) <= 0.88


def test_one_repetition_is_mcnemars_design() -> None:
    design = plan(0.5, 0.1, rho=0.4653)
    assert design.seeds == pairs_needed_proportion(0.1, design.discordant_rate) == 231
    assert design.unpaired_seeds == 385
    assert design.saved == pytest.approx(0.4)
    assert plan(0.5, -0.1, rho=0.4653).seeds == 231
    assert plan(0.99, 0.01).rate_b == 1.0


@settings(max_examples=30, deadline=None)
@given(_rates, st.integers(5, 3_000), st.floats(0, 0.9), st.sampled_from([1, 4]))
def test_what_is_detectable_is_planned_for(baseline: float, seeds: int, rho: float, k: int) -> None:
    effect = detectable(baseline, seeds, rho=rho, k=k)
    if math.isinf(effect):
        assert plan(baseline, 1 - baseline, rho=rho, k=k).seeds > seeds
    else:
        assert plan(baseline, effect, rho=rho, k=k).seeds <= seeds
        assert plan(baseline, max(1e-3, 0.98 * effect), rho=rho, k=k).seeds >= seeds


def test_the_deciding_wins_decide() -> None:
    bound = deciding_wins(60)
    assert bound[:7].tolist() == [m + 1 for m in range(7)]  # too few to decide
    threshold = math.log(40)
    for m in range(61):
        wins = int(bound[m])
        if wins <= m:
            assert float(log_wealth([1, -1], [wins, m - wins])) >= threshold
        assert float(log_wealth([1, -1], [wins - 1, m - wins + 1])) < threshold


def test_the_expected_stop_at_sixty_against_fifty() -> None:
    rho = rho_of_difficulty(0.5, 0.6, 2.5)
    stop = expected_stop(0.5, 0.6, StoppingRule(max_pairs=1_000), rho=rho, n_sims=1_000)
    assert 170 <= stop.median_pairs <= 220
    assert stop.better >= 0.99
    assert stop == expected_stop(0.5, 0.6, StoppingRule(max_pairs=1_000), rho=rho, n_sims=1_000)
    down = expected_stop(0.6, 0.5, StoppingRule(max_pairs=1_000), rho=rho, n_sims=500)
    assert down.worse >= 0.99
    turned = StoppingRule(max_pairs=1_000, higher_is_better=False)
    assert expected_stop(0.6, 0.5, turned, rho=rho, n_sims=500).better == down.worse


def test_equal_arms_end_equivalent_or_undecided() -> None:
    rule = StoppingRule(max_pairs=800, margin=0.1)
    stop = expected_stop(0.5, 0.5, rule, rho=0.5, n_sims=250)
    assert stop.equivalent >= 0.8
    assert stop.better + stop.worse <= 0.05
    assert stop.median_pairs <= 700
    without = expected_stop(0.5, 0.5, StoppingRule(max_pairs=800), rho=0.5, n_sims=250)
    assert without.equivalent == 0.0
    assert without.undecided >= 0.95


def test_identical_arms_use_up_the_budget() -> None:
    assert expected_stop(0.5, 0.5, StoppingRule(max_pairs=20), rho=1.0, n_sims=3) == ExpectedStop(
        median_pairs=20.0, mean_pairs=20.0, better=0.0, worse=0.0, equivalent=0.0, undecided=1.0
    )


def test_savings_are_shares_of_the_fixed_designs() -> None:
    saved = savings(200, 0.5, 0.6, rho=0.4653)
    assert (saved.fixed_unpaired, saved.fixed_paired) == (385, 231)
    assert saved.saved_vs_unpaired == pytest.approx(1 - 200 / 385)
    assert saved.saved_vs_paired == pytest.approx(1 - 200 / 231)
    assert savings(500, 0.5, 0.6).saved_vs_unpaired < 0


def test_inputs_are_checked() -> None:
    with pytest.raises(ValueError, match="rates"):
        plan(0.9, 0.2)
    with pytest.raises(ValueError, match="differ"):
        plan(0.5, 0.0)
    with pytest.raises(ValueError, match="k >= 1"):
        plan(0.5, 0.1, k=0)
    with pytest.raises(ValueError, match="icc"):
        plan(0.5, 0.1, k=2, icc=1.5)
    with pytest.raises(ValueError, match="rho"):
        discordant_rate(0.5, 0.5, 1.5)
    with pytest.raises(ValueError, match="max_pairs"):
        expected_stop(0.5, 0.6, StoppingRule())
    with pytest.raises(ValueError, match="sd"):
        rho_of_difficulty(0.5, 0.5, -1.0)
    assert detectable(1.0, 50) == math.inf
    assert detectable(0.99, 10) == math.inf
