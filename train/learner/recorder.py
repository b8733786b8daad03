"""What a step was, told to everybody; and what a checkpoint holds beside the weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from train.errors import BadModel
from train.learner.checkpoints import Checkpoints, SavedCheckpoints, TrainState, save_groups
from train.learner.losses import Diagnostics
from train.publish.channel import Channel
from train.publish.publisher import Publisher
from train.rollouts.rows import Group
from train.rollouts.worker import RolloutWorker
from train.run import RunDir, State, Status
from train.track.metrics import StepMetrics, of_groups
from train.track.tracker import Tracker

GROUPS = "groups.npz"

_MOST_GAP = 0.1
"""Nats that logprobs of the same weights may differ by in the mean; bf16 makes some 0.01."""


class Trainer(Protocol):
    """What is needed of a trainer, of either mode."""

    live_version: int
    """The version of the weights that were published last."""
    accelerator: Any

    def take_diagnostics(self) -> tuple[Diagnostics, torch.Tensor]:
        """Return what the step's micro-batches told, and |trainer's logprob - sampler's|."""
        ...

    def send(self) -> None:
        """Publish the weights as they are, unless that was done."""
        ...

    def write(self, folder: Path) -> None:
        """Write all that a resume needs of the trainer into a folder."""
        ...


class Recorder(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Makes a StepMetrics of each step, on the main process."""

    def __init__(
        self,
        tracker: Tracker | None,
        run: RunDir,
        *,
        resumed_version: int | None = None,
        temperature: float = 1.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`resumed_version` is what the version of the checkpoint that it goes on from was.

        At another `temperature` than 1 the sampler's logprobs are looked at once.
        """
        self.last: StepMetrics | None = None
        self.trainer: Trainer
        """Set before `train`."""
        self.channel: Channel
        self.worker: RolloutWorker
        self._tracker = tracker
        self._run = run
        self._clock = clock
        self._began_s = self._stepped_s = clock()
        self._replayed = 0
        self._told: dict[str, Any] = {}
        self._resumed_version = resumed_version
        self._numbers: dict[int, int] = {}
        self._doubted = temperature if temperature != 1 else None

    def took(self, step: int, groups: tuple[Group, ...]) -> None:
        """Take in what a step is made of, before it is trained on."""
        live = self.trainer.live_version
        self._numbers.setdefault(live, len(self._numbers))
        self._told = {"step": step, **of_groups(groups, live, self._number)}

    def _number(self, version: int) -> int:
        """Return the how-manieth version since this process began it is; earlier ones are below 0.

        A run that goes on publishes its weights again, under a number that may be far from that
        which they had.
        """
        if version in self._numbers:
            return self._numbers[version]
        return version - (version if self._resumed_version is None else self._resumed_version)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Start the clock of the first step."""
        self._stepped_s = self._clock()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Tell a step, as soon as transformers has logged it."""
        if logs is None or "loss" not in logs or not self._told:
            return
        now_s = self._clock()
        step_s, self._stepped_s = now_s - self._stepped_s, now_s
        metrics = StepMetrics(
            **self._told,
            **self._learned(logs),
            **self._timed(logs, step_s),
            version=self.trainer.live_version,
            wall_s=now_s - self._began_s,
            replayed=self.worker.replayed - self._replayed,
        )
        self._replayed = self.worker.replayed
        self._told = {}
        self.last = metrics
        if self._tracker is None:
            return
        self._tracker.step(metrics)
        self._run.write_status(
            Status(state=State.RUNNING, step=metrics.step, version=metrics.version)
        )

    def _learned(self, logs: dict[str, float]) -> dict[str, Any]:
        told, gaps = self.trainer.take_diagnostics()
        if self._doubted is not None and len(gaps):
            check_sampler(gaps, self._doubted)
            self._doubted = None
        return {
            "loss": logs["loss"],
            "grad_norm": logs.get("grad_norm"),
            "lr": logs.get("learning_rate"),
            "entropy": logs.get("entropy"),
            "ratio_mean": told.ratio_mean,
            "ratio_max": told.ratio_max,
            "clip_low": told.clipped_low,
            "clip_high": told.clipped_high,
            "kl": told.kl,
            "weight_mean": told.importance_mean,
            "gap_mean": gaps.mean().item() if len(gaps) else None,
            "gap_max": gaps.max().item() if len(gaps) else None,
        }

    def _timed(self, logs: dict[str, float], step_s: float) -> dict[str, Any]:
        wait_s = logs.get("perf/rollout_wait_s") or 0.0
        sent = self.channel.last
        learn_s = (logs.get("perf/fwd_bwd_s") or 0.0) + (logs.get("perf/optimizer_s") or 0.0)
        return {
            "step_s": step_s,
            "wait_s": wait_s,
            "learn_s": learn_s,
            "sync_s": sent.seconds if sent else None,
            "probe_gap": sent.probe_gap if sent else None,
            "tokens_per_s": (self._told.get("tokens_trained") or 0) / step_s,
            "idle_share": min(1.0, wait_s / step_s),
        }


class Saver:
    """Writes checkpoints: the trainer's own files, where the run stands, what waits."""

    def __init__(
        self,
        checkpoints: SavedCheckpoints,
        recorder: Recorder,
        worker: RolloutWorker,
        publisher: Publisher | None,
        *,
        groups_per_step: int,
        versions: dict[int, int],
    ) -> None:
        """Take `Checkpoints`, which write, on the main process, and only there a publisher."""
        self.saved_step = -1
        self._checkpoints = checkpoints
        self._recorder = recorder
        self._worker = worker
        self._publisher = publisher
        self._groups_per_step = groups_per_step
        self._versions = versions

    def save(self, trainer: Trainer, step: int) -> None:
        """Write a checkpoint of this step, complete or not at all; raise SaveFailed.

        Its weights are published first, so that every checkpoint has a version of its own.
        """
        trainer.send()
        if not isinstance(self._checkpoints, Checkpoints):
            trainer.accelerator.wait_for_everyone()
            trainer.write(self._checkpoints.staging(step))
            self.saved_step = step
            return
        version = trainer.live_version
        with self._checkpoints.writing(step) as folder:
            trainer.accelerator.wait_for_everyone()
            trainer.write(folder)
            save_groups(folder / GROUPS, self._worker.schedule.waiting())
            kept = sorted({*self._checkpoints.list(), step})[-self._checkpoints.keep :]
            known = {**self._versions, step: version}
            self._versions = {at: known[at] for at in kept if at in known}
            last = self._recorder.last
            TrainState(
                step=step,
                next_group=step * self._groups_per_step,
                published_version=version,
                versions=self._versions,
                metrics=_row(last) if last and last.step == step else {},
            ).write(folder)
        self.saved_step = step
        if self._publisher is not None:
            self._publisher.kept = set(self._versions.values())
            self._publisher.prune()


def check_sampler(gaps: torch.Tensor, temperature: float) -> None:
    """Raise BadModel where tokens have other logprobs than those that they were drawn with.

    `gaps` are the differences to the trainer's, of tokens that its own weights sampled.
    """
    mean = gaps.mean().item()
    if mean > _MOST_GAP:
        raise BadModel(
            f"the sampler's logprobs differ from the trainer's by {mean:.2g} in the mean, at most "
            f"{_MOST_GAP:g} expected of the same weights: at rollouts.temperature={temperature:g} "
            "its engines must be started with --logprobs-mode processed_logprobs, as `serve up` "
            "does; vLLM by itself tells those of temperature 1"
        )


def _row(metrics: StepMetrics) -> dict[str, float | int | None]:
    return {name: getattr(metrics, name) for name in StepMetrics.__slots__}
