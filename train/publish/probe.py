"""What a replica must agree with the trainer on before it is live: logprobs of a few sequences.

The sequences are first prompts of the env. Made once per run; the logprobs anew for each version,
by the trainer's own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from trl.experimental.async_grpo.packing import TreeRow

from envs import TextEnv
from evalkit.play.strategies import Strategy
from evalkit.play.tokens import Renderer

Sequences = tuple[tuple[int, ...], ...]


def sequences(
    make_env: Callable[[], TextEnv],
    strategy: Strategy,
    renderer: Renderer,
    seeds: Sequence[int],
    *,
    longest: int,
) -> Sequences:
    """Return one sequence per seed: its first prompt, or the end of it."""
    made = []
    for seed in seeds:
        env = make_env()
        observation, _ = env.reset(seed=seed)
        prompt = renderer.render(strategy.start(env).messages(observation))
        made.append(tuple(prompt[-longest:]))
    return tuple(made)


def logprobs(model: torch.nn.Module, tokens: Sequences) -> tuple[tuple[float, ...], ...]:
    """Return the logprob, in nats and at temperature 1, of each token but the first of each.

    `model` takes TRL's packed rows.
    """
    row = TreeRow()
    for index, ids in enumerate(tokens):
        row.add(
            {
                "input_ids": np.asarray(ids),
                "completion_mask": np.ones(len(ids), dtype=np.int8),
                "old_log_probs": np.zeros(len(ids), dtype=np.float32),
                "advantage": 0.0,
                "group_id": index,
            }
        )
    packed = {key: value.to(_device(model)) for key, value in row.pack().items()}
    longest_q, longest_k = packed["tree_max_seqlens"].tolist()
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(
                input_ids=packed["input_ids"].unsqueeze(0),
                position_ids=packed["position_ids"].unsqueeze(0),
                tree_kv_index=packed["tree_kv_index"],
                tree_cu_seqlens_q=packed["tree_cu_seqlens_q"],
                tree_cu_seqlens_k=packed["tree_cu_seqlens_k"],
                tree_max_seqlen_q=longest_q,
                tree_max_seqlen_k=longest_k,
                use_cache=False,
            ).logits[0]
    finally:
        model.train(was_training)
    every = logits.float().log_softmax(-1)[packed["token_index"]]
    targets = torch.tensor([id_ for ids in tokens for id_ in ids[1:]], device=every.device)
    flat = every.gather(1, targets[:, None])[:, 0].tolist()
    made, at = [], 0
    for ids in tokens:
        made.append(tuple(flat[at : at + len(ids) - 1]))
        at += len(ids) - 1
    return tuple(made)


def plain_logprobs(model: torch.nn.Module, tokens: Sequences) -> tuple[tuple[float, ...], ...]:
    """Return what `logprobs` returns, of a model that takes plain sequences."""
    was_training = model.training
    model.eval()
    made = []
    try:
        with torch.no_grad():
            for sequence in tokens:
                ids = torch.tensor([sequence], device=_device(model))
                every = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
                chosen = every[:-1].gather(1, ids[0, 1:, None])[:, 0]
                made.append(tuple(chosen.tolist()))
    finally:
        model.train(was_training)
    return tuple(made)


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device
