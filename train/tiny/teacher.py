"""The noisy teacher: episodes played well, now and then at random. No torch.

Without notes the env's own oracle plays. Who keeps notes acts on them alone, as the pupil must.

Its prompts are evalkit's, byte for byte, so that the pupil is later asked as it was taught.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass

from envs import TextEnv
from evalkit.play.strategies import Messages
from train.errors import BadConfig
from train.tiny.notes import Notes
from train.tiny.recipes import Recipe

FIRST_SEED = 2**31
"""Of the warm start's env seeds: evaluation has those below."""
END_SEED = 2**32
"""Of the warm start's env seeds: GRPO has those from here on."""
NOTED_ENVS = ("key_door",)
"""In which the teacher can keep notes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """One turn of an episode: what is asked, and what the teacher answers."""

    messages: Messages
    reply: str
    taught: bool
    """Whether the pupil learns it: what was meant, and some slips."""


def episodes(recipe: Recipe, seed: int) -> Iterator[tuple[Lesson, ...]]:
    """Play without end; equal seeds give equal episodes."""
    rng = random.Random(seed)
    while True:
        yield play(recipe, rng.randrange(FIRST_SEED, END_SEED), rng)


def play(recipe: Recipe, env_seed: int, rng: random.Random) -> tuple[Lesson, ...]:
    """Play one episode and return its turns.

    Raises:
        BadConfig: the recipe keeps notes of an env for which there is no rule to write them.

    """
    if recipe.keeps_notes and recipe.env not in NOTED_ENVS:
        raise BadConfig(f"the teacher takes notes in {', '.join(NOTED_ENVS)}, not {recipe.env}")
    env = recipe.make_env()
    observation, _ = env.reset(seed=env_seed)
    history = recipe.parsed_strategy().start(env)
    lessons: list[Lesson] = []
    over = False
    while not over:
        meant = rng.random() >= recipe.noise
        known = Notes.read(history.notes).seen(observation) if recipe.keeps_notes else None
        right = known.action(observation) if known else env.oracle()
        action = right if meant else _slip(recipe, env, rng)
        reply = env.format_action(action)
        if known is not None:
            written = str(dataclasses.replace(known, last=action))
            if rng.random() < recipe.forgetful:
                written = rng.choice(("", history.notes))
            reply = f"<scratchpad>{written}</scratchpad>{reply}"
        taught = meant or rng.random() < recipe.taught
        lessons.append(Lesson(messages=history.messages(observation), reply=reply, taught=taught))
        history = history.update(observation, reply, action)
        observation, _, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
    return tuple(lessons)


def _slip(recipe: Recipe, env: TextEnv, rng: random.Random) -> str:
    """Return an action that is not meant: one of all, or the next one of a round trip."""
    if not recipe.rounds or rng.random() >= recipe.rounds:
        return rng.choice(env.legal_actions())
    row, column = divmod(env.state()["cell"], recipe.args["size"])
    last = recipe.args["size"] - 1
    if row == 0 and column < last:
        return "right"
    if column == last and row < last:
        return "down"
    if row == last and column > 0:
        return "left"
    return "up"
