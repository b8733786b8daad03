"""Checkpoints of a tiny tied Llama, and what transformers makes of them."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serve.wire import Probes

LENGTH = 24
WEIGHTS = (1, 2, 3)
ADAPTERS = ("a", "b")
_SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
_ADAPTED = {"self_attn.q_proj": (64, 64), "self_attn.v_proj": (64, 64), "mlp.down_proj": (64, 128)}


@dataclass(frozen=True)
class Tiny:
    """Checkpoints, prompts, and what transformers makes of them."""

    folder: Path
    prompts: list[list[int]]
    expected: dict[str, list[tuple[list[int], list[float]]]]
    """Weights, `1`, or with an adapter, `1a` -> per prompt the greedy ids and their logprobs."""

    def checkpoint(self, weights: int | str) -> Path:
        return self.folder / str(weights)

    def probes(self, weights: str, tolerance: float) -> Probes:
        """Return what transformers makes of the prompts and their greedy answers, in fp32."""
        import torch

        model = model_of(self.checkpoint(weights[0]))
        if len(weights) > 1:
            merge(model, self.checkpoint(weights[1]))
        tokens = [
            (*prompt, *ids)
            for prompt, (ids, _) in zip(self.prompts, self.expected[weights], strict=True)
        ]
        with torch.no_grad():
            made = model(torch.tensor(tokens)).logits.log_softmax(-1)[:, :-1]
        logprobs = made.gather(2, torch.tensor(tokens)[:, 1:, None])[..., 0].tolist()
        return Probes(
            tokens=tuple(tokens), logprobs=tuple(map(tuple, logprobs)), tolerance=tolerance
        )


def model_of(folder: Path) -> Any:
    import transformers

    return transformers.LlamaForCausalLM.from_pretrained(folder).eval()


def write_checkpoints(folder: Path) -> None:
    """Write three sets of weights: in one file, with the tied head written out, and in shards."""
    import torch
    import transformers
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(256)}, unk_token="w0"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1")
    config = transformers.LlamaConfig(
        **_SIZES, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, initializer_range=0.3
    )
    for weights in WEIGHTS:
        torch.manual_seed(weights)
        model = transformers.LlamaForCausalLM(config)
        target = folder / str(weights)
        model.save_pretrained(target, max_shard_size="200KB" if weights == 3 else "1GB")
        tokenizer.save_pretrained(target)
    head = dict(model_of(folder / "2").named_parameters())
    head["lm_head.weight"] = head["model.embed_tokens.weight"].clone()
    save_file(
        {name: tensor.detach() for name, tensor in head.items()}, folder / "2/model.safetensors"
    )
    for seed, adapter in enumerate(ADAPTERS):
        draw = torch.Generator().manual_seed(seed)
        (folder / adapter).mkdir()
        tensors = {
            f"base_model.model.model.layers.{layer}.{module}.lora_{half}.weight": 0.3
            * torch.randn((4, sizes[1]) if half == "A" else (sizes[0], 4), generator=draw)
            for layer in range(2)
            for module, sizes in _ADAPTED.items()
            for half in "AB"
        }
        save_file(tensors, folder / adapter / "adapter_model.safetensors")
        modules = [module.partition(".")[2] for module in _ADAPTED]
        settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": modules}
        (folder / adapter / "adapter_config.json").write_text(json.dumps(settings))


def merge(model: Any, adapter: Path) -> None:
    import torch
    from safetensors.torch import load_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, a in tensors.items():
            if name.endswith("lora_A.weight"):
                stem = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                b = tensors[name.replace("lora_A", "lora_B")]
                parameters[f"{stem}.weight"].add_(8 / 4 * b @ a)


def greedy(model: Any, prompt: list[int]) -> tuple[list[int], list[float], float]:
    """Return the greedy ids, their logprobs, and the smallest lead of a choice over the next."""
    import torch

    with torch.no_grad():
        ids = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=LENGTH,
            do_sample=False,
            eos_token_id=None,
        )
        logprobs = model(ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
    best = logprobs.topk(2).values
    return (
        ids[0, len(prompt) :].tolist(),
        best[:, 0].tolist(),
        float((best[:, 0] - best[:, 1]).min()),
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch

        torch.set_num_threads(1)
        write_checkpoints(folder)
        models = {str(weights): model_of(folder / str(weights)) for weights in WEIGHTS}
        for adapter in ADAPTERS:
            models[f"1{adapter}"] = model_of(folder / "1")
            merge(models[f"1{adapter}"], folder / adapter)
        candidates = [[(7 * n + seed) % 250 + 3 for n in range(100)] for seed in range(16)]
        made = [[greedy(model, prompt) for model in models.values()] for prompt in candidates]
    # Where two tokens are almost equally likely, rounding may choose the other one.
    clear = [number for number, answers in enumerate(made) if min(a[2] for a in answers) > 1e-3][:6]
    assert len(clear) == 6
    return Tiny(
        folder=folder,
        prompts=[candidates[number] for number in clear],
        expected={
            key: [made[number][column][:2] for number in clear] for column, key in enumerate(models)
        },
    )
