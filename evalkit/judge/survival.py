"""Turns to success when some episodes were cut off before it: Kaplan-Meier and restricted means.

An episode has a number of turns and says whether it `finished` there; one that was cut off there
is censored: it would have taken longer. An episode that can never finish (it lost) is censored at
the horizon, not where it ended. The restricted mean is the mean of min(turns, horizon), and the
area under the curve. Must not know what counts as finished.
Sources: Kaplan & Meier 1958; Greenwood 1926; Irwin 1949; Royston & Parmar 2013 (restricted means).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evalkit.judge.distributions import critical_t, critical_z, require_level
from evalkit.judge.intervals import FloatArray

Episode = tuple[float, bool]
"""Turns, and whether the episode finished there rather than being cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivalCurve:
    """The share of episodes not finished after each of `turns`, all of shape (n_turns,).

    `turns` are those at which an episode finished; before the first the share is 1. [`lo`, `hi`]
    is the log-log interval at each point, nan where the share is 0; `se` is Greenwood's.
    """

    turns: FloatArray
    at_risk: FloatArray
    events: FloatArray
    share: FloatArray
    se: FloatArray
    lo: FloatArray
    hi: FloatArray
    level: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RestrictedMean:
    """A mean of min(turns, `horizon`), or a difference of two; no interval (nan) for one seed."""

    value: float
    se: float
    lo: float
    hi: float
    horizon: float
    n_seeds: int
    level: float


def kaplan_meier(episodes: Sequence[Episode], level: float = 0.95) -> SurvivalCurve:
    """Estimate the share not yet finished, as if every episode were its own seed.

    Raises ValueError for no episode, or turns that are negative or not finite.
    """
    z = critical_z(level)
    times, events, risk = (x[0] if x.ndim > 1 else x for x in _tables([episodes]))
    kept = events > 0
    times, events, risk = times[kept], events[kept], risk[kept]
    share = np.cumprod(1.0 - events / risk)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.cumsum(events / (risk * (risk - events)))
        se = np.where(share > 0.0, share * np.sqrt(variance), np.nan)
        reach = z * np.sqrt(variance) / np.log(share)
        lo, hi = share ** np.exp(-reach), share ** np.exp(reach)
    inside = (share > 0.0) & (share < 1.0)
    lo, hi = np.where(inside, lo, np.nan), np.where(inside, hi, np.nan)
    return SurvivalCurve(
        turns=times, at_risk=risk, events=events, share=share, se=se, lo=lo, hi=hi, level=level
    )


def restricted_mean(
    episodes: Sequence[Episode], horizon: float | None = None, level: float = 0.95
) -> RestrictedMean:
    """Estimate the restricted mean in closed form, as if every episode were its own seed.

    The interval is normal with the standard error of Greenwood's kind. `horizon` is the longest
    episode's turns unless given. Raises ValueError for no episode, or a horizon that is not
    positive or lies beyond the last turn seen while some episodes had not finished.
    """
    z = critical_z(level)
    times, events, risk = (x[0] if x.ndim > 1 else x for x in _tables([episodes]))
    end = _horizon(times, events, risk, horizon)
    share = np.cumprod(1.0 - events / risk)
    widths = _widths(times, end)
    value = float(widths[0] + share @ widths[1:])
    later = np.cumsum((share * widths[1:])[::-1])[::-1]  # area from this time to the horizon
    left = risk * (risk - events)
    terms = np.divide(events, left, out=np.zeros_like(left), where=left > 0.0)
    se = math.sqrt(float((later**2 * terms)[times <= end].sum()))
    return RestrictedMean(
        value=value,
        se=se,
        lo=value - z * se,
        hi=value + z * se,
        horizon=end,
        n_seeds=len(episodes),
        level=level,
    )


def restricted_mean_clustered(
    episodes_by_seed: Sequence[Sequence[Episode]],
    horizon: float | None = None,
    level: float = 0.95,
) -> RestrictedMean:
    """Estimate the restricted mean with a t interval over seeds: the jackknife leaves one out.

    Without an episode that was cut off it is the mean of min(turns, horizon), and with one episode
    per seed the interval is Student's. Raises ValueError as `restricted_mean`.
    """
    seeds = [episodes for episodes in episodes_by_seed if episodes]
    value, left_out, end = _jackknife(seeds, horizon)
    return _estimate(value, left_out, end, level)


def restricted_mean_difference(
    a: Mapping[int, Sequence[Episode]],
    b: Mapping[int, Sequence[Episode]],
    horizon: float | None = None,
    level: float = 0.95,
) -> RestrictedMean:
    """Estimate the restricted mean of B minus that of A, with a t interval over shared seeds.

    Both arms map env seeds to episodes; seeds without an episode in both are left out. The
    jackknife leaves a seed out of both arms at once, so that pairing counts. `horizon` is, unless
    given, the longest at which both means are known. Raises ValueError as `restricted_mean`.
    """
    shared = sorted(seed for seed in a.keys() & b.keys() if a[seed] and b[seed])
    of_a, of_b = [a[seed] for seed in shared], [b[seed] for seed in shared]
    if horizon is None and shared:
        horizon = min(max(turns for seed in arm for turns, _ in seed) for arm in (of_a, of_b))
    mean_a, left_out_a, end = _jackknife(of_a, horizon)
    mean_b, left_out_b, _ = _jackknife(of_b, horizon)
    return _estimate(mean_b - mean_a, left_out_b - left_out_a, end, level)


def _estimate(value: float, left_out: FloatArray, horizon: float, level: float) -> RestrictedMean:
    n_seeds, se, half = left_out.size, math.nan, math.nan
    require_level(level)
    if n_seeds > 1:
        se = float(left_out.std()) * math.sqrt(n_seeds - 1)
        half = critical_t(level, n_seeds - 1) * se
    return RestrictedMean(
        value=value,
        se=se,
        lo=value - half,
        hi=value + half,
        horizon=horizon,
        n_seeds=n_seeds,
        level=level,
    )


def _jackknife(
    seeds: Sequence[Sequence[Episode]], horizon: float | None
) -> tuple[float, FloatArray, float]:
    """Return the restricted mean of all, those with one seed left out (G,), and the horizon."""
    kinds: dict[tuple[Episode, ...], int] = {}  # seeds that ended alike are left out alike
    kind = np.array([kinds.setdefault(tuple(episodes), len(kinds)) for episodes in seeds])
    times, events, risk = _tables(list(kinds))
    alike = np.bincount(kind)
    all_events, all_risk = alike @ events, alike @ risk
    end = _horizon(times, all_events, all_risk, horizon)
    widths = _widths(times, end)

    def area(finished: FloatArray, exposed: FloatArray) -> FloatArray:
        hazard = np.divide(finished, exposed, out=np.zeros_like(exposed), where=exposed > 0.0)
        return np.asarray(widths[0] + np.cumprod(1.0 - hazard, axis=-1) @ widths[1:])

    value = float(area(all_events, all_risk))
    if len(seeds) == 1:
        return value, np.array([math.nan]), end
    return value, area(all_events - events, all_risk - risk)[kind], end


def _tables(
    seeds: Sequence[Sequence[Episode]],
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Distinct turns (T,), and per seed how many finished and were at risk at each: (G, T)."""
    if not seeds or not all(seeds):
        raise ValueError("expected at least one episode")
    owner = np.repeat(np.arange(len(seeds)), [len(episodes) for episodes in seeds])
    flat = [episode for episodes in seeds for episode in episodes]
    turns = np.array([taken for taken, _ in flat], dtype=np.float64)
    if not np.all(np.isfinite(turns) & (turns >= 0.0)):
        raise ValueError("expected turns that are finite and >= 0")
    times, position = np.unique(turns, return_inverse=True)
    shape = (len(seeds), times.size)
    events, ended = np.zeros(shape), np.zeros(shape)
    np.add.at(events, (owner, position), [float(finished) for _, finished in flat])
    np.add.at(ended, (owner, position), 1.0)
    risk = np.cumsum(ended[:, ::-1], axis=1)[:, ::-1]
    return times, events, risk


def _widths(times: FloatArray, horizon: float) -> FloatArray:
    """Lengths of the steps before, between and after `times`, up to the horizon: (T + 1,)."""
    return np.diff(np.minimum(np.concatenate([[0.0], times, [np.inf]]), horizon))


def _horizon(
    times: FloatArray, events: FloatArray, risk: FloatArray, horizon: float | None
) -> float:
    last = float(times[-1])
    if horizon is None:
        horizon = last
    if not (horizon > 0.0 and math.isfinite(horizon)):
        raise ValueError(f"expected a horizon > 0, got {horizon}")
    if horizon > last and events[-1] < risk[-1]:
        raise ValueError(
            f"expected a horizon of at most {last:g}, the last turn seen, because episodes were "
            f"cut off there; got {horizon:g}"
        )
    return horizon
