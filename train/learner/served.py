"""The policy on its gateway: where it is, what it is called, how long its context is."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from evalkit.connect import choose_model, probe
from evalkit.errors import EvalkitError
from evalkit.specs import ModelSpec, parse_model
from train.config import TrainConfig
from train.errors import BadModel, GatewayLost

_UNKNOWN_LENGTH = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A policy behind a URL."""

    url: str
    """Up to /v1."""
    key: str | None
    name: str
    max_model_len: int
    """Prompt and completion together, in tokens; very large where the server does not say."""

    @property
    def root(self) -> str:
        """The gateway's own address."""
        return self.url.removesuffix("/v1")

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


def find_policy(config: TrainConfig, url: str) -> Served:
    """Ask the gateway for the policy that is to be trained.

    Raises:
        BadModel: it is not served there, or the key is not taken.
        GatewayLost: nobody answers for as long as the config waits.

    """
    key = os.environ.get(config.gateway.api_key_env) or None
    target = parse_model(url).target
    spec = ModelSpec(label=None, target=target, name=config.model.name)
    served = Served(url=target, key=key, name="", max_model_len=0)
    wait_s = config.gateway.wait_s
    try:
        models, _ = asyncio.run(probe(target, served.headers, wait_s=wait_s, absent_s=wait_s))
    except EvalkitError as error:
        raise GatewayLost(str(error)) from error
    try:
        name, length = choose_model(spec, models)
    except EvalkitError as error:
        raise BadModel(str(error)) from error
    if length and config.rollouts.max_tokens >= length:
        raise BadModel(
            f"rollouts.max_tokens ({config.rollouts.max_tokens}) leaves no room for a prompt: "
            f"{target} serves {name} with {length} tokens in all"
        )
    return Served(url=target, key=key, name=name, max_model_len=length or _UNKNOWN_LENGTH)
