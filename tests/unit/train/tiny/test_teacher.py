from __future__ import annotations

import dataclasses
import random
import re
from itertools import islice
from typing import Any, ClassVar

import pytest

from envs import env_class, parse_tag
from envs.games.key_door import KeyDoor
from train.errors import BadConfig
from train.tiny.notes import Notes
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
    right = dataclasses.replace(recipe("key_door"), noise=0.0, taught=0.0)
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


def test_the_teachers_reply_follows_from_its_notes_and_what_it_sees() -> None:
    sure = dataclasses.replace(recipe("key_door_memory"), noise=0.0, forgetful=0.3)
    lessons = [one for episode in islice(episodes(sure, 0), 40) for one in episode]
    first_notes = re.compile(r"## Your notes\n(.*)\n\n## Now\n")
    kept = 0
    for lesson in lessons:
        prompt = lesson.messages[-1].content
        found = first_notes.match(prompt)
        known = Notes.read(found[1] if found else "").seen(prompt)
        action = known.action(prompt)
        assert lesson.reply.endswith(f"<action>{action}</action>")
        right = dataclasses.replace(known, last=action)
        kept += lesson.reply.startswith(f"<scratchpad>{right}</scratchpad>")
    assert 0.6 < kept / len(lessons) < 0.85


def test_notes_name_the_slip_that_was_made() -> None:
    wild = dataclasses.replace(recipe("key_door_memory"), noise=1.0, taught=1.0, forgetful=0.0)
    lessons = play(wild, 2**31, random.Random(0))
    assert len({Notes.read(lesson.reply).last for lesson in lessons}) > 2
    for lesson in lessons:
        assert Notes.read(lesson.reply).last == parse_tag(lesson.reply, "action").action
        assert lesson.taught


def test_an_env_without_a_rule_for_notes_is_refused() -> None:
    noted = dataclasses.replace(recipe("tic_tac_toe"), strategy="SCRATCHPAD")
    with pytest.raises(BadConfig, match="takes notes in key_door, not tic_tac_toe"):
        play(noted, 2**31, random.Random(0))


def test_slips_that_go_round_follow_the_border_clockwise() -> None:
    lost = dataclasses.replace(recipe("key_door"), noise=1.0, taught=1.0, rounds=1.0)
    env = lost.make_env()
    for env_seed in range(2**31, 2**31 + 20):
        observation, _ = env.reset(seed=env_seed)
        for lesson in play(lost, env_seed, random.Random(0)):
            row, column = divmod(env.state()["cell"], 3)
            action = env.parse(lesson.reply).action
            assert action == {
                (0, 0): "right",
                (0, 1): "right",
                (0, 2): "down",
                (1, 2): "down",
                (2, 2): "left",
                (2, 1): "left",
            }.get((row, column), "up")
            assert observation in str(lesson.messages)
            observation, *_ = env.step(action)
