"""From a config to what plays: its env, its models connected, the arms they make."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from envs import BadEnvParams, TextEnv, UnknownEnv, digest, env_class, env_id, make
from evalkit.config import RunConfig
from evalkit.connect import Connected, connect, require_playable
from evalkit.errors import BadConfig
from evalkit.play.gate import Gate
from evalkit.play.gauges import watched
from evalkit.play.policy import Policy
from evalkit.play.rollout import Arm
from evalkit.play.strategies import parse_strategy
from evalkit.specs import ModelSpec, parse_model


def env_factory(config: RunConfig) -> Callable[[], TextEnv]:
    """Return what makes the config's env, having made one.

    Raises:
        BadConfig: there is no such env, or not with these parameters.

    """
    try:
        make(config.env, **config.env_args)
        return partial(env_class(config.env), **config.env_args)
    except (UnknownEnv, BadEnvParams) as error:
        raise BadConfig(str(error)) from error


@asynccontextmanager
async def open_arms(
    config: RunConfig, make_env: Callable[[], TextEnv], run_id: str, own: Policy | None
) -> AsyncIterator[tuple[list[Arm], dict[str, Connected]]]:
    """Connect every model and combine models, strategies and kinds of answer into arms."""
    specs = config.models()
    require_playable(specs, config, own=own is not None)
    async with AsyncExitStack() as stack:
        connected: dict[str, Connected] = {}
        gates: dict[str, Gate] = {}
        for label, spec in specs:
            gate = await stack.enter_async_context(_gate(label, spec, config, gates))
            found = await _connected(label, spec, config, own, gate)
            if own is None:  # a policy of the caller's is the caller's to close
                await stack.enter_async_context(found.policy)
            connected[label] = found
        yield _arms(config, specs, connected, make_env, run_id), connected


@asynccontextmanager
async def _gate(
    label: str, spec: ModelSpec, config: RunConfig, gates: dict[str, Gate]
) -> AsyncIterator[Gate | None]:
    """Give a model the gate of its server, where concurrency adapts: models may share it."""
    if config.concurrency != "auto" or not spec.is_url:
        yield None
    elif spec.target in gates:
        yield gates[spec.target]
    else:
        gate = gates[spec.target] = Gate()
        key = config.api_key(label)
        async with watched(gate, spec.target, {"Authorization": f"Bearer {key}"} if key else {}):
            yield gate


async def _connected(
    label: str, spec: ModelSpec, config: RunConfig, own: Policy | None, gate: Gate | None
) -> Connected:
    if own is not None:
        return Connected(policy=own, model=type(own).__qualname__)
    return await connect(label, spec, config, gate)


def _arms(
    config: RunConfig,
    specs: Sequence[tuple[str, ModelSpec]],
    connected: Mapping[str, Connected],
    make_env: Callable[[], TextEnv],
    run_id: str,
) -> list[Arm]:
    return [
        Arm(
            name=arm_name(config, label, strategy, guided=guided),
            policy=connected[label].policy,
            strategy=parse_strategy(strategy),
            make_env=make_env,
            run_id=run_id,
            run_seed=config.run_seed,
            guided=guided,
            keep_reasoning=config.keep_reasoning,
        )
        for label, _ in specs
        for strategy in config.strategy
        for guided in config.guided
    ]


def arm_name(config: RunConfig, label: str, strategy: str, *, guided: bool) -> str:
    """Name an arm by what distinguishes it: label, strategy, kind of answer."""
    parts = []
    if len(config.model) > 1 or parse_model(config.model[0]).label:
        parts.append(label)
    if len(config.strategy) > 1:
        parts.append(slug(strategy))
    if len(config.guided) > 1:
        parts.append("guided" if guided else "free")
    return ".".join(parts) or label


def run_id_of(config: RunConfig, env: TextEnv) -> str:
    """Name a run by its env and by everything that can change a trajectory."""
    return f"{slug(env_id(env))}-{config.digest(digest(env))}"


def slug(text: str) -> str:
    """Write a text as one word of letters, digits and underscores."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_")
