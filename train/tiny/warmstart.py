"""The warm start: imitation of the noisy teacher, with loss on its replies only."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.nn import functional

from evalkit.play.strategies import FullHistory
from train.tiny.recipes import Recipe
from train.tiny.teacher import Lesson, episodes
from train.tiny.tokenizer import Renderer

_WARMUP_SHARE = 0.05
_EVERY = 50
_IGNORED = -100
_POOL = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One row to learn from: what comes first in all of its batch, then the rest of it."""

    prefix: tuple[int, ...]
    ids: list[int]
    targets: list[int]
    """What stands at each place of `ids` if it is to be learned, else -100."""


def samples(recipe: Recipe, renderer: Renderer, seed: int) -> Iterator[Sample]:
    """Yield rows without end: one per episode if its prompts only grow, else one per turn."""
    grows = isinstance(recipe.parsed_strategy(), FullHistory)
    for lessons in episodes(recipe, seed):
        if grows:
            yield _row(renderer, lessons)
        else:
            yield from (_row(renderer, (lesson,)) for lesson in lessons if lesson.taught)


def batches(rows: Iterator[Sample], size: int, rng: random.Random) -> Iterator[list[Sample]]:
    """Yield batches of rows of like lengths, in random order: little is spent on padding."""
    while True:
        pool = sorted(islice(rows, _POOL * size), key=lambda row: len(row.ids))
        parts = [pool[first : first + size] for first in range(0, len(pool), size)]
        rng.shuffle(parts)
        yield from parts


def _row(renderer: Renderer, lessons: tuple[Lesson, ...]) -> Sample:
    """Return the row of the last lesson's prompt and reply, in which the others' must lie."""
    prefix = renderer.system(lessons[0].messages)
    last = lessons[-1]
    ids = [*renderer.prompt(last.messages), *renderer.reply(last.reply)]
    targets = [_IGNORED] * len(ids)
    for lesson in lessons:
        begin = len(renderer.prompt(lesson.messages))
        end = begin + len(renderer.reply(lesson.reply))
        if lesson.taught:
            targets[begin:end] = ids[begin:end]
    cut = len(prefix)
    return Sample(prefix=tuple(prefix), ids=ids[cut:], targets=targets[cut:])


def loss_of(model: Any, batch: list[Sample], pad: int) -> torch.Tensor:  # noqa: ANN401 - untyped
    """Return the mean loss of the replies' tokens."""
    groups: dict[tuple[int, ...], list[Sample]] = {}
    for sample in batch:
        groups.setdefault(sample.prefix, []).append(sample)
    losses = [_group_loss(model, prefix, rows, pad) for prefix, rows in groups.items()]
    learned = sum(target != _IGNORED for sample in batch for target in sample.targets)
    return torch.stack(losses).sum() / learned


def _group_loss(
    model: Any,  # noqa: ANN401 - untyped
    prefix: tuple[int, ...],
    rows: list[Sample],
    pad: int,
) -> torch.Tensor:
    """Return the sum of the losses of rows with a common beginning, which is computed once."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [pad] * (width - len(row.ids)) for row in rows])
    targets = torch.tensor([row.targets + [_IGNORED] * (width - len(row.ids)) for row in rows])
    cache = model.model(input_ids=torch.tensor([prefix]), use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(rows))
    states = model.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
    asked = targets[:, 1:] != _IGNORED
    logits = model.lm_head(states[:, :-1][asked])
    return functional.cross_entropy(logits, targets[:, 1:][asked], reduction="sum")


def warm_start(
    model: Any,  # noqa: ANN401 - untyped
    tokenizer: Any,  # noqa: ANN401 - untyped
    recipe: Recipe,
    *,
    seed: int,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> list[float]:
    """Teach the model in place; return the loss of each step."""
    began = clock()
    rows = samples(recipe, Renderer(tokenizer), seed)
    drawn = batches(rows, recipe.batch, random.Random(seed))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    losses: list[float] = []
    model.train()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _pace(step, recipe.steps)
        loss = loss_of(model, next(drawn), tokenizer.pad_token_id)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % _EVERY == 0 or step + 1 == recipe.steps:
            took = clock() - began
            say(f"warm start: step {step + 1} of {recipe.steps}, loss {loss:.3f}, {took:.0f} s")
    model.eval()
    return losses


def _pace(step: int, steps: int) -> float:
    """Return the share of the learning rate: up in a line, then down along a cosine to a tenth."""
    warmup = max(1, round(_WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))
