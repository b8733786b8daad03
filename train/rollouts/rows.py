"""What is trained on: rows of tokens, and the episodes and groups that they came from. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence: a prompt, and what the policy and the env added to it while it only grew.

    All arrays have the shape (tokens,). A token is trained on where `trained` is 1.
    """

    ids: Ids
    trained: NDArray[np.int8]
    """1 for tokens that the policy sampled, 0 for prompts and the env's tokens."""
    logprobs: Floats
    """The sampler's, in nats, where trained; 0 elsewhere."""
    versions: NDArray[np.int32]
    """The version of the weights that sampled the token, where trained; -1 elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One played episode, scored."""

    env_seed: int
    repetition: int
    rows: tuple[Row, ...]
    env_return: float
    """Sum of the env's own rewards."""
    reward: float
    """What it is worth to training: see `train.rewards`."""
    success: bool
    turns: int
    advantage: float = 0.0
    """Filled in when its step is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The episodes of one env seed. `index` counts groups from the run's beginning."""

    index: int
    env_seed: int
    episodes: tuple[Episode, ...]
    """In order of their repetition; those that could not be scored are left out."""
    started_version: int
    """The version that was live when it was admitted."""
    dropped: int = 0
    """Episodes left out because their reward failed."""
    played_s: float = 0.0
    """From admission to the last episode's end."""

    @property
    def is_flat(self) -> bool:
        """Whether all rewards are equal, so that there is nothing to learn from it."""
        rewards = [episode.reward for episode in self.episodes]
        return len(rewards) < 2 or max(rewards) - min(rewards) < 1e-9
