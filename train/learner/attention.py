"""Attention over a packed trie of samples, on any device, in place of TRL's kernel for Hopper GPUs.

The contract is TRL's (`trl.experimental.async_grpo.packing.tree_attention`): a row of N tokens is
cut into segments by `tree_cu_seqlens_q`; segment i attends, causally and aligned at its end, to the
tokens `tree_kv_index[tree_cu_seqlens_k[i]:tree_cu_seqlens_k[i + 1]]`: its path from the root, of
which it is the end itself.

Here segments that follow each other along one path become a chain, chains are cut into blocks of
queries at multiples of `BLOCK` (a block needs no key that comes after it), and blocks of about the
same size are padded into one batch. A step of hundreds of short samples is then a few calls of
torch's own kernel. The plan of that is made once per row and shared by all layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from train.errors import BadModel

TREE_ATTENTION = "tree_fa3"
"""The name under which TRL's trainer asks for it."""
BLOCK = 256
"""Queries per block: smaller ones skip more of what lies in the future, and gather more keys."""
BATCH_TOKENS = 16384
"""Keys gathered for one call, padding included."""
PADDING = 1.2
"""Pairs of query and key that a batch may compute, over those that it must."""


class Kernel(StrEnum):
    """Who computes attention over packed rows."""

    TRL = "trl"
    """TRL's own: FlashAttention 3 from the hub, half precision only."""
    PORTABLE = "portable"
    """This module, by torch's `scaled_dot_product_attention`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Consecutive queries of a chain, and the part of its path up to the last of them."""

    query_start: int
    """In the packed row."""
    queries: int
    path_start: int
    """In `tree_kv_index`."""
    keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Blocks padded to one shape."""

    rows: int
    queries: int
    keys: int
    allowed: torch.Tensor
    """(rows or 1, 1, queries, keys) who sees whom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Padded:
    """One batch while the plan is made; all but `allowed` is flat."""

    rows: int
    query_index: torch.Tensor
    real: torch.Tensor
    """Whether a query is no padding."""
    key_index: torch.Tensor
    allowed: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """All indices point into what the batches hold, padding included, laid end to end."""

    batches: tuple[_Batch, ...]
    query_index: torch.Tensor
    """Position in the packed row of each query; padding points at 0."""
    key_index: torch.Tensor
    """Likewise of each key."""
    result_index: torch.Tensor
    """(N,) where the output of each token of the row lies."""
    longest: int
    """Tokens of the longest path."""


_plans = WeakTensorKeyDictionary()
"""By the identity of a row's `tree_cu_seqlens_k`, which is one tensor for all layers."""


def choose(dtype: torch.dtype = torch.float32) -> Kernel:
    """Return whose kernel to use for a model that computes in `dtype` on this machine."""
    half = dtype in (torch.float16, torch.bfloat16)
    if not half or not torch.cuda.is_available() or torch.version.hip is not None:
        return Kernel.PORTABLE
    hopper = torch.cuda.get_device_capability()[0] == 9
    return Kernel.TRL if hopper and find_spec("kernels") is not None else Kernel.PORTABLE


def register(kernel: Kernel = Kernel.PORTABLE) -> None:
    """Make transformers know TREE_ATTENTION; TRL's trainer registers its own over it when made."""
    if kernel is Kernel.TRL:
        from trl.experimental.async_grpo.packing import (  # noqa: PLC0415 - warns and is heavy
            register_tree_attention,
        )

        register_tree_attention()
        return
    AttentionInterface.register(TREE_ATTENTION, tree_attention)
    AttentionMaskInterface.register(TREE_ATTENTION, _no_mask)


def tree_attention(
    module: Any,  # noqa: ANN401 - transformers' interface; not used
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    tree_kv_index: torch.Tensor,
    tree_cu_seqlens_q: torch.Tensor,
    tree_cu_seqlens_k: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,  # noqa: ANN401 - transformers' interface
) -> tuple[torch.Tensor, None]:
    """Return attention over one packed row, shaped (1, N, heads, head_dim), and no weights.

    `query` has the shape (1, heads, N, head_dim); `key` and `value` may have fewer heads.

    Raises:
        BadModel: the model's attention has what is not computed here.

    """
    del module, attention_mask
    plan = _plan_of(tree_kv_index, tree_cu_seqlens_q, tree_cu_seqlens_k)
    _refuse_others(plan, dropout, sliding_window, softcap, others.get("s_aux"))
    repeats = query.shape[1] // key.shape[1]
    query_sizes = [batch.rows * batch.queries for batch in plan.batches]
    key_sizes = [batch.rows * batch.keys for batch in plan.batches]
    gathered = zip(
        plan.batches,
        _gather(query, plan.query_index, query_sizes),
        _gather(key, plan.key_index, key_sizes),
        _gather(value, plan.key_index, key_sizes),
        strict=True,
    )
    found = []
    for batch, *parts in gathered:
        q, k, v = (part.unflatten(0, (batch.rows, -1)).transpose(1, 2) for part in parts)
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=batch.allowed, scale=scaling)
        found.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(found).index_select(0, plan.result_index).unsqueeze(0), None


def _gather(
    tensor: torch.Tensor, index: torch.Tensor, sizes: list[int]
) -> tuple[torch.Tensor, ...]:
    """Return the tokens of each batch; one gather for all keeps the backward pass linear."""
    parts: tuple[torch.Tensor, ...] = tensor[0].transpose(0, 1).index_select(0, index).split(sizes)
    return parts


def _no_mask(**_: Any) -> None:  # noqa: ANN401 - transformers' interface
    """Return no mask: the paths say who sees whom."""


def _refuse_others(
    plan: _Plan,
    dropout: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: object,
) -> None:
    """Refuse what would be left out silently."""
    if sliding_window is not None and sliding_window < plan.longest:
        raise BadModel(
            f"the model's attention slides over {sliding_window} tokens and a row has "
            f"{plan.longest}: set learn.max_row_tokens to at most {sliding_window}"
        )
    for what, present in (
        ("soft-capped logits", bool(softcap)),
        ("attention sinks", sinks is not None),
        ("attention dropout (set attention_dropout to 0 in its config.json)", bool(dropout)),
    ):
        if present:
            raise BadModel(f"the model's attention has {what}, which packed rows do not support")


def _plan_of(kv_index: torch.Tensor, cu_q: torch.Tensor, cu_k: torch.Tensor) -> _Plan:
    known: tuple[torch.Tensor, torch.Tensor, _Plan] | None = _plans.get(cu_k)
    if known is not None and known[0] is kv_index and known[1] is cu_q:
        return known[2]
    plan = _make_plan(kv_index, cu_q, cu_k)
    _plans[cu_k] = (kv_index, cu_q, plan)
    return plan


def _make_plan(kv_index: torch.Tensor, cu_q: torch.Tensor, cu_k: torch.Tensor) -> _Plan:
    paths, device = kv_index.cpu(), kv_index.device
    blocks = _blocks(paths.tolist(), cu_q.tolist(), cu_k.tolist())
    padded = [_pad(some, paths) for some in _batched(list(blocks))]
    query_index = torch.cat([each.query_index for each in padded])
    real = torch.cat([each.real for each in padded]).nonzero()[:, 0]
    result_index = torch.empty_like(real)
    result_index[query_index[real]] = real
    return _Plan(
        batches=tuple(
            _Batch(
                rows=each.rows,
                queries=each.allowed.shape[2],
                keys=each.allowed.shape[3],
                allowed=each.allowed.to(device),
            )
            for each in padded
        ),
        query_index=query_index.to(device),
        key_index=torch.cat([each.key_index for each in padded]).to(device),
        result_index=result_index.to(device),
        longest=int(cu_k.diff().max()),
    )


def _blocks(paths: Sequence[int], cu_q: Sequence[int], cu_k: Sequence[int]) -> Iterator[_Block]:
    """Yield the blocks of all chains; each token of the row is a query of exactly one."""
    start = 0
    for segment in range(len(cu_q) - 1):
        if _goes_on(paths, cu_q, cu_k, segment):
            continue
        path_start, length = cu_k[segment], cu_k[segment + 1] - cu_k[segment]
        chain_start, end = cu_q[start], cu_q[segment + 1]
        at = before = length - (end - chain_start)
        while at < length:
            after = min((at // BLOCK + 1) * BLOCK, length)
            yield _Block(
                query_start=chain_start + at - before,
                queries=after - at,
                path_start=path_start,
                keys=after,
            )
            at = after
        start = segment + 1


def _goes_on(paths: Sequence[int], cu_q: Sequence[int], cu_k: Sequence[int], segment: int) -> bool:
    """Whether the next segment's path is this one's path and itself."""
    if segment + 2 >= len(cu_q):
        return False
    own = cu_q[segment + 2] - cu_q[segment + 1]
    before = cu_k[segment + 2] - cu_k[segment + 1] - own
    path = cu_k[segment + 1] - cu_k[segment]
    return before == path and paths[cu_k[segment + 1] + before - 1] == cu_q[segment + 1] - 1


def _batched(blocks: Sequence[_Block]) -> Iterator[list[_Block]]:
    """Group blocks of about the same shape."""
    batch: list[_Block] = []
    needed = most = 0
    for block in sorted(blocks, key=lambda each: (each.keys, each.queries)):
        rows = len(batch) + 1
        now = needed + block.queries * block.keys
        most_now = max(most, block.queries)
        too_wide = most_now * block.keys * rows > PADDING * now + BLOCK * BLOCK
        if batch and (too_wide or block.keys * rows > BATCH_TOKENS):
            yield batch
            batch, now, most_now = [], block.queries * block.keys, block.queries
        batch.append(block)
        needed, most = now, most_now
    if batch:
        yield batch


def _pad(blocks: Sequence[_Block], paths: torch.Tensor) -> _Padded:
    table = torch.tensor(
        [[block.query_start, block.queries, block.path_start, block.keys] for block in blocks]
    )
    query_start, queries, path_start, keys = table.T[:, :, None]
    steps, places = torch.arange(int(queries.max())), torch.arange(int(keys.max()))
    before = keys - queries
    if bool((before == before[0]).all()):
        before = before[:1]
    real = steps < queries
    return _Padded(
        rows=len(blocks),
        query_index=torch.where(real, query_start + steps, 0).flatten(),
        real=real.flatten(),
        key_index=paths[torch.where(places < keys, path_start + places, 0)].flatten(),
        allowed=(places <= before[:, :, None] + steps[:, None])[:, None],
    )
