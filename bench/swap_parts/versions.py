"""Versions of a tiny model that all answer otherwise, and what torch alone makes of each of them.

A version's weights are drawn from its number, so all of them are known to whoever judges answers.
Torch's door.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.utils import logging

from bench.swap_parts.site import ENV
from serve.wire import PolicyKind, Probes
from train.publish.weights import write_full
from train.tiny.build import build, shortened
from train.tiny.recipes import recipe

TOLERANCE = 1e-3
"""Nats by which a logprob may differ from torch's."""
_SPREAD = 0.02
"""The standard deviation of what a full version adds to each weight of the first."""
_RANK, _ALPHA, _LORA_SPREAD = 8, 16, 0.2
_ADAPTED = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
_PROBES, _PROBE_TOKENS = 4, 24
_BATCH = 64

Sequence_ = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """An answer's tokens as torch finds them."""

    logprobs: list[float]
    best: list[float]
    """The logprob of the likeliest token in each place."""


class Versions:
    """The versions 1 to `count` of one policy. Version 1 is what the engine starts with."""

    def __init__(self, folder: Path, kind: PolicyKind, count: int) -> None:
        """Write them all below `folder`."""
        logging.disable_progress_bar()
        self.kind = kind
        self._folder = folder
        self.boot = build(shortened(recipe(ENV), 1), folder / "1")
        self.tokenizer = AutoTokenizer.from_pretrained(self.boot)
        self._model: Any = LlamaForCausalLM.from_pretrained(self.boot).eval()
        self._boot = {name: each.clone() for name, each in self._model.named_parameters()}
        self._loaded = 1
        for version in range(2, count + 1):
            self._write(version)

    def folder(self, version: int) -> Path:
        """Return where a version's checkpoint lies."""
        return self._folder / str(version)

    def prompts(self, count: int) -> list[tuple[str, Sequence_]]:
        """Return texts of a user, and the ids that a chat of each begins with."""
        words = "north south east west key door wall open take go look near far red old".split()
        draw = torch.Generator().manual_seed(0)
        texts = []
        for number in range(count):
            picks = torch.randint(len(words), (8 + 3 * number,), generator=draw).tolist()
            texts.append(" ".join(words[pick] for pick in picks))
        return [(text, self._chat(text)) for text in texts]

    def probes(self, version: int) -> Probes:
        """Return sequences, and what torch makes of them with that version's weights."""
        draw = torch.Generator().manual_seed(version)
        size = _PROBES, _PROBE_TOKENS
        drawn = torch.randint(3, self._model.config.vocab_size, size, generator=draw).tolist()
        tokens = tuple(tuple(row) for row in drawn)
        scored = self.score(version, [(row[:1], row[1:]) for row in tokens])
        logprobs = tuple(tuple(each.logprobs) for each in scored)
        return Probes(tokens=tokens, logprobs=logprobs, tolerance=TOLERANCE)

    def score(self, version: int, answers: Sequence[tuple[Sequence_, Sequence_]]) -> list[Scored]:
        """Return how likely each token of answers to prompts is by a version's weights, in fp32."""
        self._load(version)
        # Of about one length in a batch, because the short ones are padded.
        order = sorted(range(len(answers)), key=lambda at: sum(map(len, answers[at])))
        made: dict[int, Scored] = {}
        for start in range(0, len(order), _BATCH):
            numbers = order[start : start + _BATCH]
            made.update(zip(numbers, self._scored([answers[at] for at in numbers]), strict=True))
        return [made[at] for at in range(len(answers))]

    def _scored(self, answers: Sequence[tuple[Sequence_, Sequence_]]) -> Iterator[Scored]:
        rows = [prompt + ids for prompt, ids in answers]
        longest = max(map(len, rows))
        # Right of a causal model's tokens anything may stand.
        padded = torch.tensor([row + (0,) * (longest - len(row)) for row in rows])
        with torch.inference_mode():
            every = self._model(padded, use_cache=False).logits.log_softmax(-1)[:, :-1]
        chosen = every.gather(2, padded[:, 1:, None])[..., 0]
        best = every.amax(-1)
        for row, (prompt, ids) in enumerate(answers):
            part = slice(len(prompt) - 1, len(prompt) + len(ids) - 1)
            yield Scored(logprobs=chosen[row, part].tolist(), best=best[row, part].tolist())

    def _chat(self, text: str) -> Sequence_:
        said = [{"role": "user", "content": text}]
        shown = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        return tuple(self.tokenizer(shown, add_special_tokens=False)["input_ids"])

    def _load(self, version: int) -> None:
        """Give the model a version's weights."""
        if version == self._loaded:
            return
        given = dict(self._boot)
        if version > 1 and self.kind is PolicyKind.FULL:
            given |= load_file(self.folder(version) / "model.safetensors")
        elif version > 1:
            halves = load_file(self.folder(version) / "adapter_model.safetensors")
            for name, a in halves.items():
                if name.endswith("lora_A.weight"):
                    stem = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                    b = halves[name.replace("lora_A", "lora_B")]
                    given[f"{stem}.weight"] = given[f"{stem}.weight"] + _ALPHA / _RANK * b @ a
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(given[name])
        self._loaded = version

    def _write(self, version: int) -> None:
        draw = torch.Generator().manual_seed(version)
        if self.kind is PolicyKind.FULL:
            moved = (
                (name, each + _SPREAD * torch.randn(each.shape, generator=draw))
                for name, each in self._boot.items()
            )
            write_full(self.folder(version), moved, self.boot)
            return
        halves = {}
        for name, each in self._boot.items():
            module = name.removesuffix(".weight")
            if module.endswith(_ADAPTED):
                for half, shape in (("A", (_RANK, each.shape[1])), ("B", (each.shape[0], _RANK))):
                    drawn = torch.randn(shape, generator=draw) / math.sqrt(shape[1])
                    halves[f"base_model.model.{module}.lora_{half}.weight"] = _LORA_SPREAD * drawn
        folder = self.folder(version)
        folder.mkdir()
        save_file(halves, folder / "adapter_model.safetensors")
        modules = [module.partition(".")[2] for module in _ADAPTED]
        told = {"peft_type": "LORA", "r": _RANK, "lora_alpha": _ALPHA, "target_modules": modules}
        (folder / "adapter_config.json").write_text(json.dumps(told))
