from __future__ import annotations

import dataclasses
import random
from itertools import islice

import pytest
import torch

from train.tiny.model import make_model
from train.tiny.recipes import RECIPES, recipe
from train.tiny.teacher import episodes
from train.tiny.tokenizer import Renderer, train_tokenizer
from train.tiny.warmstart import batches, loss_of, samples, warm_start


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_learned_is_exactly_the_replies_that_were_meant(name: str) -> None:
    chosen = recipe(name)
    tokenizer = train_tokenizer(chosen, 0)
    lessons = [one for episode in islice(episodes(chosen, 4), 8) for one in episode if one.taught]
    renderer = Renderer(tokenizer)
    expected = [renderer.reply(lesson.reply) for lesson in lessons]
    learned: list[list[int]] = []
    for row in samples(chosen, renderer, 4):
        targets, previous = row.targets, -100
        assert len(targets) == len(row.ids)
        assert all(target in {-100, token} for target, token in zip(targets, row.ids, strict=True))
        for target in targets:
            if target != -100:
                learned += [[]] if previous == -100 else []
                learned[-1].append(target)
            previous = target
        if len(learned) >= len(expected):
            break
    assert learned[: len(expected)] == expected


@pytest.mark.parametrize("name", ["key_door", "tic_tac_toe"])
def test_the_loss_is_that_of_whole_rows(name: str) -> None:
    chosen = recipe(name)
    tokenizer = train_tokenizer(chosen, 0)
    model = make_model(tokenizer, 0)
    rows = list(islice(samples(chosen, Renderer(tokenizer), 1), 5))
    total, count = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            ids = torch.tensor([[*row.prefix, *row.ids]])
            labels = torch.tensor([[-100] * len(row.prefix) + row.targets])
            learned = int((labels != -100).sum())
            total += float(model(input_ids=ids, labels=labels).loss) * learned
            count += learned
        loss = float(loss_of(model, rows, tokenizer.pad_token_id))
    assert loss == pytest.approx(total / count, abs=1e-5)


def test_batches_hold_rows_of_like_lengths_and_lose_none() -> None:
    chosen = recipe("key_door")
    renderer = Renderer(train_tokenizer(chosen, 0))
    drawn = batches(samples(chosen, renderer, 1), 4, random.Random(0))
    got = [row.ids for batch in islice(drawn, 8) for row in batch]
    expected = [row.ids for row in islice(samples(chosen, renderer, 1), 32)]
    assert sorted(got) == sorted(expected)
    assert got != expected


def test_steps_lower_the_loss_and_repeat_exactly() -> None:
    chosen = dataclasses.replace(recipe("key_door"), steps=8, batch=2)
    tokenizer = train_tokenizer(chosen, 0)
    said: list[str] = []
    curves = []
    for _ in range(2):
        model = make_model(tokenizer, 0)
        curves.append(warm_start(model, tokenizer, chosen, seed=0, say=said.append))
    assert curves[0] == curves[1]
    assert sum(curves[0][-3:]) / 3 < 0.7 * curves[0][0]
    assert "step 8 of 8" in said[-1]
    assert not model.training
