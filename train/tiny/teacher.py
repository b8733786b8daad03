"""The noisy teacher: episodes played by the env's own oracle, now and then at random. No torch.

Its prompts are evalkit's, byte for byte, so that the pupil is later asked as it was taught.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from envs import TextEnv
from evalkit.play.strategies import Messages
from train.tiny.recipes import Recipe

FIRST_SEED = 2**31
"""Of the warm start's env seeds: evaluation has those below."""
END_SEED = 2**32
"""Of the warm start's env seeds: GRPO has those from here on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One turn of an episode: what is asked, and what the teacher answers."""

    messages: Messages
    reply: str
    taught: bool
    """Whether the pupil learns it: what the oracle would do, and some slips."""


def episodes(recipe: Recipe, seed: int) -> Iterator[tuple[Lesson, ...]]:
    """Play without end; equal seeds give equal episodes."""
    rng = random.Random(seed)
    while True:
        yield play(recipe, rng.randrange(FIRST_SEED, END_SEED), rng)


def play(recipe: Recipe, env_seed: int, rng: random.Random) -> tuple[Lesson, ...]:
    """Play one episode and return its turns."""
    env = recipe.make_env()
    observation, _ = env.reset(seed=env_seed)
    history = recipe.parsed_strategy().start(env)
    lessons: list[Lesson] = []
    pad, over = "", False
    while not over:
        meant = rng.random() >= recipe.noise
        action = env.oracle() if meant else rng.choice(env.legal_actions())
        reply = env.format_action(action)
        if recipe.keeps_notes:
            pad = _notes(env, recipe, pad, rng)
            reply = f"<scratchpad>{pad}</scratchpad>{reply}"
        taught = meant or rng.random() < recipe.taught
        lessons.append(Lesson(messages=history.messages(observation), reply=reply, taught=taught))
        history = history.update(observation, reply, action)
        observation, _, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
    return tuple(lessons)


def _notes(env: TextEnv, recipe: Recipe, pad: str, rng: random.Random) -> str:
    """Return the notes of this turn: right, or empty, out of date or cut short."""
    lines = env.optimal_scratchpad().split("\n")
    kept = [line for line in lines if line.startswith(recipe.notes)] if recipe.notes else lines
    if rng.random() >= recipe.forgetful:
        return " ".join(kept)
    return rng.choice(("", pad, " ".join(kept[: rng.randrange(len(kept) + 1)])))
