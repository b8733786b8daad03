"""The network: a Llama of about a million weights, which vLLM serves like any other."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from train.tiny.tokenizer import MAX_TOKENS

_INITIAL_STD = 0.06
"""Wider than the usual 0.02, with which so narrow a net learns to attend several times later."""


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Any:  # noqa: ANN401 - untyped
    """Return an untrained model for a tokenizer; equal seeds give equal weights."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        initializer_range=_INITIAL_STD,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=pad)
    return model
