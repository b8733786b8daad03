"""`learn.mode=sync`: TRL's own GRPOTrainer, which plays a batch, learns from it, and publishes.

The reference that the asynchronous trainer is held against. What is TRL's: the loss, the
advantages, the importance correction, the padding, the optimizer loop. What is ours: the
`rollout_func`, which takes whole groups of the same env seeds as async mode from the rollout
worker, the way to the gateway, the checkpoints, and a look at what the loss was made of.

Where it differs from async mode: TRL counts the rows of flat groups in its means, and takes the
clipped ratio against the weights before the update, so that with one update per batch it is 1.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.async_grpo import AsyncGRPOTrainer

from evalkit.play.strategies import message
from train.config import Importance, TrainConfig
from train.errors import BadModel
from train.learner.grpo import Publishes, Saves
from train.learner.losses import Diagnostics, LossSettings, combine, token_loss
from train.learner.steps import StepPlan, TakesSteps
from train.learner.sync_rows import assemble, step_of, told_reward
from train.rollouts.advantages import with_advantages
from train.rollouts.renderer import ChatRenderer
from train.rollouts.rows import Group
from train.rollouts.worker import RolloutWorker

_MASKING = frozenset({Importance.TOKEN_MASK, Importance.SEQUENCE_MASK})


def settled(config: TrainConfig) -> TrainConfig:
    """Return the config as it is carried out in turns: with a staleness of 0."""
    learn = config.learn.model_copy(update={"max_staleness": 0})
    return config.model_copy(update={"learn": learn})


def check_template(renderer: ChatRenderer, model: str) -> None:
    """Raise BadModel where the chat template edits earlier replies: such rows are not one."""
    if renderer.goes_on((), message("user", "u")) is None:
        raise BadModel(
            f"{model}: its chat template changes replies when they are part of the history, so an "
            "episode is several rows; learn.mode=sync takes one row: use learn.mode=async"
        )


def arguments(config: TrainConfig, shared: dict[str, Any]) -> GRPOConfig:
    """Return what TRL is told; `shared` is what both modes tell transformers."""
    learn, rollouts = config.learn, config.rollouts
    rows = rollouts.groups_per_step * rollouts.group_size
    corrected = learn.importance is not Importance.NONE
    told: dict[str, Any] = shared | {
        "per_device_train_batch_size": rows // learn.accumulation,
        "steps_per_generation": learn.accumulation,
        "top_p": rollouts.top_p,
        "max_completion_length": learn.max_row_tokens,
        "shuffle_dataset": False,
        "loss_type": learn.loss.value,
        "scale_rewards": learn.scale.value,
        "epsilon": learn.epsilon_low,
        "epsilon_high": learn.epsilon_high,
        "beta": 0.0,
        "vllm_importance_sampling_correction": corrected,
    }
    if corrected:
        cap = learn.importance_cap
        told["vllm_importance_sampling_mode"] = learn.importance.value
        told["vllm_importance_sampling_clip_max"] = cap
        told["vllm_importance_sampling_clip_min"] = (
            1 / cap if learn.importance in _MASKING else None
        )
    return GRPOConfig(**told)


class Turns:
    """Whole steps, each played when it is asked for: what async mode's `Steps` is there."""

    def __init__(
        self,
        plan: StepPlan,
        worker: TakesSteps,
        *,
        on_step: Callable[[int, tuple[Group, ...]], None],
    ) -> None:
        self._plan = plan
        self._worker = worker
        self._on_step = on_step

    def take(self, step: int) -> tuple[Group, ...]:
        """Return the groups of a step (from 1), their rewards shuffled where that is asked for."""
        shuffle = None
        if self._plan.shuffle_seed is not None:
            shuffle = random.Random(f"{self._plan.shuffle_seed}|{step}")
        groups = with_advantages(self._worker.take(step), self._plan.scale, shuffle)
        self._on_step(step, groups)
        return groups


class Takes(Protocol):
    """Where a trainer takes its steps from."""

    def take(self, step: int) -> tuple[Group, ...]:
        """Return the groups of a step, from 1."""
        ...


def prompts(steps: int, groups_per_step: int) -> Dataset:
    """Return a prompt for each group of a run: its number, which names its env seed."""
    return Dataset.from_dict({"prompt": [str(index) for index in range(steps * groups_per_step)]})


class _Clock(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Times the optimizer, and publishes as soon as a step is over."""

    def __init__(self, trainer: SyncTrainer) -> None:
        self._trainer = trainer
        self._started_s = 0.0

    def on_pre_optimizer_step(self, *_: object, **__: object) -> None:
        """Start the clock."""
        self._started_s = time.perf_counter()

    def on_optimizer_step(self, *_: object, **__: object) -> None:
        """Stop it."""
        self._trainer.note("perf/optimizer_s", time.perf_counter() - self._started_s)

    def on_step_end(self, *_: object, **__: object) -> None:
        """Publish, before the step is logged and saved; at TRL's sync point it is then done."""
        self._trainer.send()


class SyncTrainer(GRPOTrainer):  # type: ignore[misc]  # transformers has no types here
    """TRL's trainer, whose rollouts come from the served policy."""

    def __init__(
        self,
        *,
        model: Path,
        args: GRPOConfig,
        tokenizer: PreTrainedTokenizerBase,
        worker: RolloutWorker,
        publisher: Publishes,
        checkpoints: Saves,
        losses: LossSettings,
        callbacks: list[TrainerCallback],
        peft_config: Any = None,  # noqa: ANN401  # peft's
    ) -> None:
        self.steps: Takes
        """Set before `train`."""
        self.live_version = -1
        """The version of the weights that were published last."""
        self.diagnostics: list[Diagnostics] = []
        """Of the micro-batches of the current step."""
        self.gaps: list[torch.Tensor] = []
        """|trainer's logprob - sampler's| of the trained tokens."""
        self._worker = worker
        self._publisher = publisher
        self._checkpoints = checkpoints
        self._losses = losses
        self._sent_step = -1
        self._playing = False
        self._learn_s = self._away_s = 0.0
        self._log_probs = torch.empty(0)
        per_step = args.generation_batch_size // args.num_generations
        super().__init__(
            model=str(model),
            args=args,
            reward_funcs=told_reward,
            train_dataset=prompts(args.max_steps, per_step),
            processing_class=tokenizer,
            callbacks=callbacks,
            peft_config=peft_config,
            rollout_func=self._rollouts,
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(_Clock(self))
        # With use_vllm in the arguments TRL would open an NCCL group with a server of its own.
        self.use_vllm, self.vllm_generation, self._last_loaded_step = True, self, -1

    def sync_weights(self) -> None:
        """Publish: TRL calls this before each rollout."""
        started_s = time.perf_counter()
        self.send()
        self._away_s += time.perf_counter() - started_s

    def send(self) -> None:
        """Publish the weights as they are, unless that was done."""
        step = self.state.global_step
        if step != self._sent_step:
            self.live_version = self._publisher.send(self, step)
            self._sent_step = step
            self._worker.published(step, self.live_version)

    def note(self, name: str, value: float) -> None:
        """Add to TRL's metrics of the current step."""
        self._metrics["train"][name].append(value)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401
        """Do a micro-batch; the first one of a step plays first, which is timed by itself."""
        self._away_s = 0.0
        started_s = time.perf_counter()
        loss = super().training_step(*args, **kwargs)
        self._learn_s += time.perf_counter() - started_s - self._away_s
        if self._step % self.current_gradient_accumulation_steps == 0:
            self.note("perf/fwd_bwd_s", self._learn_s)
            self._learn_s = 0.0
        return loss

    def take_diagnostics(self) -> tuple[Diagnostics, torch.Tensor]:
        """Return what the step's micro-batches told, and forget it."""
        told, gaps = combine(self.diagnostics), torch.cat(self.gaps or [torch.empty(0)])
        self.diagnostics, self.gaps = [], []
        return told, gaps

    def write(self, folder: Path) -> None:
        """Write all that a resume needs of the trainer into a folder."""
        at = folder / ".trainer"
        self._save_to = str(at)
        # Not GRPOTrainer's, which writes a model card for the hub besides.
        super(GRPOTrainer, self)._save_checkpoint(self.model, None)
        (written,) = at.iterdir()
        for file in written.iterdir():
            file.rename(folder / file.name)
        shutil.rmtree(at)

    def full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield all weights under a checkpoint's names."""
        yield from AsyncGRPOTrainer._streaming_iter(self)

    def _rollouts(self, prompts: list[str], trainer: object) -> dict[str, list[Any]]:
        del trainer
        started_s = time.perf_counter()
        if not self._playing:
            self._playing = True
            self._worker.start()
        group_size = self.num_generations
        groups = self.steps.take(step_of(prompts, group_size))
        waited_s = time.perf_counter() - started_s
        self._away_s += waited_s
        self.note("perf/rollout_wait_s", waited_s)
        return assemble(groups, group_size, self.processing_class.eos_token_id)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        try:
            return super()._inner_training_loop(*args, **kwargs)
        finally:
            if self._playing:
                self._worker.stop()

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._log_probs = found[0].detach()
        return found

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        told, gaps = look(self._log_probs, inputs, self._losses)
        self.diagnostics.append(told)
        self.gaps.append(gaps)
        return loss

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:  # noqa: ANN401
        del model, trial
        self._checkpoints.save(self, self.state.global_step)

    def _get_output_dir(self, trial: Any) -> str:  # noqa: ANN401
        told: str = getattr(self, "_save_to", "") or super()._get_output_dir(trial)
        return told


def look(
    log_probs: torch.Tensor, inputs: dict[str, torch.Tensor], losses: LossSettings
) -> tuple[Diagnostics, torch.Tensor]:
    """Return what a micro-batch tells: how far apart trainer and sampler are, token by token.

    `log_probs` has the shape (rows, completion tokens), as the tensors of TRL's batch.
    """
    trained = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    rows = trained.nonzero()[:, 0]
    ours, sampled = log_probs[trained], inputs["sampling_per_token_logps"][trained]
    terms = token_loss(
        ours,
        sampled,
        inputs["advantages"][rows],
        rows,
        losses,
        rows_in_step=1,
        tokens_in_step=1,
    )
    # TRL's clipped ratio is taken against the weights themselves, and is 1.
    told = replace(terms.diagnostics, clipped_low=0.0, clipped_high=0.0)
    return told, (ours - sampled).abs()
