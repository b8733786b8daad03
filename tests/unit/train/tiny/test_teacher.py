from __future__ import annotations

import dataclasses
import random
from itertools import islice
from typing import Any, ClassVar

import pytest

from envs import env_class, parse_tag
from envs.games.key_door import KeyDoor
from train.tiny.recipes import RECIPES, recipe
from train.tiny.teacher import episodes, play


class Spy(KeyDoor):
    """Remembers the seeds that it was reset with."""

    seeds: ClassVar[list[int]] = []

    def reset(self, *, seed: int, options: Any = None) -> Any:
        self.seeds.append(seed)
        return super().reset(seed=seed, options=options)


def test_seeds_are_neither_the_evaluations_nor_the_trainings() -> None:
    spied = dataclasses.replace(recipe("key_door"), env=f"{__file__}:Spy")
    played = list(islice(episodes(spied, 0), 300))
    seeds = env_class(spied.env).seeds  # type: ignore[attr-defined]
    assert len(seeds) == len(set(seeds)) == len(played)
    assert all(2**31 <= seed < 2**32 for seed in seeds)
    assert min(seeds) < 2**31 + 2**28
    assert max(seeds) > 2**32 - 2**28


@pytest.mark.parametrize("name", RECIPES)
def test_equal_seeds_give_equal_episodes(name: str) -> None:
    first, again, other = (list(islice(episodes(recipe(name), s), 3)) for s in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", RECIPES)
def test_prompts_are_evalkits_own(name: str) -> None:
    chosen = recipe(name)
    env = chosen.make_env()
    observation, _ = env.reset(seed=2**31)
    history = chosen.parsed_strategy().start(env)
    for lesson in play(chosen, 2**31, random.Random(0)):
        assert lesson.messages == history.messages(observation)
        action = env.parse(lesson.reply).action
        assert action is not None
        history = history.update(observation, lesson.reply, action)
        observation = env.step(action)[0]


def test_without_noise_every_action_is_the_oracles_and_with_noise_only_slips() -> None:
    right = dataclasses.replace(recipe("key_door"), noise=0.0)
    env = right.make_env()
    env.reset(seed=2**31)
    for lesson in play(right, 2**31, random.Random(0)):
        action = parse_tag(lesson.reply, "action").action
        assert lesson.taught
        assert action == env.oracle()
        env.step(action)
    assert env.success
    wild = dataclasses.replace(right, noise=1.0)
    assert not any(lesson.taught for lesson in play(wild, 2**31, random.Random(0)))


def test_notes_are_true_lines_unless_the_teacher_is_forgetful() -> None:
    sure = dataclasses.replace(recipe("key_door_memory"), notes=("Door",), forgetful=0.0)
    env = sure.make_env()
    env.reset(seed=2**31 + 1)
    for lesson in play(sure, 2**31 + 1, random.Random(3)):
        (line,) = (one for one in env.optimal_scratchpad().split("\n") if one.startswith("Door"))
        assert lesson.reply.startswith(f"<scratchpad>{line}</scratchpad><action>")
        env.step(env.parse(lesson.reply).action or "")
    lax = dataclasses.replace(sure, forgetful=1.0)
    replies = [lesson.reply for e in islice(episodes(lax, 0), 20) for lesson in e]
    empty = sum("<scratchpad></scratchpad>" in reply for reply in replies)
    assert 0.3 < empty / len(replies) < 0.95


def test_without_a_choice_of_lines_all_notes_are_kept() -> None:
    full = dataclasses.replace(recipe("key_door_memory"), notes=(), forgetful=0.0)
    reply = play(full, 2**31, random.Random(0))[0].reply
    for line in ("Carrying the key: no.", "Key:", "Door:", "Empty rooms seen:"):
        assert line in reply
