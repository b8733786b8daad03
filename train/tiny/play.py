"""Judges a tiny policy without a server: many episodes in lockstep, sampled right here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from envs import NO_ACTION, TextEnv
from evalkit.play.strategies import History
from train.tiny.recipes import Recipe
from train.tiny.tokenizer import MAX_TOKENS, Renderer

_REPLY_TOKENS = 64
_ROWS = 64


@dataclass(slots=True, kw_only=True)
class _Game:
    """One episode in play."""

    env: TextEnv
    history: History
    observation: str
    over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a policy reached over all episodes played."""

    success_rate: float
    turns: float
    """Mean per episode."""
    prompt_tokens: float
    """Mean per turn."""
    reply_tokens: float
    """Mean per turn, the end token included."""
    longest: int
    """Tokens of the longest prompt with its reply."""


def success_rate(
    model: Any,  # noqa: ANN401 - untyped
    tokenizer: Any,  # noqa: ANN401 - untyped
    recipe: Recipe,
    seeds: Sequence[int],
    temperature: float = 1.0,
    *,
    greedy: bool = False,
) -> float:
    """Return the share of the episodes of `seeds` that succeed; sampling is seeded by the first."""
    return score(model, tokenizer, recipe, seeds, temperature, greedy=greedy).success_rate


def score(
    model: Any,  # noqa: ANN401 - untyped
    tokenizer: Any,  # noqa: ANN401 - untyped
    recipe: Recipe,
    seeds: Sequence[int],
    temperature: float = 1.0,
    *,
    greedy: bool = False,
    forget: bool = False,
) -> Score:
    """Play one episode per seed and return what came of it.

    `forget`: take history and notes away before every turn; what is lost then was memory's.
    """
    renderer = Renderer(tokenizer)
    sampler = _Sampler(model, tokenizer, seeds[0], 0.0 if greedy else temperature)
    games = [_begin(recipe, seed) for seed in seeds]
    prompt_lengths: list[int] = []
    reply_lengths: list[int] = []
    while running := [game for game in games if not game.over]:
        prompts = [renderer.prompt(game.history.messages(game.observation)) for game in running]
        replies = sampler.complete(prompts)
        prompt_lengths += map(len, prompts)
        reply_lengths += map(len, replies)
        for game, reply in zip(running, replies, strict=True):
            _act(game, tokenizer.decode(reply, skip_special_tokens=True))
            if forget:
                game.history = recipe.parsed_strategy().start(game.env)
    return Score(
        success_rate=sum(game.env.success for game in games) / len(games),
        turns=len(prompt_lengths) / len(games),
        prompt_tokens=sum(prompt_lengths) / len(prompt_lengths),
        reply_tokens=sum(reply_lengths) / len(reply_lengths),
        longest=max(map(sum, zip(prompt_lengths, reply_lengths, strict=True))),
    )


def _begin(recipe: Recipe, seed: int) -> _Game:
    env = recipe.make_env()
    observation, _ = env.reset(seed=seed)
    history = recipe.parsed_strategy().start(env)
    return _Game(env=env, history=history, observation=observation)


def _act(game: _Game, reply: str) -> None:
    """Take the reply as evalkit's loop does."""
    action = game.env.parse(reply).action
    observation, _, terminated, truncated, _ = game.env.step(action or NO_ACTION)
    game.history = game.history.update(game.observation, reply, action)
    game.observation = observation
    game.over = terminated or truncated


class _Sampler:
    """Completes prompts in batches of similar length."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - untyped
        tokenizer: Any,  # noqa: ANN401 - untyped
        seed: int,
        temperature: float,
    ) -> None:
        self._model = model
        self._end, self._pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        self._temperature = temperature
        self._generator = torch.Generator().manual_seed(seed)

    def complete(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """Return the replies' tokens, the end token included where it came."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        replies: list[list[int]] = [[] for _ in prompts]
        for first in range(0, len(order), _ROWS):
            chosen = order[first : first + _ROWS]
            with torch.inference_mode():
                done = self._batch([prompts[index] for index in chosen])
            for index, reply in zip(chosen, done, strict=True):
                replies[index] = reply
        return replies

    def _batch(self, prompts: list[list[int]]) -> list[list[int]]:
        width = max(map(len, prompts))
        assert width < MAX_TOKENS, f"a prompt of {width} tokens does not fit"
        ids = torch.tensor([[self._pad] * (width - len(one)) + one for one in prompts])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts])
        places = (mask.cumsum(1) - 1).clamp(min=0)
        cache = None
        replies: list[list[int]] = [[] for _ in prompts]
        open_ = torch.ones(len(prompts), dtype=torch.bool)
        for _ in range(min(_REPLY_TOKENS, MAX_TOKENS - width)):
            out = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = out.past_key_values
            ids = self._draw(out.logits[:, -1])
            for index in open_.nonzero()[:, 0].tolist():
                replies[index].append(int(ids[index]))
            open_ &= ids[:, 0] != self._end
            if not open_.any():
                break
            mask = torch.cat([mask, torch.ones(len(prompts), 1, dtype=mask.dtype)], 1)
            places = places[:, -1:] + 1
        return replies

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        """Return one token per row, of shape (rows, 1)."""
        if not self._temperature:
            return logits.argmax(-1, keepdim=True)
        chances = (logits / self._temperature).softmax(-1)
        return torch.multinomial(chances, 1, generator=self._generator)
