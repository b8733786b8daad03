"""Turns to success: which episodes got there, which were cut off, and which never could.

What `judge.survival` calls finished is decided here; the mean and its interval are its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from evalkit.judge.survival import Episode, RestrictedMean, restricted_mean_clustered
from evalkit.judge.survival import restricted_mean_difference as difference
from evalkit.record.numbers import ArmNumbers

Endings = Mapping[int, Sequence[Episode]]
"""By env seed, the turns of each scored episode and whether it succeeded there."""


def endings(numbers: ArmNumbers) -> Endings:
    """Return turns to success: an episode that the turn budget ended was cut off there.

    One that ended in another way without success never gets there: its turns are inf.
    """
    cut, steps = numbers.cut, numbers.steps
    return {
        seed: _endings(tuple(won), tuple(cut[seed]), tuple(steps[seed]))
        for seed, won in numbers.success.items()
    }


@lru_cache(maxsize=4096)
def _endings(
    success: tuple[float, ...], cut: tuple[bool, ...], steps: tuple[float, ...]
) -> tuple[Episode, ...]:
    """Return the endings of one seed: much the same for many."""
    return tuple(
        (turns if won or over else math.inf, won > 0.0)
        for won, over, turns in zip(success, cut, steps, strict=True)
    )


def horizon(arms: Iterable[Endings]) -> float | None:
    """Return the most turns up to which the mean of every arm is known; None without a turn.

    It is the longest episode of all, unless an arm's last episodes were cut off before that.
    """
    longest, limits = 0.0, []
    for arm in arms:
        of_arm = [episode for episodes in arm.values() for episode in episodes]
        finite = [turns for turns, _ in of_arm if turns < math.inf]
        longest = max([longest, *finite])
        last = max((turns for turns, _ in of_arm), default=0.0)
        if last < math.inf and (last, False) in of_arm:
            limits.append(last)
    return min([longest, *limits]) or None


def mean_turns(arm: Endings, until: float | None) -> RestrictedMean | None:
    """Estimate an arm's mean of min(turns to success, `until`); None without an episode."""
    if until is None or not arm:
        return None
    mean = restricted_mean_clustered(list(_placed(arm, until).values()), until)
    return replace(mean, lo=max(mean.lo, 0.0), hi=min(mean.hi, until))


def mean_turns_difference(a: Endings, b: Endings, until: float | None) -> RestrictedMean | None:
    """Estimate the mean of B minus that of A on shared seeds, up to `until` or what is known."""
    shared = a.keys() & b.keys()
    of_a, of_b = ({seed: arm[seed] for seed in sorted(shared)} for arm in (a, b))
    known = horizon([of_a, of_b])
    if until is None or known is None:
        return None
    end = min(until, known)
    return difference(_placed(of_a, end), _placed(of_b, end), end)


def _placed(arm: Endings, until: float) -> dict[int, list[Episode]]:
    """Put episodes that never get there at the horizon, as cut off."""
    return {
        seed: [(turns if turns < math.inf else until, won) for turns, won in episodes]
        for seed, episodes in arm.items()
    }
