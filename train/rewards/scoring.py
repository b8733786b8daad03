"""Asks a reward for the verdicts on a group, again where that may help, and checks them."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from evalkit.record.trajectory import Trajectory
from train.errors import RewardFailed
from train.rewards.base import Reward, Scored, Unscored

FIRST_WAIT_S = 0.5
"""Before the second try; each later wait is twice as long."""
LONGEST_WAIT_S = 30.0

Sleep = Callable[[float], Awaitable[object]]


@dataclass(slots=True, kw_only=True)
class Tally:
    """Running counts of what became of episodes; `score_group` adds to it."""

    scored: int = 0
    retried: int = 0
    """Episodes asked about once more, counted each time."""
    dropped: int = 0
    dropped_in_a_row: int = 0
    """Since the last episode that was scored."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why episodes were dropped."""


async def score_group(
    reward: Reward,
    trajectories: Sequence[Trajectory],
    attempts: int,
    sleep: Sleep = asyncio.sleep,
    tally: Tally | None = None,
) -> list[Scored | None]:
    """Return one verdict per episode, in order; None for an episode to be left out of its group.

    All are asked about in one batch. Those that could not be scored and may be tried again are
    asked about once more, after a growing pause, until each was asked about `attempts` times.

    Raises:
        RewardFailed: the reward raises, returns another number of verdicts than it was asked for,
            something else than verdicts, or a reward that is not finite.

    """
    tally = tally if tally is not None else Tally()
    verdicts: dict[int, Scored | Unscored] = {}
    open_ = list(range(len(trajectories)))
    for attempt in range(attempts):
        if not open_:
            break
        if attempt:
            tally.retried += len(open_)
            await sleep(min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S))
        answers = await _ask(reward, [trajectories[index] for index in open_])
        verdicts.update(zip(open_, answers, strict=True))
        open_ = [index for index in open_ if _may_retry(verdicts[index])]
    return [_settled(verdicts[index], tally) for index in range(len(trajectories))]


def _may_retry(verdict: Scored | Unscored) -> bool:
    return isinstance(verdict, Unscored) and verdict.retry


def _settled(verdict: Scored | Unscored, tally: Tally) -> Scored | None:
    if isinstance(verdict, Unscored):
        tally.dropped += 1
        tally.dropped_in_a_row += 1
        tally.reasons[verdict.reason] += 1
        return None
    tally.scored += 1
    tally.dropped_in_a_row = 0
    return verdict


async def _ask(reward: Reward, episodes: list[Trajectory]) -> list[Scored | Unscored]:
    """Ask once, and check that the answer is what the port promises."""
    name = f"{type(reward).__module__}:{type(reward).__qualname__}"
    try:
        answers = list(await reward.score(episodes))
    except Exception as error:  # the port: whatever a reward raises is a bug of it
        raise RewardFailed(
            f"reward {name} raised {type(error).__name__}: {error}; "
            "what may happen to a judge or a sandbox must be returned as Unscored"
        ) from error
    if len(answers) != len(episodes):
        raise RewardFailed(
            f"reward {name} returned {len(answers)} verdicts for {len(episodes)} episodes"
        )
    return [
        _checked(name, episode, answer) for episode, answer in zip(episodes, answers, strict=True)
    ]


def _checked(name: str, episode: Trajectory, answer: object) -> Scored | Unscored:
    if isinstance(answer, Unscored):
        return answer
    if not isinstance(answer, Scored):
        raise RewardFailed(
            f"reward {name} returned {answer!r} for {episode.key}: expected Scored or Unscored"
        )
    try:
        worth = float(answer.reward)
    except (TypeError, ValueError):
        worth = math.nan
    if not math.isfinite(worth):
        raise RewardFailed(
            f"reward {name} gave {answer.reward!r} to {episode.key}: expected a finite number; "
            "what cannot be scored must be returned as Unscored"
        )
    return replace(answer, reward=worth)
