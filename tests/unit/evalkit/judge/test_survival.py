"""Kaplan-Meier and restricted means: against statsmodels, scipy and integrals; coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from statsmodels.duration.survfunc import SurvfuncRight

from evalkit.judge.intervals import FloatArray, clustered_mean
from evalkit.judge.paired import clustered_difference
from evalkit.judge.survival import (
    Episode,
    kaplan_meier,
    restricted_mean,
    restricted_mean_clustered,
    restricted_mean_difference,
)

_episodes = st.lists(
    st.tuples(st.integers(1, 12).map(float), st.booleans()), min_size=2, max_size=60
)


def _pairs(turns: FloatArray, finished: NDArray[np.bool_]) -> list[Episode]:
    return [(float(t), bool(f)) for t, f in zip(turns, finished, strict=True)]


@settings(deadline=None)
@given(_episodes)
def test_the_curve_equals_statsmodels(episodes: list[Episode]) -> None:
    if not any(finished for _, finished in episodes):
        return
    times, status = zip(*episodes, strict=True)
    with np.errstate(divide="ignore", invalid="ignore"):  # statsmodels where all have finished
        expected = SurvfuncRight(times, [int(x) for x in status])
        errors = expected.surv_prob_se
    curve = kaplan_meier(episodes)
    assert curve.turns.tolist() == expected.surv_times.tolist()
    assert curve.share.tolist() == pytest.approx(expected.surv_prob.tolist(), abs=1e-9)
    alive = curve.share > 1e-12
    assert curve.se[alive].tolist() == pytest.approx(np.asarray(errors)[alive].tolist(), abs=1e-9)
    assert curve.at_risk.tolist() == expected.n_risk.tolist()
    assert curve.events.tolist() == expected.n_events.tolist()


def test_the_interval_of_the_curve_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    turns, finished = rng.integers(1, 15, 80).astype(float), rng.random(80) < 0.7
    data = stats.CensoredData(turns[finished], right=turns[~finished])
    curve = kaplan_meier(_pairs(turns, finished))
    survival = stats.ecdf(data).sf
    expected = survival.confidence_interval(method="log-log")
    at = np.isin(survival.quantiles, curve.turns) & (survival.probabilities > 0)
    kept = curve.share > 0
    assert curve.lo[kept].tolist() == pytest.approx(
        expected.low.probabilities[at].tolist(), abs=1e-9
    )
    assert curve.hi[kept].tolist() == pytest.approx(
        expected.high.probabilities[at].tolist(), abs=1e-9
    )


@settings(deadline=None)
@given(_episodes, st.floats(0.2, 1.0))
def test_the_restricted_mean_is_the_area_and_its_error_greenwoods(
    episodes: list[Episode], share: float
) -> None:
    horizon = share * max(turns for turns, _ in episodes)
    result = restricted_mean(episodes, horizon)
    curve = kaplan_meier(episodes)
    knots = [0.0, *(t for t in curve.turns.tolist() if t < horizon), horizon]
    levels = [1.0, *curve.share.tolist()]
    areas = [
        (right - left) * level for left, right, level in zip(knots, knots[1:], levels, strict=False)
    ]
    assert result.value == pytest.approx(sum(areas), abs=1e-9)
    variance = 0.0
    for index, (t, d, r) in enumerate(
        zip(curve.turns.tolist(), curve.events.tolist(), curve.at_risk.tolist(), strict=True)
    ):
        if t <= horizon and r > d:
            variance += sum(areas[index + 1 :]) ** 2 * d / (r * (r - d))
    assert result.se == pytest.approx(math.sqrt(variance), abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 12).map(float), min_size=1, max_size=1), min_size=2))
def test_without_cuts_it_is_the_mean_and_its_t_interval(turns: list[list[float]]) -> None:
    seeds = [[(t, True) for t in seed] for seed in turns]
    result, expected = (
        restricted_mean_clustered(seeds, 8.0),
        clustered_mean([[min(t, 8.0) for t in seed] for seed in turns]),
    )
    assert (result.value, result.se) == pytest.approx((expected.mean, expected.se), abs=1e-9)
    assert (result.lo, result.hi) == pytest.approx((expected.lo, expected.hi), abs=1e-9)


def test_the_jackknife_leaves_seeds_out() -> None:
    rng = np.random.default_rng(1)
    seeds = [_pairs(rng.integers(1, 10, 3).astype(float), rng.random(3) < 0.6) for _ in range(25)]
    seeds.append([(10.0, False)])
    result = restricted_mean_clustered(seeds, 9.0)
    alone = np.array(
        [
            restricted_mean([e for j, seed in enumerate(seeds) if j != i for e in seed], 9.0).value
            for i in range(len(seeds))
        ]
    )
    spread = math.sqrt((len(seeds) - 1) / len(seeds) * float(np.sum((alone - np.mean(alone)) ** 2)))
    assert result.value == pytest.approx(
        restricted_mean([e for seed in seeds for e in seed], 9.0).value, abs=1e-9
    )
    assert result.se == pytest.approx(spread, abs=1e-9)


def test_a_difference_without_cuts_is_the_paired_one() -> None:
    rng = np.random.default_rng(2)
    of_a, of_b = rng.integers(1, 20, (2, 30)).astype(float)
    a = {seed: [(float(t), True)] for seed, t in enumerate(of_a)}
    b = {seed: [(float(t), True)] for seed, t in enumerate(of_b)} | {99: [(1.0, True)]}
    result = restricted_mean_difference(a, b, 15.0)
    expected = clustered_difference(np.minimum(of_b, 15) - np.minimum(of_a, 15))
    assert (result.value, result.se) == pytest.approx((expected.mean, expected.se), abs=1e-9)
    assert result.n_seeds == 30


def test_the_difference_covers_where_episodes_are_cut() -> None:
    """500 runs of 60 shared seeds, cut at random; the standard error of a coverage is .010."""
    rng = np.random.default_rng(3)
    ease = rng.gamma(4.0, 0.25, 400_000)
    horizon = 12.0
    means = [
        float(np.minimum(np.ceil(rng.exponential(scale * ease)), horizon).mean())
        for scale in (9.0, 6.0)
    ]
    held, width, unpaired = 0, 0.0, 0.0
    for _ in range(500):
        shared = rng.gamma(4.0, 0.25, 60)
        arms = []
        for scale in (9.0, 6.0):
            turns = np.ceil(rng.exponential(scale * shared))
            cut = np.minimum(rng.integers(4, 30, 60), horizon)
            seen = np.minimum(turns, cut)
            arms.append({s: [e] for s, e in enumerate(_pairs(seen, turns <= cut))})
        result = restricted_mean_difference(arms[0], arms[1], horizon)
        held += result.lo <= means[1] - means[0] <= result.hi
        ignoring = [np.mean([t for seed in arm.values() for t, _ in seed]) for arm in arms]
        unpaired += float(ignoring[1] - ignoring[0]) / 500
        width += (result.hi - result.lo) / 500
    assert 0.925 <= held / 500 <= 0.975
    assert unpaired > means[1] - means[0] + 0.05  # the mean of what was seen is biased
    assert width < 4.0


def test_one_seed_has_no_interval() -> None:
    result = restricted_mean_clustered([[(3.0, True), (5.0, True)]])
    assert result.value == 4.0
    assert math.isnan(result.lo)


def test_all_cut_at_the_horizon_last_to_it() -> None:
    result = restricted_mean([(10.0, False)] * 4)
    assert (result.value, result.se, result.horizon) == (10.0, 0.0, 10.0)
    assert kaplan_meier([(10.0, False)] * 4).turns.size == 0


def test_inputs_are_checked() -> None:
    with pytest.raises(ValueError, match="one episode"):
        restricted_mean([])
    with pytest.raises(ValueError, match="at most 4"):
        restricted_mean([(4.0, False), (2.0, True)], 9.0)
    with pytest.raises(ValueError, match="horizon"):
        restricted_mean([(4.0, True)], 0.0)
    with pytest.raises(ValueError, match="turns"):
        kaplan_meier([(math.nan, True)])
    with pytest.raises(ValueError, match="one episode"):
        restricted_mean_difference({1: [(2.0, True)]}, {2: [(2.0, True)]})
