"""A policy of a few thousand weights with a tokenizer of sixteen words, and rows made by hand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from train.rollouts.rows import Episode, Group, Row

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

WORDS = ["<pad>", "<end>", *(f"w{n}" for n in range(14))]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <end>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {word: id_ for id_, word in enumerate(WORDS)}
    bare = Tokenizer(models.WordLevel(words, unk_token="w13"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, pad_token="<pad>", eos_token="<end>", chat_template=TEMPLATE
    )


def make_checkpoint(folder: Path, *, seed: int = 0, tied: bool = True) -> Path:
    """Write an untrained Llama and its tokenizer."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        tie_word_embeddings=tied,
    )
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_row(
    prompt: Sequence[int], *parts: tuple[Sequence[int], int], logprob: float = -1.0
) -> Row:
    """Return a row: a prompt, then ids that a version sampled, or that the env said (-1).

    The logprob of the token at place n is `logprob` less n hundredths.
    """
    ids = [*prompt, *(id_ for part, _ in parts for id_ in part)]
    versions = [-1] * len(prompt) + [version for part, version in parts for _ in part]
    return Row(
        ids=np.array(ids, np.int32),
        trained=np.array([int(version >= 0) for version in versions], np.int8),
        logprobs=np.array(
            [logprob - at / 100 if v >= 0 else 0 for at, v in enumerate(versions)], np.float32
        ),
        versions=np.array(versions, np.int32),
    )


def make_episode(reward: float, *rows: Row, **told: Any) -> Episode:
    about = {"env_seed": 2**32, "repetition": 0, "env_return": reward, "turns": 1} | told
    return Episode(rows=rows, reward=reward, success=reward > 0, **about)


def make_group(index: int, *episodes: Episode, **told: Any) -> Group:
    return Group(index=index, env_seed=2**32 + index, episodes=episodes, started_version=0, **told)
