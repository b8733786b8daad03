"""What each episode did better or worse than the others of its group.

As TRL's GRPOTrainer computes it: the reward minus its group's mean, divided by a sample standard
deviation plus 1e-4.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from train.config import Scale
from train.rollouts.rows import Episode, Group

EPSILON = 1e-4
"""Keeps the quotient finite where a standard deviation is small."""


def with_advantages(
    groups: Sequence[Group], scale: Scale, shuffle: random.Random | None = None
) -> tuple[Group, ...]:
    """Return one step's groups with the advantage of every episode filled in.

    A flat group gets exactly 0, and so does an episode without others. With `shuffle`, rewards
    change places among all episodes of the step first: the control in which nothing can be learned.
    """
    if shuffle is not None:
        groups = _shuffled(groups, shuffle)
    everything = _rewards([episode for group in groups for episode in group.episodes])
    batch_std = _sample_std(everything)
    return tuple(_filled(group, scale, batch_std) for group in groups)


def _filled(group: Group, scale: Scale, batch_std: float) -> Group:
    rewards = _rewards(group.episodes)
    if group.is_flat:
        advantages = np.zeros_like(rewards)
    else:
        advantages = rewards - rewards.mean()
        if scale is Scale.GROUP:
            advantages = advantages / (_sample_std(rewards) + EPSILON)
        elif scale is Scale.BATCH:
            advantages = advantages / (batch_std + EPSILON)
    return replace(
        group,
        episodes=tuple(
            replace(episode, advantage=float(advantage))
            for episode, advantage in zip(group.episodes, advantages, strict=True)
        ),
    )


def _shuffled(groups: Sequence[Group], generator: random.Random) -> list[Group]:
    rewards = [episode.reward for group in groups for episode in group.episodes]
    generator.shuffle(rewards)
    dealt = iter(rewards)
    return [
        replace(
            group,
            episodes=tuple(replace(episode, reward=next(dealt)) for episode in group.episodes),
        )
        for group in groups
    ]


def _rewards(episodes: Sequence[Episode]) -> NDArray[np.float64]:
    return np.array([episode.reward for episode in episodes], dtype=np.float64)


def _sample_std(rewards: NDArray[np.float64]) -> float:
    return float(rewards.std(ddof=1)) if len(rewards) > 1 else 0.0
