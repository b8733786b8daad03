from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.errors import BadConfig
from train.tiny.recipes import RECIPES, recipe
from train.tiny.teacher import episodes
from train.tiny.tokenizer import Renderer, train_tokenizer


@lru_cache
def tokenizer(name: str) -> Any:
    return train_tokenizer(recipe(name), 0)


@given(st.text() | st.text(alphabet="(0, 1) <action>up</action>\nX.O9 a|<|im_end|>"))
@settings(deadline=None, max_examples=300)
def test_every_text_comes_back(text: str) -> None:
    made = tokenizer("key_door")
    assert made.decode(made.encode(text)) == text


@pytest.mark.parametrize("name", RECIPES)
def test_the_renderer_writes_what_the_chat_template_writes(name: str) -> None:
    made = tokenizer(name)
    renderer = Renderer(made)
    for lesson in next(episodes(recipe(name), 5)):
        chat = [{"role": one.role, "content": one.content} for one in lesson.messages]
        by_template = made.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert renderer.prompt(lesson.messages) == by_template
        assert by_template[: len(renderer.system(lesson.messages))] == made.encode(
            made.apply_chat_template(chat[:1], tokenize=False)
        )
        answered = [*chat, {"role": "assistant", "content": lesson.reply}]
        whole = made.apply_chat_template(answered, return_dict=False)
        assert by_template + renderer.reply(lesson.reply) + made.encode("\n") == whole


def test_special_tokens_are_where_they_are_expected() -> None:
    made = tokenizer("key_door")
    assert [made.decode([i]) for i in range(3)] == ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    assert (made.pad_token_id, made.eos_token_id) == (0, 2)
    assert made.decode(made.encode("<|im_end|>a"), skip_special_tokens=True) == "a"


@pytest.mark.parametrize("name", RECIPES)
def test_an_action_is_one_token(name: str) -> None:
    env = recipe(name).make_env()
    ids = [tokenizer(name).encode(env.format_action(action)) for action in env.all_actions()]
    assert [len(one) for one in ids] == [1] * len(env.all_actions())


def test_equal_arguments_give_equal_tokenizers() -> None:
    again = train_tokenizer(recipe("key_door"), 0)
    assert again.backend_tokenizer.to_str() == tokenizer("key_door").backend_tokenizer.to_str()


def test_a_vocabulary_must_hold_the_bytes() -> None:
    with pytest.raises(BadConfig, match="at least 259, not 258"):
        train_tokenizer(dataclasses.replace(recipe("key_door"), vocabulary=258), 0)
