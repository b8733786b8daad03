"""Attention over packed rows: exact against each sample alone, for any shape of trie."""

import gc
import random
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import LlamaConfig, LlamaForCausalLM

from train.errors import BadModel
from train.learner import attention
from train.learner.attention import TREE_ATTENTION, Kernel, choose, register, tree_attention

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from trl.experimental.async_grpo import packing


def pack(samples: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    row = packing.TreeRow()
    for number, ids in enumerate(samples):
        row.add(
            {
                "input_ids": torch.tensor(ids),
                "completion_mask": torch.tensor([0] + [1] * (len(ids) - 1)),
                "old_log_probs": torch.zeros(len(ids)),
                "advantage": 1.0,
                "group_id": number,
            }
        )
    packed: dict[str, torch.Tensor] = row.pack()
    return packed


def tree_of(packed: dict[str, torch.Tensor]) -> dict[str, Any]:
    names = ("tree_kv_index", "tree_cu_seqlens_q", "tree_cu_seqlens_k")
    longest_q, longest_k = packed["tree_max_seqlens"].tolist()
    return {
        **{name: packed[name] for name in names},
        "tree_max_seqlen_q": longest_q,
        "tree_max_seqlen_k": longest_k,
    }


def paths_of(packed: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return (its queries, its path) of every segment."""
    q, k = packed["tree_cu_seqlens_q"].tolist(), packed["tree_cu_seqlens_k"].tolist()
    return [
        (torch.arange(q[i], q[i + 1]), packed["tree_kv_index"][k[i] : k[i + 1]])
        for i in range(len(q) - 1)
    ]


def plain(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packed: dict[str, torch.Tensor], scale: float
) -> torch.Tensor:
    """Return causal attention over each path alone, in double precision."""
    q, k, v = q.double(), k.double(), v.double()
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    parts = []
    for own, path in paths_of(packed):
        out = F.scaled_dot_product_attention(
            q[:, :, path], k[:, :, path], v[:, :, path], is_causal=True, scale=scale
        )
        parts.append(out[:, :, len(path) - len(own) :])
    return torch.cat(parts, 2).transpose(1, 2)


def tries() -> dict[str, list[list[int]]]:
    chance = random.Random(7)

    def some(low: int, high: int) -> list[int]:
        return [chance.randrange(5, 200) for _ in range(chance.randint(low, high))]

    system, nested = some(30, 30), some(4, 4)
    return {
        "one": [some(40, 40)],
        "one token": [[3]],
        "nothing shared": [[index, *some(1, 60)] for index in range(9)],
        "twice the same": [[1, 2, 3, 4, 5]] * 2 + [[1, 2, 3]],
        "a prefix of another": [nested, [*nested, 9, 9, 9], [*nested, 9, 8]],
        "many short ones on one prompt": [system + some(1, 20) for _ in range(40)],
        "groups of episodes": [
            system + [group] * 7 + [x for _ in range(5) for x in [chance.randrange(3), 201, 202]]
            for group in range(3)
            for _ in range(6)
        ],
        "longer than a block": [system + some(280, 320) for _ in range(3)] + [some(600, 600)],
    }


@pytest.mark.parametrize("name", tries())
@pytest.mark.parametrize("key_heads", [4, 2])
def test_each_segment_sees_its_path_and_nothing_else(name: str, key_heads: int) -> None:
    packed = pack(tries()[name])
    n, scale = len(packed["input_ids"]), 0.3
    torch.manual_seed(0)
    shapes = ((1, 4, n, 16), (1, key_heads, n, 16), (1, key_heads, n, 16))
    q, k, v = ours = tuple(torch.randn(shape, requires_grad=True) for shape in shapes)
    q2, k2, v2 = theirs = tuple(tensor.detach().clone().requires_grad_() for tensor in ours)
    out, weights = tree_attention(None, q, k, v, None, scaling=scale, **tree_of(packed))
    expected = plain(q2, k2, v2, packed, scale)
    assert weights is None
    assert out.shape == (1, n, 4, 16)
    assert (out - expected).abs().max() < 1e-5
    seen = torch.randn(out.shape)
    (out * seen).sum().backward()
    (expected * seen).sum().backward()
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.grad is not None
        assert reference.grad is not None
        assert (mine.grad - reference.grad).abs().max() < 1e-5


@pytest.mark.parametrize("block", [1, 3, 16])
@pytest.mark.parametrize("budget", [1, 100])
def test_the_cut_into_blocks_and_batches_changes_nothing(
    block: int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BLOCK", block)
    monkeypatch.setattr(attention, "BATCH_TOKENS", budget)
    packed = pack(tries()["groups of episodes"])
    q, k, v = torch.randn(3, 1, 2, len(packed["input_ids"]), 8)
    out, _ = tree_attention(None, q, k, v, None, scaling=1.0, **tree_of(packed))
    assert (out - plain(q, k, v, packed, 1.0)).abs().max() < 1e-5


@pytest.mark.parametrize("seed", range(10))
def test_random_tries(seed: int) -> None:
    chance = random.Random(seed)
    samples = [
        [chance.randrange(2) for _ in range(chance.randint(1, 14))]
        for _ in range(chance.randint(1, 25))
    ]
    packed = pack(samples)
    q, k, v = torch.randn(3, 1, 2, len(packed["input_ids"]), 8)
    out, _ = tree_attention(None, q, k, v, None, scaling=1.0, **tree_of(packed))
    assert (out - plain(q, k, v, packed, 1.0)).abs().max() < 1e-5


def model(kind: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    )
    config._attn_implementation = kind
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_scores_a_packed_row_like_each_sample_alone(checkpointing: bool) -> None:
    register()
    samples = tries()["groups of episodes"]
    packed = pack(samples)
    ours, theirs = model(TREE_ATTENTION), model("sdpa")
    ours.train()
    if checkpointing:
        ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    logits = ours(
        input_ids=packed["input_ids"][None],
        position_ids=packed["position_ids"][None],
        use_cache=False,
        **tree_of(packed),
    ).logits[0]
    of_token = logits.log_softmax(-1)[packed["token_index"]]
    targets = torch.tensor([token for ids in samples for token in ids[1:]])
    found = of_token.gather(1, targets[:, None])[:, 0]
    alone = []
    for ids in samples:
        given = torch.tensor(ids)[None]
        scores = theirs(input_ids=given).logits[0, :-1].log_softmax(-1)
        alone.append(scores.gather(1, given[0, 1:, None])[:, 0])
    expected = torch.cat(alone)
    assert (found - expected).abs().max() < 1e-5
    found.mean().backward()
    expected.mean().backward()
    for (name, mine), reference in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None, name
        assert (mine.grad - reference.grad).abs().max() < 1e-5, name


def test_a_plan_is_made_once_per_row_and_let_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = attention._make_plan

    def counted(*args: Any) -> Any:
        made.append(1)
        return real(*args)

    monkeypatch.setattr(attention, "_make_plan", counted)
    register()
    packed = pack(tries()["one"])
    before = len(attention._plans)
    network = model(TREE_ATTENTION)
    given = {"input_ids": packed["input_ids"][None], "position_ids": packed["position_ids"][None]}
    tree = tree_of(packed)
    network(**given, use_cache=False, **tree)
    network(**given, use_cache=False, **tree)
    assert len(made) == 1
    tree["tree_kv_index"] = tree["tree_kv_index"].clone()
    network(**given, use_cache=False, **tree)
    assert len(made) == 2, "a plan belongs to all three tensors"
    del packed, tree, given
    gc.collect()
    assert len(attention._plans) == before


def test_what_is_not_computed_is_refused() -> None:
    packed = pack([[1, 2, 3, 4, 5, 6]])
    q = k = v = torch.randn(1, 1, 6, 8)
    tree = tree_of(packed)
    for extra, says in (
        ({"sliding_window": 5}, "slides over 5 tokens and a row has 6"),
        ({"softcap": 30.0}, "soft-capped"),
        ({"s_aux": torch.zeros(1)}, "sinks"),
        ({"dropout": 0.1}, "dropout"),
    ):
        with pytest.raises(BadModel, match=says):
            tree_attention(None, q, k, v, None, **tree, **extra)
    wide, _ = tree_attention(None, q, k, v, None, sliding_window=6, **tree)
    assert torch.equal(wide, tree_attention(None, q, k, v, None, **tree)[0])


def test_half_precision_is_answered_in_half_precision() -> None:
    packed = pack(tries()["groups of episodes"])
    q, k, v = torch.randn(3, 1, 2, len(packed["input_ids"]), 8).bfloat16()
    out, _ = tree_attention(None, q, k, v, None, scaling=1.0, **tree_of(packed))
    assert out.dtype == torch.bfloat16
    assert (out - plain(q, k, v, packed, 1.0)).abs().max() < 0.05


def test_it_goes_by_trls_name() -> None:
    assert packing.TREE_ATTENTION == TREE_ATTENTION


@pytest.mark.parametrize(
    ("dtype", "cuda", "capability", "kernels", "chosen"),
    [
        (torch.bfloat16, True, (9, 0), True, Kernel.TRL),
        (torch.float32, True, (9, 0), True, Kernel.PORTABLE),
        (torch.bfloat16, False, (9, 0), True, Kernel.PORTABLE),
        (torch.bfloat16, True, (8, 0), True, Kernel.PORTABLE),
        (torch.bfloat16, True, (10, 0), True, Kernel.PORTABLE),
        (torch.bfloat16, True, (9, 0), False, Kernel.PORTABLE),
    ],
)
def test_trls_kernel_only_where_it_runs(
    dtype: torch.dtype,
    cuda: bool,
    capability: tuple[int, int],
    kernels: bool,
    chosen: Kernel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(attention, "find_spec", lambda name: object() if kernels else None)
    assert choose(dtype) is chosen


def test_registering_either_kernel() -> None:
    from transformers import AttentionInterface

    known = AttentionInterface()
    register(Kernel.TRL)
    assert known[TREE_ATTENTION] is packing.tree_attention
    register(Kernel.PORTABLE)
    assert known[TREE_ATTENTION] is tree_attention
