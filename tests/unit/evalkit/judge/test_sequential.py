"""Stopping rules: what each verdict needs, type-I error with a look after every pair, power."""

import math

import numpy as np
import pytest
from scipy import stats

from evalkit.judge.betting import e_path
from evalkit.judge.design import deciding_wins, rho_of_difficulty, unpaired_needed
from evalkit.judge.intervals import FloatArray
from evalkit.judge.multiple import e_bh
from evalkit.judge.sequential import (
    Look,
    SequentialFamily,
    SequentialTest,
    StoppingRule,
    Verdict,
    judge_sequence,
    look_path,
)


def _difficulty_pairs(rate_a: float, rate_b: float, sd: float, runs: int, pairs: int) -> FloatArray:
    """Differences of success of two arms that meet the same difficulty, normal in log-odds."""
    rng = np.random.default_rng(0)
    grid = stats.norm.ppf((np.arange(4000) + 0.5) / 4000) * sd

    def intercept(rate: float) -> float:
        low, high = -12.0, 12.0
        for _ in range(50):
            middle = (low + high) / 2
            below = float(np.mean(1 / (1 + np.exp(-(middle + grid))))) < rate
            low, high = (middle, high) if below else (low, middle)
        return low

    seeds = rng.normal(0, sd, (runs, pairs))
    won = [
        rng.random(seeds.shape) < 1 / (1 + np.exp(-(intercept(rate) + seeds)))
        for rate in (rate_a, rate_b)
    ]
    return won[1].astype(np.float64) - won[0]


def _stops(diffs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Pairs at the decision (inf: none) and its sign, by the table of deciding wins."""
    wins = np.cumsum(diffs > 0, axis=1)
    losses = np.cumsum(diffs < 0, axis=1)
    bound = deciding_wins(int((wins + losses).max()))[wins + losses]
    hit = (wins >= bound) | (losses >= bound)
    at = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1.0, math.inf)
    last = np.minimum(at, diffs.shape[1]).astype(int) - 1
    rows = np.arange(len(diffs))
    return at, np.sign((wins - losses)[rows, last])


@pytest.mark.parametrize(("rate", "sd"), [(0.5, 2.5), (0.8, 2.5), (0.5, 0.0)])
def test_equal_arms_are_called_different_at_most_five_times_in_a_hundred(
    rate: float, sd: float
) -> None:
    """2,000 comparisons, up to 1,500 pairs, a look after every one; a naive test beside it."""
    diffs = _difficulty_pairs(rate, rate, sd, 2_000, 1_500)
    stops, _ = _stops(diffs)
    assert 0.015 <= float(np.mean(np.isfinite(stops))) <= 0.05
    n = np.arange(1, 1_501)
    means = np.cumsum(diffs, axis=1) / n
    se = np.sqrt(np.maximum(np.cumsum(diffs**2, axis=1) / n - means**2, 1e-12) / (n - 0.999))
    peeking = np.abs(means / se) > 1.96
    assert 0.33 <= float(peeking[:, 29::10].any(axis=1).mean()) <= 0.5


def test_sixty_against_fifty_stops_early() -> None:
    """The promise of issue 6: a median of at most 240 pairs against 385 per arm without pairs."""
    diffs = _difficulty_pairs(0.5, 0.6, 2.5, 1_000, 1_500)
    stops, signs = _stops(diffs)
    assert 170 <= float(np.median(stops)) <= 220
    assert float(np.mean(np.isfinite(stops))) >= 0.995
    assert float(np.mean(signs > 0)) >= 0.995
    assert unpaired_needed(0.5, 0.6) == 385
    assert rho_of_difficulty(0.5, 0.6, 2.5) == pytest.approx(0.465, abs=0.01)


def test_the_table_of_deciding_wins_is_the_rule() -> None:
    diffs = _difficulty_pairs(0.5, 0.65, 2.5, 12, 400)
    stops, signs = _stops(diffs)
    rule = StoppingRule(max_pairs=400)
    for run, stop, sign in zip(diffs, stops, signs, strict=True):
        look = judge_sequence(run, rule)
        assert look.n_pairs == min(stop, 400)
        if math.isfinite(stop):
            assert look.verdict is (Verdict.BETTER if sign > 0 else Verdict.WORSE)


def test_a_graded_null_keeps_its_level() -> None:
    """800 comparisons of returns in [0, 1], 150 pairs each."""
    rng = np.random.default_rng(3)
    base = rng.beta(0.5, 0.5, (800, 150))
    arms = [np.clip(base + rng.normal(0, 0.25, base.shape), 0, 1) for _ in range(2)]
    rejected = [e_path(run)[1][-1] <= 0.05 for run in arms[1] - arms[0]]
    assert 0.002 <= float(np.mean(rejected)) <= 0.05


def test_a_decision_is_an_interval_that_excludes_zero() -> None:
    diffs = _difficulty_pairs(0.5, 0.75, 2.5, 1, 120)[0]
    looks = look_path(diffs.tolist(), StoppingRule())
    decided = [look.lo > 0.0 or look.hi < 0.0 for look in looks]
    first = decided.index(True)
    assert [look.verdict is not Verdict.CONTINUE for look in looks] == [
        index >= first for index in range(120)
    ]
    assert looks[first].p_anytime <= 0.05 < looks[first - 1].p_anytime
    assert looks[first].e_value >= 20.0
    p_values = e_path(diffs)[1]
    assert [look.p_anytime for look in looks] == pytest.approx(p_values.tolist(), abs=1e-12)


def test_equal_arms_become_equivalent_within_the_margin() -> None:
    rule = StoppingRule(margin=0.1)
    look = judge_sequence([0.0, 1.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0] * 200, rule)
    assert look.verdict is Verdict.EQUIVALENT
    assert -0.1 < look.lo < look.hi < 0.1
    assert 200 < look.n_pairs < 1_000
    earlier = judge_sequence([0.0, 1.0, 0.0, 0.0, -1.0] * 20, rule)
    assert earlier.verdict is Verdict.CONTINUE
    assert not -0.1 < earlier.lo < earlier.hi < 0.1


def test_arms_at_the_margin_are_rarely_called_equivalent() -> None:
    """200 comparisons whose true difference is the margin: at most 5 % may be called so."""
    rng = np.random.default_rng(4)
    called = 0
    for diffs in rng.choice([-1.0, 0.0, 1.0], (200, 300), p=[0.05, 0.75, 0.2]):
        test = SequentialTest(StoppingRule(margin=0.15, higher_is_better=False))
        verdicts = {test.add(diff) for diff in diffs}
        called += Verdict.EQUIVALENT in verdicts
        assert Verdict.BETTER not in verdicts
    assert called / 200 <= 0.05


def test_the_budget_ends_it() -> None:
    look = judge_sequence([1.0, -1.0] * 50, StoppingRule(max_pairs=10))
    assert (look.n_pairs, look.verdict) == (10, Verdict.OUT_OF_BUDGET)


def test_a_verdict_is_final() -> None:
    test = SequentialTest(StoppingRule())
    verdicts = [test.add(diff) for diff in [1.0] * 12 + [-1.0] * 40]
    stopped_at = verdicts.index(Verdict.BETTER) + 1
    assert test.stopped_at == stopped_at
    assert set(verdicts[stopped_at - 1 :]) == {Verdict.BETTER}
    assert test.n_pairs == 52
    assert test.look().p_anytime <= 0.05


def test_lower_can_be_better() -> None:
    rule = StoppingRule(higher_is_better=False)
    assert judge_sequence([-1.0] * 30, rule).verdict is Verdict.BETTER
    assert judge_sequence([1.0] * 30, rule).verdict is Verdict.WORSE


def test_the_unit_of_a_metric_does_not_matter() -> None:
    diffs = np.random.default_rng(5).normal(0.3, 0.4, 60).clip(-1, 1)
    one = judge_sequence(diffs, StoppingRule(margin=0.2))
    ten = judge_sequence(10 * diffs, StoppingRule(margin=2.0, span=10.0))
    assert ten.n_pairs == one.n_pairs
    assert ten.verdict is one.verdict
    assert (ten.lo, ten.hi) == pytest.approx((10 * one.lo, 10 * one.hi), abs=1e-9)
    assert ten.log_e == pytest.approx(one.log_e, abs=1e-9)


def test_before_the_first_pair() -> None:
    assert SequentialTest(StoppingRule(span=3.0)).look() == Look(
        n_pairs=0, diff=None, lo=-3.0, hi=3.0, level=0.95, log_e=0.0, p_anytime=1.0,
        verdict=Verdict.CONTINUE,
    )  # fmt: skip


def test_a_family_shares_alpha_and_stops_together() -> None:
    family = SequentialFamily(["a~b", "a~c"], StoppingRule(max_pairs=40))
    alone = SequentialTest(StoppingRule(alpha=0.025))
    for _ in range(40):
        assert not family.done
        assert family.add("a~b", 1.0) is alone.add(1.0)
        family.add("a~c", 0.0)
    assert family.done
    looks = family.looks()
    assert [look.verdict for look in looks.values()] == [Verdict.BETTER, Verdict.OUT_OF_BUDGET]
    assert list(family.q_values().values()) == e_bh([look.e_value for look in looks.values()])
    assert looks["a~b"].level == 0.975
    with pytest.raises(KeyError):
        family.add("a~d", 0.0)
    with pytest.raises(ValueError, match="distinct"):
        SequentialFamily(["a", "a"], StoppingRule())


def test_a_family_of_nulls_rarely_decides_anything() -> None:
    """300 families of four null comparisons: at most 5 % of the families may decide one."""
    diffs = np.random.default_rng(6).choice([-1.0, 0.0, 1.0], (1_200, 300), p=[0.2, 0.6, 0.2])
    wins, losses = np.cumsum(diffs > 0, axis=1), np.cumsum(diffs < 0, axis=1)
    bound = deciding_wins(300, 0.05 / 4)[wins + losses]
    decided = ((wins >= bound) | (losses >= bound)).any(axis=1)
    assert float(decided.reshape(300, 4).any(axis=1).mean()) <= 0.05


@pytest.mark.parametrize(
    "bad", [{"alpha": 0.0}, {"margin": 1.5}, {"max_pairs": 0}, {"span": -1.0}, {"margin": 0.0}]
)
def test_rules_are_checked(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        StoppingRule(**bad)  # type: ignore[arg-type]


def test_differences_beyond_the_span_are_refused() -> None:
    with pytest.raises(ValueError, match="within"):
        SequentialTest(StoppingRule()).add(1.5)
    with pytest.raises(ValueError, match="within"):
        SequentialTest(StoppingRule()).add(math.nan)
    with pytest.raises(ValueError, match="comparison"):
        StoppingRule().split(0)
