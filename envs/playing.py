"""Whole episodes in this process, for baselines, checks and tests.

Lives here: `play`, and the two policies that fit every env. Models are played by evalkit's
rollout, never from here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from envs.base import TextEnv

Policy = Callable[[TextEnv, str], str]
"""What plays: (env, observation) to action. A fair policy reads the observation only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One episode's result. `return_`: the sum of its rewards."""

    seed: int
    return_: float
    turns: int
    success: bool


class NeverEnded(AssertionError):
    """An episode went on after `max_turns` turns."""


def play(env: TextEnv, seed: int, policy: Policy) -> Played:
    """Play the episode of `seed` to its end; a policy with a memory must be fresh.

    Raises:
        NeverEnded: the env did not end it within its `max_turns`.

    """
    observation, _ = env.reset(seed=seed)
    return_ = 0.0
    for turn in range(1, env.max_turns + 1):
        observation, reward, terminated, truncated, _ = env.step(policy(env, observation))
        return_ += reward
        if terminated or truncated:
            return Played(seed=seed, return_=return_, turns=turn, success=env.success)
    raise NeverEnded(f"seed {seed}: not over after max_turns = {env.max_turns} turns")


def oracle_policy(env: TextEnv, observation: str) -> str:  # noqa: ARG001 - a Policy's signature
    """Play the env's own best action."""
    return env.oracle()


def random_policy(rng: random.Random) -> Policy:
    """Play uniformly from the actions that the rules allow now."""
    return lambda env, _observation: rng.choice(env.legal_actions())
