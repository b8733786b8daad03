"""What a training run can be told: one typed tree, unknown keys refused.

The order of precedence is `--set a.b=c` over the other options over the YAML file over the
defaults here. The resolved tree is stored with the run as `config.yaml`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from train.errors import BadConfig


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


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EnvSection(_Section):
    """The env to play."""

    name: str
    """A shipped env, or FILE.py:Class."""
    args: dict[str, Any] = Field(default_factory=dict)
    """The env's constructor arguments."""


class LoraSection(_Section):
    """The adapter, where one is trained instead of all weights."""

    r: int = Field(default=16, ge=1, le=512)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"


class ModelSection(_Section):
    """The policy to improve."""

    path: str
    """A folder in Hugging Face's layout, a name `serve pull` knows, or a hub id."""
    name: str | None = None
    """What requests call it; None: the folder's name."""
    lora: LoraSection | None = None


class GatewaySection(_Section):
    """The gateway that episodes are played through."""

    url: str | None = None
    """http://HOST:PORT/v1; None starts one, with its engines, for the run."""
    api_key_env: str = "PALAESTRA_API_KEY"
    """The variable that holds a key with the scopes train and admin, where the gateway asks."""
    replicas: int = Field(default=1, ge=1)
    """Engines of a gateway of one's own."""
    max_model_len: int | None = Field(default=None, ge=16)
    """Prompt and completion of one call, in tokens, of a gateway of one's own."""
    engine_args: tuple[str, ...] = ()
    """Further words for vLLM's command line."""
    timeout_s: float = Field(default=120.0, gt=0)
    """For one completion."""
    wait_s: float = Field(default=300.0, ge=0)
    """How long a gateway may be away, or starting up, before the run stops."""


class RolloutSection(_Section):
    """How episodes are played."""

    strategy: str = "FULL_HISTORY"
    """A history strategy of evalkit's."""
    group_size: int = Field(default=8, ge=2)
    """Episodes of one env seed, compared with each other."""
    groups_per_step: int = Field(default=8, ge=1)
    """Env seeds per optimizer step."""
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=64, ge=1)
    """Of one completion."""
    concurrency: int = Field(default=64, ge=1)
    """Episodes in flight at once."""
    attempts: int = Field(default=3, ge=1)
    """How often a group that lost an episode to infrastructure is played before the run stops."""


class RewardSection(_Section):
    """What an episode is worth."""

    name: str = "env"
    """`env`: the env's own return; `shaped`: that with bonuses; or pkg.mod:Class."""
    args: dict[str, Any] = Field(default_factory=dict)
    """The reward's constructor arguments."""
    attempts: int = Field(default=2, ge=1)
    """Tries to score an episode before it is dropped from its group."""


class LearnSection(_Section):
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
    """Trainer processes, one per GPU, by accelerate and FSDP."""
    seed: int = Field(default=0, ge=0)
    """Of the run: order of env seeds, sampling, initial adapter."""
    shuffle_rewards: bool = False
    """A control: returns change places within each step, so that nothing can be learned."""


class PublishSection(_Section):
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


class CheckpointSection(_Section):
    """What is kept of a run."""

    every: int = Field(default=20, ge=1)
    """Steps between checkpoints; the last step always makes one."""
    keep: int = Field(default=3, ge=1)
    """Newest ones that stay; the last one always does."""


class TrackSection(_Section):
    """Who is told."""

    wandb_project: str | None = None
    """None: Weights & Biases is not used."""
    wandb_entity: str | None = None
    wandb_mode: Literal["online", "offline"] = "online"
    run_name: str | None = None
    """None: the run's own name."""


class TrainConfig(_Section):
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
        if learn.mode is Mode.SYNC and not self.rollouts.strategy.startswith("FULL_HISTORY"):
            raise ValueError(
                "learn.mode=sync has one row per episode: rollouts.strategy must be FULL_HISTORY, "
                f"not {self.rollouts.strategy}"
            )
        if learn.loss is Loss.CISPO and learn.epsilon_high < 1:
            raise ValueError(
                "learn.loss=cispo takes learn.epsilon_high as the cap of the ratio itself: it must "
                f"be at least 1 (TRL advises 5), not {learn.epsilon_high:g}"
            )
        if self.publish.channel is Channel.LORA and self.model.lora is None:
            raise ValueError("publish.channel=lora needs model.lora")
        return self


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
        _put(whole, key, value)
    try:
        return TrainConfig.model_validate(whole)
    except ValidationError as error:
        raise BadConfig(_complaint(error, path)) from None


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


def _put(tree: dict[str, Any], key: str, value: Any) -> None:  # noqa: ANN401  # YAML
    """Set a dotted key, making the sections on its way."""
    *sections, last = key.split(".")
    at = tree
    for section in sections:
        below = at.get(section)
        if below is None:
            below = at[section] = {}
        if not isinstance(below, dict):
            raise BadConfig(f"{key}: {section} is a value, not a section")
        at = below
    at[last] = value


def _complaint(error: ValidationError, path: Path | None) -> str:
    """Return one line per fault, by dotted key."""
    where = f"{path}: " if path else ""
    lines = []
    for fault in error.errors():
        key = ".".join(map(str, fault["loc"])) or "config"
        if fault["type"] == "extra_forbidden":
            lines.append(f"{where}{key}: no such key")
        elif fault["type"] == "missing":
            lines.append(f"{where}{key}: is missing")
        else:
            said = fault["msg"].removeprefix("Value error, ")
            lines.append(f"{where}{key}: {said}")
    return "\n".join(lines)
