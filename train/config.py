"""What a training run can be told: one typed tree, unknown keys refused.

The order of precedence is `--set a.b=c` over the other options over the environment over the YAML
file over the defaults here. The resolved tree is stored with the run as `config.yaml`, its digest
in `run.json`.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from train.environment import experiment
from train.errors import BadConfig
from train.target import BudgetSection, ComputeSection, NotifySection, Section, VolumesSection
from train.trees import complaint, put


class Mode(StrEnum):
    """How rollouts and updates take turns."""

    ASYNC = "async"
    """Episodes are played while the trainer learns; staleness is bounded by admission."""
    SYNC = "sync"
    """TRL's GRPOTrainer: play a batch, learn from it, publish. FULL_HISTORY only."""


class Loss(StrEnum):
    """The objective, under TRL's names."""

    GRPO = "grpo"
    """Mean over rows of each row's token mean, clipped ratio."""
    DR_GRPO = "dr_grpo"
    """Sum over tokens divided by rows times `max_row_tokens`: no bias for length."""
    DAPO = "dapo"
    """Mean over all tokens of the step, clipped ratio."""
    CISPO = "cispo"
    """Mean over all tokens; the ratio is capped and weighs the gradient, no token is cut off."""


class Scale(StrEnum):
    """What the centred returns of a group are divided by."""

    GROUP = "group"
    """The group's own standard deviation."""
    BATCH = "batch"
    """The standard deviation over the step's rewards."""
    NONE = "none"
    """Nothing."""


class Importance(StrEnum):
    """How tokens are corrected for the weights that sampled them being others (TRL's modes)."""

    NONE = "none"
    """Only by the loss's own ratio, taken against the sampler's logprobs."""
    TOKEN_TRUNCATE = "token_truncate"  # noqa: S105  # no password
    """Each token weighs its ratio, at most the cap."""
    TOKEN_MASK = "token_mask"  # noqa: S105
    """Each token weighs its ratio; those beyond the cap, or below its inverse, weigh nothing."""
    SEQUENCE_TRUNCATE = "sequence_truncate"
    """Each row weighs its ratio, at most the cap."""
    SEQUENCE_MASK = "sequence_mask"
    """Each row weighs its ratio; those beyond the cap, or below its inverse, weigh nothing."""


class Channel(StrEnum):
    """How new weights reach the replicas."""

    AUTO = "auto"
    """`lora` where an adapter is trained, else `full`."""
    FULL = "full"
    """All weights, by the gateway's file-backed swap; an adapter is merged first."""
    LORA = "lora"
    """The adapter under a new name for each version; the base stays."""


class Precision(StrEnum):
    """The numbers that the trainer computes with."""

    AUTO = "auto"
    """bf16 where the device has it, else fp32."""
    FP32 = "fp32"
    BF16 = "bf16"


class EnvSection(Section):
    """The env to play."""

    name: str
    """A shipped env, or FILE.py:Class."""
    args: dict[str, Any] = Field(default_factory=dict)
    """The env's constructor arguments."""


class LoraSection(Section):
    """The adapter, where one is trained instead of all weights."""

    r: int = Field(default=16, ge=1, le=512)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"


class ModelSection(Section):
    """The policy to improve."""

    path: str
    """A folder in Hugging Face's layout, a name `serve pull` knows, or a hub id."""
    name: str | None = None
    """What requests call it; None: the folder's name."""
    lora: LoraSection | None = None
    overrides: dict[str, str] = Field(default_factory=dict)
    """Another `path` by env name; it wins unless the command line or the environment say a path.

    Where the config is resolved the choice has been made, and this is empty.
    """


class GatewaySection(Section):
    """The gateway that episodes are played through."""

    url: str | None = None
    """http://HOST:PORT/v1; None starts one, with its engines, for the run."""
    api_key_env: str = "PALAESTRA_API_KEY"
    """The variable that holds a key with the scopes train and admin, where the gateway asks."""
    replicas: int = Field(default=1, ge=1)
    """Engines of a gateway of one's own."""
    max_model_len: int | None = Field(default=None, ge=16)
    """Prompt and completion of one call, in tokens, of a gateway of one's own."""
    gpu_share: float | None = Field(default=None, gt=0, lt=1)
    """Of a GPU's memory, for an engine of one's own; None: half where `compute` has one GPU."""
    engine_args: tuple[str, ...] = ()
    """Further words for vLLM's command line."""
    timeout_s: float = Field(default=120.0, gt=0)
    """For one completion."""
    wait_s: float = Field(default=300.0, ge=0)
    """How long a gateway may be away, or starting up, before the run stops."""


class RolloutSection(Section):
    """How episodes are played."""

    strategy: str = "FULL_HISTORY"
    """A history strategy of evalkit's."""
    group_size: int = Field(default=8, ge=2)
    """Episodes of one env seed, compared with each other."""
    groups_per_step: int = Field(default=8, ge=1)
    """Env seeds per optimizer step."""
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only 1: the trainer knows the logprobs of whole distributions, not of truncated ones."""
    max_tokens: int = Field(default=64, ge=1)
    """Of one completion."""
    concurrency: int = Field(default=64, ge=1)
    """Episodes in flight at once."""
    attempts: int = Field(default=3, ge=1)
    """How often a group that lost an episode to infrastructure is played before the run stops."""


class RewardSection(Section):
    """What an episode is worth."""

    name: str = "env"
    """`env`: the env's own return; `shaped`: that with bonuses; or pkg.mod:Class."""
    args: dict[str, Any] = Field(default_factory=dict)
    """The reward's constructor arguments."""
    attempts: int = Field(default=2, ge=1)
    """Tries to score an episode before it is dropped from its group."""


class LearnSection(Section):
    """How weights change."""

    mode: Mode = Mode.ASYNC
    steps: int = Field(default=100, ge=1)
    """Optimizer steps."""
    loss: Loss = Loss.DAPO
    scale: Scale = Scale.GROUP
    epsilon_low: float = Field(default=0.2, gt=0, lt=1)
    epsilon_high: float = Field(default=0.2, gt=0)
    """Bounds of the clipped ratio; for cispo the upper one is the cap."""
    importance: Importance = Importance.NONE
    importance_cap: float = Field(default=2.0, gt=1)
    max_staleness: int = Field(default=1, ge=0)
    """Versions that the sampler of a trained token may be behind; 0 plays and learns in turns."""
    max_row_tokens: int = Field(default=2048, ge=16)
    """Longest row that is trained on, in tokens; the constant of dr_grpo."""
    learning_rate: float = Field(default=1e-6, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = Field(default=0.0, ge=0)
    beta2: float = Field(default=0.99, gt=0, lt=1)
    """Adam's second moment."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    accumulation: int = Field(default=1, ge=1)
    """Micro-batches per step; each holds an equal share of the groups."""
    gradient_checkpointing: bool = False
    precision: Precision = Precision.AUTO
    threads: int | None = Field(default=None, ge=1)
    """Torch's threads on a CPU; None: 1 beside a gateway of one's own, else torch's choice."""
    processes: int = Field(default=1, ge=1)
    """Trainer processes: one per GPU, which share the weights by FSDP2; on a CPU by DDP."""
    seed: int = Field(default=0, ge=0)
    """Of the run: order of env seeds, sampling, initial adapter."""
    shuffle_rewards: bool = False
    """A control: returns change places within each step, so that nothing can be learned."""


class PublishSection(Section):
    """How new versions go live."""

    every: int = Field(default=1, ge=1)
    """Steps between versions."""
    channel: Channel = Channel.AUTO
    swap: Literal["wait", "keep"] = "keep"
    """What becomes of completions in flight: they finish first, or go on, labelled per token."""
    probes: int = Field(default=4, ge=0)
    """Prompts on which replicas must agree with the trainer before they are live; 0: no gate."""
    tolerance: float | None = Field(default=None, gt=0)
    """Largest difference of a probe's logprob; None: 1e-3 in fp32, 0.15 in bf16."""
    keep_versions: int = Field(default=4, ge=1)
    """Versions between checkpoints that stay on disk."""


class CheckpointSection(Section):
    """What is kept of a run."""

    every: int = Field(default=20, ge=1)
    """Steps between checkpoints; the last step always makes one."""
    keep: int = Field(default=3, ge=1)
    """Newest ones that stay; the last one always does."""


class TrackSection(Section):
    """Who is told."""

    wandb_project: str | None = None
    """None: Weights & Biases is not used."""
    wandb_entity: str | None = None
    wandb_mode: Literal["online", "offline"] = "online"
    run_name: str | None = None
    """None: the run's own name."""


class TrainConfig(Section):
    """A whole training run."""

    env: EnvSection
    model: ModelSection
    gateway: GatewaySection = GatewaySection()
    rollouts: RolloutSection = RolloutSection()
    reward: RewardSection = RewardSection()
    learn: LearnSection = LearnSection()
    publish: PublishSection = PublishSection()
    checkpoints: CheckpointSection = CheckpointSection()
    track: TrackSection = TrackSection()
    compute: ComputeSection = ComputeSection()
    volumes: VolumesSection = VolumesSection()
    budget: BudgetSection = BudgetSection()
    notify: NotifySection = NotifySection()
    out: str = "runs"
    """The folder that run directories are made in."""
    restarts: int = Field(default=3, ge=0)
    """How often a trainer that died is started again from its last checkpoint."""

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        learn = self.learn
        if self.rollouts.groups_per_step % learn.accumulation:
            raise ValueError(
                f"learn.accumulation ({learn.accumulation}) must divide "
                f"rollouts.groups_per_step ({self.rollouts.groups_per_step})"
            )
        if self.rollouts.top_p < 1:
            raise ValueError(
                f"rollouts.top_p must be 1, not {self.rollouts.top_p:g}: a sampler tells logprobs "
                "of the truncated distribution then, and the trainer of the whole one"
            )
        strategy, alone = self.rollouts.strategy, [learn.processes, self.publish.every]
        grows = strategy.startswith("FULL_HISTORY") and "drop_oldest" not in strategy
        if learn.mode is Mode.SYNC and not grows:
            raise ValueError(
                "learn.mode=sync has one row per episode: rollouts.strategy must be FULL_HISTORY "
                f"without drop_oldest, not {strategy}"
            )
        if learn.mode is Mode.SYNC and alone != [1, 1]:
            raise ValueError(
                f"learn.mode=sync needs learn.processes and publish.every to be 1, not {alone}"
            )
        if learn.loss is Loss.CISPO and learn.epsilon_high < 1:
            raise ValueError(
                "learn.loss=cispo takes learn.epsilon_high as the cap of the ratio itself: it must "
                f"be at least 1 (TRL advises 5), not {learn.epsilon_high:g}"
            )
        if self.publish.channel is Channel.LORA and self.model.lora is None:
            raise ValueError("publish.channel=lora needs model.lora")
        self._fits_compute()
        return self

    def _fits_compute(self) -> None:
        compute, processes = self.compute, self.learn.processes
        gpus = compute.gpu_count * compute.nodes
        if gpus and processes > gpus:
            raise ValueError(
                f"learn.processes ({processes}) is one per GPU, and compute has {gpus}: "
                f"compute.gpu={compute.gpu}, compute.nodes={compute.nodes}"
            )
        if compute.nodes > 1 and (self.gateway.url is None or processes % compute.nodes):
            raise ValueError(
                "compute.nodes > 1 needs gateway.url, a gateway that all nodes reach, and "
                "learn.processes that nodes divides"
            )


def load(path: Path | None, overrides: Mapping[str, Any]) -> TrainConfig:
    """Read a YAML file, if one is given, and put `overrides` over it.

    `overrides` are dotted keys (`learn.steps`) with values of any type, None among them.

    Raises:
        BadConfig: the file cannot be read, or a key or value is not known; says which.

    """
    return resolve({} if path is None else read_tree(path), overrides, path)


def read_tree(path: Path) -> dict[str, Any]:
    """Read a YAML file as it is; raise BadConfig if that cannot be done."""
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadConfig(f"cannot read {path}: {error}") from None
    if not isinstance(read, dict):
        raise BadConfig(f"{path}: expected a mapping of sections")
    return read


def resolve(
    tree: dict[str, Any], overrides: Mapping[str, Any], path: Path | None = None
) -> TrainConfig:
    """Return the config of a tree with `overrides` over it; `path` is where it came from.

    Raises:
        BadConfig: a key or value is not known; says which.

    """
    whole = copy.deepcopy(tree)
    for key, value in overrides.items():
        put(whole, key, value)
    try:
        config = TrainConfig.model_validate(whole)
    except ValidationError as error:
        raise BadConfig(complaint(error, path)) from None
    model, volumes = config.model, config.volumes
    chosen = model.path if "model.path" in overrides else model.overrides.get(config.env.name)
    told = {"path": chosen or model.path, "overrides": {}}
    names = {name: experiment(text) for name, text in volumes if name != "root"}
    return config.model_copy(
        update={
            "model": model.model_copy(update=told),
            "volumes": volumes.model_copy(update=names),
        }
    )


def parse_setting(text: str) -> tuple[str, Any]:
    """Read `a.b=c`; the value is YAML.

    Raises:
        BadConfig: there is no `=`, or the value is no YAML.

    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise BadConfig(f"--set takes SECTION.KEY=VALUE, not {text!r}")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BadConfig(f"--set {key}: {value!r} is no YAML: {error}") from None


def dumps(config: TrainConfig) -> str:
    """Return the resolved config as YAML, which `load` reads back to an equal one."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text


def digest(config: TrainConfig) -> str:
    """Return the SHA-256 of a resolved config; equal configs have equal ones."""
    told = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(told.encode()).hexdigest()
