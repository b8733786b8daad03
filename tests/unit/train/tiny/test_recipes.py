from __future__ import annotations

import dataclasses

import pytest

from train.errors import BadConfig
from train.tiny.recipes import RECIPES, Recipe, recipe


@pytest.mark.parametrize("name", RECIPES)
def test_the_shipped_ones_name_an_env_and_a_strategy(name: str) -> None:
    shipped = recipe(name)
    env = shipped.make_env()
    env.reset(seed=0)
    assert shipped.parsed_strategy().start(env).messages("seen")[-1].content == "seen"
    assert shipped.keeps_notes == (name == "key_door_memory")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(BadConfig, match=r"'chess'.*key_door, tic_tac_toe, key_door_memory"):
        recipe("chess")


@pytest.mark.parametrize(
    "wrong", [{"noise": 1.5}, {"noise": -0.1}, {"forgetful": 2.0}, {"steps": 0}, {"batch": 0}]
)
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(BadConfig, match=name):
        dataclasses.replace(recipe("key_door"), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("env", "args", "said"),
    [
        ("nothing", {}, "'nothing'"),
        ("key_door", {"size": 1}, "at least 2"),
        ("key_door", {"x": 1}, "'x'"),
    ],
)
def test_an_env_that_cannot_be_made_is_a_bad_config(
    env: str, args: dict[str, int], said: str
) -> None:
    with pytest.raises(BadConfig, match=said):
        Recipe(env=env, args=args, noise=0.1, steps=1).make_env()


def test_an_unknown_strategy_is_a_bad_config() -> None:
    with pytest.raises(BadConfig, match="TELEPATHY"):
        Recipe(env="key_door", strategy="TELEPATHY", noise=0.1, steps=1).parsed_strategy()
