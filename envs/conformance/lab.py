"""What every rule works with: the env's factory, recordings of episodes, and a way to say no.

Knows no rule and no env.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from envs.base import NO_ACTION, TextEnv
from envs.playing import Policy, play

Twins = Callable[[TextEnv], Iterable[Mapping[str, Any]]]
"""States that a player, having seen what was shown so far, cannot tell from the env's own."""

GARBAGE = (
    NO_ACTION,
    " ",
    "no such action",
    "<action>",
    "</scratchpad>\x00\n\t\\",
    "{'a': [1, None]}",
    "%s {0} {x}",
    "žluťoučký 🦓 \u202e",
    "1e999",
    "x" * 100_000,
)
"""Answers that no sane env knows as actions."""


class RuleBroken(AssertionError):
    """An env does not keep a rule of `TextEnv`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """One call of `envs.testing.check_env`: its arguments."""

    factory: Callable[[], TextEnv]
    seeds: int
    twins: Twins | None
    max_us_per_turn: float

    @property
    def several(self) -> range:
        """The seeds of the rules that play a few episodes."""
        return range(min(self.seeds, 20))

    @property
    def few(self) -> range:
        """The seeds of the rules that fork an episode at every turn."""
        return range(min(self.seeds, 5))


Rule = Callable[[Lab], str]
"""Returns what was found, in a few words; raises `RuleBroken` where the env breaks the rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One episode: its first observation, each turn's action and result, as JSON, and its end."""

    first: str
    actions: tuple[str, ...]
    lines: tuple[str, ...]
    success: bool


def record(env: TextEnv, seed: int) -> Recording:
    """Play `seed` at random: the same choices whatever the seed, now and then no action at all."""
    observation, info = env.reset(seed=seed)
    first = as_json([observation, info], "the first observation")
    actions: list[str] = []
    mixed = mixed_policy()

    def noting(player: TextEnv, seen: str) -> str:
        actions.append(mixed(player, seen))
        return actions[-1]

    play(env, seed, noting)
    env.reset(seed=seed)
    lines = tuple(step_line(env, action) for action in actions)
    return Recording(first=first, actions=tuple(actions), lines=lines, success=env.success)


def mixed_policy() -> Policy:
    """Return a policy that takes random legal actions, and one time in ten none."""
    rng = random.Random(0)

    def choose(env: TextEnv, observation: str) -> str:  # noqa: ARG001 - a Policy's signature
        return NO_ACTION if rng.random() < 0.1 else rng.choice(env.legal_actions())

    return choose


def step_line(env: TextEnv, action: str) -> str:
    """Take a turn and write all that it gave on one line."""
    return as_json([*env.step(action), env.success], "what step returned")


def as_json(value: object, name: str) -> str:
    """Write `value` as JSON with sorted keys.

    Raises:
        RuleBroken: it is not made of JSON types.

    """
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RuleBroken(f"{name} is not JSON: {error}") from error


def state_of(env: TextEnv) -> str:
    """Write the env's state as JSON."""
    return as_json(env.state(), "state()")


def require(kept: bool, otherwise: str) -> None:
    """Go on if the rule is kept.

    Raises:
        RuleBroken: it is not; `otherwise` says how.

    """
    if not kept:
        raise RuleBroken(otherwise)
