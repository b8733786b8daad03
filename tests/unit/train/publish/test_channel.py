"""What of the trainer's weights is sent, and with which probes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from serve.wire import PolicyKind, Probes
from tests.unit.train.publish.test_weights import files_of_at_most
from tests.unit.train.tinies import make_checkpoint
from train.errors import PublishFailed, SaveFailed
from train.learner.attention import TREE_ATTENTION, register

with warnings.catch_warnings():
    # TRL says of each vLLM that it has not seen that it has not seen it.
    warnings.simplefilter("ignore")
    from trl.experimental.async_grpo.async_grpo_trainer import _iter_vllm_named_params

    from train.publish import probe, processes
    from train.publish.channel import Channel
    from train.publish.publisher import Publisher, Sent

SEQUENCES = ((2, 3, 5, 1), (4, 4, 9))


class Trainer:
    """A model that is being trained, whole or by an adapter that does something."""

    def __init__(self, checkpoint: Path, *, adapted: bool) -> None:
        register()
        model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation=TREE_ATTENTION)
        torch.manual_seed(1)
        if adapted:
            told = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
            model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **told))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))
                    assert not adapted or "lora_" in name
        self.model: Any = model.train()
        self.accelerator: Any = Accelerator(cpu=True)

    def full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from _iter_vllm_named_params(self.model)


class Copies(Publisher):
    """Takes what it is given, and looks into it as a replica would."""

    def __init__(self, checkpoint: Path, fails: bool = False) -> None:
        self.checkpoint, self.fails = checkpoint, fails
        self.told: list[dict[str, Any]] = []
        self.models: list[Any] = []

    def publish(
        self,
        folder: Path,
        kind: PolicyKind,
        *,
        step: int,
        metrics: Mapping[str, float],
        probes: Probes | None,
    ) -> Sent:
        if self.fails:
            raise PublishFailed("no")
        files = {file.name for file in folder.iterdir()}
        self.told.append({"kind": kind, "step": step, "probes": probes, "files": files})
        if kind is PolicyKind.FULL:
            self.models.append(AutoModelForCausalLM.from_pretrained(folder))
        else:
            base = AutoModelForCausalLM.from_pretrained(self.checkpoint)
            self.models.append(PeftModel.from_pretrained(base, folder))
        return Sent(version=30 + step, seconds=0.25)

    def replica_says(self) -> probe.Sequences:
        return probe.plain_logprobs(self.models[-1], SEQUENCES)  # type: ignore[return-value]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model")


def channel_to(publisher: Publisher | None, checkpoint: Path, **told: Any) -> Channel:
    settings: dict[str, Any] = {
        "kind": PolicyKind.FULL,
        "scratch": checkpoint.parent / "versions",
        "source": checkpoint,
        "sequences": SEQUENCES,
        "tolerance": 0.5,
    }
    return Channel(publisher, **(settings | told))


def close(told: Any, expected: Any) -> bool:
    return all(a == pytest.approx(b, abs=1e-4) for a, b in zip(told, expected, strict=True))


@pytest.mark.parametrize(
    ("kind", "adapted"),
    [(PolicyKind.FULL, False), (PolicyKind.FULL, True), (PolicyKind.LORA, True)],
    ids=["full", "adapter merged", "adapter alone"],
)
def test_a_replica_computes_what_the_trainer_does(
    checkpoint: Path, kind: PolicyKind, adapted: bool
) -> None:
    trainer, copies = Trainer(checkpoint, adapted=adapted), Copies(checkpoint)
    sends = channel_to(copies, checkpoint, kind=kind)
    assert sends.send(trainer, 7) == 37
    assert sends.last == Sent(version=37, seconds=0.25)
    (told,) = copies.told
    assert (told["kind"], told["step"]) == (kind, 7)
    probes: Probes = told["probes"]
    assert (probes.tokens, probes.tolerance) == (SEQUENCES, 0.5)
    assert close(probes.logprobs, copies.replica_says())
    untrained = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert not close(probes.logprobs, probe.plain_logprobs(untrained, SEQUENCES))
    assert trainer.model.training


def test_a_merged_adapter_is_a_model_like_any_other(checkpoint: Path) -> None:
    trainer, copies = Trainer(checkpoint, adapted=True), Copies(checkpoint)
    channel_to(copies, checkpoint).send(trainer, 1)
    (told,) = copies.told
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= told["files"]
    assert not any("adapter" in name for name in told["files"])


def test_an_adapter_alone_is_small_and_in_peft_s_layout(checkpoint: Path) -> None:
    trainer, copies = Trainer(checkpoint, adapted=True), Copies(checkpoint)
    channel_to(copies, checkpoint, kind=PolicyKind.LORA).send(trainer, 1)
    (told,) = copies.told
    assert {"adapter_model.safetensors", "adapter_config.json"} <= told["files"]
    assert "model.safetensors" not in told["files"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_merged_adapter_is_taken_out_again(checkpoint: Path, fails: bool) -> None:
    trainer = Trainer(checkpoint, adapted=True)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    sends = channel_to(Copies(checkpoint, fails), checkpoint)
    for step in range(3):
        try:
            sends.send(trainer, step)
        except PublishFailed:
            assert fails
    for name, tensor in trainer.model.state_dict().items():
        assert torch.allclose(tensor, before[name], atol=1e-6), name
    assert not any(getattr(module, "merged", False) for module in trainer.model.modules())


def test_an_adapter_is_not_merged_to_be_sent_alone(checkpoint: Path) -> None:
    trainer = Trainer(checkpoint, adapted=True)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    channel_to(Copies(checkpoint), checkpoint, kind=PolicyKind.LORA).send(trainer, 1)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_without_sequences_there_is_no_gate(checkpoint: Path) -> None:
    copies = Copies(checkpoint)
    channel_to(copies, checkpoint, sequences=()).send(Trainer(checkpoint, adapted=False), 1)
    assert copies.told[0]["probes"] is None


def test_the_model_is_asked_in_the_way_that_it_takes(checkpoint: Path) -> None:
    copies, asked = Copies(checkpoint), []

    def logprobs(model: torch.nn.Module, tokens: probe.Sequences) -> tuple[tuple[float, ...], ...]:
        asked.append(model)
        return tuple(tuple(-1.0 for _ in ids[1:]) for ids in tokens)

    trainer = Trainer(checkpoint, adapted=False)
    channel_to(copies, checkpoint, logprobs=logprobs).send(trainer, 1)
    assert asked == [trainer.model]
    assert copies.told[0]["probes"].logprobs == ((-1.0,) * 3, (-1.0,) * 2)


@pytest.mark.parametrize("kind", list(PolicyKind))
def test_a_full_disk_is_said(checkpoint: Path, kind: PolicyKind) -> None:
    trainer = Trainer(checkpoint, adapted=True)
    sends = channel_to(Copies(checkpoint), checkpoint, kind=kind)
    with files_of_at_most(2000), pytest.raises(SaveFailed, match=r"cannot write .*step-000001"):
        sends.send(trainer, 1)
    assert sends.last is None
    assert not any(getattr(module, "merged", False) for module in trainer.model.modules())


def test_other_processes_learn_the_version_and_publish_nothing(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, sent = Trainer(checkpoint, adapted=False), Sent(version=12, seconds=0.5)

    def broadcast(held: list[object], from_process: int) -> list[object]:
        assert (held, from_process) == ([None, None], 0)
        return [sent, None]

    monkeypatch.setattr(processes, "broadcast_object_list", broadcast)
    others = channel_to(None, checkpoint)
    assert others.send(trainer, 1) == 12
    assert others.last == sent
    assert not (checkpoint.parent / "versions").exists()


def test_what_is_refused_is_raised_on_all_processes(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[list[object]] = []

    def broadcast(held: list[object], from_process: int) -> list[object]:
        heard.append(held)
        return held

    monkeypatch.setattr(processes, "broadcast_object_list", broadcast)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PublishFailed, match="no"):
        channel_to(Copies(checkpoint, fails=True), checkpoint).send(
            Trainer(checkpoint, adapted=False), 1
        )
    ((nothing, error),) = heard
    assert nothing is None
    assert isinstance(error, PublishFailed)
