"""Tokens trained are tokens sampled, on real vLLM behind the gateway, for every way to remember.

`TOKENS=70000 pytest tests/contract/test_token_exact.py -s` looks at 210,000 of them.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson
import pytest
import torch
from transformers import AutoModelForCausalLM

from envs import make
from evalkit.play.limits import Patience, RetryLimits
from evalkit.play.proxied import open_transport
from evalkit.play.strategies import parse_strategy
from evalkit.play.tokens import TokenModel, TokenSampling
from evalkit.play.transport import Response
from serve.engine.launch import LaunchedEngine
from train.config import Scale
from train.learner.steps import StepPlan, Steps
from train.rewards.env import EnvReturn
from train.rollouts.player import Plan, Player
from train.rollouts.renderer import ChatRenderer
from train.rollouts.rows import Group

TOKENS = int(os.environ.get("TOKENS", "3000"))
"""To look at, of each strategy."""
Term = tuple[tuple[int, ...], int, float, int]
"""A sampled token: what it came after, itself, the sampler's logprob, the version."""


@dataclass
class Tap:
    """A transport that keeps what really went over the wire."""

    inner: Any
    heard: list[tuple[dict[str, Any], dict[str, Any], str]] = field(default_factory=list)

    async def post(self, path: Any, body: Any, headers: Any = b"", **how: Any) -> Response:
        response: Response = await self.inner.post(path, body, headers, **how)
        if response.status == 200:
            asked, said = orjson.loads(body()), orjson.loads(response.body)
            self.heard.append((asked, said["choices"][0], response.headers["x-policy-version"]))
        return response

    async def get(self, path: Any, headers: Any = b"", **how: Any) -> Response:
        response: Response = await self.inner.get(path, headers, **how)
        return response

    async def aclose(self) -> None:
        await self.inner.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def terms(self) -> Counter[Term]:
        """Every token that was sampled, as the server said it."""
        terms: Counter[Term] = Counter()
        for asked, choice, version in self.heard:
            context = asked["token_ids"]
            for at, id_ in enumerate(choice["token_ids"]):
                before = (*context, *choice["token_ids"][:at])
                logprob = _rounded(choice["logprobs"]["content"][at]["logprob"])
                terms[(before, id_, logprob, int(version))] += 1
        return terms


def _rounded(logprob: float) -> float:
    return float(torch.tensor(logprob, dtype=torch.float32))


async def played(policy: LaunchedEngine, checkpoint: Path, strategy: str, tap: Tap) -> list[Group]:
    """Play groups of key_door until so many tokens were sampled."""
    model = TokenModel(
        tap,
        model=policy.model,
        renderer=ChatRenderer.load(checkpoint),
        sampling=TokenSampling(max_tokens=32),
        patience=Patience(RetryLimits()),
        max_len=2048,
    )
    plan = Plan(
        run_id=f"exact-{strategy}",
        run_seed=1,
        make_env=lambda: make("key_door", size=3, max_turns=12),
        strategy=parse_strategy(strategy),
        group_size=4,
        concurrency=64,
        attempts=3,
        reward_attempts=1,
    )
    player = Player(plan, model, EnvReturn())
    groups: list[Group] = []
    while sum(len(choice["token_ids"]) for _, choice, _ in tap.heard) < TOKENS:
        more = range(len(groups), len(groups) + 16)
        groups += await asyncio.gather(*(player.play_group(index, 1) for index in more))
    await player.aclose()
    return groups


def trained(groups: list[Group]) -> Counter[Term]:
    """Every token that rows train on."""
    terms: Counter[Term] = Counter()
    for group in groups:
        for row in (row for episode in group.episodes for row in episode.rows):
            ids = row.ids.tolist()
            for at in row.trained.nonzero()[0]:
                before, logprob = tuple(ids[:at]), float(row.logprobs[at])
                terms[(before, ids[at], logprob, int(row.versions[at]))] += 1
    return terms


class All:
    """Gives all groups as one step."""

    def __init__(self, groups: list[Group]) -> None:
        self.groups = tuple(groups)

    def take(self, step: int) -> tuple[Group, ...]:
        return self.groups


def packed(groups: list[Group]) -> Counter[tuple[int, float, int]]:
    """Every loss term of the batch that the trainer is given."""
    plan = StepPlan(
        first=1,
        last=1,
        accumulation=1,
        scale=Scale.NONE,
        max_row_tokens=2048,
        pad_token_id=0,
    )
    (batch,) = Steps(plan, All(groups), on_step=lambda *_: None, metrics=_Sink())
    targets = batch["shift_labels"][0][batch["token_index"][0]]
    values = zip(
        targets.tolist(),
        batch["old_log_probs"][0].tolist(),
        batch["token_versions"].tolist(),
        strict=True,
    )
    return Counter(values)


class _Sink(dict[str, list[Any]]):
    def __missing__(self, key: str) -> list[Any]:
        self[key] = []
        return self[key]


@pytest.mark.vllm
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("strategy", ["FULL_HISTORY", "NO_HISTORY", "SCRATCHPAD"])
def test_tokens_trained_are_tokens_sampled(
    tiny_gateway: LaunchedEngine, tiny_checkpoint: Path, strategy: str
) -> None:
    tap = Tap(open_transport(tiny_gateway.base_url.removesuffix("/v1")))
    groups = asyncio.run(played(tiny_gateway, tiny_checkpoint, strategy, tap))
    sampled, rows = tap.terms(), trained(groups)
    print(
        f"{strategy}: {sampled.total()} tokens sampled, {(sampled - rows).total()} not trained on"
    )
    assert sampled == rows
    taught = [group for group in groups if not group.is_flat]
    expected = Counter(
        {term[1:]: 0 for term in rows}
        | Counter(t[1:] for t in trained(_without_middle(taught)).elements())
    )
    assert packed(groups) == +expected
    assert _largest_gap(groups, tiny_checkpoint) <= 1e-5


def _without_middle(groups: list[Group]) -> list[Group]:
    """Leave out the episodes whose advantage is 0: they teach nothing and are not forwarded."""
    kept = []
    for group in groups:
        mean = sum(e.reward for e in group.episodes) / len(group.episodes)
        episodes = tuple(e for e in group.episodes if e.reward - mean)
        kept.append(
            Group(index=group.index, env_seed=group.env_seed, episodes=episodes, started_version=1)
        )
    return kept


def _largest_gap(groups: list[Group], checkpoint: Path) -> float:
    """Compare logprobs with a plain forward pass of the same weights, on some rows."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    rows = [row for group in groups[:4] for episode in group.episodes for row in episode.rows][:80]
    largest = 0.0
    for row in rows:
        ids = torch.from_numpy(row.ids.astype("int64"))[None]
        with torch.no_grad():
            every = model(ids).logits[0, :-1].log_softmax(-1)
        found = every.gather(1, ids[0, 1:, None])[:, 0]
        where = torch.from_numpy(row.trained[1:].astype(bool))
        gap = (found - torch.from_numpy(row.logprobs[1:]))[where].abs().max()
        largest = max(largest, float(gap))
    print(f"largest gap {largest:.2g} over {len(rows)} rows")
    return largest
