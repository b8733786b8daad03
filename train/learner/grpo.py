"""TRL's asynchronous GRPO trainer with our steps, losses, publishing and checkpoints: TRL's door.

What is TRL's: the model with its fused head, the packing, the optimizer loop, FSDP. What is ours:
whole steps in order of admission instead of a queue, the losses, the way to the gateway, and
checkpoints that are complete or not there.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
import trl.experimental.async_grpo.async_grpo_trainer as trl_async
from accelerate.utils import is_peft_model
from datasets import Dataset
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer

from train.learner import attention
from train.learner.losses import Diagnostics, LossSettings, combine, token_loss
from train.learner.steps import Steps
from train.publish import processes
from train.rollouts.worker import RolloutWorker

trl_async.register_tree_attention = attention.register
if not torch.cuda.is_available():
    # TRL asks the GPU for its name to know its peak.
    trl_async.get_peak_flops_per_device = lambda *_, **__: None


class Publishes(Protocol):
    """Where new weights go. `send` is called by all processes, since gathering is collective."""

    def send(self, trainer: GrpoTrainer, step: int) -> int:
        """Make the weights live, and return their version."""
        ...


class Saves(Protocol):
    """Where checkpoints go."""

    def save(self, trainer: GrpoTrainer, step: int) -> None:
        """Write a checkpoint of this step, complete or not at all."""
        ...


class _NoTransfer:
    """TRL's weight transfer, of which nothing is left: see `GrpoTrainer._sync_weight`."""

    def init_weight_transfer(self) -> None: ...

    def pause(self) -> None: ...

    def send_weights(self, iterator: Iterator[tuple[str, torch.Tensor]]) -> None: ...

    def resume(self) -> None: ...

    def destroy(self) -> None: ...


class GrpoTrainer(AsyncGRPOTrainer):  # type: ignore[misc]  # transformers has no types here
    """Learns from the steps of a rollout worker."""

    def __init__(
        self,
        *,
        model: Path,
        args: AsyncGRPOConfig,
        tokenizer: PreTrainedTokenizerBase,
        worker: RolloutWorker,
        publisher: Publishes,
        checkpoints: Saves,
        losses: LossSettings,
        callbacks: list[TrainerCallback],
        peft_config: Any = None,  # noqa: ANN401  # peft's
    ) -> None:
        super().__init__(
            model=str(model),
            args=args,
            train_dataset=Dataset.from_dict({"prompt": ["not used: the env asks"]}),
            processing_class=tokenizer,
            callbacks=callbacks,
            peft_config=peft_config,
            rollout_worker=worker,
            weight_transfer=_NoTransfer(),
        )
        self.remove_callback(PrinterCallback)
        self.steps: Steps
        """Set before `train`."""
        self.live_version = -1
        """The version of the weights that were published last."""
        self.diagnostics: list[Diagnostics] = []
        """Of the micro-batches of the current step."""
        self.gaps: list[torch.Tensor] = []
        """|trainer's logprob - sampler's| of tokens that the current weights sampled."""
        self._publisher = publisher
        self._checkpoints = checkpoints
        self._losses = losses
        self._sent_step = -1

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the steps. Not prepared by accelerate, which would take a batch ahead of time."""
        self._rollout_dataset = self.steps
        return DataLoader(self.steps, batch_size=None)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ANN401
    ) -> torch.Tensor:
        """Return this micro-batch's part of the step's loss."""
        log_probs, entropy = self._forward(model, inputs)
        real = inputs["token_index"] >= 0
        old_log_probs = inputs["old_log_probs"][real]
        terms = token_loss(
            log_probs,
            old_log_probs,
            inputs["advantages"][real],
            inputs["segment_id"][real],
            self._losses,
            rows_in_step=int(inputs["rows_in_step"]),
            tokens_in_step=int(inputs["tokens_in_step"]),
        )
        self.diagnostics.append(terms.diagnostics)
        if self._sent_step == self.state.global_step:  # what is live is what is trained on
            fresh = inputs["token_versions"] == self.live_version
            with torch.no_grad():
                self.gaps.append((log_probs - old_log_probs).abs()[fresh])
        over_all = torch.stack([entropy.sum(), entropy.new_tensor(float(entropy.numel()))])
        over_all = self.accelerator.reduce(over_all.detach(), reduction="sum")
        self._metrics["train"]["entropy"].append(tuple(over_all.tolist()))
        self._step_forward_tokens += float(inputs["input_ids"].numel())
        self._step_trained_tokens += float(log_probs.numel())
        self._step_seq_len_weighted += float(
            inputs["mean_seq_len"][0] * inputs["input_ids"].numel()
        )
        return terms.loss * self.accelerator.num_processes

    def _forward(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logprob of each loss term, and the entropy it was drawn with."""
        real = inputs["attention_mask"].bool()
        tree = {
            key: inputs[key][inputs[key] >= 0]
            for key in ("tree_kv_index", "tree_cu_seqlens_q", "tree_cu_seqlens_k")
        }
        longest_q, longest_k = inputs["tree_max_seqlens"].flatten().tolist()[:2]
        outputs = model(
            input_ids=inputs["input_ids"][real].unsqueeze(0),
            position_ids=inputs["position_ids"][real].unsqueeze(0),
            shift_labels=inputs["shift_labels"][real].unsqueeze(0),
            fused_lm_head=True,
            tree_max_seqlen_q=longest_q,
            tree_max_seqlen_k=longest_k,
            **tree,
        )
        at = inputs["token_index"][inputs["token_index"] >= 0]
        return outputs.log_probs.flatten()[at], outputs.entropy.flatten()[at]

    def take_diagnostics(self) -> tuple[Diagnostics, torch.Tensor]:
        """Return what the step's micro-batches told on all processes, and forget it."""
        told = combine(processes.all_of(self.diagnostics))
        gaps = torch.cat([torch.empty(0), *(each.cpu() for each in self.gaps)])
        self.diagnostics, self.gaps = [], []
        return told, torch.cat(processes.all_of([gaps]))

    def send(self) -> None:
        """Publish the weights as they are, unless that was done."""
        step = self.state.global_step
        if step != self._sent_step:
            self.live_version = self._publisher.send(self, step)
            self._sent_step = step
            if self.rollout_worker is not None:
                self.rollout_worker.published(step, self.live_version)

    def _sync_weight(self) -> None:
        """Publish: TRL calls this before the first step, and after each `weight_sync_steps`."""
        started = time.perf_counter()
        self.send()
        self._metrics["train"]["perf/weight_sync_s"].append(time.perf_counter() - started)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:  # noqa: ANN401
        self._checkpoints.save(self, self.state.global_step)

    def write(self, folder: Path) -> None:
        """Write all that a resume needs of the trainer into a folder, on every process."""
        at = folder / ".trainer"
        self._save_to = str(at)
        super(AsyncGRPOTrainer, self)._save_checkpoint(self.model, None)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (written,) = at.iterdir()
            for file in written.iterdir():
                file.rename(folder / file.name)
            shutil.rmtree(at)
        if self.is_fsdp_enabled and not self.is_adapter():
            self._write_whole(folder)

    def _write_whole(self, folder: Path) -> None:
        """Write the weights anew: of shards, transformers saves a tied head a second time."""
        is_main = self.accelerator.is_main_process
        tensors = {name: each.cpu() for name, each in self.full_tensors() if is_main}
        if is_main:
            for file in folder.glob("model*.safetensors*"):
                file.unlink()
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    def _get_output_dir(self, trial: Any) -> str:  # noqa: ANN401
        told: str = getattr(self, "_save_to", "") or super()._get_output_dir(trial)
        return told

    @property
    def sink(self) -> dict[str, list[Any]]:
        """TRL's lists of metrics of the current step."""
        sink: dict[str, list[Any]] = self._metrics["train"]
        return sink

    def full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield all weights under a checkpoint's names; on several processes all must."""
        yield from self._streaming_iter()

    def is_adapter(self) -> bool:
        """Whether an adapter is trained instead of all weights."""
        return bool(is_peft_model(self.accelerator.unwrap_model(self.model)))
