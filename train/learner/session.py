"""One learner's life: from a run directory and a gateway's URL to the last step. The composition.

Everything that the config says becomes an object here; the rooms do not know each other's keys.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoTokenizer
from trl.experimental.async_grpo import AsyncGRPOConfig

from envs import make
from evalkit.play.limits import Patience, RetryLimits
from evalkit.play.proxied import open_transport
from evalkit.play.strategies import parse_strategy
from evalkit.play.tokens import TokenModel, TokenSampling
from serve.client import AdminClient
from serve.wire import PolicyKind, SwapMode
from train.config import Channel as ChannelName
from train.config import LearnSection, Mode, Precision, TrainConfig
from train.errors import BadModel
from train.learner.checkpoints import (
    Checkpoints,
    SavedCheckpoints,
    TrainState,
    load_groups,
)
from train.learner.grpo import GrpoTrainer
from train.learner.losses import LossSettings
from train.learner.recorder import GROUPS, Recorder, Saver
from train.learner.served import Served, find_policy
from train.learner.steps import StepPlan, Steps
from train.publish import probe, processes
from train.publish.channel import Channel
from train.publish.commits import committing, outbox
from train.publish.publisher import Publisher
from train.rewards.registry import make_reward
from train.rollouts.player import Plan, Player
from train.rollouts.renderer import ChatRenderer
from train.rollouts.schedule import Schedule
from train.rollouts.worker import Interrupted, RolloutWorker
from train.run import RunDir
from train.track.tracker import Tracker, open_tracker

_FIRST_PROBE_SEED = 1 << 31
_LONGEST_PROBE = 512
_SHARDED: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"},
}
"""Several processes share the weights out among their GPUs; on a CPU each has all of them."""
_TOLERANCE = {False: 1e-3, True: 0.15}
"""Of a probe's logprob, by whether the trainer computes in bf16."""


def learn(run: RunDir, url: str) -> None:
    """Train a run from its last checkpoint, or from the start, to its last step.

    Raises:
        UsageError: the gateway, the model and the config do not go together.
        RunFailed: it stopped half-way; what was complete is kept.
        Interrupted: it was asked to stop; a checkpoint of the last step was saved.

    """
    config = run.config()
    if config.learn.threads is not None:
        torch.set_num_threads(config.learn.threads)
    learner = build(config, run, find_policy(config, url))
    with _stopping(learner.worker):
        learner.train()


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """All that takes part in training, put together."""

    trainer: Any
    """A GrpoTrainer, or a SyncTrainer."""
    worker: RolloutWorker
    saver: Saver
    tracker: Tracker | None
    """On the main process."""
    resume_from: Path | None

    def train(self) -> None:
        """Train to the last step; a stop in between saves what is there."""
        try:
            self.trainer.train(
                resume_from_checkpoint=str(self.resume_from) if self.resume_from else None
            )
        except Interrupted:
            step = self.trainer.state.global_step
            if step and step != self.saver.saved_step:
                self.saver.save(self.trainer, step)
            raise
        finally:
            if self.tracker is not None:
                self.tracker.close()


def build(config: TrainConfig, run: RunDir, served: Served) -> Learner:
    """Put a learner together, where its last checkpoint left off."""
    if config.learn.mode is Mode.SYNC:
        config = _sync_mode().settled(config)
    folder = Path(config.model.path)
    is_main = processes.is_main()
    checkpoints = (
        Checkpoints(run.checkpoints_path, config.checkpoints.keep)
        if is_main
        else SavedCheckpoints(run.checkpoints_path)
    )
    done = checkpoints.latest()
    state = None if done is None else checkpoints.load_state(done)
    resume_from = None if done is None else checkpoints.path(done)
    renderer = ChatRenderer.load(folder)
    worker = _worker(config, served, renderer, run.name, state, resume_from)
    publisher = _publisher(config, run, served) if is_main else None
    if publisher is not None and state is not None:
        publisher.kept = set(state.versions.values())
    tracker = None
    if is_main:
        after = state.step if state else 0
        tracker = open_tracker(config, run_dir=run.path, after_step=after, stream=sys.stdout)
    recorder = Recorder(
        tracker,
        run,
        resumed_version=state.published_version if state else None,
        temperature=config.rollouts.temperature,
    )
    saver = Saver(
        checkpoints,
        recorder,
        worker,
        publisher,
        groups_per_step=config.rollouts.groups_per_step,
        versions=dict(state.versions) if state else {},
    )
    channel = _channel(config, run, publisher, renderer)
    trainer = _trainer(config, run, worker, channel, saver, recorder)
    recorder.trainer, recorder.channel, recorder.worker = trainer, channel, worker
    plan = _step_plan(config, state.step if state else 0, trainer)
    if config.learn.mode is Mode.SYNC:
        _sync_mode().check_template(renderer, config.model.path)
        trainer.steps = _sync_mode().Turns(plan, worker, on_step=recorder.took)
    else:
        trainer.steps = _steps(plan, trainer, worker, recorder)
    return Learner(
        trainer=trainer, worker=worker, saver=saver, tracker=tracker, resume_from=resume_from
    )


def _sync_mode() -> Any:  # noqa: ANN401  # a module
    """Return the module of learn.mode=sync: only where it is asked for, since it takes seconds."""
    from train.learner import sync_mode  # noqa: PLC0415

    return sync_mode


def _steps(
    plan: StepPlan, trainer: GrpoTrainer, worker: RolloutWorker, recorder: Recorder
) -> Steps:
    return Steps(
        plan,
        worker if trainer.accelerator.is_main_process else None,
        on_step=recorder.took,
        metrics=trainer.sink,
        process=trainer.accelerator.process_index,
        process_count=trainer.accelerator.num_processes,
    )


def _worker(
    config: TrainConfig,
    served: Served,
    renderer: ChatRenderer,
    run_id: str,
    state: TrainState | None,
    resume_from: Path | None,
) -> RolloutWorker:
    schedule = Schedule(
        groups_per_step=config.rollouts.groups_per_step,
        max_staleness=config.learn.max_staleness,
        publish_every=config.publish.every,
        steps=config.learn.steps,
        done_steps=state.step if state else 0,
        groups=load_groups(resume_from / GROUPS) if resume_from else (),
    )
    rollouts = config.rollouts
    plan = Plan(
        run_id=run_id,
        run_seed=config.learn.seed,
        make_env=partial(make, config.env.name, **config.env.args),
        strategy=parse_strategy(rollouts.strategy),
        group_size=rollouts.group_size,
        concurrency=rollouts.concurrency,
        attempts=rollouts.attempts,
        reward_attempts=config.reward.attempts,
    )
    sampling = TokenSampling(
        temperature=rollouts.temperature, top_p=rollouts.top_p, max_tokens=rollouts.max_tokens
    )
    limits = RetryLimits(wait_s=config.gateway.wait_s, timeout_s=config.gateway.timeout_s)
    reward = make_reward(config.reward)

    async def connect() -> Player:
        model = TokenModel(
            open_transport(served.root, headers=served.headers),
            model=served.name,
            renderer=renderer,
            sampling=sampling,
            patience=Patience(limits),
            max_len=min(served.max_model_len, config.learn.max_row_tokens),
        )
        return Player(plan, model, reward)

    return RolloutWorker(schedule, connect)


def _publisher(config: TrainConfig, run: RunDir, served: Served) -> Publisher:
    return Publisher(
        AdminClient(served.url, served.key),
        served.name,
        swap=SwapMode(config.publish.swap),
        keep_versions=config.publish.keep_versions,
        wait_s=config.gateway.wait_s,
        memory=run.versions_path / "sent.json",
        commit=committing(config),
    )


def _channel(
    config: TrainConfig, run: RunDir, publisher: Publisher | None, renderer: ChatRenderer
) -> Channel:
    section = config.publish
    is_lora = section.channel is ChannelName.LORA or (
        section.channel is ChannelName.AUTO and config.model.lora is not None
    )
    seeds = range(_FIRST_PROBE_SEED, _FIRST_PROBE_SEED + section.probes)
    return Channel(
        publisher,
        kind=PolicyKind.LORA if is_lora else PolicyKind.FULL,
        scratch=outbox(config, run),
        source=Path(config.model.path),
        sequences=probe.sequences(
            partial(make, config.env.name, **config.env.args),
            parse_strategy(config.rollouts.strategy),
            renderer,
            seeds,
            longest=_LONGEST_PROBE,
        ),
        tolerance=section.tolerance or _TOLERANCE[uses_bf16(config.learn.precision)],
        logprobs=probe.plain_logprobs if config.learn.mode is Mode.SYNC else probe.logprobs,
    )


def _trainer(
    config: TrainConfig,
    run: RunDir,
    worker: RolloutWorker,
    channel: Channel,
    saver: Saver,
    recorder: Recorder,
) -> GrpoTrainer:
    lora = config.model.lora
    sync = config.learn.mode is Mode.SYNC
    kind = _sync_mode().SyncTrainer if sync else GrpoTrainer
    told = _sync_mode().arguments if sync else arguments
    try:
        return kind(
            model=Path(config.model.path),
            args=told(config, shared_arguments(config, run.path)),
            tokenizer=AutoTokenizer.from_pretrained(config.model.path),
            worker=worker,
            publisher=channel,
            checkpoints=saver,
            losses=LossSettings.of(config.learn),
            callbacks=[recorder],
            peft_config=lora
            and LoraConfig(
                r=lora.r,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=_targets(lora.target_modules),
                task_type="CAUSAL_LM",
            ),
        )
    except (OSError, ValueError) as error:
        raise BadModel(f"{config.model.path}: {error}") from error


def _targets(names: str | tuple[str, ...]) -> str | list[str]:
    return names if isinstance(names, str) else list(names)


def _step_plan(config: TrainConfig, done: int, trainer: GrpoTrainer) -> StepPlan:
    learn_ = config.learn
    return StepPlan(
        first=done + 1,
        last=learn_.steps,
        accumulation=learn_.accumulation,
        scale=learn_.scale,
        shuffle_seed=learn_.seed if learn_.shuffle_rewards else None,
        max_row_tokens=learn_.max_row_tokens,
        pad_token_id=trainer.processing_class.pad_token_id,
    )


def arguments(config: TrainConfig, shared: dict[str, Any]) -> AsyncGRPOConfig:
    """Return what TRL is told; `shared` is what both modes tell transformers."""
    return AsyncGRPOConfig(
        **shared,
        per_device_train_batch_size=1,
        token_budget=0,
        max_staleness=config.learn.max_staleness,
        weight_sync_steps=config.publish.every,
    )


def shared_arguments(config: TrainConfig, output: Path) -> dict[str, Any]:
    """Return what transformers is told in both modes."""
    learn_, rollouts = config.learn, config.rollouts
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(output),
        "gradient_accumulation_steps": learn_.accumulation,
        "num_generations": rollouts.group_size,
        "temperature": rollouts.temperature,
        "max_steps": learn_.steps,
        "learning_rate": learn_.learning_rate,
        "lr_scheduler_type": _schedule(learn_),
        "warmup_steps": learn_.warmup_steps,
        "weight_decay": learn_.weight_decay,
        "adam_beta2": learn_.beta2,
        "max_grad_norm": learn_.max_grad_norm,
        "gradient_checkpointing": learn_.gradient_checkpointing,
        "bf16": uses_bf16(learn_.precision),
        "use_cpu": not cuda,
        "seed": learn_.seed,
        "save_strategy": "steps",
        "save_steps": config.checkpoints.every,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": cuda,
        "log_level_replica": "error",
        "ddp_find_unused_parameters": False,
        **(_SHARDED if cuda and processes.several() else {}),
    }


def _schedule(section: LearnSection) -> str:
    """Return transformers' name: its `constant` knows no warm-up."""
    if section.schedule == "constant" and section.warmup_steps:
        return "constant_with_warmup"
    return section.schedule


def uses_bf16(precision: Precision) -> bool:
    """Whether to compute in bf16: where it is asked for, or the device has it."""
    if precision is Precision.AUTO:
        return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported())
    return precision is Precision.BF16


@contextmanager
def _stopping(worker: RolloutWorker) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the training at the next step."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        del number, frame
        worker.interrupt()

    before = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
