"""What replicas are asked, and what the trainer says to it."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from envs import make
from evalkit.play.strategies import parse_strategy
from tests.unit.train.tinies import make_checkpoint, make_tokenizer
from train.learner.attention import TREE_ATTENTION, register
from train.rollouts.renderer import ChatRenderer

with warnings.catch_warnings():
    # TRL says of each vLLM that it has not seen that it has not seen it.
    warnings.simplefilter("ignore")
    from train.publish import probe

SEQUENCES = ((5, 6, 7, 2), (9, 1), (5, 6, 3, 3, 4, 8, 11), (5, 6, 7), (5, 6, 7, 2))
"""One of them begins another, and one is there twice."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"))


def alone(checkpoint: Path, sequence: tuple[int, ...]) -> list[float]:
    """Return what transformers says, one token after the other."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    told = []
    for at in range(1, len(sequence)):
        with torch.no_grad():
            last = model(torch.tensor([sequence[:at]])).logits[0, -1]
        told.append(float(last.log_softmax(-1)[sequence[at]]))
    return told


@pytest.mark.parametrize("training", [True, False])
def test_packed_rows_say_what_a_plain_forward_pass_says(checkpoint: Path, training: bool) -> None:
    register()
    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation=TREE_ATTENTION)
    told = probe.logprobs(model.train(training), SEQUENCES)
    assert model.training is training
    for sequence, found in zip(SEQUENCES, told, strict=True):
        assert found == pytest.approx(alone(checkpoint, sequence), abs=1e-5)


def test_the_plain_way_says_the_same(checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint).train()
    told = probe.plain_logprobs(model, SEQUENCES)
    assert model.training
    for sequence, found in zip(SEQUENCES, told, strict=True):
        assert found == pytest.approx(alone(checkpoint, sequence), abs=1e-5)


def test_dropout_is_off_while_it_is_asked(checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.model.layers[0].mlp = torch.nn.Sequential(
        torch.nn.Dropout(0.5), model.model.layers[0].mlp
    )
    once, twice = (probe.plain_logprobs(model.train(), SEQUENCES) for _ in range(2))
    assert once == twice


def sequences(longest: int, seeds: range = range(3)) -> probe.Sequences:
    return probe.sequences(
        partial(make, "key_door", size=3),
        parse_strategy("FULL_HISTORY"),
        ChatRenderer(make_tokenizer()),
        seeds,
        longest=longest,
    )


def test_sequences_are_first_prompts_or_their_ends() -> None:
    whole = sequences(10_000)
    assert len(whole) == 3
    assert whole == sequences(10_000)
    assert sequences(10_000, range(1)) == whole[:1]
    assert sequences(7) == tuple(each[-7:] for each in whole)
    assert sequences(7, range(0)) == ()
    (text, *_) = (make_tokenizer().decode(each) for each in whole)
    assert text.startswith("w13")  # words that the tokenizer does not know
    assert "<end>" in text
